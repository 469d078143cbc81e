"""Architectures of which no graph is written, and what is missing: every other one says in its row how it computes."""

from __future__ import annotations

from collections.abc import Mapping

INDEXER = "an indexer chooses which tokens a token sees, by keys of its own that no cache here has"
STREAMS = "several residual streams lead through its blocks"

WITHOUT: Mapping[str, str] = {
    "cogvlm": "its blocks have matrices for tokens of images, too, which a graph of texts would lose",
    "deepseek32": INDEXER,
    "deepseek4": f"{STREAMS}, and keys are compressed behind a window",
    "eagle3": "it is a draft, which reads layers of another model",
    "gemma4-assistant": "it is a draft, which reads keys and values of another model",
    "glm-dsa": INDEXER,
    "glm5-next": f"{STREAMS}, and {INDEXER}",
    "grovemoe": "which weights the experts have that others share is not known: transformers has no class of it",
    "hrm_text": "two stacks of blocks run in cycles",
    "hy_v4": f"{STREAMS}, and {INDEXER}",
    "kimi-k3": "its residuals are weighed against those of earlier blocks",
    "minimax-m3": INDEXER,
    "qwen4exp": f"{STREAMS}, and {INDEXER}",
    "t5": "it is two models, an encoder and a decoder that reads it; a folder of it is traced",
    "t5encoder": "positions are biases by buckets of distances; a folder of it is traced",
}
