"""The page and a bundle as a folder of files, for any web server."""

from __future__ import annotations

import shutil
from pathlib import Path

from fp4dit_onnx.bundle.bundle import Bundle
from fp4dit_onnx.bundle.writing import new_bundle
from fp4dit_onnx.errors import UsageError
from fp4dit_onnx.files import write_text
from fp4dit_onnx.runtime.step_table import STEP_TABLE
from fp4dit_onnx.serve.serving import HEADERS, WEBGPU, page_files, served_files
from fp4dit_onnx.system.outputs import scratch_folder
from fp4dit_onnx.system.progress import Reporter
from fp4dit_onnx.targets import target_by_name

__all__ = ["HEADER_FILE", "write_site"]

HEADER_FILE = "_headers"
"""Read by hosts such as Cloudflare Pages and Netlify, which send what it says; others ignore it."""


def write_site(bundle: Bundle, output: Path, reporter: Reporter) -> int:
    """Write what `Server` serves to the folder `output`, whole or not at all.

    Args:
        bundle: opened and drawable.
        output: a new folder, or an empty one.
        reporter: progress.

    Returns:
        Bytes written.

    Raises:
        UsageError: `output` is taken or lies in the bundle, or the bundle keeps no table of steps;
            see `page_files` too.
    """
    if output.is_dir() and any(output.iterdir()):
        raise UsageError(f"{output} is not empty: expected a new folder; choose another")
    if STEP_TABLE not in bundle.manifest.files:
        raise UsageError(
            f"{bundle.folder} holds no {STEP_TABLE}, which pages without a server of ours need: "
            "export the bundle again"
        )
    with scratch_folder() as place:
        return _copy({**page_files(Path(place)), **served_files(bundle)}, bundle, output, reporter)


def _copy(files: dict[str, Path], bundle: Bundle, output: Path, reporter: Reporter) -> int:
    """Write `files`, by their paths in a URL, to the folder `output`; bytes written."""
    del files["/"]  # it is index.html
    if not target_by_name(bundle.manifest.target).references:  # the page will not use WebGPU
        for name in (n for n in WEBGPU if n in files):
            del files[name]
    needed = sum(path.stat().st_size for path in files.values())
    with new_bundle(output, source=bundle.folder, needed=needed, note=reporter.note) as folder:
        with reporter.stage("copying", len(files), "files") as advance:
            for url, path in files.items():
                target = folder / url.removeprefix("/")
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, target)
                advance(1)
        lines = ["/*", *(f"  {name}: {value}" for name, value in HEADERS.items())]
        write_text(folder / HEADER_FILE, "\n".join(lines) + "\n")
        return sum(p.stat().st_size for p in folder.rglob("*") if p.is_file())
