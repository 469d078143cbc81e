"""Models run by llama.cpp, transformers and ONNX Runtime: texts scored, tokens generated."""
