"""What is in a model, and what it takes to run it."""
