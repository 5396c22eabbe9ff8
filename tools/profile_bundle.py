"""Print where one step's time and memory go, by ONNX Runtime's own profiler.

    python tools/profile_bundle.py bundle
    python tools/profile_bundle.py bundle --model text_encoder --json
    python tools/profile_bundle.py model.onnx --batch 2 --tokens 120

Times are medians over runs after a warm-up, node by node. Memory is measured in a process of its
own, stage by stage; MB are 10^6 bytes.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from math import prod
from pathlib import Path
from typing import Any

from session_memory import GOAL_BYTES, GOAL_FACTOR, GOAL_SECONDS, Target, feed_of, measure_memory

from fp4dit_onnx import ops

PARTS = ("transformer", "text_encoder", "vae_decoder")
WARM_UP = 2
NODE_SUFFIX = "_kernel_time"
PRODUCTS = ("MatMul", "FusedMatMul", "Gemm", "FusedGemm")
"""Linears if the weight has two axes, else attention's. Weights that were prepacked are not listed."""
_GROUPS = """\
linears: MatMulNBits DynamicQuantizeMatMul MatMulInteger MatMulIntegerToFloat
quantizers: FpHadamard DynamicQuantizeLinear
attention: Softmax Attention MultiHeadAttention
normalization: LayerNormalization SkipLayerNormalization GroupNormalization GroupNorm RMSNormalization
normalization: InstanceNormalization SimplifiedLayerNormalization SkipSimplifiedLayerNormalization
element-wise: Abs Add And BiasGelu BitShift BitwiseAnd Cast Clip Cos Div Equal Erf Exp FastGelu Floor
element-wise: Gelu Greater GreaterOrEqual Less LessOrEqual Log Max Min Mul Neg Not Or Pow QuickGelu
element-wise: Reciprocal Relu Round Sigmoid Silu Sin Sqrt Sub Tanh Where
layout: Concat Einsum Expand Flatten Gather Identity Pad ReorderInput ReorderOutput Reshape Slice
layout: Split Squeeze Tile Transpose Unsqueeze
"""
GROUPS = {
    operator: group
    for group, _, operators in (line.partition(": ") for line in _GROUPS.splitlines())
    for operator in operators.split()
}
LINEAR, ATTENTION, REST = "linears", "attention", "the rest"
_ROLES = {"linear": LINEAR, "attention": ATTENTION, "quantize": "quantizers"}
GROUPS |= {op.name: _ROLES[op.role] for op in ops.OPERATORS.values() if op.role in _ROLES}

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Node:
    """One node of a run.

    Attributes:
        name: as ONNX Runtime's graph has it, after its own rewriting.
        op: operator.
        ms: median over the runs.
        inputs: shapes.
        outputs: shapes.
    """

    name: str
    op: str
    ms: float
    inputs: tuple[Shape, ...]
    outputs: tuple[Shape, ...]

    @property
    def group(self) -> str:
        """What kind of work it is."""
        if self.op in PRODUCTS:
            linear = len(self.inputs) < 2 or len(self.inputs[1]) <= 2
            return LINEAR if linear else ATTENTION
        return GROUPS.get(self.op, REST)

    @property
    def gops(self) -> float | None:
        """10^9 operations per second of a product, its multiplications and additions; else None."""
        if not self.inputs or not self.outputs or self.ms <= 0:
            return None
        if self.op == "FpAttention":  # q [B, S, H, D], k [B, L, H, D]
            operations = 4.0 * prod(self.inputs[0]) * self.inputs[2][1]
        elif self.op in PRODUCTS or self.group == LINEAR:
            operations = 2.0 * prod(self.outputs[0]) * self.inputs[0][-1]
        else:
            return None
        return operations / self.ms / 1e6

    def to_json(self) -> dict[str, Any]:
        """Plain data for ``--json``."""
        return {**asdict(self), "group": self.group, "gops": self.gops}


def nodes_of(events: Iterable[Mapping[str, Any]], runs: int) -> list[Node]:
    """The nodes of the last `runs` runs in a profile, slowest first."""
    events = list(events)
    ran = [event for event in events if event["name"] == "model_run"]
    spans = sorted((event["ts"], event["ts"] + event["dur"]) for event in ran)[-runs:]
    times: dict[tuple[str, str], list[float]] = {}
    known: dict[tuple[str, str], Mapping[str, Any]] = {}
    for event in events:
        if event["cat"] != "Node" or not event["name"].endswith(NODE_SUFFIX):
            continue
        run = next((i for i, (a, b) in enumerate(spans) if a <= event["ts"] <= b), None)
        if run is None:
            continue
        key = (event["name"].removesuffix(NODE_SUFFIX), event["args"].get("node_index", ""))
        times.setdefault(key, [0.0] * len(spans))[run] += event["dur"] / 1e3
        known[key] = event["args"]
    nodes = [
        Node(
            name,
            args["op_name"],
            statistics.median(times[name, index]),
            _shapes(args.get("input_type_shape", ())),
            _shapes(args.get("output_type_shape", ())),
        )
        for (name, index), args in known.items()
    ]
    return sorted(nodes, key=lambda node: -node.ms)


def _shapes(entries: Iterable[Mapping[str, Sequence[int]]]) -> tuple[Shape, ...]:
    return tuple(tuple(shape) for entry in entries for shape in entry.values())


def totals(nodes: Sequence[Node], key: Callable[[Node], str]) -> list[dict[str, Any]]:
    """Sums over the nodes that `key` calls alike, largest first; times in ms."""
    found: dict[str, list[float]] = {}
    for node in nodes:
        found.setdefault(key(node), []).append(node.ms)
    rows: list[dict[str, Any]]
    whole = sum(node.ms for node in nodes) or 1.0
    rows = [
        {"name": name, "ms": sum(ms), "count": len(ms), "mean_ms": sum(ms) / len(ms)}
        for name, ms in found.items()
    ]
    rows = [{**row, "share": row["ms"] / whole} for row in rows]
    return sorted(rows, key=lambda row: -float(row["ms"]))


def measure_times(target: Target, runs: int) -> dict[str, Any]:
    """Nodes of a profiled run, and the wall-clock times of runs with and without profiler, in ms."""
    with tempfile.TemporaryDirectory() as folder:

        def profiled(options: Any) -> None:
            options.enable_profiling = True
            options.profile_file_prefix = str(Path(folder, "profile"))

        session, slowed = _run(target, runs, profiled)
        events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
        del session
    _, plain = _run(target, runs, None)
    nodes = nodes_of(events, runs)
    return {
        "nodes": [node.to_json() for node in nodes],
        "operators": totals(nodes, lambda node: node.op),
        "groups": totals(nodes, lambda node: node.group),
        "nodes_ms": sum(node.ms for node in nodes),
        "plain": plain,
        "profiled": slowed,
    }


def _run(
    target: Target, runs: int, configure: Callable[[Any], None] | None
) -> tuple[Any, dict[str, Any]]:
    """A session after warm-up and `runs` runs, and how long they took.

    Processor time over wall-clock time, "cores", is less than the threads where work does not split
    or others use the cores.
    """
    from fp4dit_onnx.benchmark.sessions import bound, make_session

    model = Path(target.model)
    session = make_session(model, target.threads, isa=target.isa, configure=configure)
    loaded, times = bound(session, feed_of(session.get_inputs(), target.sizes)), []
    for _ in range(WARM_UP):
        loaded.run()
    used = time.process_time()
    for _ in range(runs):
        start = time.perf_counter()
        loaded.run()
        times.append(1e3 * (time.perf_counter() - start))
    cores = 1e3 * (time.process_time() - used) / sum(times)
    return session, {"ms": times, "median_ms": statistics.median(times), "cores": cores}


def target_of(given: argparse.Namespace) -> Target:
    """What the command line asks for.

    Raises:
        UsageError: no such model, a damaged one, or kernels that cannot run here.
    """
    from fp4dit_onnx.bundle.bundle import Bundle
    from fp4dit_onnx.errors import UsageError
    from fp4dit_onnx.system.resources import usable_cores

    sizes = {"batch": given.batch, "text": given.tokens, "text_length": given.tokens}
    if given.model not in PARTS and not given.model.endswith(".onnx"):
        raise UsageError(f"model {given.model}: expected {', '.join(PARTS)} or an .onnx file")
    if given.model.endswith(".onnx"):
        path = Path(given.model)
    elif given.bundle.is_file():
        path = given.bundle
    else:
        bundle = Bundle.open(given.bundle)
        path = getattr(bundle, given.model)
        config = bundle.transformer.with_name("config.json")
        if config.is_file():
            latent = int(json.loads(config.read_text(encoding="utf-8"))["sample_size"])
            sizes |= dict.fromkeys(("height", "width", "latent_height", "latent_width"), latent)
    sizes |= dict(given.dim)
    axes, custom, nbytes = _contents(path)
    if unknown := sorted({name for name, _ in given.dim} - axes):
        raise UsageError(f"axis {unknown[0]}: expected one of {', '.join(sorted(axes)) or 'none'}")
    isa = _isa(given.isa) if custom else None
    used = {name: size for name, size in sizes.items() if name in axes}
    return Target(str(path), used, given.threads or usable_cores(), isa, nbytes)


def _contents(path: Path) -> tuple[set[str], bool, int]:
    """A model's symbolic axes, whether it has operators of ours, and bytes with external data."""
    import onnx

    from fp4dit_onnx.errors import UsageError

    try:
        graph = onnx.load(path, load_external_data=False).graph
    except Exception as error:  # protobuf's DecodeError has no public home
        raise UsageError(f"{path}: no readable ONNX model ({error})") from error
    entries = (entry for tensor in graph.initializer for entry in tensor.external_data)
    data = {path.parent / entry.value for entry in entries if entry.key == "location"}
    if absent := sorted(str(file) for file in data if not file.is_file()):
        raise UsageError(f"{absent[0]} not found: {path} has its weights there; copy both")
    custom = any(node.domain == ops.DOMAIN for node in graph.node)
    axes = {d.dim_param for i in graph.input for d in i.type.tensor_type.shape.dim} - {""}
    return axes, custom, sum(file.stat().st_size for file in {path, *data})


def _isa(wanted: str | None) -> str:
    from fp4dit_onnx.errors import UsageError
    from fp4dit_onnx.runtime.library import Library

    library = Library()
    if wanted is not None and wanted not in library.isas:
        raise UsageError(f"instruction set {wanted!r}: expected one of {', '.join(library.isas)}")
    return wanted or library.isa


def show(
    target: Target, times: Mapping[str, Any], memory: Mapping[str, Any] | None, top: int
) -> None:
    """Print tables; `top` rows of nodes."""
    from fp4dit_onnx.benchmark.machine import cpu_model
    from fp4dit_onnx.commands.output import print_line, print_table

    sizes = ", ".join(f"{name} {size}" for name, size in target.sizes.items())
    kernels = f"kernels {target.isa}" if target.isa else "no operators of ours"
    head = f"{target.model}: {sizes or 'fixed sizes'}; {target.threads} threads, {kernels}"
    print_line(f"{head}; {cpu_model()}")
    columns = ("", ">ms", ">share", ">count", ">mean ms")
    for title, key in (("By group", "groups"), ("By operator", "operators")):
        print_table(title, columns, [_total_cells(row) for row in times[key]])
    sums = ("nodes, * for any block", "operator", ">ms", ">count", ">mean ms", ">GOP/s")
    rows = [_alike_cells(row) for row in alike(times["nodes"])[:top]]
    print_table("Slowest nodes", (*sums, "inputs", "outputs"), rows)
    inside, plain, slowed = times["nodes_ms"], times["plain"], times["profiled"]
    wall, ms = plain["median_ms"], plain["ms"]
    print_line(
        f"sum of nodes {inside:.1f} ms; with profiler {slowed['median_ms']:.1f} ms, "
        f"{slowed['cores']:.2f} cores busy; without {wall:.1f} ms ({min(ms):.1f} - {max(ms):.1f}), "
        f"{plain['cores']:.2f} cores busy: {wall - inside:+.1f} ms, {(wall - inside) / wall:+.1%}, "
        "outside nodes"
    )
    if wall < inside:
        print_line(
            "below 0: the profiler takes some microseconds per node, or others used the cores"
        )
    if memory is None:
        print_line("memory: this system has no /proc/self/smaps_rollup to read it from")
    else:
        _show_memory(memory)


def _show_memory(memory: Mapping[str, Any]) -> None:
    from fp4dit_onnx.commands.output import print_line, print_table

    fields = ("rss", "pss", "anonymous", "file", "peak")
    rows = [(n, *(_mb(at[f]) for f in fields)) for n, at in memory["stages"].items()]
    print_table("Memory, MB", ("after", *(f">{field}" for field in fields)), rows)
    print_line(
        f"memory after load {_mb(memory['stages']['load']['rss'])} MB = "
        f"{memory['times_model']:.2f} times the model's {_mb(memory['model_bytes'])} MB + "
        f"{_mb(memory['before_bytes'])} MB of the process before; "
        f"{GOAL_FACTOR} times + {_mb(GOAL_BYTES)} MB = {_mb(memory['allowed_bytes'])} MB: "
        f"{'within' if memory['within'] else 'above'}; "
        f"loaded in {memory['load_seconds']:.2f} s of {GOAL_SECONDS:g}"
    )


def _total_cells(row: Mapping[str, Any]) -> tuple[object, ...]:
    mean = f"{row['mean_ms']:.3f}"
    return row["name"], f"{row['ms']:.2f}", f"{row['share']:.1%}", row["count"], mean


def alike(nodes: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Nodes of the same module in several blocks, and of the same shapes, together; slowest first."""
    found: dict[str, dict[str, Any]] = {}
    for node in nodes:
        name = re.sub(r"\.\d+(?=[./]|$)", ".*", node["name"], count=1)
        key = json.dumps([name, node["op"], node["inputs"], node["outputs"]])
        row = found.setdefault(key, {**node, "ms": 0.0, "gop": 0.0, "count": 0})
        row["name"] = name if row["count"] else node["name"]
        row["count"] += 1
        row["ms"] += node["ms"]
        row["gop"] += (node["gops"] or 0.0) * node["ms"]
    return sorted(found.values(), key=lambda row: -float(row["ms"]))


def _alike_cells(row: Mapping[str, Any]) -> tuple[object, ...]:
    inputs, outputs = (
        " ".join("x".join(map(str, shape)) or "1" for shape in row[key])
        for key in ("inputs", "outputs")
    )
    gops = f"{row['gop'] / row['ms']:.0f}" if row["gop"] else ""
    mean = f"{row['ms'] / row['count']:.3f}"
    return row["name"], row["op"], f"{row['ms']:.2f}", row["count"], mean, gops, inputs, outputs


def _mb(nbytes: float) -> str:
    return f"{nbytes / 1e6:.1f}"


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r}: expected a number of at least 1")
    return int(text)


def _dimension(text: str) -> tuple[str, int]:
    name, _, size = text.rpartition("=")
    if not name:
        raise argparse.ArgumentTypeError(f"{text!r}: expected NAME=SIZE")
    return name, _positive(size)


def _arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("bundle", type=Path, help="a bundle's folder, or an .onnx file")
    parser.add_argument("--model", default=PARTS[0], help=f"{', '.join(PARTS)}, or an .onnx file")
    parser.add_argument("--batch", type=_positive, default=2)
    parser.add_argument("--tokens", type=_positive, default=120, help="of the text")
    parser.add_argument(
        "--dim", type=_dimension, action="append", default=[], help="NAME=SIZE of another axis"
    )
    parser.add_argument("--runs", type=_positive, default=5)
    parser.add_argument("--threads", type=_positive, help="by default all cores")
    parser.add_argument("--isa", help="kernels of the library; by default the best")
    parser.add_argument("--top", type=_positive, default=12, help="slowest nodes to print")
    parser.add_argument("--json", action="store_true", help="print JSON, with every node")
    return parser.parse_args(arguments)


def _profile(arguments: Sequence[str]) -> None:
    given = _arguments(arguments)
    target = target_of(given)
    memory = measure_memory(target)
    times = measure_times(target, given.runs)
    if given.json:
        print(json.dumps({"target": asdict(target), **times, "memory": memory}, indent=1))
    else:
        show(target, times, memory, given.top)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line."""
    try:
        _profile(sys.argv[1:] if arguments is None else list(arguments))
    except Exception as error:
        from fp4dit_onnx.errors import Fp4DitError

        if not isinstance(error, Fp4DitError):
            raise
        print("error: " + " ".join(str(error).split()), file=sys.stderr)
        raise SystemExit(error.exit_code) from None


if __name__ == "__main__":
    main()
