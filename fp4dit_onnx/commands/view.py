"""``fp4dit-onnx view``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from fp4dit_onnx.commands.output import print_line
from fp4dit_onnx.commands.parameters import Host, OpenBrowser, Port
from fp4dit_onnx.exporting.options import INPUT, Option

__all__ = ["run"]


def run(
    path: Annotated[
        Path, Option("A bundle or an .onnx file.", INPUT, unit="PATH", positional=True)
    ],
    part: Annotated[
        str,
        Option(
            "Part of a bundle: transformer, text_encoder, vae_decoder, ...", INPUT, unit="PART"
        ),
    ] = "transformer",
    host: Host = "127.0.0.1",
    port: Port = 0,
    open_browser: OpenBrowser = True,
) -> None:
    """Open the quantized transformer in Netron."""
    from fp4dit_onnx.serve.viewing import netron_server, onnx_file

    model = onnx_file(path, part)
    with netron_server(model, host, port) as server:
        others = "; other machines can read it" if server.hosts.open_to_others else ""
        server.run(
            lambda: print_line(f"{model} at {server.url}{others}  (Ctrl-C ends)"),
            browse=open_browser,
        )
        print_line("ended")
