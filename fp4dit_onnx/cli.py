"""The command line: finds the command, runs it, turns errors into one line and an exit code.

Only the module of the command asked for is imported, so help is fast and no command loads what
another needs.
"""

from __future__ import annotations

import functools
import importlib
import importlib.metadata
import os
import signal
import sys
from collections.abc import Callable, Sequence
from types import FrameType
from typing import Annotated, Any, NoReturn

import typer

from fp4dit_onnx.errors import Fp4DitError
from fp4dit_onnx.texts import clean, prepare_streams

__all__ = ["COMMANDS", "main"]

COMMANDS = {
    "export": "Quantize a diffusers pipeline and write it as an ONNX bundle.",
    "generate": "Draw pictures with a bundle, on ONNX Runtime alone.",
    "serve": "Draw in a web browser: one page, everything on this machine.",
    "inspect": "Show what a bundle, an ONNX file or a diffusers folder holds.",
    "view": "Open the quantized transformer in Netron.",
    "verify": "Prove that a bundle computes what it should; exit 1 where it does not.",
    "evaluate": "Compare a bundle's pictures with those of the float model.",
    "report": "Write report.html: what a bundle lost, layer by layer and picture by picture.",
    "convert": "Write a bundle for runtimes without local functions, or with standard types only.",
    "bench": "Measure speed side by side with other libraries, in one interleaved run.",
    "doctor": "Check the installation; name the cause and the cure of what is broken.",
}
"""Every command and the first line of its help."""

INTERRUPTED = 130
TERMINATED = 143


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the command line and exit.

    Args:
        arguments: in place of those of the process.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    signal.signal(signal.SIGTERM, _on_terminate)
    prepare_streams()
    try:
        _application(given)(args=given, prog_name="fp4dit-onnx")
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
    sys.exit(0)


def _on_terminate(signum: int, frame: FrameType | None) -> NoReturn:
    """Leave by an exception, so that what is half-written is removed on the way."""
    sys.exit(TERMINATED)


def _application(arguments: Sequence[str]) -> typer.Typer:
    """The application, with the real function for the commands named in `arguments` only."""
    app = typer.Typer(
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.callback()(_options)
    for name, line in COMMANDS.items():
        if name in arguments:
            module = importlib.import_module(f"fp4dit_onnx.commands.{name}")
            app.command(name)(_guarded(module.run))
        else:
            app.command(name, help=line)(_not_loaded)
    return app


def _not_loaded() -> None:
    """Stand in for a command that was not asked for."""
    raise AssertionError("a command ran that was not named on the command line")


def _show_version(wanted: bool) -> None:
    if wanted:
        print(f"fp4dit-onnx {importlib.metadata.version('fp4dit-onnx')}")
        raise typer.Exit


def _options(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_show_version, is_eager=True, help="Print the version and exit."
        ),
    ] = False,
) -> None:
    """Diffusion transformers in 4-bit floating point, from PyTorch to ONNX Runtime."""


def _guarded(run: Callable[..., None]) -> Callable[..., None]:
    """`run`, with errors that are the user's to mend as one line on stderr."""

    @functools.wraps(run)
    def command(**arguments: Any) -> None:
        try:
            run(**arguments)
            sys.stdout.flush()  # an error of it is told here, not when the interpreter ends
        except Fp4DitError as error:
            _fail(str(error), error.exit_code)
        except KeyboardInterrupt:
            _fail("interrupted; nothing half-written is left", INTERRUPTED)
        except BrokenPipeError:  # the reader of our output has left: nobody to tell
            _drop_output()
            raise typer.Exit(1) from None
        except OSError as error:
            try:
                sys.stdout.flush()
            except OSError:  # it is stdout that failed, and the interpreter will flush it again
                _drop_output()
            _fail(str(error), 1)

    return command


def _drop_output() -> None:
    """Send what is left of stdout nowhere."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _fail(message: str, code: int) -> NoReturn:
    print("error: " + clean(" ".join(message.split())), file=sys.stderr)
    raise typer.Exit(code)
