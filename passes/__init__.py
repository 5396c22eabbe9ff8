"""Graph passes with onnx-graphsurgeon: from the float graph to the quantized one. Never imports torch."""
