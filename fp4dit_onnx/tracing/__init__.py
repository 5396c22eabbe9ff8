"""From a configuration to ONNX graphs without weights; each kind of block is traced once."""
