"""Vectors of texts in sentence-transformers, in its own environment: `sentence_client.py FOLDER BACKEND [FILE]`.

Of each text alone, and of all at once with padding on either side, as JSON.
"""

import json
import sys

from sentence_transformers import SentenceTransformer

TEXTS = [
    "The quick brown fox jumps over the lazy dog.",
    "a",
    "Zwei Straßen weiter fängt der Wald an, naïve façade!",
    "The committee, whose members had long since stopped listening, voted once again to postpone the vote. " * 5,
]

folder, backend, *file = sys.argv[1:]
model = SentenceTransformer(folder, backend=backend, device="cpu", model_kwargs={"file_name": file[0]} if file else {})


def vectors(side: str, texts: int) -> list[list[float]]:
    model.tokenizer.padding_side = side
    found: list[list[float]] = model.encode(TEXTS, batch_size=texts).tolist()
    return found


print(json.dumps({"alone": vectors("right", 1), "right": vectors("right", 4), "left": vectors("left", 4)}))
