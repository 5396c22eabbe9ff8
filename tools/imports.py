"""The packages in layers, and what each imports: the arrows point down only, and there is no cycle.

    python tools/imports.py    # the table; exit code 1 where an import points up or round

Every import counts, those inside functions and those for type checkers too, but for cycles inside a
package, where an import for type checkers alone is none.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = "fp4dit_onnx"
MAPPED = ("passes", "calibration")
"""Folders of the repository that install as subpackages."""

LAYERS = (
    ("errors",),
    ("files", "values"),
    ("system", "numbers"),
    ("spec",),
    ("ops", "prompts", "official"),
    ("bundle",),
    ("families", "tokenizer_files"),
    ("checkpoint",),
    ("runtime",),
    ("network",),
    ("drop_in",),
    ("tracing",),
    ("torch_export", "passes", "calibration", "targets"),
    ("verification", "evaluation"),
    ("benchmark",),
    ("report",),
    ("exporting",),
    ("doctor", "serve"),
    ("commands",),
    ("cli",),
    ("__main__", "__init__"),
)
"""From the lowest: a package imports its own modules and the layers before its own."""
OWN_MODULES = 11
"""That the package has beside its subpackages, at most: ten and ``__init__``."""


@dataclass(frozen=True)
class Import:
    """One module imports another; `typing` if for type checkers alone."""

    source: str
    target: str
    typing: bool

    def __str__(self) -> str:
        """As a line of a message."""
        return f"{self.source} imports {self.target}"


def package_of(module: str) -> str:
    """The package or module right below fp4dit_onnx; ``__init__`` for itself."""
    return [*module.split("."), "__init__"][1]


@cache
def modules(root: Path = ROOT) -> Mapping[str, Path]:
    """Every module of the package by its dotted name."""
    found = {}
    for folder in (root / PACKAGE, *(root / name for name in MAPPED)):
        for path in sorted(folder.rglob("*.py")):
            parts = path.relative_to(root).with_suffix("").parts
            inside = parts if parts[0] == PACKAGE else (PACKAGE, *parts)
            found[".".join(inside).removesuffix(".__init__")] = path
    return found


def imports(known: Mapping[str, Path]) -> Iterator[Import]:
    """Every import among `known` modules."""
    for module, path in known.items():
        tree = ast.parse(path.read_text(encoding="utf-8"))
        typing = {
            id(inner)
            for node in ast.walk(tree)
            if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
            for inner in ast.walk(node)
        }
        for node in ast.walk(tree):
            for target in _targets(node, known):
                if target != module:
                    yield Import(module, target, id(node) in typing)


def _targets(node: ast.AST, known: Mapping[str, Path]) -> Iterator[str]:
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names if alias.name in known)
    elif isinstance(node, ast.ImportFrom) and node.module in known:
        for alias in node.names:
            inner = f"{node.module}.{alias.name}"
            yield inner if inner in known else str(node.module)


def faults(known: Mapping[str, Path], found: list[Import]) -> Iterator[str]:
    """A line for everything that breaks the table."""
    layer = {name: at for at, names in enumerate(LAYERS) for name in names}
    for name in sorted({package_of(module) for module in known} - layer.keys()):
        yield f"{name} is in no layer of tools/imports.py"
    for one in found:
        a, b = package_of(one.source), package_of(one.target)
        if a != b and layer.get(a, 0) <= layer.get(b, 0):
            yield f"{one}: {b} is not below {a}"
    graph: dict[str, set[str]] = {module: set() for module in known}
    for one in found:
        if not one.typing:
            graph[one.source].add(one.target)
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        yield "a cycle: " + " <- ".join(error.args[1])
    own = sorted(path.stem for path in known.values() if path.parent.name == PACKAGE)
    if len(own) > OWN_MODULES:
        yield f"{len(own)} modules of its own, {', '.join(own)}: expected at most {OWN_MODULES}"


def arrows(found: list[Import]) -> dict[str, set[str]]:
    """Package -> the packages that it imports."""
    made: dict[str, set[str]] = {name: set() for names in LAYERS for name in names}
    for one in found:
        a, b = package_of(one.source), package_of(one.target)
        if a != b:
            made.setdefault(a, set()).add(b)
    return made


def direct(made: Mapping[str, set[str]]) -> dict[str, set[str]]:
    """The arrows that no other two or more arrows make."""

    def reached(name: str) -> set[str]:
        found, left = set[str](), [name]
        while left:
            new = made.get(left.pop(), set()) - found
            found |= new
            left += new
        return found

    return {
        name: {b for b in below if not any(b in reached(other) for other in below - {b})}
        for name, below in made.items()
    }


def main() -> int:
    """Print the table; 1 if something breaks it."""
    known = modules()
    found = list(imports(known))
    made = arrows(found)
    for at, names in reversed(list(enumerate(LAYERS))):
        for name in sorted(names):
            if any(package_of(module) == name for module in known):
                print(f"{at:2}  {name:16} imports  {', '.join(sorted(made[name])) or 'nothing'}")
    wrong = list(faults(known, found))
    for line in wrong:
        print(line, file=sys.stderr)
    inside = sum(1 for path in known.values() for _ in _indented(path))
    print(f"{len(known)} modules, {len(found)} imports, {inside} of them inside functions")
    return 1 if wrong else 0


def _indented(path: Path) -> Iterator[ast.AST]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield from (n for n in ast.walk(node) if isinstance(n, ast.Import | ast.ImportFrom))


if __name__ == "__main__":
    sys.exit(main())
