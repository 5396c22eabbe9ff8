"""The wheel: its tag, what is in it, and a bundle run from it alone."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import check_wheel
import pytest
import vendor_web
from check_wheel import Place, linked_distributions

ROOT = Path(__file__).resolve().parents[1]
LINUX = pytest.mark.skipif(sys.platform != "linux", reason="auditwheel is for Linux")


def call(*command: str, cwd: Path = ROOT) -> str:
    bin_folder = str(Path(sys.executable).parent)
    done = subprocess.run(
        command,
        cwd=cwd,
        env={**os.environ, "PATH": f"{bin_folder}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What ``make wheel`` makes."""
    for tool in ("scikit_build_core", "auditwheel", "cmake"):
        if importlib.util.find_spec(tool) is None:
            pytest.skip(f"needs {tool}: pip install {tool}")
    folder = tmp_path_factory.mktemp("wheel")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "wheel", "--quiet"]
    call(*pip, "--no-deps", "--no-build-isolation", "--wheel-dir", str(folder / "built"), ".")
    (built,) = (folder / "built").glob("*.whl")
    call(sys.executable, "-m", "auditwheel", "repair", "-w", str(folder / "dist"), str(built))
    (repaired,) = (folder / "dist").glob("*.whl")
    return repaired


@LINUX
def test_the_tag_is_an_old_glibc_and_any_python(wheel: Path) -> None:
    assert wheel.name.startswith("fp4dit_onnx-")
    assert "-py3-none-" in wheel.name
    assert "manylinux_2_17_" in wheel.name


@LINUX
def test_what_is_in_it(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    assert {"fp4dit_onnx/lib/libfp4dit_ops.so", "fp4dit_onnx/cli.py"} <= names
    assert {"fp4dit_onnx/passes/pipeline.py", "fp4dit_onnx/calibration/__init__.py"} <= names
    assert not [n for n in names if n.endswith(("ruff.toml", ".cc", ".pyc")) or "/tests/" in n]
    assert not [n for n in names if n.startswith("fp4dit_onnx.libs/")], "bundled libraries"
    vendor = ROOT / "fp4dit_onnx" / "web" / "vendor"
    for path in vendor.iterdir() if vendor.is_dir() else ():  # git ignores these
        assert f"fp4dit_onnx/web/vendor/{path.name}" in names


def test_files_of_others_come_with_their_licences(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A folder from before they were copied is made again."""
    pytest.importorskip("onnxruntime")
    modules = tmp_path / "node_modules"
    for place in (*vendor_web.FILES.values(), *vendor_web.PACKED.values()):
        (modules / place).parent.mkdir(parents=True, exist_ok=True)
        (modules / place).write_text(place)
    for name in vendor_web.PACKAGES:
        (modules / name / "package.json").write_text('{"version": "1", "license": "MIT"}')
    monkeypatch.setattr(vendor_web, "install", lambda: modules)
    vendor = tmp_path / "vendor"
    vendor_web.vendor_files(vendor)
    assert vendor_web.is_current(vendor)
    first = (vendor / vendor_web.ARCHIVE).read_bytes()
    for name in vendor_web.LICENCES:
        text = (vendor / name).read_text(encoding="utf-8")
        assert "Microsoft" in text or "ONNX Runtime" in text
        (vendor / name).unlink()
        assert not vendor_web.is_current(vendor)
        vendor_web.vendor_files(vendor)
    assert (vendor / vendor_web.ARCHIVE).read_bytes() == first


@LINUX
def test_a_bundle_runs_from_the_wheel_alone(wheel: Path, demo_bundle: Path) -> None:
    checker = [sys.executable, "-P", str(ROOT / "tools" / "check_wheel.py")]
    said = call(*checker, str(wheel), "--link", "--bundle", str(demo_bundle))
    assert f"{len(check_wheel.CHECKS)} of {len(check_wheel.CHECKS)} checks hold" in said
    assert "no compiler, no torch" in said


# --- the checker itself --------------------------------------------------------------------------


def test_only_what_the_metadata_asks_for_is_linked() -> None:
    found = set(linked_distributions(["fp4dit-onnx[cpu]"]))
    assert {"fp4dit-onnx", "onnxruntime", "numpy"} <= found
    assert not {"torch", "diffusers", "pytest"} & found


def test_this_environment_is_not_bare(tmp_path: Path) -> None:
    programs = tmp_path / "bin"
    programs.mkdir()
    (programs / "g++").touch(mode=0o755)
    with pytest.raises(ValueError, match=r"on the PATH: g\+\+"):
        check_wheel.CHECKS["bare environment"](Place(programs / "python", tmp_path))
    (programs / "g++").unlink()
    (programs / "python").write_text("#!/bin/sh\nexit 0\n", encoding="utf-8")
    (programs / "python").chmod(0o755)
    with pytest.raises(ValueError, match="torch can be imported"):
        check_wheel.CHECKS["bare environment"](Place(programs / "python", tmp_path))


def test_failures_are_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "work").mkdir()
    (tmp_path / "bundle").mkdir()
    place = Place(Path(sys.executable), tmp_path / "work")
    checks = {"inspect": check_wheel.CHECKS["inspect"], "none": lambda place: "nothing"}
    monkeypatch.setattr(check_wheel, "CHECKS", checks)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    assert check_wheel.run_checks(place, tmp_path / "bundle") == ["inspect"]
    out = capsys.readouterr().out
    assert "FAILED  inspect: exit code 2" in out
    assert "ok      none: nothing" in out
