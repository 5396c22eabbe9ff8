"""Calibration in PyTorch: from a float transformer to a quantized state. Never imports onnx."""
