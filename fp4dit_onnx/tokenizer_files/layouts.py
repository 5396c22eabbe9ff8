"""Which files make a tokenizer, by transformers' class of it; their check, and their conversion."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from tokenizers import Tokenizer

from fp4dit_onnx.bundle.writing import copy_files
from fp4dit_onnx.errors import CheckpointError
from fp4dit_onnx.files import CHECKPOINT, LARGE, read_json, read_text, write_text
from fp4dit_onnx.tokenizer_files.settings import CONFIG, Settings, made_elsewhere
from fp4dit_onnx.tokenizer_files.unigram import read_unigram
from fp4dit_onnx.tokenizer_files.vocabularies import read_bert, read_clip

__all__ = ["LAYOUTS", "WHOLE", "check_tokenizer", "copy_tokenizer", "read_parts"]

WHOLE = "tokenizer.json"
"""The tokenizer in one file, which is preferred where it is there."""


@dataclass(frozen=True)
class Layout:
    """How a class is published where it has no tokenizer.json.

    Attributes:
        files: that there must be.
        read: makes the tokenizer of its folder.
    """

    files: tuple[str, ...]
    read: Callable[[Path], tuple[Tokenizer, Settings]]


LAYOUTS: Mapping[str, Layout] = {
    "T5Tokenizer": Layout(("spiece.model",), read_unigram),
    "CLIPTokenizer": Layout(("vocab.json", "merges.txt"), read_clip),
    "BertTokenizer": Layout(("vocab.txt",), read_bert),
}
"""By class, without the ``Fast`` of older versions."""
_WHOLE_ONLY = ("PreTrainedTokenizerFast", "TokenizersBackend")


def check_tokenizer(folder: Path, class_name: str) -> None:
    """Raise CheckpointError where a folder has no whole tokenizer of transformers' `class_name`."""
    if (folder / WHOLE).is_file():
        path, what = folder / WHOLE, "the tokenizer in one file"
        read_json(path, what, CHECKPOINT, limit=LARGE)
        try:
            Tokenizer.from_str(read_text(path, what, CHECKPOINT, LARGE))
        except Exception as cause:  # the package raises Exception itself
            raise CheckpointError(
                f"{path} is not a tokenizer: {cause}; {CHECKPOINT.cure}"
            ) from cause
    else:
        read_parts(folder, class_name)


def read_parts(folder: Path, class_name: str) -> tuple[Tokenizer, Settings]:
    """The tokenizer of a folder without a tokenizer.json.

    Raises:
        CheckpointError: files are missing or damaged, or the class has no such layout.
    """
    return _layout(folder, class_name).read(folder)


def copy_tokenizer(folder: Path, class_name: str, target: Path) -> None:
    """Copy a tokenizer to the folder `target`; it gets a tokenizer.json where it has none.

    Raises:
        CheckpointError: see `read_parts`.
    """
    copy_files(folder, target)
    if (folder / WHOLE).is_file():
        return
    tokenizer, settings = read_parts(folder, class_name)
    tokenizer.save(str(target / WHOLE))
    token, said = settings.special["pad"].content, settings.values.get("pad_token")
    if token != (said.get("content") if isinstance(said, dict) else said):
        stated = {**settings.values, "pad_token": token}  # another file, or the class, says it
        write_text(target / CONFIG, json.dumps(stated, indent=2) + "\n")


def _layout(folder: Path, class_name: str) -> Layout:
    layout = LAYOUTS.get(class_name.removesuffix("Fast"))
    missing = [name for name in layout.files if not (folder / name).is_file()] if layout else []
    if layout is not None and not missing:
        return layout
    held = ", ".join(sorted(p.name for p in folder.iterdir())) or "nothing"
    found = f"{folder} has no {' and no '.join([WHOLE, *missing])} (it holds {held})"
    if layout is None and class_name not in _WHOLE_ONLY:
        raise CheckpointError(f"{found}: a {class_name} needs it; {made_elsewhere(folder)}")
    files = f" or {' and '.join(layout.files)}" if layout else ""
    raise CheckpointError(
        f"{found}: expected {WHOLE}{files}, of a {class_name}; download the folder again, all "
        "files included"
    )
