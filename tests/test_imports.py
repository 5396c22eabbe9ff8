"""The table of packages: its check finds what it is for, and the drawing is of today's imports."""

from __future__ import annotations

from pathlib import Path

import pytest
from imports import Import, arrows, direct, faults, imports, modules

FILES = {
    "fp4dit_onnx/__init__.py": "",
    "fp4dit_onnx/errors.py": "",
    "fp4dit_onnx/files/__init__.py": "from fp4dit_onnx.errors import Error",
    "fp4dit_onnx/files/one.py": "import fp4dit_onnx.files.two",
    "fp4dit_onnx/files/two.py": "",
    "passes/__init__.py": "",
    "passes/fold.py": "def run():\n    from fp4dit_onnx import errors",
}


def found_in(root: Path, **changed: str) -> list[str]:
    for name, text in {**FILES, **changed}.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    known = modules(root)
    return list(faults(known, list(imports(known))))


def test_arrows_that_point_down_are_right(tmp_path: Path) -> None:
    assert found_in(tmp_path) == []
    made = arrows(list(imports(modules(tmp_path))))
    assert made["files"] == {"errors"}
    assert made["passes"] == {"errors"}


UP = {"fp4dit_onnx/errors.py": "from fp4dit_onnx.files import one"}
INSIDE = {"fp4dit_onnx/errors.py": "def f():\n    from fp4dit_onnx import passes"}
TYPES = {
    "fp4dit_onnx/errors.py": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n"
    "    from fp4dit_onnx.passes.fold import run"
}
ROUND = {"fp4dit_onnx/files/two.py": "def f():\n    from fp4dit_onnx.files.one import x"}
UNKNOWN = {"fp4dit_onnx/helpers/__init__.py": ""}
MANY = {f"fp4dit_onnx/m{i}.py": "" for i in range(10)}


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (UP, "fp4dit_onnx.errors imports fp4dit_onnx.files.one: files is not below errors"),
        (INSIDE, "fp4dit_onnx.errors imports fp4dit_onnx.passes: passes is not below errors"),
        (TYPES, "fp4dit_onnx.errors imports fp4dit_onnx.passes.fold: passes is not below errors"),
        (ROUND, "a cycle: fp4dit_onnx.files."),
        (UNKNOWN, "helpers is in no layer"),
        (MANY, "12 modules of its own"),
    ],
)
def test_what_breaks_the_table_is_said(
    tmp_path: Path, changed: dict[str, str], message: str
) -> None:
    assert any(line.startswith(message) for line in found_in(tmp_path, **changed))


def test_types_alone_make_no_cycle_inside_a_package(tmp_path: Path) -> None:
    typed = TYPES["fp4dit_onnx/errors.py"].replace("passes.fold", "files.one")
    assert found_in(tmp_path, **{"fp4dit_onnx/files/two.py": typed}) == []


def test_what_others_make_is_not_drawn() -> None:
    found = [Import(f"p.{a}", f"p.{b}", typing=False) for a, b in ("ab", "bc", "ac")]
    assert direct(arrows(found))["a"] == {"b"}
