"""The tokenizer without torch, against transformers."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import numpy as np
import pytest

from fp4dit_onnx.errors import BundleError
from fp4dit_onnx.runtime import Tokenizer
from fp4dit_onnx.tokenizer_files import copy_tokenizer

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # third parties' deprecations at import
    transformers = pytest.importorskip("transformers")


@pytest.fixture(scope="module")
def hunyuan_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pipeline with BERT's tokenizer and T5's as published, and in ``bundle`` as exported."""
    pytest.importorskip("sentencepiece")  # transformers reads T5's with it
    folder = tmp_path_factory.mktemp("hunyuan") / "pipeline"
    from random_pipeline import make

    make("hunyuan-dit-1.1", folder, twin=True, components=["tokenizer", "tokenizer_2"])
    for name, class_name in (("tokenizer", "BertTokenizer"), ("tokenizer_2", "T5Tokenizer")):
        copy_tokenizer(folder / name, class_name, folder / "bundle" / name)
    return folder


HARD_PROMPTS = (
    "",
    " ",
    "cat " * 200,
    "naïve café — Καλημέρα 猫の顔 🐱🐈‍⬛",
    "zero\u200bwidth\tand\nnewline",
    "a </s> in the middle, <pad> too",
    "antidisestablishmentarianism" * 20,
)


@pytest.mark.parametrize("length", [1, 2, 7, 16, 120])
def test_tokenizer_is_that_of_transformers(demo_folder: Path, length: int) -> None:
    lines = [
        line
        for name in ("calibration", "evaluation")
        for line in (demo_folder.parent / "prompts" / f"{name}.txt").read_text().splitlines()
    ]
    prompts = [*lines, *HARD_PROMPTS]
    theirs = transformers.AutoTokenizer.from_pretrained(demo_folder / "tokenizer")(
        prompts, padding="max_length", max_length=length, truncation=True, return_tensors="np"
    )
    ids, mask = Tokenizer(demo_folder / "tokenizer")(prompts, length)
    assert ids.dtype == mask.dtype == np.dtype(np.int64)
    np.testing.assert_array_equal(ids, theirs["input_ids"])
    np.testing.assert_array_equal(mask, theirs["attention_mask"])
    assert ids.shape == (len(prompts), length)


BERT_PROMPTS = (
    "一个宇航员在骑马",
    "A Photo of a CAFÉ, naïve; 3.14%",
    "two  spaces\tand\r\na line",
    "[MASK] and [SEP] and [PAD]",
    "un" * 120,
    "马" * 90,
    "a cat and a dog, " * 50,
)


@pytest.mark.parametrize(("name", "length"), [("tokenizer", 77), ("tokenizer_2", 256)])
def test_tokenizers_of_hunyuan_are_those_of_transformers(
    hunyuan_folder: Path, name: str, length: int
) -> None:
    prompts = [*BERT_PROMPTS, *HARD_PROMPTS]
    theirs = transformers.AutoTokenizer.from_pretrained(hunyuan_folder / name)(
        prompts, padding="max_length", max_length=length, truncation=True, return_tensors="np"
    )
    ids, mask = Tokenizer(hunyuan_folder / "bundle" / name)(prompts, length)
    np.testing.assert_array_equal(ids, theirs["input_ids"])
    np.testing.assert_array_equal(mask, theirs["attention_mask"])
    assert ids.shape == (len(prompts), length)
    assert mask.min() == 0  # padding was seen
    assert mask.sum(axis=1).max() == length  # and cutting


def test_bert_pads_with_its_own_token(hunyuan_folder: Path) -> None:
    folder = hunyuan_folder / "bundle" / "tokenizer"
    words = json.loads((folder / "tokenizer.json").read_text())["model"]["vocab"]
    ids, _ = Tokenizer(folder)([""], 4)
    assert ids.tolist() == [[words["[CLS]"], words["[SEP]"], words["[PAD]"], words["[PAD]"]]]


def test_long_prompt_keeps_its_end_token(demo_folder: Path) -> None:
    ids, mask = Tokenizer(demo_folder / "tokenizer")(["cat " * 200], 5)
    assert ids[0, -1] == 1  # </s>
    assert mask.all()


def test_tokenizer_without_prompts(demo_folder: Path) -> None:
    ids, mask = Tokenizer(demo_folder / "tokenizer")([], 5)
    assert ids.shape == mask.shape == (0, 5)


def test_tokenizer_needs_a_file_and_a_padding_token(demo_copy: Path) -> None:
    folder = demo_copy / "tokenizer"
    content = json.loads((folder / "tokenizer.json").read_text())
    content["padding"] = None
    for vocabulary in (content["model"]["vocab"], *content["added_tokens"]):
        if "<pad>" in vocabulary:
            vocabulary["<nothing>"] = vocabulary.pop("<pad>")
    content["added_tokens"] = [t for t in content["added_tokens"] if t["content"] != "<pad>"]
    (folder / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(BundleError, match="padding token"):
        Tokenizer(folder)
    (folder / "tokenizer.json").write_text("{")
    with pytest.raises(BundleError, match="is not a tokenizer"):
        Tokenizer(folder)
    (folder / "tokenizer.json").unlink()
    with pytest.raises(BundleError, match="not found: expected a tokenizer"):
        Tokenizer(folder)
