"""Numbers out of range: refused in one line, wherever they are given."""

from __future__ import annotations

import importlib
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_type_hints

import numpy as np
import pytest
from command_line import Run
from manifests import EMPTY

from fp4dit_onnx.benchmark import Settings
from fp4dit_onnx.benchmark.step import StepCase
from fp4dit_onnx.bundle.manifest import manifest_text, read_manifest
from fp4dit_onnx.cli import COMMANDS
from fp4dit_onnx.errors import BundleError, UsageError
from fp4dit_onnx.exporting.plan import ExportRequest, plan
from fp4dit_onnx.runtime.sampling import Sampling, images_of, initial_latents
from fp4dit_onnx.values import LARGEST_SEED, real, whole

GOOD = {"steps": 2, "guidance": 3.0, "height": 64, "width": 64, "max_sequence_length": 16}
BAD: list[tuple[str, Any]] = [
    *((name, value) for name in ("steps", "height", "width") for value in (0, -1, 2.0, "2", True)),
    *(("guidance", value) for value in (math.nan, math.inf, -math.inf, -0.5, 1e9, "3", True)),
    ("max_sequence_length", -1),
    ("height", None),
    ("steps", math.nan),
]


@pytest.mark.parametrize(("name", "value"), BAD)
def test_sampling_checks_itself(name: str, value: Any) -> None:
    with pytest.raises(UsageError, match=rf"^{name} = .*: expected a .*number from") as caught:
        Sampling(**{**GOOD, name: value})
    assert "\n" not in str(caught.value)


def test_ends_of_the_ranges_and_numpys_numbers_pass() -> None:
    Sampling(steps=1, guidance=0, height=1, width=1, max_sequence_length=0)
    Sampling(np.int64(1), np.float32(1000), np.int32(8), 8, 0)  # type: ignore[arg-type]
    assert images_of("ab", (0, LARGEST_SEED))[1] == [0, LARGEST_SEED]
    assert images_of("ab", np.arange(2))[1] == [0, 1]  # type: ignore[arg-type]
    assert images_of("ab", 3) == (["a", "b"], [3, 3])
    assert images_of("a", [5, 1]) == (["a", "a"], [5, 1])
    assert images_of("ab", 3, count=2) == (["a", "a", "b", "b"], [3, 4, 3, 4])
    with pytest.raises(UsageError, match="count = 0: expected a whole number"):
        images_of("a", 0, count=0)
    with pytest.raises(UsageError, match="seed = 18446744073709551616"):
        images_of("a", LARGEST_SEED, count=2)


@pytest.mark.parametrize(
    "value", [-1, LARGEST_SEED + 1, 0.5, math.nan, "0", None, pytest.param(10**5000, id="digits")]
)
def test_seeds_out_of_range(value: Any) -> None:
    for call in (lambda: images_of("a", [value]), lambda: initial_latents(value, (1, 2, 2))):
        with pytest.raises(
            UsageError, match=r"^seed = .*: expected a whole number from 0 to 1844"
        ):
            call()


def test_bundle_with_impossible_sampling(tmp_path: Path) -> None:
    path = tmp_path / "quantization.json"
    content = json.loads(manifest_text(EMPTY))
    path.write_text(json.dumps({**content, "sampling": {**GOOD, "guidance": -1}}))
    with pytest.raises(BundleError, match=r"quantization\.json: sampling: guidance = -1"):
        read_manifest(path)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *((n, v) for n in ("steps", "calibration_prompts", "samples") for v in (0, -3, 1.5, "4")),
        *(("guidance", v) for v in (math.nan, math.inf, -1.0)),
        *(("seed", v) for v in (-1, 2**64, 1.0)),
        *(("max_ram", v) for v in (math.nan, math.inf, 0, "2")),
        *(("max_vram", v) for v in (math.nan, math.inf, -1)),
        *(("group_size", v) for v in (0, -8, 16.0)),
    ],
)
def test_exports_are_refused(name: str, value: Any) -> None:
    request = ExportRequest(output=Path("unused"), **{name: value})
    with pytest.raises(UsageError, match=rf"{name}.* = .*: expected a .*number from"):
        plan(request)


@pytest.mark.parametrize(
    "make",
    [
        lambda: Settings(1, math.nan),
        lambda: Settings(1, math.inf),
        lambda: Settings(1, -1.0),
        lambda: Settings(1, 1.0, 0),
        lambda: StepCase(Path("m"), None, 0, 4),
        lambda: StepCase(Path("m"), None, 1, -4),
    ],
)
def test_benchmarks_are_refused(make: Callable[[], object]) -> None:
    with pytest.raises(UsageError, match=r" = .*: expected a (whole )?number from"):
        make()


def test_messages_stay_short() -> None:
    for check in (lambda: whole("a", 10**5000, 0, 9), lambda: real("a", "x" * 9999, 0)):
        with pytest.raises(UsageError) as caught:
            check()
        assert len(str(caught.value)) < 200


def float_options() -> list[tuple[str, str]]:
    """Every option of every command that is a float: command and name."""
    runs = {name: importlib.import_module(f"fp4dit_onnx.commands.{name}").run for name in COMMANDS}
    return [
        (command, f"--{name.replace('_', '-')}")
        for command, run in runs.items()
        for name, kind in get_type_hints(run).items()
        if kind in (float, float | None)
    ]


REST = {
    "export": ["--dry-run"],
    "generate": ["BUNDLE", "--prompt", "a", "-o", "x.png"],
    "bench": ["--dry-run"],
}
"""Arguments with which a command gets as far as its numbers."""


@pytest.mark.parametrize("value", ["nan", "inf", "-inf"])
@pytest.mark.parametrize(("command", "option"), float_options())
def test_floats_of_every_command_are_finite(
    command: str,
    option: str,
    value: str,
    drawable: Callable[[str], Path],
    run: Run,
) -> None:
    folder = str(drawable("w4a16")) if "BUNDLE" in REST[command] else ""
    rest = [folder if word == "BUNDLE" else word for word in REST[command]]
    run(command, *rest, f"{option}={value}").refuses("expected a number from")
