#!/usr/bin/env python3
"""Where ONNX Runtime's CUDA provider places a bundle's nodes, on a machine without a GPU.

onnxruntime-gpu, which stands in an environment of its own (--python), loads its real CUDA provider
over fakes of CUDA's libraries: device memory is pages that only copies and launches may touch, the
custom-op library's kernels run on the emulated GPU of custom_ops/gpu/emulation, and the provider's own
kernels do not run. So bundles are only loaded, and their nodes and copies counted; a model of our
operators alone is also run, and must give the CPU's bits. With --fix NAME=SIZE for all sizes that the
bundles leave open, sessions are those of --cuda-graph: ONNX Runtime says whether it records a run, and
that of our operators is recorded and replayed.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from fp4dit_onnx import ops
from fp4dit_onnx.numbers import numerics
from fp4dit_onnx.numbers.formats import FORMATS
from fp4dit_onnx.runtime.library import library_path
from fp4dit_onnx.runtime.session import session

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests" / "support"))

from emulated_gpu import compile_kernels  # noqa: E402

RUNTIME = Path(__file__).with_name("fake_cuda.c")
DRIVER = "libcuda.so.1"
SYMBOL = re.compile(r"UND\s+(\w+)@(libcu\w+\.so\.\d+)")
NEEDED = re.compile(r"\(NEEDED\).*\[(libcu\w+\.so\.\d+)\]")

CHILD = """
import json, sys
import numpy as np
import onnxruntime
given = json.loads(sys.argv[1])
options = onnxruntime.SessionOptions()
options.log_severity_level = 0
options.register_custom_ops_library(given["library"])
providers = ["CUDAExecutionProvider", "CPUExecutionProvider"]
for name, size in given["sizes"].items():
    options.add_free_dimension_override_by_name(name, size)
capture = {"enable_cuda_graph": "1"} if given["sizes"] else {}
named = [(providers[0], capture), providers[1]]
session = onnxruntime.InferenceSession(given["model"], options, providers=named)
if session.get_providers() != providers:
    sys.exit(f"providers: {session.get_providers()}")
if given["inputs"]:
    feed, value = dict(np.load(given["inputs"])), onnxruntime.OrtValue
    outputs = session.get_outputs()
    if capture:
        binding = session.io_binding()
        there = {k: value.ortvalue_from_numpy(np.zeros_like(v), "cuda", 0) for k, v in feed.items()}
        made = {
            o.name: value.ortvalue_from_shape_and_type(o.shape, np.float32, "cuda", 0)
            for o in outputs
        }
        for name, one in there.items():
            binding.bind_ortvalue_input(name, one)
        for name, one in made.items():
            binding.bind_ortvalue_output(name, one)
        session.run_with_iobinding(binding)
        for name, one in there.items():
            one.update_inplace(feed[name])
        session.run_with_iobinding(binding)
        np.savez(given["outputs"], **{name: one.numpy() for name, one in made.items()})
    else:
        names = [output.name for output in outputs]
        np.savez(given["outputs"], **dict(zip(names, session.run(names, feed))))
"""


@dataclass(frozen=True)
class Placement:
    """Nodes of a session.

    Attributes:
        nodes: provider -> operator -> how many.
        copies: nodes that copy between host and device.
    """

    nodes: dict[str, Counter[str]]
    copies: int

    def count(self, provider: str, *, ours: bool) -> int:
        """Nodes on `provider`: of our operators, or of others; copies are not counted."""
        found = self.nodes.get(provider, Counter())
        return sum(n for op, n in found.items() if (op in ops.OPERATORS) == ours)


class FakeCuda:
    """CUDA's libraries, made for the provider of one onnxruntime-gpu.

    Args:
        python: the interpreter that has it.
        folder: where they are built.
    """

    def __init__(self, python: Path, folder: Path) -> None:
        self.python, self.folder = python, folder
        found = subprocess.run(
            [python, "-c", "import onnxruntime as o; print(o.__file__, o.__version__)"],
            capture_output=True,
            text=True,
            check=True,
        ).stdout.split()
        self.version = found[1]
        provider = Path(found[0]).parent / "capi" / "libonnxruntime_providers_cuda.so"
        if not provider.is_file():
            raise ValueError(f"{python} has an ONNX Runtime without the CUDA provider: {provider}")
        self._build_driver()
        self._build_runtime(provider)

    def _call(self, *command: object) -> None:
        done = subprocess.run([str(c) for c in command], capture_output=True, text=True)
        if done.returncode:
            raise ValueError(done.stderr)

    def _build_driver(self) -> None:
        compile_kernels(self.folder / DRIVER)

    def _build_runtime(self, provider: Path) -> None:
        elf = subprocess.run(
            ["readelf", "-W", "-d", "--dyn-syms", provider],
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        symbols: dict[str, list[str]] = {name: [] for name in NEEDED.findall(elf)}
        for symbol, library in SYMBOL.findall(elf):
            symbols[library].append(symbol)
        symbols.pop(DRIVER, None)
        for library, names in symbols.items():
            stubs = self.folder / f"{library}.c"
            stubs.write_text(
                "".join(f"__attribute__((weak)) int {n}() {{ return 0; }}\n" for n in names)
            )
            versions = self.folder / f"{library}.map"
            versions.write_text(f"{library} {{ global: *; }};\n")
            flags = ("-w", "-O1", "-fPIC", "-shared", f"-DFAKE_{library.partition('.')[0]}")
            linker = f"-Wl,-soname,{library},--version-script={versions}"
            target = self.folder / library
            self._call("cc", *flags, linker, "-o", target, RUNTIME, stubs, self.folder / DRIVER)

    def load(
        self,
        model: Path,
        inputs: Path | None = None,
        outputs: Path | None = None,
        sizes: Mapping[str, int] | None = None,
    ) -> Placement:
        """Make a session of `model`, with the custom-op library, and run it if there are inputs.

        Args:
            model: an ONNX file.
            inputs: an .npz file.
            outputs: the .npz file to write.
            sizes: all that the model leaves open: its run is recorded with other inputs, and replayed.

        Raises:
            ValueError: that failed; the message has the end of ONNX Runtime's log.
        """
        given = {
            "library": str(library_path()),
            "model": str(model),
            "inputs": inputs and str(inputs),
            "outputs": outputs and str(outputs),
            "sizes": dict(sizes or {}),
        }
        trace = self.folder / "trace"
        trace.unlink(missing_ok=True)
        done = subprocess.run(
            [self.python, "-c", CHILD, json.dumps(given)],
            env={
                **os.environ,
                "LD_LIBRARY_PATH": str(self.folder),
                "FAKE_CUDA_TRACE": str(trace),
            },
            capture_output=True,
            text=True,
        )
        if done.returncode:
            raise ValueError(f"exit code {done.returncode}\n" + done.stderr[-2000:])
        if inputs and sizes and "replay" not in trace.read_text().split():
            raise ValueError("ONNX Runtime recorded no CUDA graph, or did not replay it")
        return placement_of(done.stderr)


PLACED = re.compile(r"(?:All nodes|Node\(s\)) placed on \[(\w+)\]\. Number of nodes: (\d+)")
NODE = re.compile(r"VerifyEachNodeIsAssignedToAnEp\]\s+(\w+) \(")
UNLISTED = "(not listed)"
"""Stands for all operators where all nodes are on one provider: the log only counts them then."""
COPIES = ("MemcpyFromHost", "MemcpyToHost")


def placement_of(log: str) -> Placement:
    """What ONNX Runtime's verbose log says of where nodes are.

    Raises:
        ValueError: it says nothing, or lists other nodes than it counts.
    """
    nodes: dict[str, Counter[str]] = {}
    counts: dict[str, int] = {}
    for line in log.splitlines():
        if placed := PLACED.search(line):
            provider = placed[1]
            nodes[provider], counts[provider] = Counter(), int(placed[2])
            if line.endswith(f"Number of nodes: {placed[2]}") and "All nodes" in line:
                nodes[provider][UNLISTED] = counts[provider]
        elif node := NODE.search(line):
            nodes[provider][node[1]] += 1
    listed = {provider: found.total() for provider, found in nodes.items()}
    if listed != counts:
        raise ValueError(f"the log counts {counts} nodes and lists {listed}")
    if not nodes:
        raise ValueError("the log does not say where nodes are")
    copies = sum(found.pop(op, 0) for found in nodes.values() for op in COPIES)
    return Placement(nodes, copies)


# --- a model of our operators alone, which the emulation runs -------------------------------------


ROWS = 37
"""Of the inputs of `chain`."""


def chain() -> onnx.ModelProto:
    """Linears in several formats, and attention on what they give: x float32 [2, M, 160]."""
    random = np.random.default_rng(1)
    nodes: list[onnx.NodeProto] = []
    constants: dict[str, np.ndarray] = {}

    def own(op: str, inputs: list[str], outputs: list[str], attributes: dict[str, Any]) -> None:
        nodes.append(
            helper.make_node(op, inputs, outputs, outputs[0], domain=ops.DOMAIN, **attributes)
        )

    def quantize(x: str, name: str) -> list[str]:
        act = FORMATS[name]
        outputs = [f"{x}.{name}.q", f"{x}.{name}.scale"]
        own(ops.quantize_op(act), [x], outputs, ops.quantize_attributes(act))
        return outputs

    def linear(x: str, y: str, act: str, weight: str, n: int, k: int) -> None:
        codes = random.integers(0, 2 ** FORMATS[weight].bits, (n, k)).astype(np.uint8)
        constants[f"{y}.codes"] = numerics.pack(codes, FORMATS[weight].storage_bits)
        constants[f"{y}.weight_scale"] = (random.random((n, -(-k // 64))) * 0.01).astype(
            np.float16
        )
        constants[f"{y}.bias"] = random.standard_normal(n).astype(np.float32)
        weights = [f"{y}.{role}" for role in ("codes", "weight_scale", "bias")]
        attributes = ops.linear_attributes(FORMATS[act], FORMATS[weight], k, 64)
        own(ops.LINEAR, [*quantize(x, act), *weights], [y], attributes)

    linear("x", "first", "e2m3", "e2m1", 200, 160)
    linear("first", "second", "e3m4", "e1m2", 96, 200)
    linear("second", "third", "int8", "int8", 96, 96)
    constants["heads"] = np.array([2, -1, 3, 32])
    nodes.append(helper.make_node("Reshape", ["third", "heads"], ["tokens"], "reshape"))
    constants["no bias"] = np.zeros((1, 1, 1, 1), np.float32)
    q, scale = quantize("tokens", "e2m3")
    own(
        "FpAttention",
        [q, scale] * 3 + ["no bias"],
        ["y"],
        ops.attention_attributes(FORMATS["e2m3"], 0.2),
    )
    inputs = [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [2, "M", 160])]
    outputs = [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [2, "M", 3, 32])]
    initializers = [numpy_helper.from_array(array, name) for name, array in constants.items()]
    graph = helper.make_graph(nodes, "chain", inputs, outputs, initializer=initializers)
    opsets = [helper.make_opsetid("", ops.OPSET), helper.make_opsetid(ops.DOMAIN, ops.VERSION)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=ops.IR_VERSION)


def differences(
    cuda: FakeCuda, folder: Path, sizes: Mapping[str, int] | None = None
) -> tuple[Placement, int]:
    """Where the nodes of `chain` are, and how many of its values differ from the CPU's.

    With `sizes` ({"M": 37}) its run is recorded and replayed.
    """
    path, inputs, outputs = folder / "chain.onnx", folder / "x.npz", folder / "y.npz"
    onnx.save(chain(), path)
    x = np.random.default_rng(2).standard_normal((2, ROWS, 160)).astype(np.float32)
    x[0, 3, 5], x[1, 2] = np.nan, 0
    np.savez(inputs, x=x)
    placement = cuda.load(path, inputs, outputs, sizes)
    found = np.load(outputs)["y"]
    wanted = session(path, library=True).run(None, {"x": x})[0]
    bits = [np.where(np.isnan(a), np.float32(np.nan), a).view(np.uint32) for a in (found, wanted)]
    return placement, int((bits[0] != bits[1]).sum())


# --- the table ------------------------------------------------------------------------------------

CUDA, CPU = "CUDAExecutionProvider", "CPUExecutionProvider"
HEAD = "| bundle | ours on CUDA | ours on the CPU | others on CUDA | others on the CPU | copies |"


def row(name: str, placement: Placement) -> str:
    """A line of the table."""
    counts = [placement.count(p, ours=ours) for ours in (True, False) for p in (CUDA, CPU)]
    cells = list(map(str, [*counts, placement.copies]))
    if UNLISTED in placement.nodes.get(CUDA, Counter()):
        cells[0], cells[2] = "all", f"all; {counts[2]} of both"
    return f"| {name} | " + " | ".join(cells) + " |"


def main(arguments: list[str] | None = None) -> int:
    """Print the table; 0 if all nodes of ours are on CUDA and the bits are the CPU's."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--python", type=Path, required=True, help="that has onnxruntime-gpu")
    parser.add_argument("--fix", nargs="*", default=[], metavar="NAME=SIZE", help="see above")
    parser.add_argument("bundles", type=Path, nargs="*", help="folders of bundles")
    given = parser.parse_args(arguments)
    sizes = {name: int(size) for name, _, size in (word.partition("=") for word in given.fix)}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        try:
            cuda = FakeCuda(given.python, folder)
            print(f"onnxruntime-gpu {cuda.version}, CUDA's libraries faked, no GPU\n")
            placement, different = differences(cuda, folder, {"M": ROWS} if sizes else None)
            found = {}
            for bundle in given.bundles:
                path = bundle / "transformer" / "model.onnx"
                found[bundle.name] = cuda.load(path, sizes=sizes)
        except (ValueError, OSError, subprocess.SubprocessError) as error:
            print(f"error: {error}", file=sys.stderr)
            return 2
    print("\n".join([HEAD, "| --- |" + " --- |" * 5, *(row(*item) for item in found.items())]))
    for label, place in found.items():
        for op, count in place.nodes.get(CPU, Counter()).items():
            print(f"{label}: on the CPU: {count} {op}")
    alone = sum(placement.nodes.get(CUDA, Counter()).values())
    print(f"our operators alone: {alone} nodes on CUDA, {different} values differ from the CPU's")
    left = sum(place.count(CPU, ours=True) for place in found.values())
    return 1 if left or different or set(placement.nodes) != {CUDA} else 0


if __name__ == "__main__":
    sys.exit(main())
