"""The C++ tests and a short fuzz run, built with sanitizers of addresses, behaviour and threads."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from fp4dit_onnx.runtime.library import Library

SOURCE = Path(__file__).resolve().parents[1] / "custom_ops"

pytestmark = pytest.mark.skipif(
    sys.platform == "win32" or shutil.which("c++") is None or shutil.which("cmake") is None,
    reason="needs cmake and a compiler with sanitizers",
)


def run(command: list[str], **environment: str) -> str:
    """Output of a command that must succeed."""
    strict = {"UBSAN_OPTIONS": "print_stacktrace=1", "ASAN_OPTIONS": "detect_leaks=1"}
    env = {**os.environ, **strict, **environment}
    result = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def build_with(sanitizers: str, folder: Path, *targets: str) -> Path:
    options = ["-DFP4DIT_BUILD_TESTS=ON", "-DFP4DIT_WERROR=ON", "-DCMAKE_BUILD_TYPE=None"]
    options += [f"-DFP4DIT_SANITIZE={sanitizers}", "-DCMAKE_CXX_FLAGS=-O1 -g1"]
    run(["cmake", "-S", str(SOURCE), "-B", str(folder), *options])
    run(["cmake", "--build", str(folder), "--parallel", "2", "--target", *targets])
    return folder


@pytest.fixture(scope="module")
def build(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("native")
    return build_with("address,undefined", folder, "fp4dit_tests", "fp4dit_fuzz")


def test_unit_tests(build: Path, capsys: pytest.CaptureFixture[str]) -> None:
    best = Library().isas[0]
    output = run([str(build / "tests" / "fp4dit_tests"), best])
    checks = re.search(r"(\d+) checks, 0 failures", output)
    assert checks is not None, output
    assert int(checks[1]) > 100_000, output
    for isa in Library().isas:
        assert f"{isa}: ran" in output
    # AMX runs in an emulation too, which folds its sums with AVX-512.
    emulated = sys.platform == "linux" and "avx512_vnni" in Library().isas
    assert ("amx_int8_emulated: ran" in output) == emulated
    with capsys.disabled():
        print("\n  native: " + "; ".join(output.splitlines()))


def test_an_isa_that_did_not_run_fails(build: Path) -> None:
    with pytest.raises(AssertionError, match="sparc: asked for, and did not run"):
        run([str(build / "tests" / "fp4dit_tests"), "sparc"])


def test_random_cases(build: Path) -> None:
    """Every instruction set gives the scalar kernels' bits, on memory that is watched.

    Five times as many take minutes: docs/adding-a-kernel.md has the command.
    """
    output = run([str(build / "tests" / "fp4dit_tests"), "--random", "2000"])
    assert "2000 random cases" in output
    assert re.search(r"\d+ checks, 0 failures", output) is not None, output


def test_threads(tmp_path: Path) -> None:
    """The fake runtime's two threads share no memory unsafely, with any instruction set."""
    build_with("thread", tmp_path, "fp4dit_tests")
    # Cases that no other test starts with: the sanitizer sees whatever is cut into tasks.
    output = run([str(tmp_path / "tests" / "fp4dit_tests"), "--random", "300", "50000"])
    assert re.search(r"\d+ checks, 0 failures", output) is not None, output


@pytest.mark.skipif(sys.platform != "linux", reason="the driver is emulated for Linux")
def test_operators_of_a_gpu(build: Path, emulated_kernels: Path) -> None:
    """What is registered for the CUDA provider gives the scalar kernels' bits, the GPU emulated."""
    command = [str(build / "tests" / "fp4dit_tests"), "--gpu", "150"]
    output = run(command, LD_LIBRARY_PATH=str(emulated_kernels.parent))
    assert re.search(r"\d{4,} checks, 0 failures", output) is not None, output


@pytest.mark.skipif(sys.platform != "linux", reason="the driver is emulated for Linux")
@pytest.mark.parametrize("capturing", ["0", "1"])
def test_what_a_call_queues(
    build: Path, emulated_kernels: Path, tmp_path: Path, capturing: str
) -> None:
    """Memory is allocated in a first call alone, and never in one that a CUDA graph captures."""
    trace = tmp_path / "trace"
    there = {"LD_LIBRARY_PATH": str(emulated_kernels.parent), "FAKE_CUDA_TRACE": str(trace)}
    command = [str(build / "tests" / "fp4dit_tests"), "--gpu", "0"]
    run(command, **there, FAKE_CUDA_CAPTURING=capturing)
    ours = "fp4dit_linear_"
    many, few = "decode_codes", "int8_codes_shared"
    wanted = ["allocate", "allocate", many, "int8_bytes_128", many, "int8_bytes_128"]
    wanted += ["allocate", "allocate", few, "fold", few, "fold"]
    wanted += ["allocate", *2 * ["fp4dit_hadamard_quantize"]]
    if capturing == "1":
        wanted = ["allocate", *2 * ["int8_codes_128"], "allocate", *2 * ["int8_codes_16"]]
    lines = [line.removeprefix(ours) for line in trace.read_text().splitlines()]
    assert lines[: len(wanted)] == wanted


NO_GPU = {
    "FAKE_CUDA_DEVICES=0": "the NVIDIA driver finds no GPU: see nvidia-smi",
    "FAKE_CUDA_DEVICES=2": "2 GPUs, and the provider has made none of them current",
    "FAKE_CUDA_ARCH=70": "has compute capability 7.0, and the kernels are for 7.5 and newer: use",
    "FAKE_CUDA_LOAD=222": "CUDA 13.0, cannot load all's kernels for sm_80 on 'pretended', sm_80",
    "FP4DIT_TEST_IMAGES=none": "built without GPU kernels: install a released wheel, or run",
    "FP4DIT_TEST_IMAGES=damaged": "GPU kernels are damaged: install it again",
    "LD_LIBRARY_PATH=": "there is no NVIDIA driver (libcuda.so.1): install one for CUDA 12 or newer",
}
"""What is pretended, and what the operator then says."""


@pytest.mark.skipif(sys.platform != "linux", reason="the driver is emulated for Linux")
def test_a_gpu_that_cannot_be_used(build: Path, emulated_kernels: Path) -> None:
    create = [str(build / "tests" / "fp4dit_tests"), "--create", "FpQuantize"]
    there = {"LD_LIBRARY_PATH": str(emulated_kernels.parent)}
    for arch in ("75", "87", "121"):
        assert run(create, **there, FAKE_CUDA_ARCH=arch) == "created\n"
    for pretended, said in NO_GPU.items():
        name, value = pretended.split("=")
        output = run(create, **{**there, name: value})
        assert output.startswith("FpQuantize node 'fc1': "), output
        assert said in output
        assert output.count("\n") == 1
    create[-1] = "FpLinear"
    output = run(create, **there, FAKE_CUDA_BYTES="5000")
    assert re.search(
        r"'fc1': 0\.0 MB of GPU memory are not to be had, 0\.0 of 0\.0 MB are free", output
    )


@pytest.mark.parametrize("isa", Library().isas)
def test_fuzz(build: Path, isa: str) -> None:
    output = run([str(build / "fuzz" / "fp4dit_fuzz"), "1", "4000"], FP4DIT_ISA=isa)
    assert "4000 nodes" in output
