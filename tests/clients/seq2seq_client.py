"""Tokens of an encoder and a decoder in optimum, in its own environment: `seq2seq_client.py FOLDER FEEDS WISHES`.

FEEDS are the ids and the mask of a batch, WISHES what `generate` is asked for, both as JSON; prints JSON.
"""

import json
import sys

import torch
from optimum.onnxruntime import ORTModelForSeq2SeqLM

folder, feeds, wishes = sys.argv[1:]
model = ORTModelForSeq2SeqLM.from_pretrained(folder, subfolder="onnx")
given = {name: torch.tensor(rows) for name, rows in json.loads(feeds).items()}
print(json.dumps(model.generate(**given, **json.loads(wishes)).tolist()))
