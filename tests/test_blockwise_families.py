"""Calibration along every family's topology: what a unit is shown is what the network gives it."""

from __future__ import annotations

from collections.abc import Callable
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")
pytest.importorskip("diffusers")

import torch
from twins import BATCH, Twin

from fp4dit_onnx.calibration import blockwise
from fp4dit_onnx.calibration.methods import PARALLEL, SEQUENTIAL, method_by_name
from fp4dit_onnx.calibration.samples import Samples, Tape
from fp4dit_onnx.calibration.simulate import weights_only
from fp4dit_onnx.calibration.solving import Solved, UnitRecipe
from fp4dit_onnx.calibration.units import Unit, units_of
from fp4dit_onnx.calibration.walk import Walk
from fp4dit_onnx.calibration.work import Work
from fp4dit_onnx.families.guidance import Guided
from fp4dit_onnx.network.blocks import BlockCall, tensors_of
from fp4dit_onnx.network.placing import replaced
from fp4dit_onnx.spec.spec import LayerSpec
from fp4dit_onnx.spec.state import QuantizedLayer
from fp4dit_onnx.system.executors import LOCAL
from fp4dit_onnx.system.progress import SilentReporter

SPEC = LayerSpec.of("e2m1", "e2m3", 16)
METHOD = method_by_name("fp-adaround", "fast", iterations=1)


class _Reached(Exception):  # noqa: N818 - leaves a network
    pass


def received(network: Any, unit: str, call: Any) -> list[Any]:
    """Tensors that a part of the whole network receives."""
    found: list[Any] = []

    def hook(module: Any, args: Any, kwargs: Any) -> None:
        found.extend(BlockCall.of(unit, module, args, kwargs).tensors)
        raise _Reached

    handle = network.get_submodule(unit).register_forward_pre_hook(hook, with_kwargs=True)
    try:
        network(*call[0], **call[1])
    except _Reached:
        pass
    finally:
        handle.remove()
    return found


def results(network: Any, unit: str, call: Any) -> list[Any]:
    """Tensors that a part of the whole network gives."""
    found: list[Any] = []
    handle = network.get_submodule(unit).register_forward_hook(
        lambda module, args, result: found.extend(tensors_of(result))
    )
    try:
        network(*call[0], **call[1])
    finally:
        handle.remove()
    return found


def samples_of(twin: Twin, folder: Path) -> Samples:
    tape = Tape(folder, BATCH)
    tape.write(0, twin.call, BATCH)
    return tape.finish(torch.ones(BATCH), paired=False)


@torch.no_grad()
@pytest.mark.parametrize(
    ("name", "from_"),
    [
        *((name, SEQUENTIAL) for name in ("pixart-alpha-1024-ms", "dit-xl-2-256", "flux-dev")),
        *((name, SEQUENTIAL) for name in ("hunyuan-dit-1.1", "sd3-medium", "auraflow")),
        *((name, PARALLEL) for name in ("pixart-alpha-512", "hunyuan-dit-1.1", "dit-xl-2-256")),
    ],
)
def test_units_see_what_the_whole_network_gives_them(
    twin: Callable[[str], Twin],
    name: str,
    from_: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Inputs from the network quantized so far or the float one, targets from that; bit for bit.

    What a linear reads has the samples first, also where it is two numbers of each sample that are
    embedded, as PixArt-alpha's sizes are.
    """
    made = twin(name)
    topology, whole = made.topology, made.network
    linears = {n: m for n, m in whole.named_modules() if isinstance(m, torch.nn.Linear)}
    kept = [pattern for pattern, _ in made.family.skip]
    kept.append(f"{topology.blocks[1].name}.*")  # a block that stays in float
    specs = {n: SPEC for n in linears if not any(fnmatchcase(n, pattern) for pattern in kept)}
    recipe = UnitRecipe(made.streamed, specs, METHOD.stages, None, Guided(), 1.0)
    done: dict[str, QuantizedLayer] = {}
    original = blockwise.solve
    seen: list[str] = []

    def compared(unit: Unit, inputs: Samples, targets: Any, *rest: Any, **options: Any) -> Solved:
        seen.append(unit.name)
        args, kwargs = inputs.take(slice(0, BATCH))
        assert all(len(x) == BATCH for x in args), unit.name
        so_far = {n: weights_only(layer, linears[n]) for n, layer in done.items()}
        with replaced(whole, so_far):
            wanted = received(whole, unit.name, made.call)
        for ours, theirs in zip([*args, *tensors_of(kwargs)], wanted, strict=True):
            assert torch.equal(ours.reshape(theirs.shape), theirs), unit.name
        outputs = results(whole, unit.name, made.call)
        assert targets
        for i, target in targets.items():
            ours = target.read(slice(0, BATCH)).reshape(outputs[i].shape)
            assert torch.equal(ours, outputs[i]), unit.name
        solved = original(unit, inputs, targets, *rest, **options)
        done.update({} if from_ == PARALLEL else solved.layers)
        return solved

    monkeypatch.setattr(blockwise, "solve", compared)
    units = units_of(topology, made.streamed.blocks, specs)
    work = Work(tmp_path / "work", {})
    samples = samples_of(made, tmp_path / "inputs")
    layers = blockwise.Blockwise(
        walk=Walk(made.streamed, topology, samples, work, BATCH),
        recipes=blockwise.Same(recipe),
        inputs=from_,
        work=work,
        executor=LOCAL,
        seed=0,
        reporter=SilentReporter(),
    ).run(units)
    assert seen == [unit.name for unit in units]
    assert layers.keys() == specs.keys()
    left = {path.name for path in work.folder.glob("*.npy")}
    ends = {f"{kind}.{n}.{i}.npy" for kind in ("float", "quantized") for n, i in topology.output}
    assert left <= ends  # what nobody reads any more is gone
    assert not list(work.folder.glob("*@inputs*"))


@torch.no_grad()
@pytest.mark.parametrize("name", ["hunyuan-dit-1.1", "flux-dev"])
def test_a_grid_of_as_many_positions_as_samples(
    twin: Callable[[str], Twin], name: str, tmp_path: Path
) -> None:
    """What is the same for all samples is kept once, however long it is."""
    made = twin(name)
    tables = made.family.interface(made.network.config).tables
    positions = next(t for k in sorted(tables) for t in tensors_of(made.call[1].get(k)))
    count = len(positions)
    tape = Tape(tmp_path / "inputs", count + 2, dict.fromkeys(tables, 0))
    tape.write(0, made.of_samples(count), count)
    tape.write(count, made.of_samples(2), 2)
    samples = tape.finish(torch.ones(count + 2), paired=False)
    first = made.topology.blocks[0].name
    walk = Walk(made.streamed, made.topology, samples, Work(tmp_path / "work", {}), count)
    found = walk.write_inputs(first, None, "of the block").take(slice(1, 3))
    wanted = received(made.network, first, made.of_samples(2))
    for ours, theirs in zip(tensors_of(found), wanted, strict=True):
        torch.testing.assert_close(ours, theirs)  # other batches add in another order
