"""Netron on one model, served from this machine and kept from talking to others.

Netron's page asks another host where its reader is, and sends it statistics. A model that is looked
at here is nobody else's business: the page is told that it was agreed to and that it is not a release,
so that it asks and sends nothing, and its browser is told to connect to this server only.
"""

from __future__ import annotations

import glob
import html
import importlib.util
import re
from contextlib import suppress
from pathlib import Path

from fp4dit_onnx.bundle.bundle import MANIFEST, Bundle
from fp4dit_onnx.bundle.names import model_of
from fp4dit_onnx.errors import BundleError, MissingExtraError, UsageError
from fp4dit_onnx.serve.local_server import FileServer
from fp4dit_onnx.system.links import followed

__all__ = ["netron_server", "onnx_file"]

_HEADERS = {
    "Content-Security-Policy": "default-src 'self' 'unsafe-inline' data: blob:; connect-src 'self'",
    "Set-Cookie": "consent=local; SameSite=Strict",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}
_OPTIONS = "/netron_options.js"
"""Beside this module, and the path in the URL."""
_OLDEST = 9
"""Major version; 8 shows bytes of the model where it should show those of its data file."""
_VERSION = re.compile(r'<meta name="version" content="(\d+)[^"]*">')
_DATE = re.compile(r'<meta name="date" content="[^"]*">')
"""In Netron's page. It refuses to open anything half a year after its date."""
_NO_VERSION = '<meta name="version" content="0.0.0">'
"""Of a page that sends no statistics: Netron run from its sources."""


def onnx_file(path: Path, part: str) -> Path:
    """The model to show.

    Args:
        path: a bundle or an ONNX file.
        part: which of a bundle's models.

    Raises:
        BundleError: no bundle, or one without such a part.
        UsageError: another file.
    """
    if path.is_file():
        if path.suffix != ".onnx":
            raise UsageError(f"{path}: expected an .onnx file, or a folder made by export")
        return path
    bundle = Bundle.open(path)
    models = sorted(name for name in bundle.manifest.files if name.endswith(model_of("")))
    if model_of(part) not in models:
        held = ", ".join(name.removesuffix(model_of("")) for name in models)
        raise BundleError(f"{path / MANIFEST} lists no {part}: expected one of {held}")
    return path / model_of(part)


def netron_server(model: Path, host: str, port: int) -> FileServer:
    """A server of Netron's page with `model` open; `serve_forever` starts it.

    Args:
        model: an ONNX file; its data files lie beside it.
        host: name or address to listen on.
        port: 0 takes a free one.

    Raises:
        MissingExtraError: Netron is not installed.
        UsageError: the port or the host cannot be used, or Netron's page is an unknown one.
    """
    spec = importlib.util.find_spec("netron")
    if spec is None or not spec.submodule_search_locations:
        raise MissingExtraError("netron", "view")
    folder = Path(spec.submodule_search_locations[0])
    pages: dict[str, Path | bytes] = {
        f"/{path.relative_to(folder).as_posix()}": path
        for path in folder.rglob("*")
        if path.is_file() and path.suffix not in (".py", ".pyc")
    }
    for path in model.parent.glob(f"{glob.escape(model.name)}*"):
        with suppress(BundleError):  # the model is what was asked for; a link beside it may not be
            pages[f"/data/{path.name}"] = path if path == model else followed(path, model.parent)
    pages[_OPTIONS] = Path(__file__).with_name(_OPTIONS[1:])
    pages["/"] = pages["/index.html"] = _page(folder / "index.html", model)
    return FileServer(pages, _HEADERS, host, port)


def _page(index: Path, model: Path) -> bytes:
    text = index.read_text(encoding="utf-8")
    found = _VERSION.search(text)
    if found is None or int(found[1]) < _OLDEST:
        raise UsageError(
            f"{index} is of another version of Netron than expected: "
            f"run  pip install 'netron=={_OLDEST}.*'"
        )
    name = html.escape(f"{model.parent.name}/{model.name}")
    facts = (
        _NO_VERSION,
        f'<meta name="file" content="/data/{html.escape(model.name)}">',
        f'<meta name="name" content="{name}">',
        f'<meta name="identifier" content="{html.escape(model.name)}">',
        f'<script src="{_OPTIONS}"></script>',
    )
    text = "\n".join((text[: found.start()], *facts, text[found.end() :]))
    return _DATE.sub("", text).encode()
