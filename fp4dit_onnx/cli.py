"""The command line: finds the command, runs it, turns errors into one line and an exit code.

Only the module of the command asked for is imported, so help is fast and no command loads what
another needs.
"""

from __future__ import annotations

import errno
import functools
import importlib
import importlib.metadata
import inspect
import os
import signal
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from types import FrameType
from typing import Annotated, Any, NoReturn

import typer
from rich.markup import escape
from typer.core import TyperGroup

from fp4dit_onnx.commands import output
from fp4dit_onnx.commands.parameters import parameters_of, typer_signature
from fp4dit_onnx.errors import Fp4DitError, UsageError
from fp4dit_onnx.exporting.options import OUTPUT, Option
from fp4dit_onnx.system.texts import prepare_streams

__all__ = ["COMMANDS", "application", "load_command", "main"]

COMMANDS = {
    "export": "Quantize a diffusers pipeline and write it as an ONNX bundle.",
    "generate": "Generate images with a bundle, on ONNX Runtime alone.",
    "serve": "Generate images in a web browser: one page, everything on this machine.",
    "inspect": "Show what a bundle, an ONNX file or a diffusers folder holds.",
    "view": "Open the quantized transformer in Netron.",
    "lora": "Make a LoRA an adapter of ONNX Runtime, for a bundle with slots.",
    "verify": "Check that a bundle computes what it should; exit code 1 if not.",
    "evaluate": "Compare a bundle's images with those of the float model.",
    "report": "Write report.html: quantization error per layer and image, size, time, memory.",
    "convert": "Write a bundle for runtimes without local functions, or with standard types only.",
    "bench": "Measure speed against other libraries, interleaved in one run.",
    "recipes": "List the recipes: what each does, needs and costs.",
    "doctor": "Check the installation; name cause and remedy of what is broken.",
}
"""Every command and the first line of its help."""

LONGEST_WORD = 400
"""Characters of a word in a message; longer ones, which no real path or name is, are cut."""
INTERRUPTED = 130
TERMINATED = 143


SETTINGS: dict[str, Any] = {
    "pretty_exceptions_enable": False,
    "context_settings": {"help_option_names": ["-h", "--help"]},
}
USAGE_ERROR: type[Exception] = typer.BadParameter.__mro__[1]
"""What the parser raises; typer has no public name for it."""


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the command line and exit.

    Args:
        arguments: in place of those of the process.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    signal.signal(signal.SIGTERM, _on_terminate)
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # else it writes and sends its own id
    prepare_streams()
    output.configure(output.Messages())
    try:
        code = application().main(given or ["--help"], "fp4dit-onnx", standalone_mode=False)
        sys.stdout.flush()  # an error of it is told here, not when the interpreter ends
    except USAGE_ERROR as error:
        sys.exit(_said(_usage_message(error), UsageError.exit_code))
    except (KeyboardInterrupt, typer.Abort):
        sys.exit(INTERRUPTED)
    except OSError as error:
        sys.exit(_failed(error))
    sys.exit(code or 0)


def _on_terminate(signum: int, frame: FrameType | None) -> NoReturn:
    """Leave by an exception, so that what is half-written is removed on the way."""
    sys.exit(TERMINATED)


class _Commands(TyperGroup):
    """Lists every command by its line of help; imports the one that is called."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        name, command, rest = super().resolve_command(ctx, args)
        return name, load_command(name) if name in COMMANDS else command, rest


def application() -> Any:
    """The command line, as typer's group of commands."""
    app = typer.Typer(cls=_Commands, **SETTINGS)
    parameters = [*parameters_of(_options), *parameters_of(_messages)]
    app.callback()(_described(_options, parameters))
    for name, line in COMMANDS.items():
        app.command(name, help=escape(line))(_not_loaded)
    return typer.main.get_command(app)


def load_command(name: str) -> Any:
    """The real command, whose module is imported."""
    run = importlib.import_module(f"fp4dit_onnx.commands.{name}").run
    app = typer.Typer(add_completion=False, **SETTINGS)
    parameters = [*parameters_of(run), *parameters_of(_messages)]
    app.command(name, help=escape(COMMANDS[name]))(_described(_with_messages(run), parameters))
    return typer.main.get_command(app)


def _not_loaded() -> None:
    """Stand in for a command that was not asked for."""
    raise AssertionError("a command ran that was not named on the command line")


def _described(
    run: Callable[..., None], parameters: Iterable[inspect.Parameter]
) -> Callable[..., None]:
    """`run` with a signature for typer, and with errors as one line and an exit code."""
    command = _guarded(run)
    command.__signature__ = typer_signature(parameters)  # type: ignore[attr-defined]
    return command


def _messages(
    quiet: Annotated[
        bool,
        Option("Print errors only, and with --json the JSON.", OUTPUT, flags=("--quiet", "-q")),
    ] = False,
    verbose: Annotated[
        bool,
        Option(
            "Print every stage with its details, and the traceback of an error.",
            OUTPUT,
            flags=("--verbose", "-v"),
        ),
    ] = False,
    log_file: Annotated[
        Path | None,
        Option(
            "Also append everything that --verbose prints to this file, with times.",
            OUTPUT,
            unit="FILE",
        ),
    ] = None,
) -> None:
    """Say how much the rest of the run says."""
    output.configure(output.Messages(quiet, verbose, log_file))


def _with_messages(run: Callable[..., None]) -> Callable[..., None]:
    """`run`, after the options about messages, which stand before or behind the command."""

    def command(*, quiet: bool, verbose: bool, log_file: Path | None, **arguments: Any) -> None:
        _check_names([log_file, *arguments.values()])
        before = output.messages()
        _messages(quiet or before.quiet, verbose or before.verbose, log_file or before.log_file)
        run(**arguments)

    return command


def _check_names(values: Iterable[Any]) -> None:
    """Refuse paths that no file can have, of which every look at the disk would be an OSError."""
    for path in values:
        if isinstance(path, Path):
            try:
                os.lstat(path)
            except OSError as error:
                if error.errno == errno.ENAMETOOLONG:
                    raise UsageError(f"path {path}: {error.strerror}; give another") from error


def _show_version(wanted: bool) -> None:
    if wanted:
        print(f"fp4dit-onnx {importlib.metadata.version('fp4dit-onnx')}")
        raise typer.Exit


def _options(
    *,
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_show_version, is_eager=True, help="Print the version and exit."
        ),
    ] = False,
    **messages: Any,
) -> None:
    """Diffusion transformers in 4-bit floating point, from PyTorch to ONNX Runtime."""
    _messages(**messages)


def _guarded(run: Callable[..., None]) -> Callable[..., None]:
    """`run`, with errors that are the user's to fix as one line on stderr."""

    @functools.wraps(run)
    def command(**arguments: Any) -> None:
        try:
            run(**arguments)
        except Fp4DitError as error:
            raise typer.Exit(_said(str(error), error.exit_code)) from None
        except KeyboardInterrupt:
            raise typer.Exit(
                _said("interrupted; nothing half-written is left", INTERRUPTED)
            ) from None

    return command


def _reader_left(error: OSError) -> bool:
    """Whether our output is a pipe that nobody reads any more, which Windows calls invalid."""
    invalid = sys.platform == "win32" and error.errno == errno.EINVAL and error.filename is None
    return isinstance(error, BrokenPipeError) or invalid


def _failed(error: OSError) -> int:
    """Print what the system refused as one line; gives the exit code."""
    try:
        sys.stdout.flush()
    except OSError:  # it is stdout that failed, and the interpreter will flush it again
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    if _reader_left(error):  # nobody to tell
        return 1
    return _said(str(error), 1)


def _usage_message(error: Any) -> str:
    """What the parser found, and where the options stand."""
    where = error.ctx.command_path if error.ctx else "fp4dit-onnx"
    return f"{error.format_message().rstrip('.')}; see  {where} --help"


def _said(message: str, code: int) -> int:
    """Print the error being handled as one line; gives the exit code."""
    words = (w if len(w) <= LONGEST_WORD else f"{w[:100]}...{w[-20:]}" for w in message.split())
    output.print_error(" ".join(words))
    return code
