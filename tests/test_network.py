"""Networks as shell and blocks: what every block reads, until when, and that nothing else is needed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

pytest.importorskip("torch")
pytest.importorskip("diffusers")

import torch
from twins import BATCH, Twin

from fp4dit_onnx.errors import Fp4DitError
from fp4dit_onnx.network.blocks import block_names, tensors_of
from fp4dit_onnx.network.execution import Execution
from fp4dit_onnx.network.fake import is_fake
from fp4dit_onnx.network.network import whole
from fp4dit_onnx.network.streaming import StoredTensors
from fp4dit_onnx.network.topology import Topology, Value

DOUBLE, SINGLE = "transformer_blocks", "single_transformer_blocks"
MODELS = {
    "pixart-alpha-512": 1,
    "hunyuan-dit-1.1": 3,
    "dit-xl-2-256": 1,
    "flux-dev": 2,
    "sd3-medium": 2,
    "sd3.5-medium": 2,
    "auraflow": 2,
    "sana-1600m": 1,
    "z-image": 2,
    "flux2-klein-4b": 2,
}
"""Twin of a family -> results of blocks that are kept between two blocks, at most."""


def blockwise(twin: Twin, note: Callable[[int], None]) -> Any:
    """The network's output, block by block from the checkpoint, and no result longer than needed."""
    network, topology, call = twin.streamed, twin.topology, twin.call
    kept: dict[Value, Any] = {}
    for node in topology.blocks:
        reached = network.reach(topology, node.name, call, BATCH, kept.__getitem__)
        block = network.materialize(node.name)
        results = tensors_of(block(**reached.arguments))
        assert [(tuple(t.shape[1:]), t.dtype) for t in results] == [
            (result.row, result.dtype) for result in node.results
        ]
        live = topology.live_after(node.name)
        kept = {
            k: t
            for k, t in (kept | dict(zip(node.values, results, strict=True))).items()
            if k in live
        }
        assert kept.keys() == live
        note(len(kept))
    return network.finish(topology, call, BATCH, kept.__getitem__)[0]


@torch.no_grad()
@pytest.mark.parametrize(("name", "most"), MODELS.items())
def test_block_by_block_is_the_whole(twin: Callable[[str], Twin], name: str, most: int) -> None:
    """Bit for bit, from stored blocks and with what liveness keeps alone."""
    made = twin(name)
    args, kwargs = made.call
    wanted = made.network(*args, **kwargs)[0]
    counts: list[int] = []
    found = blockwise(made, counts.append)
    assert torch.equal(wanted, found)
    assert bool(torch.isfinite(found).all())
    assert max(counts) == made.topology.most_live == most
    # The network that reads its blocks as it goes is the same network.
    assert torch.equal(wanted, made.streamed.module(*args, **kwargs)[0])


def reads(topology: Topology, name: str) -> dict[str, list[Value]]:
    arguments = topology.by_name[name].arguments
    return {a.name: sorted(a.reads) for a in arguments if a.reads}


def test_long_skips_live_until_they_are_read(twin: Callable[[str], Twin]) -> None:
    topology = twin("hunyuan-dit-1.1").topology
    assert reads(topology, "blocks.5") == {
        "hidden_states": [("blocks.4", 0)],
        "skip": [("blocks.0", 0)],
    }
    assert [
        sorted(i for (i, _) in topology.live_after(node.name)) for node in topology.blocks
    ] == [
        ["blocks.0"],
        ["blocks.0", "blocks.1"],
        ["blocks.0", "blocks.1", "blocks.2"],  # of which nobody takes back the third
        ["blocks.0", "blocks.1", "blocks.3"],
        ["blocks.0", "blocks.4"],
        ["blocks.5"],
    ]


def test_two_streams_and_two_lists(twin: Callable[[str], Twin]) -> None:
    flux = twin("flux-dev").topology
    assert [node.name for node in flux.blocks] == [
        f"{DOUBLE}.0",
        f"{DOUBLE}.1",
        f"{SINGLE}.0",
        f"{SINGLE}.1",
    ]
    assert reads(flux, f"{SINGLE}.0") == {
        "hidden_states": [(f"{DOUBLE}.1", 1)],
        "encoder_hidden_states": [(f"{DOUBLE}.1", 0)],
    }
    assert flux.live_after(f"{SINGLE}.1") == {(f"{SINGLE}.1", 1)}  # the text's result is not read


def test_a_block_that_gives_one_stream_of_two(twin: Callable[[str], Twin]) -> None:
    last = twin("sd3-medium").topology.blocks[-1]
    assert (last.structure, len(last.results)) == ((None, 0), 1)


def test_what_the_shell_makes_of_two_results_reads_both(twin: Callable[[str], Twin]) -> None:
    topology = twin("auraflow").topology
    both = [("joint_transformer_blocks.1", 0), ("joint_transformer_blocks.1", 1)]
    assert reads(topology, f"{SINGLE}.0") == {"hidden_states": both}


def test_a_tensor_of_a_block_that_the_shell_reads_is_in_memory(
    twin: Callable[[str], Twin],
) -> None:
    made = twin("dit-xl-2-256")
    shared = made.topology.shared
    assert {name.rpartition(".norm1.emb.")[0] for name in shared} == {f"{DOUBLE}.0"}
    real = {n for n, p in made.streamed.module.named_parameters() if not is_fake(p)}
    assert shared <= real
    assert {n for n in real if n.startswith(DOUBLE)} == shared


class Chain(torch.nn.Module):
    """Blocks of one linear each, run in an order of their numbers."""

    def __init__(self, order: tuple[int, ...]) -> None:
        super().__init__()
        make = [torch.nn.Sequential(torch.nn.Linear(4, 4)) for _ in range(3)]
        self.blocks, self.order = torch.nn.ModuleList(make), order
        self.head = torch.nn.Linear(4, 4)

    def forward(self, x: Any) -> tuple[Any]:
        """[B, 4] -> [B, 4]; the result of the first block is added to in place."""
        kept = []
        for i in self.order:
            x = self.blocks[i](x)
            kept.append(x)
        total = torch.zeros_like(x)
        total[:, :2] += kept[0][:, :2]
        return (self.head(x) + total,)


def test_marks_follow_views_and_changes_in_place() -> None:
    network = Chain((0, 1, 2))
    topology = whole(network).topology(((torch.ones(2, 4),), {}), 2)
    assert topology.output == {("blocks.0", 0), ("blocks.2", 0)}
    assert [node.name for node in topology.nodes] == [*block_names(network), "head"]
    assert topology.most_live == 2


def test_a_block_that_runs_twice_is_refused() -> None:
    with pytest.raises(Fp4DitError, match=r"block blocks\.1 runs twice"):
        whole(Chain((0, 1, 1))).topology(((torch.ones(2, 4),), {}), 2)


def test_a_result_without_the_batch_is_refused() -> None:
    with pytest.raises(Fp4DitError, match=r"blocks\.0 gives a tensor of shape \[2, 4\]"):
        whole(Chain((0, 1))).topology(((torch.ones(2, 4),), {}), 1)


@torch.no_grad()
def test_a_result_that_is_dropped_poisons_who_reads_it() -> None:
    """So a topology that says too little cannot go unseen."""
    network, x = Chain((0, 1, 2)), torch.ones(2, 4)
    made = whole(network)
    topology = made.topology(((x,), {}), 2)
    wrong = Topology(topology.nodes, frozenset({("blocks.2", 0)}), frozenset())
    given = {("blocks.2", 0): network.blocks[2](network.blocks[1](network.blocks[0](x)))}
    assert bool(made.finish(wrong, ((x,), {}), 2, given.__getitem__)[0].isnan().any())
    given[("blocks.0", 0)] = network.blocks[0](x)
    right = made.finish(topology, ((x,), {}), 2, given.__getitem__)[0]
    assert torch.equal(right, network(x)[0])


def test_a_block_has_the_type_that_is_asked_for(twin: Callable[[str], Twin]) -> None:
    made = twin("pixart-alpha-512")
    block = made.streamed.materialize(f"{DOUBLE}.1", Execution(dtype=torch.bfloat16))
    stored = made.network.get_submodule(f"{DOUBLE}.1").state_dict()
    assert {n: t.dtype for n, t in block.state_dict().items()} == dict.fromkeys(
        stored, torch.bfloat16
    )
    for name, tensor in block.state_dict().items():
        assert torch.equal(tensor, stored[name].bfloat16())
    assert made.streamed.tensor("proj_out.weight").dtype == torch.float32


def test_stored_tensors_stay_within_their_budget(twin: Callable[[str], Twin]) -> None:
    made = twin("pixart-alpha-512")
    read: Any = made.streamed.read
    infos = read._tensors
    first, second = (f"{DOUBLE}.0.attn1.to_{part}.weight" for part in "qk")
    some = StoredTensors(infos, budget=4 * 96 * 96)
    assert some(first) is not some(first)
    assert some.kept(first) is some.kept(first) is some(first)
    assert some.kept(second) is not some.kept(second)
    some.forget()
    assert some.kept(first) is not some.kept(first)
