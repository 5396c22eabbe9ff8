"""The commands of fp4dit-onnx, a module each: `run` is the command, its docstring the help."""
