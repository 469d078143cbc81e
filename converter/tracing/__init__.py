"""ONNX graphs of what no architecture data describes: torch traces the model, in a process of its own, weightless."""
