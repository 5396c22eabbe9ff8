"""Budgets of bits and of quality: what layers may have, which get it, and what is refused."""

from __future__ import annotations

import itertools
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("diffusers")
pytest.importorskip("onnx_graphsurgeon")

from command_line import Run
from manifests import layer
from toy_network import LAYERS, PICTURES, sampler_of, toy_network

from fp4dit_onnx.bundle.calibration_notes import Spent
from fp4dit_onnx.calibration.allocation import Allocation, Option, frontier
from fp4dit_onnx.calibration.methods import Method, method_by_name
from fp4dit_onnx.calibration.run import Calibration, calibrate
from fp4dit_onnx.calibration.spending import ALLOCATED
from fp4dit_onnx.calibration.stages.budget import Budget
from fp4dit_onnx.calibration.trajectory import Trajectory
from fp4dit_onnx.calibration.work import Work, model_digest
from fp4dit_onnx.commands.precision_table import print_spent
from fp4dit_onnx.errors import UsageError
from fp4dit_onnx.exporting import pacing
from fp4dit_onnx.exporting.plan import plan
from fp4dit_onnx.exporting.request import ExportRequest
from fp4dit_onnx.network.network import whole
from fp4dit_onnx.spec.spec import LayerSpec
from fp4dit_onnx.system.progress import SilentReporter

FIXED = "blocks.1.mix"
"""A layer that a user's rule decides."""
SPEC = LayerSpec.of("e2m1", "int8", 8, "int4*f32")


# --- allocation --------------------------------------------------------------------------------


def test_the_frontier_saves_less_with_every_byte() -> None:
    options = [Option(k, *row) for k, row in enumerate([(9, 1.0), (4, 6.0), (6, 5.9), (5, 3.0)])]
    options += [Option("worse", 5, 4.0), Option("same", 12, 1.0)]
    assert [o.key for o in frontier(options)] == [1, 3, 0]


def some_layers(seed: int) -> dict[str, list[Option[int]]]:
    numbers = random.Random(seed)
    return {
        f"l{i}": [Option(k, numbers.randint(1, 30), numbers.random() * 9) for k in range(4)]
        for i in range(4)
    }


@pytest.mark.parametrize("seed", range(8))
def test_an_allocation_is_near_the_best_of_all(seed: int) -> None:
    """Never over the limit; its error is that of the best choice but for one step."""
    layers = some_layers(seed)
    found = Allocation(layers)
    every = [
        (sum(o.bytes for o in row), sum(o.error for o in row))
        for row in itertools.product(*layers.values())
    ]
    largest = max(
        (
            a.error - b.error
            for rows in layers.values()
            for a, b in itertools.pairwise(frontier(rows))
        ),
        default=0.0,
    )
    least = min(size for size, _ in every)
    assert found.within(least - 1) is None
    for limit in range(least, max(size for size, _ in every)):
        chosen = found.within(limit)
        assert chosen is not None
        assert sum(o.bytes for o in chosen.values()) <= limit
        best = min(error for size, error in every if size <= limit)
        assert sum(o.error for o in chosen.values()) <= best + largest + 1e-12
    for count in range(len(found.steps) + 1):
        after = found.after(count)
        assert found.within(sum(o.bytes for o in after.values())) == after


# --- on a network ------------------------------------------------------------------------------


def tuned(folder: Path, **asked: float) -> Calibration:
    """The toy network under a budget; one layer is not to be changed."""
    network = toy_network()
    network.blocks[0].ff[0].weight[::3] *= 4  # some channels need a scale of their own
    method = method_by_name("tuned", samples=32, prompts=PICTURES)
    method = method.with_stage("budget", groups="8 16 row", **asked)
    return calibrated(network, folder, method)


def calibrated(network: Any, folder: Path, method: Method) -> Calibration:
    budget, shapes = method.budget, {n: network.get_submodule(n).weight.shape for n in LAYERS}
    assert budget is not None
    precisions = {
        name: budget.precisions(SPEC, ("e2m1", "e1m2"), "int4*f32", shape[1])
        for name, shape in shapes.items()
        if name != FIXED
    }
    return calibrate(
        whole(network),
        dict.fromkeys(LAYERS, SPEC),
        method,
        sampler_of(network),
        seed=0,
        provenance={},
        reporter=SilentReporter(),
        candidates=dict.fromkeys(LAYERS, ("e2m1", "e1m2", "e3m0")),
        precisions=precisions,
        work=Work(folder, {"model": model_digest(whole(network))}),
    )


@pytest.fixture(scope="module")
def lean(tmp_path_factory: pytest.TempPathFactory) -> Calibration:
    """Within 5.5 bits."""
    return tuned(tmp_path_factory.mktemp("lean") / "w", bits=5.5)


def bits(found: Calibration) -> float:
    layers = found.state.layers.values()
    return 8 * sum(each.nbytes for each in layers) / sum(each.n * each.k for each in layers)


def test_bits_are_kept_and_more_of_them_keep_more(lean: Calibration, tmp_path: Path) -> None:
    kept = []
    for target, found in {5.5: lean, 7.0: tuned(tmp_path / "w", bits=7.0)}.items():
        spent = found.spent
        assert spent is not None
        assert spent.bits_per_weight == bits(found) <= target == spent.target_bits
        assert spent.least_bits <= spent.bits_per_weight <= spent.most_bits
        assert found.state.layers[FIXED].spec.group_size == 8
        assert sum(spent.shares.values()) == pytest.approx(1)
        (taken,) = [row for row in found.compared if row.taken]
        assert taken.error == min(row.error for row in found.compared)
        assert found.compared[0].choice == ALLOCATED
        kept.append((spent.bits_per_weight, spent.sqnr_db))
    assert kept == sorted(kept)
    assert kept[1][1] > kept[0][1] + 3
    assert len({each.spec.weight for each in found.state.layers.values()}) > 1


def test_the_fewest_bits_keep_a_quality(lean: Calibration, tmp_path: Path) -> None:
    low = lean.spent
    assert low is not None
    asked = low.sqnr_db + 2
    found = tuned(tmp_path / "b", sqnr=asked)
    spent = found.spent
    assert spent is not None
    assert spent.sqnr_db >= asked == spent.min_sqnr_db
    assert low.bits_per_weight < spent.bits_per_weight == bits(found) < spent.most_bits
    cheap = tuned(tmp_path / "c", sqnr=0.5).spent
    assert cheap is not None
    assert cheap.bits_per_weight == cheap.least_bits
    with pytest.raises(UsageError, match=r"min SQNR 90 dB: .* keeps from \d+.* ask for less"):
        tuned(tmp_path / "d", sqnr=90)
    with pytest.raises(UsageError, match=r"target 4.5 bits per weight: the smallest .* take 4.96"):
        tuned(tmp_path / "e", bits=4.5)


def test_a_run_killed_while_measuring_goes_on_to_the_same_bytes(
    lean: Calibration, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    right, done = Trajectory.error, []

    def dying(self: Trajectory, state: Any) -> float:
        if len(done) == 4:
            raise KeyboardInterrupt
        done.append(state)
        return right(self, state)

    monkeypatch.setattr(Trajectory, "error", dying)
    with pytest.raises(KeyboardInterrupt):
        tuned(tmp_path / "b", bits=5.5)
    monkeypatch.setattr(Trajectory, "error", right)
    resumed = tuned(tmp_path / "b", bits=5.5)
    assert resumed.spent == lean.spent
    for name, each in lean.state.layers.items():
        again = resumed.state.layers[name]
        assert again.spec == each.spec
        assert all(np.array_equal(again.parts[role], part) for role, part in each.parts.items())


# --- requests ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "activations"), [*itertools.product(("tuned", "tuned-best", "gptq"), "468")]
)
def test_every_precision_goes_with_the_activations(method: str, activations: str) -> None:
    """Nothing is left out because it could not be multiplied; a user's rule stays as it is."""
    request = ExportRequest(
        Path("b"),
        bits=f"w4a{activations}",
        method=method,
        target_bits=4.5,
        rules=("*.attn2.to_q=int8/int8",),
    )
    planned = plan(request)
    budget = planned.budget
    assert budget is not None
    assert budget.least_bits < 4.5 < budget.most_bits < 8.2
    for name, own in budget.precisions.items():
        if name.endswith("attn2.to_q"):
            assert own == ()
            continue
        assert own[0] == planned.specs[name].weight
        formats = {weight.format for weight in own}
        assert formats == ({"e1m2", "e2m1", "int8"} if method != "gptq" else formats)
        assert "int8" in formats
        assert "int4*f32" not in {w.scale for w in own if w.format == "int8"}


@pytest.mark.parametrize("activations", "468")
def test_a_recipe_s_own_bits_are_what_it_takes_without_a_budget(activations: str) -> None:
    bits = f"w4a{activations}"
    best, usual = (
        plan(ExportRequest(Path("b"), bits=bits, method=m)) for m in ("tuned-best", "tuned")
    )
    assert best.specs == usual.specs
    assert usual.budget is None
    assert best.budget is not None
    assert best.budget.target_bits == pytest.approx(usual.totals.bits_per_weight, abs=1e-12)
    assert best.method.budget == Budget(bits=best.budget.target_bits or 0)
    assert len(best.budget.precisions["transformer_blocks.0.attn1.to_q"]) == 11


@pytest.mark.parametrize(
    "changes",
    [{"target": "standard"}, {"bits": "w8a8"}, {"rules": ("*=none",)}],
)
def test_without_a_choice_of_precisions_there_is_no_budget_of_own_bits(
    changes: dict[str, Any],
) -> None:
    made = plan(ExportRequest(Path("b"), **{"method": "tuned-best", **changes}))
    assert made.budget is None
    assert made.method.stages == method_by_name("tuned").stages


def test_a_budget_in_numbers_takes_the_place_of_own_bits() -> None:
    made = plan(ExportRequest(Path("b"), method="tuned-best", target_bits=4.3))
    assert made.budget is not None
    assert made.budget.target_bits == 4.3


@pytest.mark.parametrize("changes", [{}, {"target_bits": 4.3}, {"target": "standard"}])
def test_a_time_keeps_the_budget_that_was_planned(changes: dict[str, Any]) -> None:
    made = plan(ExportRequest(Path("b"), **{"method": "tuned-best", **changes}))
    paced = pacing._with_iterations(made.request, made.method, 5)
    assert paced.budget == made.method.budget
    assert paced.budget is None or not paced.budget.own


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"target_bits": 3.9}, r"target 3.9 bits per weight: expected from 4.069 to 8.069"),
        ({"target_bits": 8.5}, r"target 8.5 bits per weight: expected from 4.069 to 8.069"),
        ({"target_bits": float("nan")}, "target_bits = nan: expected a number"),
        ({"target_bits": -4}, "target_bits = -4: expected a number"),
        ({"min_sqnr": float("inf")}, "min_sqnr = inf: expected a number"),
        ({"min_sqnr": 0}, "min_sqnr = 0: expected a number"),
        ({"target_bits": 4.5, "min_sqnr": 30}, "target bits 4.5 and min SQNR 30 dB: expected one"),
        ({"target_bits": 4.5, "method": "fp4dit"}, "expected one of .*gptq.*, tuned, tuned-best"),
        ({"min_sqnr": 30, "method": "fp-rtn"}, "method fp-rtn measures no layer's sensitivity"),
        ({"target_bits": 4.5, "target": "standard"}, "target standard stores groups of 16"),
        (
            {"target_bits": 4.5, "rules": ("*=none",)},
            "no layer is quantized, so a budget has nothing",
        ),
        ({"target_bits": 4.5, "bits": "w8a8"}, "expected from 8.069 to 8.069"),
    ],
)
def test_budgets_that_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        plan(ExportRequest(Path("b"), **{"method": "tuned", **changes}))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"groups": "16 12"}, "budget.groups: '12': expected positive multiples of 8, or row"),
        ({"groups": "0"}, "budget.groups: '0'"),
        ({"wide": "int9"}, "int9"),
        ({"pairs": 0}, "budget.pairs = 0"),
        ({"bits": 4.0, "sqnr": 3.0}, "budgets of 4 bits and of 3 dB: expected one of them"),
        (
            {"bits": 4.0, "own": True},
            "a budget of 4 bits and of the layers' own bits: expected one",
        ),
        ({"sqnr": 3.0, "own": True}, "a budget of 3 dB and of the layers' own bits: expected one"),
    ],
)
def test_settings_that_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Budget(**settings)


def test_a_recipe_file_says_what_to_choose_among(tmp_path: Path, run: Run) -> None:
    path, saved = tmp_path / "mine.toml", tmp_path / "saved.toml"
    path.write_text(
        'grid = "fp"\n[data]\nprompts = 4\nsamples = 8\n'
        '[[stage]]\nuse = "budget"\ngroups = "64 row"\nwide = ""\n'
        '[[stage]]\nuse = "weighted"\n[[stage]]\nuse = "gptq"\n'
        '[export]\ntarget_bits = 4.1\nweight_format = "e1m2"\n'
    )
    assert plan(ExportRequest(tmp_path / "b", recipe=path)).method.budget == Budget(
        bits=4.1, groups="64 row", wide=""
    )
    asked = "export", "--dry-run", "--recipe", path, "--target-bits"
    told = run(*asked, "4.2", "--save-recipe", saved)
    assert told.code == 0
    assert "e1m2, groups of 64 (float16)" in told.out
    assert "layers get at most 4.2 in all" in told.out
    run(*asked, "nan").refuses("target_bits = nan: expected a number from 0.1 to 32")
    again = plan(ExportRequest(tmp_path / "b", recipe=saved))
    assert again.method.budget == Budget(bits=4.2, groups="64 row", wide="")


def test_the_closing_table(capsys: pytest.CaptureFixture[str]) -> None:
    rows = [
        layer("a", weight_format="int8", group_size=8, bytes=160, shape=(16, 8), weights=128),
        layer("b", group_size=4, shape=(16, 8), weights=128, bytes=96),
    ]
    spent = Spent(6.0, None, 4.2, 8.1, 5.9, 31.4, {"a": 0.25, "b": 0.75})
    print_spent(rows, spent)
    print_spent(rows, replace(spent, target_bits=None, min_sqnr_db=30.0))
    told = capsys.readouterr().out
    for part in ("int8, one scale per row", "e2m1, groups of 4", "75.0 %", "10.000", "50.0 %"):
        assert part in told
    assert "5.900 bits per weight" in told
    assert "at most 6 asked for" in told
    assert "30 dB asked for" in told
