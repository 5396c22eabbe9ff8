"""Kernels compiled without CUDA: the same bytes twice, compressed as the library reads them."""

from __future__ import annotations

import lzma
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import build_gpu
import emulation
import numpy as np
import pytest
from build_gpu import Image, Nvrtc

KERNEL = """
#include "gpu/device.h"
KERNEL(32) first(float* x) { x[Thread()] = Add(Mul(x[Thread()], x[0]), 1.0f); }
KERNEL(32) second(float* x) { x[Thread()] = x[Thread()] * x[0] + 1.0f; }
"""


@pytest.fixture(scope="module")
def nvrtc() -> Nvrtc:
    if sys.platform != "linux":
        pytest.skip("NVRTC's package is for Linux")
    return Nvrtc()


def test_the_same_bytes_twice_for_every_gpu(nvrtc: Nvrtc, tmp_path: Path) -> None:
    source = tmp_path / "add.cu"
    source.write_text(KERNEL)
    images = build_gpu.compiled(nvrtc, [source], tmp_path / "cache")
    assert [(i.arch, i.is_ptx) for i in images] == [
        *((arch, False) for arch in (75, 80, 86, 89, 90, 100, 120)),
        (80, True),
    ]
    assert all(i.code.startswith(b"\x7fELF") for i in images[:-1])
    again = build_gpu.compiled(Nvrtc(), [source], None)
    assert again == images
    assert build_gpu.text_of(again) == build_gpu.text_of(images)
    kept = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "cache").iterdir()}
    assert build_gpu.compiled(nvrtc, [source], tmp_path / "cache") == images
    assert {path.name: path.stat().st_mtime_ns for path in (tmp_path / "cache").iterdir()} == kept


def test_nothing_is_contracted(nvrtc: Nvrtc) -> None:
    """A product and a sum that the source does not fuse stay two instructions, however written."""
    ptx = nvrtc.compile("add.cu", KERNEL, build_gpu.headers(), "compute_80").decode()
    assert len(re.findall(r"\bmul\.rn\.f32", ptx)) == 2
    assert "fma" not in ptx


def test_what_the_compiler_says(nvrtc: Nvrtc) -> None:
    with pytest.raises(
        build_gpu.BuildError, match=r"add\.cu does not compile for sm_80:\nadd.cu\(1\): error"
    ):
        nvrtc.compile("add.cu", "nope", {}, "sm_80")


def test_every_kernel_of_the_list_is_compiled(nvrtc: Nvrtc) -> None:
    listed = re.findall(
        r"^FP4DIT_GPU_KERNEL\((\w+),", (build_gpu.SOURCES / "gpu/kernels.inc").read_text(), re.M
    )
    found = []
    for path in sorted(build_gpu.KERNELS.glob("*.cu")):
        ptx = nvrtc.compile(
            path.name, path.read_text(), build_gpu.headers(), "compute_80"
        ).decode()
        found += re.findall(r"\.entry (\w+)\(", ptx)
    assert sorted(found) == sorted(listed)


def expand(stream: bytes) -> bytes:
    """What a raw stream of LZMA holds."""
    return lzma.decompress(stream, lzma.FORMAT_RAW, filters=[build_gpu.COMPRESSION])


PROGRAM = """#include <cstdio>
#include <cstdlib>
#include <vector>
#include "gpu/driver/lzma.h"
int main(int, char** words) {
  const size_t size = std::strtoull(words[1], nullptr, 10), room = std::strtoull(words[2], nullptr, 10);
  std::vector<uint8_t> from(size + 1), to(room + 1);
  if (std::fread(from.data(), 1, size, stdin) != size) return 3;
  if (!fp4dit::gpu::Decompress(from.data(), size, to.data(), room)) return 7;
  return std::fwrite(to.data(), 1, room, stdout) == room ? 0 : 3;
}"""
SANITIZED = (
    "-std=c++17",
    "-O1",
    "-g1",
    "-fsanitize=address,undefined",
    "-fno-sanitize-recover=all",
)


@pytest.fixture(scope="module")
def decompressor(tmp_path_factory: pytest.TempPathFactory) -> Callable[[bytes, int], bytes | None]:
    """The library's decompression, with sanitizers: of a stream to so many bytes; None if it refuses."""
    if shutil.which("c++") is None:
        pytest.skip("needs a C++ compiler")
    folder = tmp_path_factory.mktemp("lzma")
    (folder / "main.cc").write_text(PROGRAM)
    sources = (folder / "main.cc", build_gpu.SOURCES / "gpu/driver/lzma.cc")
    program = folder / "program"
    emulation.call(["c++", *SANITIZED, f"-I{build_gpu.SOURCES}", *sources, "-o", program])

    def run(stream: bytes, room: int) -> bytes | None:
        words = [str(program), str(len(stream)), str(room)]
        done = subprocess.run(words, input=stream, capture_output=True, check=False)
        assert done.returncode in (0, 7), done.stderr.decode()
        return done.stdout if done.returncode == 0 else None

    return run


def test_the_library_decompresses(decompressor: Callable[[bytes, int], bytes | None]) -> None:
    random = np.random.default_rng(0)
    texts = [b"", b"a", bytes(1000), random.bytes(20_000), random.bytes(300) * 300]
    texts += [random.integers(0, 4, n, np.uint8).tobytes() for n in (12, 13, 17, 5000, 300_000)]
    texts += [random.bytes(70_000) + bytes(9) + random.bytes(40) * 50, Path(__file__).read_bytes()]
    for text in texts:
        stream = build_gpu.compress(text)
        assert expand(stream) == text
        assert decompressor(stream, len(text)) == text
    assert len(build_gpu.compress(bytes(1000))) < 30


def test_damaged_streams_are_refused(decompressor: Callable[[bytes, int], bytes | None]) -> None:
    random = np.random.default_rng(1)
    text = Path(__file__).read_bytes()
    stream = build_gpu.compress(text)
    assert decompressor(stream, len(text) + 1) is None, "of another size"
    assert decompressor(build_gpu.compress(bytes(1000)), 500) is None, "a repetition goes beyond"
    assert decompressor(b"\1" + stream[1:], len(text)) is None
    for length in (0, 4, len(stream) // 2):
        assert decompressor(stream[:length], len(text)) is None
    refused = 0
    for place in random.choice(len(stream), 40, replace=False):
        damaged = bytearray(stream)
        damaged[place] ^= 1 << random.integers(8)
        refused += decompressor(bytes(damaged), len(text)) != text
    assert refused >= 38, "the last bytes may say nothing"


ROW = r'\{"(\w)", (\d+), (\w+), \{(\d+), (\d+), (\d+)\}, (\d+), (\d+)\}'


def test_what_the_library_embeds(tmp_path: Path) -> None:
    images = [Image("a", 80, False, b"code" * 50), Image("a", 80, True, b"more code" * 20)]
    images += [Image("b", 75, False, b"other" * 30)]
    rows, data = build_gpu.packed(images, tmp_path)
    assert build_gpu.packed(images, tmp_path) == (rows, data) == build_gpu.packed(images)
    table = re.findall(ROW, rows)
    named = [("a", "80", "false"), ("a", "80", "true"), ("b", "75", "false")]
    assert [row[:3] for row in table] == named
    for image, row in zip(images, table, strict=True):
        offset, stored, loaded, at, size = map(int, row[3:])
        stream = expand(data[offset : offset + stored])
        assert len(stream) == loaded
        assert stream[at : at + size] == image.code
    assert build_gpu.holds(b"library" + data + b"end", images)
    assert not build_gpu.holds(b"library" + data[:-8], images)


def test_what_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(build_gpu, "MOST_BYTES", 900)
    large = [Image("a", 80, False, np.random.default_rng(0).bytes(1000))]
    with pytest.raises(build_gpu.BuildError, match=r"\d+ bytes in a wheel: expected at most 900"):
        build_gpu.packed(large)
    assert build_gpu.main(["--nvrtc", str(tmp_path / "none.so")]) == 2
    assert "pip install 'nvidia-cuda-nvrtc-cu12==12.9.*'" in capsys.readouterr().err
