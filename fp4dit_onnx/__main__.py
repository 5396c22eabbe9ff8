"""``python -m fp4dit_onnx`` is the command ``fp4dit-onnx``."""

from fp4dit_onnx.cli import main

if __name__ == "__main__":
    main()
