"""Packages that no one who only converts should need."""

from __future__ import annotations

# Installed by extras or for tests only, or slow to import: never at module level.
HEAVY = {
    "torch", "transformers", "tokenizers", "sentencepiece", "safetensors", "onnx", "onnxruntime", "h5py", "keras",
    "tensorflow", "flax", "msgpack", "tflite", "gguf", "llama_cpp", "huggingface_hub", "distributed", "rich", "jinja2",
    "selenium", "opentelemetry",
}  # fmt: skip
