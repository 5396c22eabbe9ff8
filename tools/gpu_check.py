"""What tools/gpu_check.sh asks Python for: bits of kernels on a GPU, and times of torch beside them.

python tools/gpu_check.py bits [--few]     # every kernel of the library against the definitions
python tools/gpu_check.py torch            # times of cuBLAS and of torch's attention
python tools/gpu_check.py bits --device cpu  # a dry run
"""

from __future__ import annotations

import argparse
import itertools
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from fp4dit_onnx.benchmark import AttentionCase, LinearCase, attention, linear
from fp4dit_onnx.benchmark.requests import Formats
from fp4dit_onnx.bundle.probe import custom_nodes, exposed
from fp4dit_onnx.errors import Fp4DitError
from fp4dit_onnx.runtime.library import Library, library_path
from fp4dit_onnx.runtime.providers import Placement, place
from fp4dit_onnx.runtime.session import session_options, started, with_library
from fp4dit_onnx.verification.node_checks import LIBRARY, NodeChecks

__all__ = ["differing", "main"]

Array = npt.NDArray[Any]

ACTIVATIONS = ("e2m3", "e3m2", "int8", "e3m4", "e2m1")
WEIGHTS = ("e2m1", "e1m2", "e3m0", "int4", "int8")
SIZES = ((1, 1, 1), (33, 70, 65), (129, 290, 129), (257, 1152, 320), (2, 2304, 130))
"""M, K and N: tile edges, one of PixArt's, and long rows that are few."""
LARGE = ((1024, 1152, 1152), (4096, 1152, 4608))
GROUPS = (32, 128)
ATTENTIONS = ((1, 70, 2, 72), (2, 33, 1, 64), (1, 17, 3, 128))
"""B, S, H and D."""
TIMED = ((1024, 1152, 4608), (4096, 1152, 4608), (4096, 4608, 1152), (8192, 3072, 12288))
TIMED_ATTENTION = (1, 4096, 16, 72)
ROUNDS = 20


def special_rows(x: Array) -> Array:
    """`x` [M, K] with rows of zeros, of NaN, of infinity and of tiny numbers."""
    x = x.copy()
    for row, change in zip(range(len(x)), (0.0, np.nan, np.inf), strict=False):
        if change == 0.0:
            x[row] = 0
        else:
            x[row, x.shape[1] // 2] = change
    x[3:4] *= np.float32(1e-30)
    return x


def cases(few: bool) -> Iterator[tuple[str, bytes, dict[str, Array]]]:
    """Name, model and inputs of each case."""
    sizes = SIZES[:2] if few else (*SIZES, *LARGE)
    for act, weight, group, (m, k, n) in itertools.product(ACTIVATIONS, WEIGHTS, GROUPS, sizes):
        if (m, k, n) in LARGE and (act, weight, group) != ("e2m3", "e2m1", 128):
            continue
        formats = Formats(weight=weight, activation=act, group_size=group)
        case = LinearCase(m, k, n, formats.layer(n, k))
        name = f"linear {case.name} {act} x {weight}, groups of {group}"
        yield name, linear.ours_model(case), {"x": special_rows(case.x)}
    for act, (b, s, h, d) in itertools.product(ACTIVATIONS, ATTENTIONS[:1] if few else ATTENTIONS):
        one = AttentionCase(b, s, h, d, act)
        yield f"attention {one.name} {act}", attention.ours_model(one), dict(one.feed)


def differing(model: onnx.ModelProto, feed: dict[str, Array], placed: Placement) -> list[str]:
    """What differs from the operators' definitions, node by node, with the library on a device."""
    everything = exposed(model)
    options = session_options(placed)
    if with_library(placed, True):
        options.register_custom_ops_library(str(library_path()))
    session = started(everything.SerializeToString(), options, placed)
    names = [output.name for output in everything.graph.output]
    tensors = {**feed, **dict(zip(names, session.run(names, feed), strict=True))}
    checks = NodeChecks(tensors, tensors, LIBRARY)
    with np.errstate(all="ignore"):
        found = [(view.node.op_type, checks.compare(view)) for view in custom_nodes(model)]
    return [f"{op}: {outcome.detail}" for op, outcome in found if outcome and not outcome.ok]


def bits(placed: Placement, few: bool) -> int:
    """Print what differs; the exit code."""
    wrong = count = 0
    library = Library()
    library.reset_counters()
    for name, model, feed in cases(few):
        count += 1
        for line in differing(onnx.load_from_string(model), feed, placed):
            wrong += 1
            print(f"DIFFERS {name}: {line}", flush=True)
    print(f"{count} cases on {placed.name}, {wrong} differ")
    for kernel, calls in sorted(library.counters().items()):
        print(f"    {kernel}: {calls} calls")
    return int(wrong > 0)


def timed(torch: Any, device: str, run: Callable[[], Any]) -> float:
    """Seconds of a call, the mean of `ROUNDS` queued one after the other."""
    wait = torch.cuda.synchronize if device == "cuda" else lambda: None
    for _ in range(3):
        run()
    wait()
    start = time.perf_counter()
    for _ in range(ROUNDS):
        run()
    wait()
    return (time.perf_counter() - start) / ROUNDS


def torch_times(device: str) -> int:
    """Print times of torch's float16 linear and attention, and of cuBLAS's int8 product."""
    import torch

    shapes: Sequence[tuple[int, int, int]] = TIMED if device == "cuda" else ((32, 64, 64),)
    functional = torch.nn.functional
    for m, k, n in shapes:
        x, w = (torch.ones(size, k, device=device) for size in (m, n))
        half, weight, bias = x.half(), w.half(), torch.ones(n, device=device).half()
        rows, columns = x.to(torch.int8), w.to(torch.int8).t()
        runs: dict[str, Callable[[], Any]] = {
            "cuBLAS float16, F.linear": partial(functional.linear, half, weight, bias),
            "cuBLAS int8, torch._int_mm": partial(torch._int_mm, rows, columns),
        }
        for name, run in runs.items():
            seconds = timed(torch, device, run)
            print(
                f"linear {m}x{k}x{n} {name}: {1e6 * seconds:.1f} us, "
                f"{2e-12 * m * n * k / seconds:.1f} TOP/s"
            )
    b, s, h, d = TIMED_ATTENTION if device == "cuda" else (1, 32, 2, 16)
    q = torch.ones(b, h, s, d, device=device).half()
    seconds = timed(torch, device, lambda: functional.scaled_dot_product_attention(q, q, q))
    print(f"attention {b}x{s}x{h}x{d} float16: {1e6 * seconds:.1f} us")
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=["bits", "torch"])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--few", action="store_true", help="few sizes, for slow tools")
    given = parser.parse_args(arguments)
    try:
        if given.what == "torch":
            return torch_times(given.device)
        return bits(place(given.device), given.few)
    except Fp4DitError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code


if __name__ == "__main__":
    raise SystemExit(main())
