"""Small tokenizers in the official layouts, file by file: BERT's, CLIP's, T5's, and words.

They stand in for the published ones: their vocabularies are smaller than the text encoders'
embeddings, every text can be encoded, and the files are the same at each call. T5's normalizes
Latin letters, spaces and wide forms alone.
"""

from __future__ import annotations

import json
import shutil
import struct
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from normalization_rules import compiled, latin_rules

from fp4dit_onnx.checkpoint.checkpoint import demo_folder
from fp4dit_onnx.tokenizer_files import WHOLE, read_parts
from fp4dit_onnx.tokenizer_files.sentencepiece_model import Kind

__all__ = ["write"]

_TEXT = (
    "a an the of on in with and red green blue yellow orange purple black white brown pink "
    "apple cat dog horse house tree flower bird car boat mountain river sky sun moon star "
    "sea circle square painting photo picture portrait drawing small large old new bright "
    "dark astronaut riding style light high quality low blurry"
)
WORDS = tuple(_TEXT.split())
CHINESE = "一个只的在上下大小红绿蓝黄黑白猫狗马鸟花树山水天日月人家车船星骑画照片宇航员和"
BERT_SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
CLIP_START, CLIP_END = "<|startoftext|>", "<|endoftext|>"
SPACE = "\u2581"


def write(folder: Path, class_name: str, config: Mapping[str, Any]) -> None:
    """Write a tokenizer of transformers' class `class_name` to the new folder `folder`.

    Args:
        folder: is made.
        class_name: transformers' class.
        config: kind (bert, chat, clip, t5 or words), model_max_length, pad_token, and whole where the
            published folder has a tokenizer.json besides.
    """
    folder.mkdir()
    special = _KINDS[config["kind"]](folder)
    special["pad_token"] = config["pad_token"]
    settings = {
        **special,
        "model_max_length": config["model_max_length"],
        "tokenizer_class": class_name,
    }
    _write_json(folder / "tokenizer_config.json", settings)
    named = {key: value for key, value in special.items() if key.endswith("_token")}
    _write_json(folder / "special_tokens_map.json", named)
    if config["whole"]:
        read_parts(folder, class_name)[0].save(str(folder / WHOLE))


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _numbered(tokens: Iterable[str]) -> dict[str, int]:
    return {token: number for number, token in enumerate(dict.fromkeys(tokens))}


def _words(folder: Path) -> dict[str, Any]:
    """The demo pipeline's, which stands in for T5's and Gemma's."""
    source = demo_folder() / "tokenizer"
    shutil.copyfile(source / "tokenizer.json", folder / "tokenizer.json")
    settings: dict[str, Any] = json.loads((source / "tokenizer_config.json").read_text("utf-8"))
    return settings


def _chat(folder: Path) -> dict[str, Any]:
    """The same, with a template of messages that gives what Qwen3's does of a single one."""
    turn = "<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n"
    silent = "{% if not enable_thinking %}<think>\n\n</think>\n\n{% endif %}"
    template = f"{{% for m in messages %}}{turn}{{% endfor %}}<|im_start|>assistant\n{silent}"
    return {**_words(folder), "chat_template": template}


def _bert(folder: Path) -> dict[str, Any]:
    characters = [chr(code) for code in range(33, 127) if not chr(code).isupper()]
    vocabulary = _numbered(
        [*BERT_SPECIAL, *characters, *(f"##{c}" for c in characters), *CHINESE, *WORDS]
    )
    (folder / "vocab.txt").write_text("\n".join(vocabulary) + "\n", encoding="utf-8")
    return {
        "do_lower_case": True,
        **{f"{name.strip('[]').lower()}_token": name for name in BERT_SPECIAL},
    }


def _clip(folder: Path) -> dict[str, Any]:
    from tokenizers import pre_tokenizers

    merges = list(dict.fromkeys(pair for word in WORDS for pair in _merges(word)))
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    ended = [f"{letter}</w>" for letter in letters]
    joined = [first + second for first, second in merges]
    vocabulary = _numbered([*letters, *ended, *joined, CLIP_START, CLIP_END])
    _write_json(folder / "vocab.json", vocabulary)
    lines = ["#version: 0.2", *(" ".join(pair) for pair in merges)]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return {"bos_token": CLIP_START, "eos_token": CLIP_END, "unk_token": CLIP_END}


def _t5(folder: Path) -> dict[str, Any]:
    """A unigram model of SentencePiece's; its sentinels are left to the class, as published."""
    characters = [chr(code) for code in range(33, 127)]
    words = [SPACE + word for word in WORDS]
    pieces = [(name, 0.0, Kind.CONTROL) for name in ("<pad>", "</s>")]
    pieces.append(("<unk>", 0.0, Kind.UNKNOWN))
    texts = dict.fromkeys([SPACE, *words, *characters, *CHINESE])
    pieces += [(text, -2.0 - i / 64, Kind.NORMAL) for i, text in enumerate(texts)]
    rows = b"".join(_bytes_field(1, _piece(*piece)) for piece in pieces)
    unigram, rules = _bytes_field(2, _number_field(3, 1)), compiled(latin_rules())
    normalizer = _bytes_field(3, _bytes_field(1, b"nmt_nfkc") + _bytes_field(2, rules))
    (folder / "spiece.model").write_bytes(rows + unigram + normalizer)
    return {"eos_token": "</s>", "unk_token": "<unk>", "extra_ids": 100}


def _piece(text: str, score: float, kind: Kind) -> bytes:
    scored = bytes([2 << 3 | 5]) + struct.pack("<f", score)
    return _bytes_field(1, text.encode()) + scored + _number_field(3, kind)


def _bytes_field(number: int, value: bytes) -> bytes:
    return bytes([number << 3 | 2]) + _varint(len(value)) + value


def _number_field(number: int, value: int) -> bytes:
    return bytes([number << 3]) + _varint(value)


def _varint(value: int) -> bytes:
    parts = []
    while value >= 0x80:
        parts.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*parts, value])


def _merges(word: str) -> list[tuple[str, str]]:
    """The merges that make `word` one token, from left to right."""
    pieces = [*word[:-1], f"{word[-1]}</w>"]
    return [("".join(pieces[:i]), pieces[i]) for i in range(1, len(pieces))]


_KINDS: Mapping[str, Callable[[Path], dict[str, Any]]] = {
    "bert": _bert,
    "chat": _chat,
    "clip": _clip,
    "t5": _t5,
    "words": _words,
}
