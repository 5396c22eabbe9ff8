"""Group sizes by evolutionary search: the search, its stage, and a calibration that resumes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("diffusers")

from toy_network import PICTURES, draw, sampler_of, toy_network

from fp4dit_onnx.calibration.evolution import EVOLVED, USUAL, Genome, evolve
from fp4dit_onnx.calibration.methods import method_by_name
from fp4dit_onnx.calibration.run import Calibration, calibrate
from fp4dit_onnx.calibration.stages.evolve import Evolve
from fp4dit_onnx.calibration.timing import Pace
from fp4dit_onnx.calibration.work import Work
from fp4dit_onnx.errors import UsageError
from fp4dit_onnx.exporting.plan import plan
from fp4dit_onnx.exporting.request import ExportRequest
from fp4dit_onnx.network.network import whole
from fp4dit_onnx.spec.spec import LayerSpec, PerGroup
from fp4dit_onnx.spec.state import save_state
from fp4dit_onnx.system.progress import SilentReporter

SIZES = (32, 64, 128, 192, 288)


def distance(genome: Genome) -> float:
    """Least where every second layer has groups of 32 and the others of 288."""
    return float(sum(abs(s - (32, 288)[i % 2]) for i, s in enumerate(genome)))


def test_the_search_finds_what_it_can_afford() -> None:
    asked: list[Genome] = []

    def fitness(genome: Genome) -> float:
        asked.append(genome)
        return distance(genome)

    found = evolve([SIZES] * 10, (128,) * 10, Evolve(generations=20), 0, fitness)
    assert next(iter(found)) == (128,) * 10, "it begins at the usual one"
    assert len(asked) == len(set(asked)) == len(found), "none is measured twice"
    assert all(np.mean(genome) >= 128 for genome in found)
    assert all(set(genome) <= set(SIZES) for genome in found)
    assert min(found.values()) < 0.5 * distance((128,) * 10)
    again = evolve([SIZES] * 10, (128,) * 10, Evolve(generations=20), 0, distance)
    assert again == found
    assert evolve([SIZES] * 10, (128,) * 10, Evolve(generations=20), 1, distance) != found


def test_narrow_layers_afford_no_more_groups_than_usual() -> None:
    found = evolve([(8, 16)] * 4, (16,) * 4, Evolve(), 0, distance)
    assert list(found) == [(16,) * 4], "there is nothing else, and the search ends"


def test_sizes_of_a_layer() -> None:
    stage = Evolve()

    def sizes(weight: str, k: int, width: int | None) -> list[Any]:
        made = stage.precisions(LayerSpec.of(weight, "int8", 128), k, width)
        return [each.granularity for each in made]

    groups = [PerGroup(s) for s in (128, 32, 64, 192, 288)]
    assert sizes("int4", 1152, None) == groups
    assert sizes("int4", 192, None) == groups[:-1], "a whole row at most"
    assert sizes("int4", 2 * 1408, 1408) == [PerGroup(s) for s in (128, 32, 64, 176)]
    assert sizes("int8", 1152, None) == []
    with pytest.raises(UsageError, match=r"evolve.groups: '12': expected positive multiples of 8"):
        Evolve(groups="12 16")


def test_a_plan_says_what_layers_may_have(tmp_path: Path) -> None:
    made = plan(ExportRequest(tmp_path / "b", method="q-dit", bits="w4a8"))
    inner = made.precisions["transformer_blocks.0.attn1.to_q"]
    assert [w.granularity for w in inner] == [PerGroup(s) for s in (128, 32, 64, 192)]
    assert made.specs["transformer_blocks.0.attn1.to_q"].activation_group_size == 128
    assert made.precisions["proj_out"] == ()
    with pytest.raises(
        UsageError, match=r"q-dit searches group sizes, and target standard stores"
    ):
        plan(ExportRequest(tmp_path / "b", method="q-dit", bits="w4a8", target="standard"))


class Notes(SilentReporter):
    """Keeps notes."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def note(self, text: str) -> None:
        """Keep one."""
        self.lines.append(text)


def usual_probe(network: Any) -> Any:
    """Final latents of the toy's first batch."""
    return draw(network, 0, 4)


def calibrated(
    folder: Path,
    reporter: Notes,
    probe: Callable[[Any], Any] = usual_probe,
    pace: Pace | None = None,
) -> Calibration:
    """The blocks of the toy network, in groups of 4 to 16 of weights and activations."""
    network = toy_network()
    layers = [name for name, _ in network.named_modules() if name.endswith(("mix", "ff.0"))]
    spec = LayerSpec.of("int4", "int8", 8, activation_group_size=8)
    weights = tuple(replace(spec.weight, granularity=PerGroup(size)) for size in (8, 4, 16))
    method = method_by_name(
        "q-dit", "fast", samples=8, prompts=PICTURES, generations=1, population=4
    )
    return calibrate(
        whole(network),
        dict.fromkeys(layers, spec),
        method,
        sampler_of(network, probe=lambda *steps: probe(network)),
        seed=0,
        provenance={},
        reporter=reporter,
        precisions=dict.fromkeys(layers, weights),
        work=Work(folder, {}),
        pace=pace,
    )


def test_a_calibration_searches_and_resumes(tmp_path: Path) -> None:
    runs: list[int] = []

    def interrupted(network: Any) -> Any:
        runs.append(len(runs))
        if len(runs) == 12:
            raise KeyboardInterrupt
        return usual_probe(network)

    whole_run, killed = Notes(), Notes()
    found = calibrated(tmp_path / "a", whole_run)
    usual, evolved = found.compared
    assert (usual.choice, evolved.choice) == (USUAL, EVOLVED)
    assert (usual.taken, evolved.taken) == ((True, False) if whole_run.lines else (False, True))
    assert evolved.error <= usual.error == 1
    for layer in found.state.layers.values():
        assert layer.spec.activation_group_size == layer.spec.group_size
    sizes = [layer.spec.group_size for layer in found.state.layers.values()]
    assert np.mean(sizes) >= 8
    with pytest.raises(KeyboardInterrupt):
        calibrated(tmp_path / "b", killed, interrupted)
    resumed = calibrated(tmp_path / "b", killed)
    save_state(found.state, tmp_path / "1")
    save_state(resumed.state, tmp_path / "2")
    assert (tmp_path / "1").read_bytes() == (tmp_path / "2").read_bytes()
    assert resumed.compared == found.compared


@pytest.mark.parametrize("more", [0, 2])
def test_a_search_ends_with_its_time(more: int, tmp_path: Path) -> None:
    """The request's own sizes are measured at least; later sets as long as there is time for one."""
    notes, left = Notes(), iter([1e9] * more)
    pace = Pace(
        lambda: next(left, 0.0) + 10, after=4, walk=6, method=lambda _: method_by_name("q-dit")
    )
    found = calibrated(tmp_path / "a", notes, pace=pace)
    assert [line for line in notes.lines if "time" in line] == [
        f"group sizes: the time was over after {1 + more} of up to 8 sets; the best of them is kept"
    ]
    usual, evolved = found.compared
    assert evolved.error <= usual.error == 1
    if not more:
        assert {layer.spec.group_size for layer in found.state.layers.values()} == {8}


def test_a_search_that_finds_nothing_says_so(tmp_path: Path) -> None:
    notes = Notes()
    first = iter(range(10**6))

    def worse(network: Any) -> Any:
        """Further from the float network's each time it is asked."""
        return usual_probe(network) + next(first)

    found = calibrated(tmp_path / "a", notes, worse)
    assert [line.partition(" none ")[2] for line in notes.lines] == [
        "has a smaller error than the request's own, which is kept"
    ]
    assert {layer.spec.group_size for layer in found.state.layers.values()} == {8}
    assert [row.taken for row in found.compared] == [True, False]
