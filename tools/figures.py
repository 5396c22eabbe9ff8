"""List the measured figures in README.md and docs/ whose sources changed since they were measured.

    python tools/figures.py

Figures stand beside the commit at which they were measured. `make docs` shows those that are older
than the code they speak of on their page: this file is also a hook of mkdocs.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pages import Section

__all__ = ["FIGURES", "UNMEASURED", "Figures", "on_page_markdown", "stale"]

ROOT = Path(__file__).resolve().parents[1]
_COMMIT = re.compile(r"\bcommit ([0-9a-f]{7,40})\b")

_KERNELS = ("custom_ops",)
_GRAPHS = (
    "passes",
    "fp4dit_onnx/families",
    "fp4dit_onnx/ops",
    "fp4dit_onnx/network",
    "fp4dit_onnx/tracing",
)
_WEIGHTS = ("calibration", "fp4dit_onnx/numbers/formats.py", "fp4dit_onnx/numbers/numerics.py")
_RUNTIME = ("fp4dit_onnx/runtime",)


@dataclass(frozen=True)
class Figures:
    """Measured figures of a page.

    Attributes:
        page: below the repository's root.
        command: that measures them.
        sources: files and folders that the figures speak of.
        section: name of the marks between which they stand; the whole page if empty.
    """

    page: str
    command: str
    sources: tuple[str, ...]
    section: str = ""

    def commits(self, text: str) -> list[str]:
        """Where the figures were measured, by the page's `text`."""
        own = Section(self.page, self.section).cut(text)[1] if self.section else text
        return sorted(set(_COMMIT.findall(own)))


FIGURES = (
    Figures("README.md", "make demo", (*_KERNELS, *_GRAPHS, *_RUNTIME)),
    Figures("docs/aarch64.md", "python tools/check_aarch64.py", (*_KERNELS, *_GRAPHS)),
    Figures(
        "docs/aarch64.md",
        "python tools/aarch64_instructions.py --write",
        (*_KERNELS, "fp4dit_onnx/benchmark"),
        "instructions",
    ),
    Figures(
        "docs/deploy.md",
        "python tools/deploy_table.py --write",
        (*_KERNELS, *_GRAPHS, *_RUNTIME, "fp4dit_onnx/targets", "fp4dit_onnx/web/js", "examples"),
        "runtimes",
    ),
    Figures(
        "docs/models.md",
        "python tools/model_table.py --write",
        (
            *_GRAPHS,
            *_RUNTIME,
            "fp4dit_onnx/verification/verify.py",
            "fp4dit_onnx/exporting/streaming.py",
        ),
        "families",
    ),
    Figures(
        "docs/models.md",
        "python tools/calibrated_table.py --write",
        (*_WEIGHTS, *_GRAPHS),
        "calibrated",
    ),
    Figures(
        "docs/models.md",
        "python tools/full_size.py --folder DIR --write",
        (
            *_GRAPHS,
            "fp4dit_onnx/exporting/streaming.py",
            "fp4dit_onnx/exporting/component_writing.py",
        ),
        "full size",
    ),
    Figures(
        "docs/performance.md",
        "python tools/performance.py",
        (*_KERNELS, "fp4dit_onnx/benchmark"),
    ),
    Figures(
        "docs/performance.md",
        "python tools/image_speed.py --folder DIR --write",
        (*_KERNELS, *_RUNTIME, "fp4dit_onnx/benchmark"),
        "a whole image",
    ),
    *(
        Figures(f"docs/methods/{name}.md", "python tools/quality.py", (*_WEIGHTS, *_GRAPHS))
        for name in ("activation-regularization", "ptq1.61", "svdquant")
    ),
    Figures(
        "docs/methods/repq-vit.md",
        "python tools/softmax_formats.py --write",
        ("calibration/attention.py", "calibration/grid.py", "fp4dit_onnx/numbers"),
    ),
    Figures("docs/methods.md", "python tools/recipe_bundles.py --images", (*_WEIGHTS, *_GRAPHS)),
    Figures("docs/quality.md", "python tools/quality.py", (*_WEIGHTS, *_GRAPHS)),
    Figures("docs/quality_even.md", "python tools/quality.py", (*_WEIGHTS, *_GRAPHS)),
    Figures("docs/quality_dit.md", "python tools/quality.py", (*_WEIGHTS, *_GRAPHS)),
    Figures("docs/quality_hunyuan.md", "python tools/quality.py", (*_WEIGHTS, *_GRAPHS)),
    Figures("docs/quality_recipes.md", "python tools/quality.py", (*_WEIGHTS, *_GRAPHS)),
    Figures("docs/quality_recipes_even.md", "python tools/quality.py", (*_WEIGHTS, *_GRAPHS)),
    Figures("docs/quality_sd3.md", "python tools/quality.py", (*_WEIGHTS, *_GRAPHS)),
    Figures("docs/quality_stages.md", "python tools/stage_table.py", (*_WEIGHTS, *_GRAPHS)),
    Figures(
        "docs/targets.md",
        "python tools/target_quality.py --write",
        (*_WEIGHTS, *_GRAPHS, "fp4dit_onnx/targets", "fp4dit_onnx/numbers/scale_formats.py"),
        "pictures",
    ),
)

UNMEASURED = {
    "docs/cluster.md": "bytes that follow from the number of weights",
    "docs/design.md": "orders of magnitude behind decisions, which the other pages measure",
    "docs/methods/affinequant.md": "bytes that follow from the number of weights",
    "docs/ops/FpAttention_v1.md": "a bound that a test holds",
    "docs/troubleshooting.md": "an order of magnitude",
}
"""Pages with figures that are not results, and what they are."""


def stale(root: Path = ROOT, figures: tuple[Figures, ...] = FIGURES) -> Iterator[tuple[str, str]]:
    """Pages and a line on each part of them that is older than its sources, or of unknown age.

    Args:
        root: of a git checkout.
        figures: where they stand.
    """
    for part in figures:
        name = f"{part.page}, {part.section}" if part.section else part.page
        for commit in part.commits((root / part.page).read_text(encoding="utf-8")):
            changed = _commits_since(root, commit, part.sources)
            if changed is None:
                yield part.page, f"{name}: commit {commit} is not in this checkout's history"
            elif changed:
                since = f"measured at commit {commit}; {changed} commits changed its sources since"
                yield part.page, f"{name}: {since}; measure again with  {part.command}"


def _commits_since(root: Path, commit: str, sources: tuple[str, ...]) -> int | None:
    """How many commits changed `sources` after `commit`; None where git does not know it."""
    command = ["git", "-C", str(root), "rev-list", "--count", f"{commit}..HEAD", "--", *sources]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return int(done.stdout) if done.returncode == 0 else None


def on_page_markdown(markdown: str, *, page: Any, **_given: Any) -> str:
    """For mkdocs: the page, with a note below its title on figures that are older than their sources."""
    notes = [line for path, line in stale() if path == f"docs/{page.file.src_uri}"]
    if not notes:
        return markdown
    title, _, rest = markdown.partition("\n")
    listed = "\n".join(f"> - {line}" for line in notes)
    return f"{title}\n\n> Some figures of this page are older than the code:\n>\n{listed}\n{rest}"


def main() -> None:
    """Print the list; figures that are old are no failure."""
    lines = [line for _, line in stale()]
    print("\n".join(lines) or "all figures are of the code as it is")


if __name__ == "__main__":
    main()
