"""What a model does with text: tokens to read, and what goes into each of its matrix products meanwhile."""
