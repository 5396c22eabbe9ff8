"""Tokenizers as they are published, made one ``tokenizer.json`` each."""

from fp4dit_onnx.tokenizer_files.layouts import (
    WHOLE,
    check_tokenizer,
    copy_tokenizer,
    read_parts,
)

__all__ = ["WHOLE", "check_tokenizer", "copy_tokenizer", "read_parts"]
