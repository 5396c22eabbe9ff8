"""From networks without weights to ONNX graphs; each kind of block is traced once."""
