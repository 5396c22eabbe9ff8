"""Which weights are read: those that diffusers and transformers read, over many layouts of a folder."""

from __future__ import annotations

import itertools
import json
import shutil
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("diffusers")

import diffusers
import torch
import transformers
from safetensors.torch import save_file

from fp4dit_onnx.checkpoint.checkpoint import open_checkpoint
from fp4dit_onnx.checkpoint.tensor_reading import read_float32
from fp4dit_onnx.checkpoint.weight_files import LIBRARIES, pipeline_variant, read_weights
from fp4dit_onnx.errors import CheckpointError
from fp4dit_onnx.system.silence import quiet

SIZE = {"d_model": 8, "d_kv": 4, "d_ff": 8, "num_heads": 2, "num_layers": 1, "vocab_size": 16}
PLACES = ("single", "shards", "single.fp16", "shards.fp16", "shards.ema", "bin", "other")
LAYOUTS = [set(c) for n in range(5) for c in itertools.combinations(PLACES, n)]


@cache
def network(library: str) -> Any:
    """A network whose stored tensors are few and small."""
    with quiet():
        if library == "transformers":
            return transformers.T5EncoderModel(transformers.T5Config(**SIZE))
        return diffusers.AutoencoderKL(
            block_out_channels=(4,), norm_num_groups=2, layers_per_block=1, latent_channels=2
        )


def filled(library: str, value: float) -> dict[str, Any]:
    """Every stored tensor, all of one value."""
    state = network(library).state_dict()
    state.pop("encoder.embed_tokens.weight", None)  # tied to shared.weight
    return {name: torch.full_like(tensor, value) for name, tensor in state.items()}


def write_shards(folder: Path, library: str, variant: str | None, value: float) -> None:
    stem, tensors = LIBRARIES[library].stem, filled(library, value)
    infix = f".{variant}" if variant else ""
    names = sorted(tensors)
    weight_map = {}
    for number, chosen in enumerate((names[::2], names[1::2]), start=1):
        shard = f"{stem}{infix}-0000{number}-of-00002.safetensors"
        save_file({n: tensors[n] for n in chosen}, folder / shard, {"format": "pt"})
        weight_map |= dict.fromkeys(chosen, shard)
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / f"{stem}.safetensors.index{infix}.json").write_text(json.dumps(index))


def write(folder: Path, library: str, place: str, value: float) -> None:
    """One set of weights, in one of `PLACES`; ``other`` is where the other library has its own."""
    of = LIBRARIES[library]
    kind, _, variant = place.partition(".")
    if kind == "shards":
        write_shards(folder, library, variant or None, value)
    elif kind == "bin":
        torch.save(filled(library, value), folder / f"{of.pickle}.bin")
    else:
        (stem,) = (
            {o.stem for o in LIBRARIES.values()} - {of.stem} if kind == "other" else {of.stem}
        )
        name = f"{stem}.{variant}.safetensors" if variant else f"{stem}.safetensors"
        save_file(filled(library, value), folder / name, {"format": "pt"})


def read_by_us(folder: Path, library: str) -> float | str:
    """The value that all our tensors have, or why there are none."""
    try:
        variant = pipeline_variant({folder: library})
        tensors = read_weights(folder, library, variant).tensors
    except CheckpointError as error:
        return str(error)
    assert tensors.keys() == filled(library, 0).keys()
    (value,) = {float(v) for info in tensors.values() for v in read_float32(info).flat}
    return value


def read_by_them(folder: Path, library: str, variant: str | None) -> float | None:
    """The value that all parameters have after `from_pretrained`, None if it fails."""
    cls = type(network(library))
    try:
        with quiet():
            loaded = cls.from_pretrained(folder, variant=variant, local_files_only=True)
    except OSError:
        return None
    (value,) = {float(v) for p in loaded.parameters() for v in p.detach().unique()}
    return value


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], Path]:
    """A folder that holds one set of weights, made once; values are the place's number from 1."""
    root = tmp_path_factory.mktemp("store")

    @cache
    def make(library: str, place: str) -> Path:
        folder = root / library / place
        folder.mkdir(parents=True)
        write(folder, library, place, PLACES.index(place) + 1.0)
        return folder

    return make


@pytest.fixture
def layout(
    store: Callable[[str, str], Path], tmp_path: Path
) -> Iterator[Callable[[str, set[str]], Path]]:
    def make(library: str, places: set[str]) -> Path:
        folder = tmp_path / library
        shutil.rmtree(folder, ignore_errors=True)
        network(library).save_config(folder) if library == "diffusers" else network(
            library
        ).config.save_pretrained(folder)
        for place in places:
            for file in store(library, place).iterdir():
                (folder / file.name).symlink_to(file)
        return folder

    return make


@pytest.mark.parametrize("library", LIBRARIES)
def test_what_from_pretrained_reads_is_read(
    layout: Callable[[str, set[str]], Path], library: str
) -> None:
    pickled = PLACES.index("bin") + 1.0
    outcomes = set()
    for places in LAYOUTS:
        folder = layout(library, places)
        ours, theirs = read_by_us(folder, library), read_by_them(folder, library, None)
        if theirs is None:
            loading = {v: read_by_them(folder, library, v) for v in ("fp16", "ema")}
            found = [value for value in loading.values() if value is not None]
            theirs = found[0] if len(found) == 1 else None
        if theirs is None or theirs == pickled:
            assert isinstance(ours, str), (places, ours, theirs)
            assert "\n" not in ours
            outcomes.add("refused")
        else:
            assert ours == theirs, places
            outcomes.add(PLACES[int(theirs) - 1])
    expected = {"single", "shards", "single.fp16", "shards.fp16", "shards.ema", "refused"}
    assert outcomes == expected


@pytest.mark.parametrize(
    ("library", "places", "words"),
    [
        ("diffusers", {"bin", "single.fp16"}, ("model.bin", "model.fp16.safetensors", "move")),
        ("diffusers", {"shards.fp16", "shards.ema"}, ("fp16", "ema", "move the others away")),
        ("diffusers", {"other"}, ("holds model.safetensors, which diffusers does not read",)),
        ("transformers", {"other"}, ("holds diffusion_pytorch_model.safetensors",)),
        ("transformers", {"bin"}, ("PyTorch weights only (pytorch_model.bin)",)),
    ],
)
def test_a_refusal_names_what_is_there(
    layout: Callable[[str, set[str]], Path], library: str, places: set[str], words: tuple[str, ...]
) -> None:
    message = str(read_by_us(layout(library, places), library))
    assert all(word in message for word in words), message


@pytest.mark.parametrize(
    ("library", "read", "unread"),
    [
        ("diffusers", "diffusion_pytorch_model.safetensors.index.json", "model.safetensors"),
        ("transformers", "model.safetensors", "model.safetensors.index.json"),
    ],
)
def test_a_second_set_of_the_same_variant_is_said(
    layout: Callable[[str, set[str]], Path], library: str, read: str, unread: str
) -> None:
    (note,) = read_weights(layout(library, {"single", "shards"}), library).notes
    assert note.startswith(f"{read} is read, as {library} does, and not ")
    assert note.endswith(unread)


@pytest.mark.parametrize("library", LIBRARIES)
@pytest.mark.parametrize("infix", ["index.fp16", "fp16.index", "fp16.safetensors.index"])
def test_spellings_of_a_variants_index(tmp_path: Path, library: str, infix: str) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    network(library).save_config(folder) if library == "diffusers" else network(
        library
    ).config.save_pretrained(folder)
    write_shards(folder, library, "fp16", 3.0)
    stem = LIBRARIES[library].stem
    name = f"{stem}.{infix}.json" if "safe" in infix else f"{stem}.safetensors.{infix}.json"
    (folder / f"{stem}.safetensors.index.fp16.json").rename(folder / name)
    theirs, ours = read_by_them(folder, library, "fp16"), read_by_us(folder, library)
    assert ours == theirs or (theirs is None and "holds no weights" in str(ours))


def test_a_variant_is_of_the_whole_pipeline(tmp_path: Path) -> None:
    def folder(name: str, *places: str) -> Path:
        made = tmp_path / name
        made.mkdir()
        for place in places:
            write(made, "diffusers", place, 1.0)
        return made

    plain, both = folder("plain", "single"), folder("both", "single", "single.fp16")
    half, ema = folder("half", "single.fp16"), folder("ema", "shards.ema")
    library = "diffusers"
    assert pipeline_variant({plain: library, both: library}) is None
    assert pipeline_variant({plain: library, both: library, half: library}) == "fp16"
    assert read_weights(plain, library, "fp16").variant is None
    assert read_weights(both, library, "fp16").variant == "fp16"
    with pytest.raises(CheckpointError, match="no single variant has all components"):
        pipeline_variant({plain: library, half: library, ema: library})
    with pytest.raises(CheckpointError, match="of library 'flax': expected diffusers or"):
        pipeline_variant({plain: "flax"})


def test_a_tensor_in_two_shards_is_refused(tmp_path: Path) -> None:
    write_shards(tmp_path, "diffusers", None, 1.0)
    first, second = sorted(tmp_path.glob("*.safetensors"))
    save_file(filled("diffusers", 2.0), second, {"format": "pt"})
    with pytest.raises(CheckpointError, match=f"{first.name} and {second.name} both hold tensor"):
        read_weights(tmp_path, "diffusers")


def test_what_is_not_looked_at_may_lack_its_weights(demo_copy: Path) -> None:
    """An export of the transformer alone reads the VAE's configuration and no more of it."""
    (demo_copy / "vae" / "diffusion_pytorch_model.safetensors").unlink()
    assert open_checkpoint(demo_copy, only=("transformer",)).tensors
    with pytest.raises(CheckpointError, match="holds no weights"):
        open_checkpoint(demo_copy)
