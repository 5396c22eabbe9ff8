"""``fp4dit-onnx view``."""

from __future__ import annotations

import webbrowser
from pathlib import Path
from threading import Thread
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
        try:
            print_line(f"{model} at {server.url}  (Ctrl-C ends)")
            if open_browser:
                # a browser in the terminal returns when it is closed
                Thread(target=webbrowser.open, args=(server.url,), daemon=True).start()
            server.serve_forever()
        except KeyboardInterrupt:
            print_line("ended")
