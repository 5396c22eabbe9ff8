"""Graph passes with onnx-graphsurgeon, from the float graph to the quantized one; never torch."""
