"""``fp4dit-onnx serve``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from fp4dit_onnx.bundle.bundle import Bundle
from fp4dit_onnx.commands.output import print_line, reporter
from fp4dit_onnx.commands.parameters import BundleFolder, Host, OpenBrowser, Port
from fp4dit_onnx.exporting.options import MACHINE, OUTPUT, Option
from fp4dit_onnx.system.texts import size

if TYPE_CHECKING:
    from fp4dit_onnx.serve.serving import Server

__all__ = ["run"]


def run(
    bundle: BundleFolder,
    host: Host = "127.0.0.1",
    port: Port = 8000,
    open_browser: OpenBrowser = True,
    output: Annotated[
        Path | None,
        Option(
            "Write the page to a folder, for any web server.",
            OUTPUT,
            unit="DIR",
            flags=("--output", "-o"),
        ),
    ] = None,
    isolated: Annotated[bool, Option("Let the page use threads.", MACHINE, hidden=True)] = True,
) -> None:
    """Generate images in a web browser: one page, everything on this machine."""
    from fp4dit_onnx.serve.serving import Server, check_drawable

    opened = Bundle.open(bundle)
    check_drawable(opened)
    if output is not None:
        _write(opened, output)
        return
    with Server(opened, host, port, isolated=isolated) as server:
        server.run(lambda: _announce(opened, server), browse=open_browser)
        print_line("ended")


def _write(bundle: Bundle, output: Path) -> None:
    from fp4dit_onnx.serve.static_site import HEADER_FILE, write_site

    written = write_site(bundle, output, reporter())
    _warn_of_size(bundle)
    print_line(
        f"{output} written, {size(written)}: put it on any web server; the page uses several "
        f"threads where the server sends the headers in {HEADER_FILE}"
    )


def _warn_of_size(bundle: Bundle) -> None:
    from fp4dit_onnx.serve.serving import ADDRESS_SPACE, memory_estimate

    needed = memory_estimate(bundle)
    if needed > ADDRESS_SPACE:
        print_line(
            f"warning: the weights take {size(needed)} when unpacked, a page has at most "
            f"{size(ADDRESS_SPACE)}: it will not load; use  fp4dit-onnx generate"
        )


def _announce(bundle: Bundle, server: Server) -> None:
    """Say where the page is, and what will not go well."""
    _warn_of_size(bundle)
    if server.hosts.open_to_others:
        print_line(
            "other machines can open the page and read the bundle, with one thread: browsers "
            "give a page threads only over https or on localhost"
        )
    print_line(f"{server.url}  (Ctrl-C ends)")
