"""``fp4dit-onnx view``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fp4dit_onnx.commands.output import print_line

__all__ = ["run"]


def run(
    path: Annotated[Path, typer.Argument(help="A bundle or an .onnx file.")],
    part: Annotated[
        str, typer.Option(help="Of a bundle: transformer, text_encoder, vae_decoder, ...")
    ] = "transformer",
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[
        int, typer.Option(min=0, max=65535, help="Port to listen on; 0 for any free one.")
    ] = 0,
    open_browser: Annotated[
        bool, typer.Option("--browser/--no-browser", help="Open the page in the web browser.")
    ] = True,
) -> None:
    """Open the quantized transformer in Netron."""
    from fp4dit_onnx.viewing import netron_server, onnx_file

    model = onnx_file(path, part)
    with netron_server(model, host, port) as server:
        server.run(
            lambda: print_line(f"{model} at {server.url}  (Ctrl-C ends)"), browse=open_browser
        )
        print_line("ended")
