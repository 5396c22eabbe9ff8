"""Files that are generated are what their sources say now."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from fp4dit_onnx.calibration.recipe_tables import recipe_table

TOOLS = Path(__file__).resolve().parents[1] / "tools"


def check(tool: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(tool), "--check"]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    "tool",
    [f"generate_{what}.py" for what in ("formats", "export", "families", "methods", "packages")],
)
def test_generated_files_are_up_to_date(tool: str) -> None:
    result = check(TOOLS / tool)
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("spoiled", ["", "// another text\n"])
def test_the_check_can_fail(tmp_path: Path, spoiled: str) -> None:
    (tmp_path / "tools").mkdir()
    (tmp_path / "custom_ops" / "core").mkdir(parents=True)
    for name in ("generate_formats.py", "generated_file.py"):
        shutil.copy(TOOLS / name, tmp_path / "tools")
    tool = tmp_path / "tools" / "generate_formats.py"
    target = tmp_path / "custom_ops" / "core" / "formats.inc"
    assert check(tool).returncode == 1  # there is none
    target.write_text(spoiled, encoding="utf-8")
    result = check(tool)
    assert result.returncode == 1
    assert "run  python tools/generate_formats.py" in result.stderr


def test_columns_of_the_table_of_methods_are_what_their_headings_say() -> None:
    import generate_methods

    head, _, *rows = generate_methods.TABLE.read().splitlines()
    names = [cell.strip() for cell in head.strip("|").split(" | ")]
    for line in rows:
        cells = [cell.strip() for cell in line.strip("|").split(" | ")]
        row = dict(zip(names, cells, strict=True))
        table = recipe_table(row["recipe"].partition("]")[0].removeprefix("["))
        assert (row["idea"], row["source"]) == (table["summary"], table.get("source", ""))
