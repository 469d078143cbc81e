"""llama.cpp in a process of its own, so that nothing it does can reach the test run: JSON in, JSON out.

{"model": PATH, "generate": [tokens], "count": 64}  ->  tokens, greedy, with an F32 cache
{"model": PATH, "tokenize": [texts]}                ->  token ids of each text
{"model": PATH, "logits": [tokens]}                 ->  logits after each token, with an F32 cache; where there is an
                                                        encoder, it has read the same tokens before
{..., "logits": [tokens], "lora": PATH}             ->  the same of the model with a GGUF adapter
{"model": PATH, "embeddings": [tokens]}             ->  the vector of each token, for models without a head
{"model": PATH, "scores": [tokens]}                 ->  what a classifier says of a text, one number for each label
{"model": PATH, "pooled": [texts]}                  ->  the vector of each text, pooled as the file says
{"model": PATH, "perplexity": text}                 ->  perplexity
"""

from __future__ import annotations

import json
import subprocess
import sys
from itertools import islice
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent.parent


def ask(model: Path, **question: Any) -> Any:
    """Run this file on a question."""
    text = json.dumps({"model": str(model), **question})
    done = subprocess.run([sys.executable, __file__], input=text, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout)


def answer(question: dict[str, Any]) -> Any:
    import llama_cpp
    from llama_cpp import GGML_TYPE_F32, LLAMA_POOLING_TYPE_NONE, LLAMA_POOLING_TYPE_RANK, Llama, llama_get_embeddings

    path = question["model"]
    if "perplexity" in question:
        sys.path.insert(0, str(ROOT / "benchmarks"))
        from perplexity import perplexity

        return perplexity(Path(path), question["perplexity"])
    if "tokenize" in question:
        model = Llama(path, vocab_only=True, verbose=False)
        return [model.tokenize(text.encode(), add_bos=True, special=True) for text in question["tokenize"]]
    if "embeddings" in question:
        tokens = question["embeddings"]
        model = Llama(path, verbose=False, n_ctx=256, n_threads=1, embedding=True, pooling_type=LLAMA_POOLING_TYPE_NONE)
        model._batch.add_sequence(tokens, 0, True)
        encoder = llama_cpp.llama_model_has_encoder(model._model.model)
        (model._ctx.encode if encoder else model._ctx.decode)(model._batch)
        found, width = llama_get_embeddings(model._ctx.ctx), model.n_embd()
        return [found[i * width : (i + 1) * width] for i in range(len(tokens))]
    if "scores" in question:
        tokens = question["scores"]
        model = Llama(path, verbose=False, n_ctx=256, n_threads=1, embedding=True, pooling_type=LLAMA_POOLING_TYPE_RANK)
        model._batch.add_sequence(tokens, 0, True)
        model._ctx.decode(model._batch)
        found = llama_cpp.llama_get_embeddings_seq(model._ctx.ctx, 0)
        return found[: llama_cpp.llama_model_n_cls_out(model._model.model)]
    if "pooled" in question:
        model = Llama(path, verbose=False, n_ctx=512, n_batch=512, embedding=True)
        return [model.embed(text, truncate=False) for text in question["pooled"]]
    if "logits" in question:
        options = {"n_ctx": 256, "logits_all": True, "n_threads": 1, "type_k": GGML_TYPE_F32, "type_v": GGML_TYPE_F32}
        model = Llama(path, verbose=False, lora_path=question.get("lora"), **options)
        if llama_cpp.llama_model_has_encoder(model._model.model):
            model._batch.set_batch(batch=question["logits"], n_past=0, logits_all=True)
            model._ctx.encode(model._batch)
        if model._ctx.memory is None:  # a text at once, and nothing is kept of it
            model._batch.set_batch(batch=question["logits"], n_past=0, logits_all=True)
            model._ctx.decode(model._batch)
            found, n_vocab = llama_cpp.llama_get_logits(model._ctx.ctx), model.n_vocab()
            return [found[i * n_vocab : (i + 1) * n_vocab] for i in range(len(question["logits"]))]
        model.eval(question["logits"])
        return model.scores[: len(question["logits"])].tolist()
    model = Llama(path, n_ctx=256, verbose=False, type_k=GGML_TYPE_F32, type_v=GGML_TYPE_F32)
    tokens = model.generate(question["generate"], temp=0.0, repeat_penalty=1.0)
    return [int(token) for token in islice(tokens, question["count"])]


if __name__ == "__main__":
    print(json.dumps(answer(json.load(sys.stdin))))
