"""From options as data to a function's signature that typer reads; options that commands share."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_args, get_origin, get_type_hints

import typer
from rich.markup import escape

from fp4dit_onnx.exporting.options import INPUT, MACHINE, OUTPUT, PANELS, Option

__all__ = [
    "BundleFolder",
    "Device",
    "FloatDevice",
    "Host",
    "Json",
    "LoraFiles",
    "OpenBrowser",
    "Overwrite",
    "Port",
    "PromptFile",
    "add_parameters",
    "parameters_of",
    "request_of",
    "request_parameters",
    "typer_signature",
]

Request = TypeVar("Request")

BundleFolder = Annotated[
    Path, Option("Folder made by export.", INPUT, unit="BUNDLE", positional=True)
]
Json = Annotated[bool, Option("Print JSON.", OUTPUT)]
Overwrite = Annotated[bool, Option("Replace an existing output.", OUTPUT)]
PromptFile = Annotated[
    Path | None,
    Option("Text file with one prompt per line; by default built-in ones.", INPUT, unit="FILE"),
]
LoraFiles = Annotated[
    list[str] | None,
    Option(
        "LoRA that the bundle was exported with, FILE or FILE:SCALE. Repeatable.",
        INPUT,
        unit="LORA",
    ),
]
Device = Annotated[
    str,
    Option(
        "Where ONNX Runtime runs the bundle: cpu, cuda or another device that  doctor  lists, or one "
        "of several, such as cuda:1; auto is the first that can be used, else the CPU.",
        MACHINE,
        unit="DEVICE",
    ),
]
FloatDevice = Annotated[
    str,
    Option(
        "Where torch runs the float pipeline: cpu, cuda, mps or xpu, or one of several, such as "
        "cuda:1; auto is the first accelerator that torch finds, else the CPU.",
        MACHINE,
        unit="DEVICE",
    ),
]
Host = Annotated[
    str, Option("Address to listen on; 0.0.0.0 admits other machines.", MACHINE, unit="ADDRESS")
]
Port = Annotated[
    int, Option("Port to listen on; 0 for any free one.", MACHINE, unit="PORT", min=0, max=65535)
]
OpenBrowser = Annotated[
    bool,
    Option("Open the page in the web browser.", MACHINE, flags=("--browser/--no-browser",)),
]


def request_parameters(request: type) -> list[inspect.Parameter]:
    """A keyword for each field of a dataclass; its default is in the option's unit."""
    hints = get_type_hints(request, include_extras=True)
    found = []
    for field in fields(request):
        kind, option = get_args(hints[field.name])
        default = field.default
        if default is MISSING:
            kind, default = kind | None, None
        elif get_origin(kind) is tuple:
            kind, default = list[str] | None, None
        elif option.scale != 1:
            kind, default = float, default / option.scale
        found.append(_keyword(field.name, Annotated[kind, option], default))
    return found


def request_of(request: type[Request], given: Mapping[str, Any]) -> Request:
    """The dataclass with the values that `request_parameters` stand for."""
    values = dict(given)
    for name, hint in get_type_hints(request, include_extras=True).items():
        kind, option = get_args(hint)
        if get_origin(kind) is tuple:
            values[name] = tuple(values[name] or ())
        elif option.scale != 1:
            values[name] = values[name] * option.scale
    return request(**values)


def add_parameters(
    parameters: Iterable[inspect.Parameter],
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a function of ``**keywords`` a signature: `parameters` before its own."""

    def decorate(run: Callable[..., None]) -> Callable[..., None]:
        own = parameters_of(run)
        run.__signature__ = inspect.Signature([*parameters, *own])  # type: ignore[attr-defined]
        return run

    return decorate


def parameters_of(function: Callable[..., Any]) -> list[inspect.Parameter]:
    """The keywords of a function whose annotations have options."""
    hints = get_type_hints(function, include_extras=True)
    return [
        _keyword(one.name, hints.get(one.name, one.annotation), one.default)
        for one in inspect.signature(function).parameters.values()
        if one.kind is not one.VAR_KEYWORD
    ]


def typer_signature(parameters: Iterable[inspect.Parameter]) -> inspect.Signature:
    """The same parameters, panel by panel, with typer's own descriptions in place of ours."""
    translated = [one.replace(annotation=_translated(one)) for one in parameters]
    order = {panel: number for number, panel in enumerate(PANELS)}

    def place(parameter: inspect.Parameter) -> int:
        panel = get_args(parameter.annotation)[1].rich_help_panel
        return order.get(panel, -1)

    return inspect.Signature(sorted(translated, key=place))


def _keyword(name: str, hint: Any, default: Any) -> inspect.Parameter:
    return inspect.Parameter(
        name, inspect.Parameter.KEYWORD_ONLY, annotation=hint, default=default
    )


def _translated(parameter: inspect.Parameter) -> Any:
    kind, option = get_args(parameter.annotation)
    if not isinstance(option, Option):  # typer's own already
        return parameter.annotation
    described: dict[str, Any] = {
        "help": escape(option.text()),
        "metavar": option.unit,
        "min": option.min,
        "max": option.max,
        "hidden": option.hidden,
    }
    if option.choices:
        described["autocompletion"] = lambda incomplete: [
            one for one in option.known() if one.startswith(incomplete)
        ]
    if option.positional:
        return Annotated[kind, typer.Argument(**described)]
    described["rich_help_panel"] = option.panel
    flag = "--" + parameter.name.replace("_", "-")
    two_sided = bool in (kind, *get_args(kind)) and parameter.default is not False
    usual = (f"{flag}/--no-{flag[2:]}" if two_sided else flag,)
    return Annotated[kind, typer.Option(*(option.flags or usual), **described)]
