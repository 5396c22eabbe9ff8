"""Small tokenizers in the official layouts: WordPiece as BERT's, byte-level BPE as CLIP's, words.

They stand in for the published ones: their vocabularies are smaller than the text encoders'
embeddings, every text can be encoded, and the files are the same at each call.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from fp4dit_onnx.checkpoint import demo_folder

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
# CLIP's own: contractions, words, single digits, runs of other characters
CLIP_PIECES = (
    r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d"
    r"|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
)


def write(folder: Path, class_name: str, config: Mapping[str, Any]) -> None:
    """Write a tokenizer of transformers' class `class_name` to the new folder `folder`.

    Args:
        folder: is made.
        class_name: transformers' class.
        config: kind (bert, clip or words), model_max_length and pad_token.
    """
    folder.mkdir()
    special = _KINDS[config["kind"]](folder)
    settings = {
        **special,
        "model_max_length": config["model_max_length"],
        "pad_token": config["pad_token"],
        "tokenizer_class": class_name,
    }
    _write_json(folder / "tokenizer_config.json", settings)


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


def _bert(folder: Path) -> dict[str, Any]:
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

    characters = [chr(code) for code in range(33, 127) if not chr(code).isupper()]
    vocabulary = _numbered(
        [*BERT_SPECIAL, *characters, *(f"##{c}" for c in characters), *CHINESE, *WORDS]
    )
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.add_special_tokens(list(BERT_SPECIAL))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[(name, vocabulary[name]) for name in ("[CLS]", "[SEP]")],
    )
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "vocab.txt").write_text("\n".join(vocabulary) + "\n", encoding="utf-8")
    return {
        "do_lower_case": True,
        **{f"{name.strip('[]').lower()}_token": name for name in BERT_SPECIAL},
    }


def _clip(folder: Path) -> dict[str, Any]:
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
    from tokenizers.processors import RobertaProcessing

    merges = list(dict.fromkeys(pair for word in WORDS for pair in _merges(word)))
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    ended = [f"{letter}</w>" for letter in letters]
    joined = [first + second for first, second in merges]
    vocabulary = _numbered([*letters, *ended, *joined, CLIP_START, CLIP_END])
    bpe = models.BPE(
        vocabulary,
        merges,
        unk_token=CLIP_END,
        continuing_subword_prefix="",
        end_of_word_suffix="</w>",
    )
    tokenizer = Tokenizer(bpe)
    tokenizer.add_special_tokens([CLIP_START, CLIP_END])
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    pieces = pre_tokenizers.Split(Regex(CLIP_PIECES), behavior="removed", invert=True)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pieces, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)]
    )
    tokenizer.post_processor = RobertaProcessing(
        (CLIP_END, vocabulary[CLIP_END]),
        (CLIP_START, vocabulary[CLIP_START]),
        trim_offsets=False,
        add_prefix_space=False,
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.save(str(folder / "tokenizer.json"))
    _write_json(folder / "vocab.json", vocabulary)
    lines = ["#version: 0.2", *(" ".join(pair) for pair in merges)]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return {"bos_token": CLIP_START, "eos_token": CLIP_END, "unk_token": CLIP_END}


def _merges(word: str) -> list[tuple[str, str]]:
    """The merges that make `word` one token, from left to right."""
    pieces = [*word[:-1], f"{word[-1]}</w>"]
    return [("".join(pieces[:i]), pieces[i]) for i in range(1, len(pieces))]


_KINDS: Mapping[str, Callable[[Path], dict[str, Any]]] = {
    "bert": _bert,
    "clip": _clip,
    "words": _words,
}
