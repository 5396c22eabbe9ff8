"""An NVIDIA driver that answers what a test says: the library is real, its GPUs are not."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from fp4dit_onnx.system import nvidia

SOURCE = r"""
#include <stdlib.h>
#include <string.h>
static int given(const char* name) { return atoi(getenv(name)); }
int cuInit(unsigned flags) { return given("FAKE_CODE"); }
int cuDriverGetVersion(int* version) { *version = given("FAKE_CUDA"); return 0; }
int cuDeviceGetCount(int* count) { *count = given("FAKE_GPUS"); return 0; }
int cuDeviceGet(int* device, int index) { *device = index; return 0; }
int cuDeviceGetName(char* name, int size, int device) { strncpy(name, "Fake 1", size); return 0; }
int cuDeviceTotalMem_v2(size_t* bytes, int device) { *bytes = (size_t)8 << 30; return 0; }
int cuDeviceGetAttribute(int* value, int attribute, int device) {
  int capability = given("FAKE_CAPABILITY");
  *value = attribute == 75 ? capability / 10 : attribute == 76 ? capability % 10 : -1;
  return 0;
}
"""


def shared_object(path: Path, source: str, *needs: Path) -> Path:
    """Compile C to a library that needs others."""
    words = ("cc", "-shared", "-fPIC", f"-Wl,-soname,{path.name}", "-Wl,--no-as-needed")
    paths = ("-x", "c", "-", "-x", "none", *map(str, needs))
    subprocess.run([*words, "-o", str(path), *paths], input=source.encode(), check=True)
    return path


class FakeDriver:
    """In place of the machine's."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self._environment = monkeypatch
        monkeypatch.setattr(
            nvidia, "DRIVER", str(shared_object(folder / "libfakecuda.so", SOURCE))
        )
        self(code=0)

    def __call__(
        self, *, code: int = 0, cuda: int = 13000, gpus: int = 1, capability: int = 90
    ) -> None:
        """What it answers from now on."""
        given = {"CODE": code, "CUDA": cuda, "GPUS": gpus, "CAPABILITY": capability}
        for name, value in given.items():
            self._environment.setenv(f"FAKE_{name}", str(value))
