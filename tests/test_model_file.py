"""The data file beside a model: where tensors lie in it, and how a run that was cut off goes on."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx.parser
import pytest

from fp4dit_onnx.bundle.model_file import ModelFile, save_model
from fp4dit_onnx.bundle.skeleton import is_placeholder, placeholder
from fp4dit_onnx.errors import Fp4DitError
from fp4dit_onnx.numbers.compare import same_bits
from fp4dit_onnx.ops import IR_VERSION, OPSET

Array = npt.NDArray[Any]
RANDOM = np.random.default_rng(0)
VALUES: Mapping[str, Array] = {
    "codes": RANDOM.integers(0, 255, (3, 1001)).astype(np.uint8),
    "small": np.array([1.5, -2], np.float32),
    "half": RANDOM.standard_normal(5001).astype(np.float16),
    "large": RANDOM.standard_normal((512, 600)).astype(np.float32)[:, :513],
    "edge": RANDOM.standard_normal(256).astype(np.float32),  # 1024 bytes
    "last": RANDOM.standard_normal((20, 20)).astype(np.float32),
}
OUTSIDE = ("codes", "half", "large", "edge", "last")
"""Those of 1024 bytes and more, in the order of the model."""


def model(values: Mapping[str, Array] = VALUES, *, absent: bool = True) -> onnx.ModelProto:
    """A model with `values` for initializers; placeholders if `absent`."""
    text = (
        '<ir_version: 10, opset_import: ["": 21]> g (float[2] x) => (float[2] y) { y = Neg (x) }'
    )
    made = onnx.parser.parse_model(text)
    for name, value in values.items():
        kind = onnx.helper.np_dtype_to_tensor_dtype(value.dtype)
        tensor = (
            placeholder(name, value.shape, kind)
            if absent
            else onnx.numpy_helper.from_array(value, name)
        )
        made.graph.initializer.append(tensor)
    return made


class Giver:
    """Gives values, notes for which it was asked, and ends the run at one of them."""

    def __init__(self, stop_at: str | None = None) -> None:
        self.asked, self._stop_at = list[str](), stop_at

    def __call__(self, name: str) -> Array:
        """The value of one tensor."""
        if name == self._stop_at:
            raise KeyboardInterrupt
        self.asked.append(name)
        return VALUES[name]


def note(name: str) -> dict[str, str]:
    return {"of": name}


def write(folder: Path, give: Callable[[str], Array], journal: Path | None) -> Path:
    folder.mkdir(exist_ok=True)
    path = folder / "m.onnx"
    with ModelFile(path, journal) as file:
        file.write(model(), give, note)
    return path


def both_files(path: Path) -> tuple[bytes, bytes]:
    return path.read_bytes(), path.with_name("m.onnx.data").read_bytes()


def place_of(tensor: onnx.TensorProto) -> dict[str, str]:
    return {entry.key: entry.value for entry in tensor.external_data}


@pytest.mark.parametrize("absent", [True, False])
def test_tensors_are_aligned_and_read_back(tmp_path: Path, absent: bool) -> None:
    path = tmp_path / "m.onnx"
    if absent:
        write(tmp_path, Giver(), None)
    else:
        save_model(model(absent=False), path)
    stored = {t.name: t for t in onnx.load(path, load_external_data=False).graph.initializer}
    assert [name for name, t in stored.items() if t.external_data] == list(OUTSIDE)
    end = 0
    for name in OUTSIDE:
        place = place_of(stored[name])
        assert place["location"] == "m.onnx.data"
        step = 1 << 16 if name == "large" else 64
        assert int(place["offset"]) == -(-end // step) * step  # the next multiple
        assert int(place["length"]) == VALUES[name].nbytes
        end = int(place["offset"]) + int(place["length"])
    assert (tmp_path / "m.onnx.data").stat().st_size == end
    for tensor in onnx.load(path).graph.initializer:
        found = onnx.numpy_helper.to_array(tensor)
        assert found.dtype == VALUES[tensor.name].dtype
        np.testing.assert_array_equal(found, VALUES[tensor.name])


def test_a_placeholder_takes_the_type_of_its_values(tmp_path: Path) -> None:
    """A graph may be made before it is known what its tensors are stored as."""
    made = model({name: VALUES[name].astype(np.float32) for name in ("small", "edge")})
    halves = {name: VALUES[name].astype(np.float16) for name in ("small", "edge")}
    with ModelFile(tmp_path / "m.onnx") as file:
        file.write(made, lambda name: halves[name])
    for tensor in onnx.load(tmp_path / "m.onnx").graph.initializer:
        np.testing.assert_array_equal(onnx.numpy_helper.to_array(tensor), halves[tensor.name])
        assert tensor.data_type == onnx.TensorProto.FLOAT16
        assert not is_placeholder(tensor)


@pytest.mark.parametrize("kind", [np.float32, np.float16])
def test_values_in_pieces_are_stored_as_the_placeholder_says(
    tmp_path: Path, kind: type[np.floating[Any]]
) -> None:
    values = {name: VALUES[name] for name in ("large", "small", "edge")}
    found = []
    for pieces in (1, 3):
        path = tmp_path / f"{pieces}" / "m.onnx"
        path.parent.mkdir()
        made = model({name: value.astype(kind) for name, value in values.items()})
        with ModelFile(path) as file:
            file.write(made, lambda name, n=pieces: iter(np.array_split(values[name].ravel(), n)))
        found.append(both_files(path))
        for tensor in onnx.load(path).graph.initializer:
            wanted = values[tensor.name].astype(kind)
            np.testing.assert_array_equal(onnx.numpy_helper.to_array(tensor), wanted)
            assert onnx.numpy_helper.to_array(tensor).dtype == kind
    assert found[0] == found[1]


def test_what_float16_cannot_store_is_named(tmp_path: Path) -> None:
    made = model({"wide": np.zeros(600, np.float16)})
    with (
        ModelFile(tmp_path / "m.onnx") as file,
        pytest.raises(Fp4DitError, match="tensor wide holds 65520, more than float16 can store"),
    ):
        file.write(made, lambda name: np.full(600, 65520, np.float32))


def test_every_tensor_is_counted_and_the_model_comes_last(tmp_path: Path) -> None:
    path, counts = tmp_path / "m.onnx", list[int]()
    seen: list[tuple[bool, dict[str, Any]]] = []
    with ModelFile(path) as file:
        file.write(
            model(),
            Giver(),
            note,
            counts.append,
            lambda: seen.append((path.exists(), dict(file.notes))),
        )
    assert counts == [value.size for value in VALUES.values()]
    assert seen == [(False, {name: note(name) for name in OUTSIDE})]


def cut_off(folder: Path, stop_at: str) -> Path:
    """A run that was killed at the tensor `stop_at`; returns its journal."""
    journal = folder.with_suffix(".jsonl")
    with pytest.raises(KeyboardInterrupt):
        write(folder, Giver(stop_at), journal)
    assert not (folder / "m.onnx").exists()
    return journal


@pytest.fixture
def uninterrupted(tmp_path: Path) -> tuple[bytes, bytes]:
    """Both files of a run without a journal."""
    return both_files(write(tmp_path / "whole", Giver(), None))


@pytest.mark.parametrize("stop_at", VALUES)
def test_a_run_that_was_cut_off_goes_on(
    tmp_path: Path, uninterrupted: tuple[bytes, bytes], stop_at: str
) -> None:
    journal = cut_off(tmp_path / "cut", stop_at)
    lines = journal.read_text().splitlines() if journal.exists() else []
    done = [json.loads(line)["name"] for line in lines]
    before = list(VALUES)[: list(VALUES).index(stop_at)]
    assert done == [name for name in before if name in OUTSIDE]
    give = Giver()
    path = write(tmp_path / "cut", give, journal)
    assert give.asked == [name for name in VALUES if name not in done]
    assert both_files(path) == uninterrupted
    with ModelFile(path, journal) as file:
        assert file.notes == {name: note(name) for name in OUTSIDE}
    again = Giver()
    assert both_files(write(tmp_path / "cut", again, journal)) == uninterrupted
    assert again.asked == ["small"]


def goes_on(
    folder: Path, journal: Path, kept: list[str], uninterrupted: tuple[bytes, bytes]
) -> None:
    """Assert that a run goes on after the tensors `kept`."""
    give = Giver()
    path = write(folder, give, journal)
    assert give.asked == [name for name in VALUES if name not in kept]
    assert both_files(path) == uninterrupted
    assert len(journal.read_text().splitlines()) == len(OUTSIDE)
    assert all(json.loads(line) for line in journal.read_text().splitlines())


def test_a_torn_last_line(tmp_path: Path, uninterrupted: tuple[bytes, bytes]) -> None:
    """The tensor is in the data file, and the line of it only in part."""
    journal = cut_off(tmp_path / "cut", "edge")
    text = journal.read_text()
    journal.write_text(text[:-20])
    goes_on(tmp_path / "cut", journal, ["codes", "half"], uninterrupted)


def test_half_a_tensor_after_the_last_line(
    tmp_path: Path, uninterrupted: tuple[bytes, bytes]
) -> None:
    journal = cut_off(tmp_path / "cut", "last")
    with (tmp_path / "cut" / "m.onnx.data").open("ab") as data:
        data.write(b"half a tensor" * 999)
    goes_on(tmp_path / "cut", journal, ["codes", "half", "large", "edge"], uninterrupted)


@pytest.mark.parametrize(
    ("missing", "kept"),
    [
        (1, ["codes", "half", "large"]),
        (1025, ["codes", "half"]),
        (10**9, []),
    ],
)
def test_a_data_file_that_is_shorter_than_the_journal_says(
    tmp_path: Path, uninterrupted: tuple[bytes, bytes], missing: int, kept: list[str]
) -> None:
    journal = cut_off(tmp_path / "cut", "last")
    data = tmp_path / "cut" / "m.onnx.data"
    with data.open("r+b") as file:
        file.truncate(max(0, data.stat().st_size - missing))
    goes_on(tmp_path / "cut", journal, kept, uninterrupted)


def test_a_journal_without_its_data_file(
    tmp_path: Path, uninterrupted: tuple[bytes, bytes]
) -> None:
    journal = cut_off(tmp_path / "cut", "last")
    (tmp_path / "cut" / "m.onnx.data").unlink()
    goes_on(tmp_path / "cut", journal, [], uninterrupted)


# --- where tensors lie

MIB = 1 << 20


def model_of(initializers: dict[str, Array]) -> onnx.ModelProto:
    """A model that returns its initializers."""
    outputs = ", ".join(f"float[?] out_{name}" for name in initializers)
    body = "\n".join(f"out_{name} = Identity ({name})" for name in initializers)
    header = f'<ir_version: {IR_VERSION}, opset_import: ["": {OPSET}]>'
    model = onnx.parser.parse_model(f"{header} test (float[?] x) => ({outputs}) {{ {body} }}")
    for name, value in initializers.items():
        model.graph.initializer.append(onnx.numpy_helper.from_array(value, name))
    return model


def initializers_by_size() -> dict[str, Array]:
    random = np.random.default_rng(0)
    counts = {
        "below": 255,
        "edge": 256,
        "odd": 301,
        "almost_large": MIB // 4 - 1,
        "large": MIB // 4,
        "after": 257,
        "larger": MIB // 4 + 1,
    }
    return {n: random.standard_normal(c).astype(np.float32) for n, c in counts.items()}


def test_save_model_aligns_what_it_moves_out(tmp_path: Path) -> None:
    values = initializers_by_size()
    model = model_of(values)
    path = tmp_path / "model.onnx"
    save_model(model, path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model.onnx", "model.onnx.data"]

    data = (tmp_path / "model.onnx.data").read_bytes()
    end = 0
    for tensor in onnx.load(path, load_external_data=False).graph.initializer:
        value = values[tensor.name]
        if value.nbytes < 1024:
            assert tensor.raw_data == value.tobytes()
            assert not tensor.external_data
            continue
        assert tensor.data_location == onnx.TensorProto.EXTERNAL
        assert not tensor.raw_data
        entry = {e.key: e.value for e in tensor.external_data}
        offset, length = int(entry["offset"]), int(entry["length"])
        assert entry["location"] == "model.onnx.data"
        assert offset % (65536 if value.nbytes >= MIB else 64) == 0
        assert offset >= end
        assert data[offset : offset + length] == value.tobytes()
        end = offset + length
    assert end == len(data)
    assert path.stat().st_size < 4096


def test_saved_model_loads_and_is_the_one_before(tmp_path: Path) -> None:
    values = initializers_by_size()
    before, given = model_of(values), model_of(values)
    path = tmp_path / "model.onnx"
    save_model(given, path)
    onnx.checker.check_model(str(path), full_check=True)
    after = onnx.load(path)
    for tensor in after.graph.initializer:  # onnx.load leaves the place noted
        tensor.ClearField("data_location")
        del tensor.external_data[:]
    assert after == before


def test_saved_model_runs(tmp_path: Path) -> None:
    ort = pytest.importorskip("onnxruntime")
    values = initializers_by_size()
    save_model(model_of(values), tmp_path / "model.onnx")
    session = ort.InferenceSession(
        str(tmp_path / "model.onnx"), providers=["CPUExecutionProvider"]
    )
    found = session.run(None, {"x": np.zeros(1, np.float32)})
    assert all(same_bits(a, b).ok for a, b in zip(values.values(), found, strict=True))


def test_save_model_overwrites_old_data(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    save_model(model_of(initializers_by_size()), path)
    save_model(model_of({"small": np.zeros(3, np.float32)}), path)
    assert (tmp_path / "model.onnx.data").read_bytes() == b""
