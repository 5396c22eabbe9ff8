"""T5's tokenizer on the sentencepiece package, by the rules of transformers' slow T5Tokenizer.

Checked against transformers 4.57.6 itself, whose classes version 5 no longer has.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import sentencepiece
from sentencepiece import sentencepiece_model_pb2 as schema

from fp4dit_onnx.files import GIVEN, read_json

__all__ = ["SlowT5", "train"]

SPACE = "\u2581"
CORPUS = (
    "a an the of red green blue yellow apple cat dog horse house don't I'll photo painting sky "
    "style high quality Gr\u00f6\u00dfe caf\u00e9 \u00e9lan na\u00efve "
    "\u043f\u0440\u0438\u0432\u0435\u0442 "
    "\u043c\u0438\u0440 \u4e00\u4e2a \u5b87\u822a\u5458 \u5728\u9a91\u9a6c \ud55c\uad6d\uc5b4 \u304c"
)


def train(folder: Path, **options: Any) -> Path:
    """Train a small model as T5's in the new folder `folder`; returns ``spiece.model``."""
    folder.mkdir()
    words = CORPUS.split()
    lines = [" ".join(words[i:] + words[:i]) for i in range(len(words))] * 8
    (folder / "lines.txt").write_text("\n".join(lines), encoding="utf-8")
    settings = {
        "vocab_size": 100,
        "hard_vocab_limit": False,
        "model_type": "unigram",
        "normalization_rule_name": "nmt_nfkc",
        "character_coverage": 1.0,
    }
    sentencepiece.SentencePieceTrainer.train(
        input=str(folder / "lines.txt"),
        model_prefix=str(folder / "spiece"),
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        minloglevel=2,
        **{**settings, **options},
    )
    for name in ("lines.txt", "spiece.vocab"):
        (folder / name).unlink()
    return folder / "spiece.model"


class SlowT5:
    """Ids of texts, with the end token.

    Args:
        folder: with spiece.model and, if settings differ from the class's, tokenizer_config.json.
    """

    def __init__(self, folder: Path) -> None:
        path = folder / "tokenizer_config.json"
        settings: Mapping[str, Any] = read_json(path, "settings", GIVEN) if path.is_file() else {}
        self._legacy = settings.get("legacy", True)
        self._prefix = settings.get("add_prefix_space", True)
        proto = schema.ModelProto.FromString((folder / "spiece.model").read_bytes())
        if not self._legacy:
            proto.normalizer_spec.add_dummy_prefix = False
        self._model = sentencepiece.SentencePieceProcessor(model_proto=proto.SerializeToString())
        count, size = settings.get("extra_ids", 100), len(proto.pieces)
        self._special = {
            name: self._model.piece_to_id(name) for name in ("<pad>", "</s>", "<unk>")
        }
        self._stripped = {f"<extra_id_{i}>": size - 1 + count - i for i in range(count)}
        self._special |= self._stripped
        names = sorted(map(re.escape, self._special), key=len, reverse=True)
        self._split = re.compile(f"({'|'.join(names)})")

    def __call__(self, text: str) -> list[int]:
        """Token ids of one text."""
        if not self._legacy:
            text = text.replace(SPACE, " ")
            text = SPACE + text if self._prefix and text else text
        parts = self._split.split(text)
        for i in range(1, len(parts), 2):
            if parts[i] in self._stripped:
                parts[i - 1], parts[i + 1] = parts[i - 1].rstrip(), parts[i + 1].lstrip()
        ids: list[int] = []
        for part in parts:
            ids += [self._special[part]] if part in self._special else self._plain(part)
        end = self._special["</s>"]
        return ids if ids[-1:] == [end] else [*ids, end]

    def _plain(self, text: str) -> list[int]:
        if self._legacy or not text.startswith((SPACE, " ")):
            return self._ids(text)
        # The first space would be stripped at the beginning.
        return self._ids("<unk>" + text)[len(self._ids("<unk>")) :]

    def _ids(self, text: str) -> list[int]:
        pieces = self._model.encode(text, out_type=str)
        return [self._special.get(piece, self._model.piece_to_id(piece)) for piece in pieces]
