"""Greedy tokens of an ONNX folder in onnxruntime-genai, in its own environment: `python genai_client.py FOLDER BOS PAD`
prints JSON. Its tokenizer does not add the first token, and batches are padded behind a text, without effect on it.
"""

import json
import sys

import numpy as np
import onnxruntime_genai as genai

folder, bos, pad = sys.argv[1], *map(int, sys.argv[2:])
model = genai.Model(folder)
tokenizer = genai.Tokenizer(model)


def generated(texts: list[str]) -> list[list[int]]:
    rows = [[bos, *tokenizer.encode(text).tolist()] for text in texts]
    length = max(map(len, rows))
    params = genai.GeneratorParams(model)
    params.set_search_options(max_length=length + 32, do_sample=False, batch_size=len(rows))
    generator = genai.Generator(model, params)
    generator.append_tokens(np.array([row + [pad] * (length - len(row)) for row in rows], np.int32))
    while not generator.is_done():
        generator.generate_next_token()
    found = [generator.get_sequence(index).tolist() for index in range(len(rows))]
    return [[*row, *own[length:]] for row, own in zip(rows, found, strict=True)]


two = ["And God said", "In the beginning God created the heaven and the earth"]
print(json.dumps({"one": generated(["And God said unto Moses"]), "two": generated(two)}))
