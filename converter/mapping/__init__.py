"""Hugging Face names, shapes and configuration to GGUF's and back, by an architecture's rows."""
