"""The tool that runs every recipe's bundle: what it asks for, and the line about a fault."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("diffusers")

from recipe_bundles import FEW, made, request_of

from fp4dit_onnx.calibration.methods import method_by_name
from fp4dit_onnx.calibration.recipe_tables import method_names
from fp4dit_onnx.exporting.checks import check_choices


@pytest.mark.parametrize("name", method_names())
def test_every_recipe_is_asked_for_with_few_data(name: str) -> None:
    """On a cluster too, where it has data."""
    asked = request_of(name, Path("b"), None, "ray")
    check_choices(asked)
    method = asked.resolved_method()
    assert (asked.executor == "ray") == method.needs_data
    if method.needs_data:
        assert (method.data.samples, asked.steps) == (FEW["samples"], FEW["steps"])
    assert method.iterations <= 3 * bool(method_by_name(name).iterations) * len(method.stages)


def test_a_recipe_that_fails_is_a_line(tmp_path: Path) -> None:
    ok, line = made("fp-rtn", tmp_path / "b", tmp_path / "absent")
    assert not ok
    assert line.startswith("fp-rtn: ")
    assert "absent" in line
