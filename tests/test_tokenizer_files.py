"""Tokenizers as they are published, against sentencepiece and transformers on texts of many scripts."""

from __future__ import annotations

import json
import stat
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("sentencepiece")
pytest.importorskip("transformers")

import small_tokenizers
import transformers
from many_scripts import texts_of_many_scripts
from normalization_rules import latin_rules
from slow_t5 import SlowT5, schema, train
from tokenizers import Tokenizer as Raw
from tokenizers import normalizers

from fp4dit_onnx.errors import CheckpointError
from fp4dit_onnx.runtime import Tokenizer
from fp4dit_onnx.system.silence import quiet
from fp4dit_onnx.tokenizer_files import check_tokenizer, copy_tokenizer, read_parts
from fp4dit_onnx.tokenizer_files.charsmap import read_charsmap

ONE_RULE = str(Path(__file__).parent / "support" / "one_rule.tsv")
KINDS = {"T5Tokenizer": "t5", "CLIPTokenizer": "clip", "BertTokenizer": "bert"}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of unigrams with T5's rules of normalization; not to be changed."""
    return train(tmp_path_factory.mktemp("trained") / "t5")


@pytest.fixture(scope="module")
def texts() -> list[str]:
    """The same for all tokenizers."""
    return texts_of_many_scripts()


@pytest.fixture
def folder_of(tmp_path: Path) -> Callable[..., Path]:
    """Makes a folder of a class of transformers."""

    def make(class_name: str, **changes: Any) -> Path:
        config = {"kind": KINDS[class_name], "model_max_length": 77, "whole": False}
        pad = {"t5": "<pad>", "clip": "!", "bert": "[PAD]"}[KINDS[class_name]]
        folder = tmp_path / "tokenizer"
        small_tokenizers.write(folder, class_name, {**config, "pad_token": pad})
        settings = json.loads((folder / "tokenizer_config.json").read_text())
        (folder / "tokenizer_config.json").write_text(json.dumps(settings | changes))
        return folder

    return make


def differing(
    ours: Raw, theirs: Callable[[str], list[int]], texts: list[str]
) -> list[tuple[str, list[int], list[int]]]:
    rows = [(text[:80], ours.encode(text).ids[:80], theirs(text)[:80]) for text in texts]
    return [row for row in rows if row[1] != row[2]]


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"legacy": False},
        {"legacy": False, "add_prefix_space": False, "extra_ids": 3},
        {"extra_ids": 0, "eos_token": {"content": "</s>"}},
    ],
    ids=["as it is", "not legacy", "no prefix", "no sentinels"],
)
def test_t5_is_the_slow_tokenizer(
    trained: Path, tmp_path: Path, texts: list[str], settings: dict[str, Any]
) -> None:
    folder = tmp_path / "t5"
    folder.mkdir()
    (folder / "spiece.model").write_bytes(trained.read_bytes())
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    copy_tokenizer(folder, "T5Tokenizer", tmp_path / "bundle")
    ours = Raw.from_file(str(tmp_path / "bundle" / "tokenizer.json"))
    assert not differing(ours, SlowT5(folder), texts)
    proto = schema.ModelProto.FromString(trained.read_bytes())
    usual = normalizers.Precompiled(proto.normalizer_spec.precompiled_charsmap)
    assert usual.normalize_str("e\u0302\u0301") == "\u00ea"  # why it is not used as it is


@pytest.mark.parametrize(
    ("options", "class_name"),
    [
        ({"byte_fallback": True, "vocab_size": 360}, "T5TokenizerFast"),
        ({"user_defined_symbols": ["\u2581<extra_id_0>", "<sep>"]}, "T5Tokenizer"),
        ({"normalization_rule_name": "identity"}, "T5Tokenizer"),
        ({"normalization_rule_tsv": ONE_RULE}, "T5Tokenizer"),
        ({"normalization_rule_name": "nfkc_cf", "remove_extra_whitespaces": False}, "T5Tokenizer"),
    ],
    ids=["bytes", "own symbols", "identity", "a rule of one's own", "folded case, all spaces"],
)
def test_other_models_of_sentencepiece(
    tmp_path: Path, texts: list[str], options: dict[str, Any], class_name: str
) -> None:
    folder = train(tmp_path / "t5", **options).parent
    (folder / "tokenizer_config.json").write_text('{"extra_ids": 0}')
    tokenizer, _ = read_parts(folder, class_name)
    assert not differing(tokenizer, SlowT5(folder), [text for text in texts if len(text) < 500])


def test_the_twins_t5_is_the_slow_tokenizer(
    folder_of: Callable[..., Path], texts: list[str]
) -> None:
    folder = folder_of("T5Tokenizer")
    proto = schema.ModelProto.FromString((folder / "spiece.model").read_bytes())
    assert read_charsmap(proto.normalizer_spec.precompiled_charsmap) == latin_rules()
    tokenizer, _ = read_parts(folder, "T5Tokenizer")
    assert not differing(tokenizer, SlowT5(folder), texts)


@pytest.mark.parametrize("class_name", ["CLIPTokenizer", "BertTokenizer"])
def test_plain_vocabularies_are_transformers(
    folder_of: Callable[..., Path], texts: list[str], class_name: str
) -> None:
    folder = folder_of(class_name)
    tokenizer, _ = read_parts(folder, class_name)
    theirs = loaded(getattr(transformers, class_name), folder)
    assert not differing(tokenizer, theirs, texts)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"do_lower_case": False},
        {"strip_accents": False},
        {"do_lower_case": False, "tokenize_chinese_chars": False},
    ],
)
def test_bert_is_the_slow_tokenizer(
    folder_of: Callable[..., Path], texts: list[str], changes: dict[str, Any]
) -> None:
    from transformers.models.bert.tokenization_bert_legacy import BertTokenizerLegacy

    folder = folder_of("BertTokenizer", **changes)
    tokenizer, _ = read_parts(folder, "BertTokenizer")
    assert not differing(tokenizer, loaded(BertTokenizerLegacy, folder), texts)


def loaded(cls: Any, folder: Path) -> Callable[[str], list[int]]:
    with quiet():
        tokenizer = cls.from_pretrained(folder, model_max_length=10**6)
    return lambda text: list(tokenizer(text).input_ids)


@pytest.mark.parametrize("class_name", KINDS)
def test_a_bundle_gets_one_file_and_the_source_nothing(
    folder_of: Callable[..., Path], tmp_path: Path, class_name: str
) -> None:
    folder = folder_of(class_name)
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    pad = settings.pop("pad_token")
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    for path in (*folder.iterdir(), folder):
        path.chmod(path.stat().st_mode & ~(stat.S_IWUSR | stat.S_IWGRP | stat.S_IWOTH))
    check_tokenizer(folder, class_name)
    copy_tokenizer(folder, class_name, tmp_path / "bundle")
    folder.chmod(0o755)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    written = {path.name for path in (tmp_path / "bundle").iterdir()}
    assert written == {*before, "tokenizer.json"}
    raw = Raw.from_file(str(tmp_path / "bundle" / "tokenizer.json"))
    ids, mask = Tokenizer(tmp_path / "bundle")(["a red apple", ""], 20)
    whole = raw.encode("a red apple").ids
    assert ids[0].tolist() == whole + [raw.token_to_id(pad)] * (20 - len(whole))
    assert mask[0].sum() == len(whole) > mask[1].sum() > 0
    assert raw.encode_batch(["a red apple", ""])[1].ids == raw.encode("").ids  # nothing is padded


def test_tokens_that_were_added(folder_of: Callable[..., Path]) -> None:
    folder = folder_of("CLIPTokenizer")
    base = read_parts(folder, "CLIPTokenizer")[0].get_vocab_size()
    (folder / "added_tokens.json").write_text(json.dumps({"<style>": base}))
    old, _ = read_parts(folder, "CLIPTokenizer")
    assert old.encode("red <style>").ids[-2] == base
    assert old.encode("red <STYLE>").ids[-2] == base  # in normalized text, as transformers does
    stored = {"content": "<look>", "special": True, "normalized": False}
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    settings["added_tokens_decoder"] = {str(base): stored}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    new, _ = read_parts(folder, "CLIPTokenizer")
    assert new.encode("red <look>").ids[-2] == base
    assert "<style>" not in new.get_vocab()


def test_the_padding_of_the_older_file_is_used(
    folder_of: Callable[..., Path], tmp_path: Path
) -> None:
    folder = folder_of("CLIPTokenizer", pad_token="<|endoftext|>")
    (folder / "special_tokens_map.json").write_text('{"pad_token": "r"}')
    copy_tokenizer(folder, "CLIPTokenizer", tmp_path / "bundle")
    ids, _ = Tokenizer(tmp_path / "bundle")(["red"], 12)
    theirs = transformers.CLIPTokenizer.from_pretrained(folder)
    assert ids[0].tolist() == theirs("red", padding="max_length", max_length=12)["input_ids"]


def test_sentinels_after_other_tokens(folder_of: Callable[..., Path]) -> None:
    folder = folder_of("T5Tokenizer", additional_special_tokens=["<new>"], extra_ids=2)
    tokenizer, _ = read_parts(folder, "T5Tokenizer")
    last = tokenizer.get_vocab_size() - 1
    assert tokenizer.encode("<extra_id_1><extra_id_0><new>").ids[:-1] == [last, last - 1, last - 2]


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-3])


def bpe_model(path: Path) -> None:
    train(path.parent / "bpe", model_type="bpe").replace(path)


def with_rules(rules: bytes) -> Callable[[Path], object]:
    def damage(path: Path) -> None:
        proto = schema.ModelProto.FromString(path.read_bytes())
        proto.normalizer_spec.precompiled_charsmap = rules
        path.write_bytes(proto.SerializeToString())

    return damage


def cyclic_rules() -> bytes:
    """Every label leads from a node to itself."""
    units = [256 << 10, *[0] * 255, *(label << 10 | label for label in range(256))]
    return struct.pack(f"<I{len(units)}I", 4 * len(units), *units) + b"\0"


def with_score(path: Path) -> None:
    proto = schema.ModelProto.FromString(path.read_bytes())
    proto.pieces[9].score = float("nan")
    path.write_bytes(proto.SerializeToString())


DAMAGE: list[tuple[str, str, Callable[[Path], object], str]] = [
    (
        "T5Tokenizer",
        "spiece.model",
        Path.unlink,
        r"has no tokenizer.json and no spiece.model \(it h",
    ),
    ("T5Tokenizer", "spiece.model", cut, "is damaged .*: expected a SentencePiece model"),
    ("T5Tokenizer", "spiece.model", lambda p: p.write_bytes(b""), "damaged .it has no pieces"),
    (
        "T5Tokenizer",
        "spiece.model",
        lambda p: p.write_text("version https://git-lfs"),
        "is damaged",
    ),
    ("T5Tokenizer", "spiece.model", bpe_model, "of type bpe: expected T5's"),
    ("T5Tokenizer", "spiece.model", with_rules(b"\xff\0\0\0abc"), "its rules are cut off"),
    ("T5Tokenizer", "spiece.model", with_rules(b"\1"), "its rules are cut off"),
    ("T5Tokenizer", "spiece.model", with_rules(cyclic_rules()), "its rules have no end"),
    ("T5Tokenizer", "spiece.model", with_score, "has the score nan"),
    (
        "T5Tokenizer",
        "tokenizer_config.json",
        lambda p: p.write_text('{"extra_ids": -1}'),
        "extra_ids is -1: expected 0 to 10000",
    ),
    (
        "T5Tokenizer",
        "special_tokens_map.json",
        lambda p: p.write_text('{"eos_token": 7}'),
        "special token 7: expected a text",
    ),
    (
        "CLIPTokenizer",
        "tokenizer_config.json",
        lambda p: p.write_text('{"added_tokens_decoder": {"5": {"content": "<new>"}}}'),
        "token '<new>' has the number 5, which is",
    ),
    ("CLIPTokenizer", "tokenizer.json", lambda p: p.write_text("{}"), "is not a tokenizer: "),
    ("CLIPTokenizer", "merges.txt", Path.unlink, "no tokenizer.json and no merges.txt"),
    ("CLIPTokenizer", "merges.txt", lambda p: p.write_text("r e\nq z x"), "has the line 'q z x'"),
    (
        "CLIPTokenizer",
        "vocab.json",
        lambda p: p.write_text('{"a": -1}'),
        "token 'a' has the number",
    ),
    ("CLIPTokenizer", "added_tokens.json", lambda p: p.write_text('{"<x>": 9999}'), "ends at"),
    (
        "T5Tokenizer",
        "added_tokens.json",
        lambda p: p.write_text('{"<x>": 2000000}'),
        "has the number 2000000: expected one from 0 below 1048576",
    ),
    ("BertTokenizer", "vocab.txt", lambda p: p.write_text("a\nb"), r"no token '\[UNK\]'"),
    ("BertTokenizer", "vocab.txt", lambda p: p.write_bytes(b"\xff\xfe"), "UTF-8"),
]


@pytest.mark.parametrize(
    ("class_name", "name", "damage", "words"), DAMAGE, ids=[f"{d[1]}-{d[3][:12]}" for d in DAMAGE]
)
def test_what_is_not_whole_is_said(
    folder_of: Callable[..., Path], class_name: str, name: str, damage: Any, words: str
) -> None:
    folder = folder_of(class_name)
    damage(folder / name)
    with pytest.raises(CheckpointError, match=words) as caught:
        check_tokenizer(folder, class_name)
    assert "\n" not in str(caught.value)


def test_classes_of_other_layouts(folder_of: Callable[..., Path]) -> None:
    with pytest.raises(
        CheckpointError, match=r"a Qwen2Tokenizer needs it; make a tokenizer\.json"
    ):
        check_tokenizer(folder_of("CLIPTokenizer"), "Qwen2Tokenizer")
