"""A local web server for one bundle and the page that generates images with it in the browser.

It serves what it listed when it was made, files of the bundle's manifest and of the page, and
nothing else: no path from outside ever reaches the file system.
"""

from __future__ import annotations

import functools
import re
import tarfile
from http import HTTPStatus
from pathlib import Path
from urllib.parse import parse_qs

from fp4dit_onnx.bundle.bundle import MANIFEST, Bundle
from fp4dit_onnx.bundle.names import model_of
from fp4dit_onnx.errors import UsageError
from fp4dit_onnx.families import family_of_pipeline
from fp4dit_onnx.files import BUNDLE, read_json
from fp4dit_onnx.runtime.step_table import STEP_TABLE, bundle_step_table
from fp4dit_onnx.serve.local_server import MEDIA_TYPES, FileServer, Handler
from fp4dit_onnx.system.outputs import scratch_folder
from fp4dit_onnx.targets import target_by_name

__all__ = [
    "HEADERS",
    "WEBGPU",
    "Server",
    "check_drawable",
    "memory_estimate",
    "page_files",
    "served_files",
]

WEB = Path(__file__).parents[1] / "web"
RUNTIME = WEB / "vendor" / "runtime.tar.xz"
"""Of the files that tools/vendor_web.py brings, the one that is looked for: WebAssembly, packed."""
WEBGPU = tuple(
    f"/vendor/{name}"
    for name in (
        "ort.jspi.min.mjs",
        "ort-wasm-simd-threaded.jspi.mjs",
        "ort-wasm-simd-threaded.jspi.wasm",
    )
)
"""Of the page's files, those that it loads where it uses WebGPU; see js/worker.js."""

ISOLATION = {
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Embedder-Policy": "require-corp",
    "Cross-Origin-Resource-Policy": "same-origin",
}
"""What a browser asks for before it lends memory that threads share."""
PROTECTION = {
    "Content-Security-Policy": "; ".join(
        [
            "default-src 'none'",
            "script-src 'self' 'wasm-unsafe-eval'",
            "worker-src 'self'",
            "connect-src 'self'",
            "style-src 'self'",
            "img-src 'self' blob: data:",
            "base-uri 'none'",
            "form-action 'none'",
            "frame-ancestors 'none'",
        ]
    ),
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}
"""Nothing is loaded from, and nothing is sent to, another host."""
HEADERS = {**PROTECTION, **ISOLATION}

ADDRESS_SPACE = 4 << 30
"""Bytes that WebAssembly's 32-bit pointers reach."""


def page_files(place: Path) -> dict[str, Path]:
    """The page's files by their path in a URL.

    Args:
        place: an empty folder for those that are packed; it must last as long as they are needed.

    Raises:
        UsageError: ONNX Runtime for the web is not in this installation, or damaged.
    """
    if not RUNTIME.is_file():
        raise UsageError(
            f"{RUNTIME} not found: expected ONNX Runtime for the web there; run "
            "python tools/vendor_web.py in a clone, or install a wheel, which holds it"
        )
    found = {
        f"/{path.relative_to(WEB).as_posix()}": path
        for path in sorted(WEB.rglob("*"))
        if path.suffix in MEDIA_TYPES and not path.name.startswith("package")
    }
    _unpack(RUNTIME, place)
    binaries = {f"/vendor/{path.name}": path for path in sorted(place.iterdir())}
    return {"/": WEB / "index.html", **found, **binaries}


def _unpack(archive: Path, place: Path) -> None:
    """Write the files of an archive to a folder."""
    try:
        from lzma import LZMAError
    except ModuleNotFoundError as cause:
        raise UsageError(
            f"this Python has no module lzma, which {archive} is unpacked by: install a Python with "
            "it, such as the system's"
        ) from cause
    try:
        with tarfile.open(archive, "r:xz") as packed:
            for entry in packed:
                content = packed.extractfile(entry)
                if content is not None:
                    (place / Path(entry.name).name).write_bytes(content.read())
    except (tarfile.TarError, LZMAError, EOFError) as cause:
        raise UsageError(
            f"{archive} cannot be unpacked ({cause}): expected ONNX Runtime for the web in it; "
            "install the wheel again"
        ) from cause


def served_files(bundle: Bundle) -> dict[str, Path]:
    """The bundle's files by their path in a URL."""
    names = (MANIFEST, *bundle.manifest.files)
    return {f"/bundle/{name}": bundle.folder / name for name in names}


def check_drawable(bundle: Bundle) -> None:
    """Raise UsageError for a bundle that the page cannot run."""
    index = bundle.model_index
    listed = read_json(index, "the list of components", BUNDLE)
    family = family_of_pipeline(str(listed.get("_class_name")), index)
    target = target_by_name(bundle.manifest.target)
    if not target.drawable:
        raise UsageError(
            f"{bundle.folder} is for the target {target.name}, whose types ONNX Runtime for the web "
            "has not: serve the original bundle"
        )
    parts = (*family.encoders_of(listed), "vae_decoder")
    missing = [part for part in parts if model_of(part) not in bundle.manifest.files]
    if missing:
        raise UsageError(
            f"{bundle.folder} holds no {' and no '.join(missing)}, which generating images needs: "
            "export the whole pipeline, with --components all"
        )
    bundle_step_table(bundle.folder, bundle.manifest.sampling.steps)


def memory_estimate(bundle: Bundle) -> int:
    """Bytes of the weights as the function bodies unpack them, float32; about what a page holds.

    Targets whose linears are one operator leave them packed. The VAE's are stored as float16, and so
    are tables of quantized text encoders.
    """
    files, converted = bundle.manifest.files, bundle.manifest.converted
    packs = bool(target_by_name(bundle.manifest.target).references)
    total = bundle.manifest.totals.transformer_bytes_float32
    if packs and "transformer" in converted:
        total = converted["transformer"].bytes
    encoders = bundle.manifest.text_encoders
    for part in (*encoders, "vae_decoder"):
        stored = sum(e.bytes for n, e in files.items() if n.startswith(model_of(part)))
        layers = encoders[part].layers if part in encoders else {}
        packed = sum(row.bytes for row in layers.values())
        unpacked = packed if packs else sum(row.bytes_float32 for row in layers.values())
        half = part == "vae_decoder" or layers
        total += unpacked + (stored - packed) * (2 if half else 1)
    return total


class Server(FileServer):
    """Serves one bundle and the page.

    Args:
        bundle: opened and drawable.
        host: name or address to listen on.
        port: 0 takes a free one.
        isolated: send the headers that let the page use threads.

    Raises:
        UsageError: see `FileServer` and `page_files`.
    """

    def __init__(self, bundle: Bundle, host: str, port: int, *, isolated: bool = True) -> None:
        self.folder = bundle.folder
        self.steps = bundle.manifest.sampling.steps
        self._scratch = scratch_folder()
        try:
            files = {**page_files(Path(self._scratch.name)), **served_files(bundle)}
            super().__init__(files, HEADERS if isolated else PROTECTION, host, port, _Handler)
        except UsageError:
            self._scratch.cleanup()
            raise

    def server_close(self) -> None:
        """Listen no more."""
        super().server_close()
        self._scratch.cleanup()


class _Handler(Handler):
    """Computes tables of steps besides."""

    server: Server

    def answer(self, path: str, query: str) -> None:
        """Send a file or a table."""
        if path == f"/bundle/{STEP_TABLE}" and (query or path not in self.server.files):
            self._send_steps(query)
        else:
            super().answer(path, query)

    def _send_steps(self, query: str) -> None:
        """The table of as many steps as the query asks for, by default the bundle's."""
        folder = self.server.folder
        try:
            text = _steps_text(folder, _asked_steps(query) if query else self.server.steps)
        except UsageError as error:
            self.send_body(HTTPStatus.BAD_REQUEST, f"{error}\n".encode())
        else:
            self.send_body(HTTPStatus.OK, text.encode(), MEDIA_TYPES[".json"])


def _asked_steps(query: str) -> int:
    """The number that a query such as ``steps=20`` asks for."""
    steps = parse_qs(query).get("steps", [""])[0]
    if not re.fullmatch(r"[0-9]{1,6}", steps):
        raise UsageError(f"steps = {steps}: expected a whole number from 1")
    return int(steps)


@functools.lru_cache(maxsize=16)
def _steps_text(folder: Path, steps: int) -> str:
    return bundle_step_table(folder, steps).dumps()
