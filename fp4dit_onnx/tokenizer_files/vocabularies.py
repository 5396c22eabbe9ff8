"""CLIP's and BERT's tokenizers, of a vocabulary in plain files."""

from __future__ import annotations

from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from fp4dit_onnx.errors import CheckpointError
from fp4dit_onnx.files import CHECKPOINT, LARGE, read_json, read_text
from fp4dit_onnx.tokenizer_files.settings import CONFIG, Settings, read_settings

__all__ = ["read_bert", "read_clip"]

_CLIP_END = "<|endoftext|>"
CLIP_SPECIAL = {"bos": "<|startoftext|>", "eos": _CLIP_END, "unk": _CLIP_END, "pad": _CLIP_END}
BERT_SPECIAL = {"unk": "[UNK]", "sep": "[SEP]", "pad": "[PAD]", "cls": "[CLS]", "mask": "[MASK]"}
WORD_END = "</w>"
# Contractions, words, single digits, runs of other characters.
CLIP_PIECES = (
    r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d"
    r"|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
)


def read_clip(folder: Path) -> tuple[Tokenizer, Settings]:
    """The tokenizer in a folder with ``vocab.json`` and ``merges.txt``: CLIP's byte-level BPE.

    Raises:
        CheckpointError: a file is damaged.
    """
    settings = read_settings(folder, CLIP_SPECIAL)
    vocabulary = _clip_vocabulary(folder / "vocab.json")
    merges = _merges(folder / "merges.txt", vocabulary)
    bpe = models.BPE(
        vocabulary,
        merges,
        unk_token=settings.special["unk"].content,
        continuing_subword_prefix="",
        end_of_word_suffix=WORD_END,
    )
    tokenizer = Tokenizer(bpe)
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    pieces = pre_tokenizers.Split(Regex(CLIP_PIECES), behavior="removed", invert=True)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pieces, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)]
    )
    numbers = _add_special(tokenizer, settings, vocabulary)
    tokenizer.post_processor = processors.RobertaProcessing(
        (settings.special["eos"].content, numbers["eos"]),
        (settings.special["bos"].content, numbers["bos"]),
        trim_offsets=False,
        add_prefix_space=False,
    )
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer, settings


def _clip_vocabulary(path: Path) -> dict[str, int]:
    vocabulary = read_json(path, "the vocabulary", CHECKPOINT, limit=LARGE)
    for token, number in vocabulary.items():
        if isinstance(number, bool) or not isinstance(number, int) or not 0 <= number < 2**31:
            raise CheckpointError(
                f"{path}: token {token!r} has the number {number!r}: expected one from 0; "
                "download the file again"
            )
    return vocabulary


def _merges(path: Path, vocabulary: dict[str, int]) -> list[tuple[str, str]]:
    lines = [
        line.rstrip("\r") for line in read_text(path, "the merges", CHECKPOINT, LARGE).split("\n")
    ]
    if lines[0].startswith("#version"):
        del lines[0]
    merges = []
    for line in filter(None, lines):
        parts = line.split(" ")
        if len(parts) != 2 or not vocabulary.keys() >= {*parts, "".join(parts)}:
            raise CheckpointError(
                f"{path} has the line {line[:40]!r}: expected two tokens of vocab.json that make "
                "a third; both must come from one save: download the folder again"
            )
        merges.append((parts[0], parts[1]))
    return merges


def read_bert(folder: Path) -> tuple[Tokenizer, Settings]:
    """The tokenizer in a folder with ``vocab.txt``: BERT's WordPiece.

    Raises:
        CheckpointError: a file is damaged.
    """
    settings = read_settings(folder, BERT_SPECIAL)
    path = folder / "vocab.txt"
    lines = read_text(path, "the vocabulary", CHECKPOINT, LARGE).removesuffix("\n").split("\n")
    vocabulary = {token.rstrip("\r"): number for number, token in enumerate(lines)}
    unknown = settings.special["unk"].content
    if unknown not in vocabulary:
        raise CheckpointError(
            f"{path} has no token {unknown!r}: expected a vocabulary, one token per line; download "
            "the file again"
        )
    lower, chinese, strip = (
        _flag(settings, key, usual)
        for key, usual in (
            ("do_lower_case", True),
            ("tokenize_chinese_chars", True),
            ("strip_accents", None),
        )
    )
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token=unknown))
    tokenizer.normalizer = normalizers.BertNormalizer(
        clean_text=True,
        handle_chinese_chars=bool(chinese),
        strip_accents=strip,
        lowercase=bool(lower),
    )
    if not (lower if strip is None else strip):
        tokenizer.normalizer = normalizers.Sequence([tokenizer.normalizer, normalizers.NFC()])
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    numbers = _add_special(tokenizer, settings, vocabulary)
    begin, end = settings.special["cls"].content, settings.special["sep"].content
    tokenizer.post_processor = processors.TemplateProcessing(
        single=[begin, "$A", end],
        pair=[begin, "$A", end, "$B:1", f"{end}:1"],
        special_tokens=[(begin, numbers["cls"]), (end, numbers["sep"])],
    )
    tokenizer.decoder = decoders.WordPiece()
    return tokenizer, settings


def _flag(settings: Settings, key: str, usual: bool | None) -> bool | None:
    value = settings.values.get(key, usual)
    if value is not None and not isinstance(value, bool):
        raise CheckpointError(
            f"{settings.folder / CONFIG}: {key} is {value!r}: expected true or false"
        )
    return value


def _add_special(
    tokenizer: Tokenizer, settings: Settings, vocabulary: dict[str, int]
) -> dict[str, int]:
    """Have special tokens found whole; returns their numbers by role."""
    found = settings.numbered(vocabulary)
    for number, token in sorted(found.items()):
        if (
            tokenizer.add_special_tokens([token])
            and tokenizer.token_to_id(token.content) != number
        ):
            raise CheckpointError(
                f"{settings.folder}: token {token.content!r} has the number {number}, and the "
                f"vocabulary ends at {tokenizer.get_vocab_size() - 2}; download the folder again"
            )
    numbers = {token.content: number for number, token in found.items()}
    return {role: numbers[token.content] for role, token in settings.special.items()}
