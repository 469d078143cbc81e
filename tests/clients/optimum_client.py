"""Greedy tokens of an ONNX folder in optimum, in its own environment: `optimum_client.py FOLDER FILE` prints JSON."""

import json
import sys
from typing import Any

from optimum.onnxruntime import ORTModelForCausalLM
from transformers import AutoTokenizer

folder, file = sys.argv[1:]
tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left")
tokenizer.pad_token = tokenizer.eos_token
model = ORTModelForCausalLM.from_pretrained(folder, subfolder="onnx", file_name=file)


def generated(texts: list[str]) -> list[list[int]]:
    inputs: Any = tokenizer(texts, return_tensors="pt", padding=len(texts) > 1)
    inputs.pop("token_type_ids", None)
    found: list[list[int]] = model.generate(**inputs, max_new_tokens=32, do_sample=False).tolist()
    return found


texts = ["And God said", "In the beginning God created the heaven and the earth"]
print(json.dumps({"one": generated(["And God said unto Moses"]), "two": generated(texts)}))
