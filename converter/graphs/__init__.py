"""Models as ONNX graphs, written operator by operator from what their architecture's rows, keys and tensors say."""
