"""Adapters (LoRA and its like): what they say, merging them into a model, and making GGUF adapters of them."""
