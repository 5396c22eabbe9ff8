#!/usr/bin/env python3
"""Count the instructions of the CUDA kernels: what can be said of their speed without a GPU.

The kernels are compiled as for a wheel (tools/build_gpu.py) and disassembled by nvdisasm, on the
PATH or of the Python package nvidia-cuda-nvdisasm. Printed are, of each kernel with tensor-core
products, the blocks of instructions without a branch of its outermost loop that multiplies, in their
order, the shortest left out: their instructions, products, and the kinds of the others. A warp runs
some of them, and not all: these are counts of what is written, and no times.
"""

from __future__ import annotations

import argparse
import importlib.util
import re
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import build_gpu

PRODUCTS = ("IMMA", "IGMMA", "HMMA")
"""Instructions of tensor cores."""
_SECTION = re.compile(r'\.section\s+\.text\.([^",\s]+)')
_LABEL = re.compile(r"\s*(\.L_\w+):")
_TARGET = re.compile(r"\(?(\.L_\w+)\)?")
SHORT = 16
"""Instructions of a block that is left out, if it has no product."""
_REGISTERS = re.compile(r"SHI_REGISTERS=(\d+)")
_INSTRUCTION = re.compile(r"\s+/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_.]*)")
_ENDS = ("BRA", "BRX", "EXIT", "RET", "JMP")


@dataclass
class Block:
    """Instructions without a branch, by their first word."""

    label: str = ""
    target: str = ""
    counts: Counter[str] = field(default_factory=Counter)

    @property
    def size(self) -> int:
        """All instructions."""
        return self.counts.total()

    @property
    def products(self) -> int:
        """Those of tensor cores."""
        return sum(self.counts[name] for name in PRODUCTS)


@dataclass
class Listing:
    """A kernel's machine code."""

    kernel: str
    registers: int = 0
    blocks: list[Block] = field(default_factory=lambda: [Block()])

    @property
    def spills(self) -> int:
        """Loads and stores of registers that did not fit."""
        return sum(block.counts["LDL"] + block.counts["STL"] for block in self.blocks)

    def loop(self) -> list[Block]:
        """The blocks of the outermost loop that has products; all that have some if there is none."""
        first = {block.label: at for at, block in enumerate(self.blocks) if block.label}
        loops = [
            self.blocks[first[block.target] : at + 1]
            for at, block in enumerate(self.blocks)
            if first.get(block.target, at + 1) <= at
        ]
        loops = [loop for loop in loops if any(block.products for block in loop)]
        return max(loops, key=len, default=[block for block in self.blocks if block.products])


def listings(text: str) -> Iterator[Listing]:
    """The kernels of what nvdisasm prints."""
    listing = None
    for line in text.splitlines():
        if section := _SECTION.search(line):
            if listing:
                yield listing
            listing = Listing(section[1])
        elif listing is None:
            continue
        elif found := _REGISTERS.search(line):
            listing.registers = int(found[1])
        elif label := _LABEL.match(line):
            listing.blocks.append(Block(label[1]))
        elif instruction := _INSTRUCTION.match(line):
            name = instruction[1].split(".")[0]
            listing.blocks[-1].counts[name] += 1
            if name in _ENDS:
                target = _TARGET.search(line)
                listing.blocks[-1].target = target[1] if target else ""
                listing.blocks.append(Block())
    if listing:
        yield listing


def nvdisasm() -> str:
    """The program.

    Raises:
        BuildError: it is absent.
    """
    if found := shutil.which("nvdisasm"):
        return found
    spec = importlib.util.find_spec("nvidia")
    for folder in (spec.submodule_search_locations or []) if spec else []:
        for path in sorted(Path(folder).glob("*/bin/nvdisasm")):
            return str(path)
    raise build_gpu.BuildError("there is no nvdisasm: pip install nvidia-cuda-nvdisasm")


def disassembled(code: bytes, program: str) -> str:
    """The listing of a cubin."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernels.cubin"
        path.write_bytes(code)
        command = [program, "-c", str(path)]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def lines(listing: Listing) -> Iterator[str]:
    """What is printed of a kernel; nothing if it has no products."""
    blocks = listing.loop()
    if not blocks:
        return
    registers = f", {listing.registers} registers" if listing.registers else ""
    yield f"{listing.kernel}{registers}, {listing.spills} accesses of spilled ones"
    for block in blocks:
        if block.size < SHORT and not block.products:
            continue
        others = [
            f"{count} {name}" for name, count in block.counts.most_common() if name not in PRODUCTS
        ]
        yield f"    {block.size} instructions, {block.products} products: " + ", ".join(others[:8])


def main(arguments: list[str] | None = None) -> int:
    """The exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--file", default="linear", help="of custom_ops/gpu/kernels; default: linear"
    )
    parser.add_argument("--arch", type=int, nargs="+", default=[80, 90], help="GPUs")
    parser.add_argument("--kernel", default="", help="a part of the names; default: all")
    given = parser.parse_args(arguments)
    try:
        program = nvdisasm()
        source = build_gpu.KERNELS / f"{given.file}.cu"
        nvrtc, text, headers = build_gpu.Nvrtc(), source.read_text("utf-8"), build_gpu.headers()
        for arch in given.arch:
            code = nvrtc.compile(source.name, text, headers, f"sm_{arch}")
            for listing in listings(disassembled(code, program)):
                if given.kernel not in listing.kernel:
                    continue
                for line in lines(listing):
                    print(f"sm_{arch} {line}")
    except (build_gpu.BuildError, OSError, subprocess.CalledProcessError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
