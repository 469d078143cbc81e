"""Mixtures of types: read out of a file that has one, and found for a model and a size."""
