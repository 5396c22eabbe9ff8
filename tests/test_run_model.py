"""The program that runs a model with an ONNX Runtime given by path, built for this machine."""

from __future__ import annotations

import shutil
import subprocess
from importlib.metadata import distribution
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from onnx import TensorProto, helper

SOURCE = Path(__file__).resolve().parents[1] / "custom_ops"
CAPI = Path(str(distribution("onnxruntime").locate_file("onnxruntime/capi")))
RUNTIMES = sorted(CAPI.glob("libonnxruntime.so*"))
TYPES = {
    "float32": TensorProto.FLOAT,
    "float16": TensorProto.FLOAT16,
    "float64": TensorProto.DOUBLE,
    "uint8": TensorProto.UINT8,
    "int8": TensorProto.INT8,
    "int16": TensorProto.INT16,
    "int32": TensorProto.INT32,
    "int64": TensorProto.INT64,
    "bool": TensorProto.BOOL,
}

pytestmark = pytest.mark.skipif(
    shutil.which("c++") is None or shutil.which("cmake") is None or not RUNTIMES,
    reason="needs cmake, a compiler, and an onnxruntime package with libonnxruntime.so",
)


@pytest.fixture(scope="module")
def runner(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runner")
    options = ["-DFP4DIT_BUILD_TESTS=ON", "-DFP4DIT_WERROR=ON", "-DCMAKE_BUILD_TYPE=None"]
    options += ["-DFP4DIT_SANITIZE=address,undefined", "-DCMAKE_CXX_FLAGS=-O1 -g1"]
    for command in (
        ["cmake", "-S", str(SOURCE), "-B", str(folder), *options],
        ["cmake", "--build", str(folder), "--parallel", "2", "--target", "fp4dit_run_model"],
    ):
        result = subprocess.run(command, capture_output=True, text=True, check=False)
        assert result.returncode == 0, result.stdout + result.stderr
    return folder / "tests" / "fp4dit_run_model"


def run(runner: Path, *arguments: Path | str, text: str = "") -> subprocess.CompletedProcess[str]:
    # The runtime keeps what it allocated once to the end of the process.
    env = {"ASAN_OPTIONS": "detect_leaks=0", "UBSAN_OPTIONS": "print_stacktrace=1"}
    command = [str(runner), *map(str, arguments)]
    return subprocess.run(
        command, env=env, input=text, capture_output=True, text=True, check=False
    )


def identity(path: Path, dtype: str, rank: int) -> Path:
    """A model with one input, which is its output."""
    dims = [f"d{i}" for i in range(rank)]
    x, y = (helper.make_tensor_value_info(name, TYPES[dtype], dims) for name in "xy")
    graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "g", [x], [y])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    onnx.save(model, path)
    return path


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("shape", [(), (5,), (0, 3), (2, 3, 4)])
def test_tensors_pass_as_they_are(
    runner: Path, tmp_path: Path, dtype: str, shape: tuple[int, ...]
) -> None:
    model = identity(tmp_path / "model.onnx", dtype, len(shape))
    value: npt.NDArray[Any] = np.random.default_rng(0).integers(0, 100, shape).astype(dtype)
    np.save(tmp_path / "input_0.npy", value)
    result = run(runner, RUNTIMES[0], model, tmp_path)
    assert result.returncode == 0, result.stderr
    found = np.load(tmp_path / "output_0.npy")
    assert found.dtype == value.dtype
    assert found.shape == value.shape
    np.testing.assert_array_equal(found, value)


def test_folders_from_standard_input(runner: Path, tmp_path: Path) -> None:
    model = identity(tmp_path / "model.onnx", "float32", 1)
    folders = [tmp_path / "one", tmp_path / "two"]
    for size, folder in enumerate(folders, 1):
        folder.mkdir()
        np.save(folder / "input_0.npy", np.full(size, size, np.float32))
    result = run(runner, RUNTIMES[0], model, text="".join(f"{f}\n" for f in folders))
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines()[1:] == ["input 0 x", "output 0 y", "ready", "done", "done"]
    assert [np.load(f / "output_0.npy").tolist() for f in folders] == [[1.0], [2.0, 2.0]]


HEADER = b"{'descr': '<f4', 'fortran_order': False, 'shape': (2,), }\n"


def npy(header: bytes, data: bytes = b"\0" * 8, start: bytes = b"\x93NUMPY\1\0") -> bytes:
    return start + len(header).to_bytes(2, "little") + header + data


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", "it does not begin as one"),
        (npy(HEADER, start=b"\x93NUMPY\2\0"), "of another version"),
        (npy(HEADER)[:40], "a header that is cut off"),
        (npy(HEADER.replace(b"<f4", b">f4")), "not understood: {'descr': '>f4'"),
        (npy(HEADER.replace(b"False", b"True")), "not understood"),
        (npy(HEADER.replace(b"(2,)", b"(-2,)")), "not understood"),
        (npy(HEADER.replace(b"2,", b"2, " + b"9" * 20)), "not understood"),
        (npy(HEADER.replace(b"2,", b"9000000000, 9000000000")), "a shape that is too large"),
        (npy(HEADER.replace(b"2,", b"9000000000,")), "not as many bytes as its header says"),
        (npy(HEADER, b"\0" * 7), "not as many bytes as its header says"),
        (npy(HEADER, b"\0" * 9), "not as many bytes as its header says"),
        (npy(b"x" * 5000), "a header that is too long"),
    ],
)
def test_damaged_tensors_are_refused(
    runner: Path, tmp_path: Path, content: bytes, expected: str
) -> None:
    model = identity(tmp_path / "model.onnx", "float32", 1)
    (tmp_path / "input_0.npy").write_bytes(content)
    result = run(runner, RUNTIMES[0], model, tmp_path)
    assert result.returncode == 1
    assert expected in result.stderr
    assert result.stderr.startswith(f"error: {tmp_path / 'input_0.npy'}: ")
    assert len(result.stderr.splitlines()) == 1


def test_what_is_missing_is_named(runner: Path, tmp_path: Path) -> None:
    model = identity(tmp_path / "model.onnx", "float32", 1)
    nowhere = tmp_path / "nowhere"
    for arguments in (
        (nowhere, model),
        (RUNTIMES[0], nowhere),
        ("--library", nowhere, RUNTIMES[0], model),
        (RUNTIMES[0], model, nowhere),
    ):
        result = run(runner, *arguments)
        assert result.returncode == 1
        assert len(result.stderr.splitlines()) == 1
        assert str(nowhere) in result.stderr


def test_wrong_type_is_refused_by_the_runtime(runner: Path, tmp_path: Path) -> None:
    model = identity(tmp_path / "model.onnx", "float32", 1)
    np.save(tmp_path / "input_0.npy", np.zeros(2, np.int64))
    result = run(runner, RUNTIMES[0], model, tmp_path)
    assert result.returncode == 1
    assert "Unexpected input data type" in result.stderr


@pytest.mark.parametrize(
    "arguments", [(), ("runtime",), ("--threads", "0", "a", "b"), ("--speed", "a", "b")]
)
def test_usage(runner: Path, arguments: tuple[str, ...]) -> None:
    result = run(runner, *arguments)
    assert result.returncode == 2
    assert "usage:" in result.stderr
