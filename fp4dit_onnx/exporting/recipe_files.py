"""Recipe files of users: a method, and in ``[export]`` the formats that a request asks for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, get_args, get_type_hints

import tomli_w

from fp4dit_onnx.calibration.methods import Method
from fp4dit_onnx.calibration.recipe_tables import read_recipe, recipe_table
from fp4dit_onnx.errors import UsageError
from fp4dit_onnx.exporting.request import ExportRequest
from fp4dit_onnx.files import WrongType, of_type, plain, write_text
from fp4dit_onnx.system.outputs import written_whole

__all__ = ["FIELDS", "recipe_text", "save_recipe", "with_recipe"]

FIELDS = (
    *("bits", "weight_format", "activation_format", "attention_format", "group_size", "scale"),
    *("activation_group_size", "outer_layers", "target_bits", "min_sqnr"),
    *("rules", "form", "steps", "guidance", "text_encoder_bits", "target"),
)
"""Of a request: what a recipe may say of formats; where files lie and what is run is no part of it."""


def with_recipe(request: ExportRequest) -> ExportRequest:
    """The request with what its recipe says, where it asks for nothing else itself.

    A table in ``[export]`` that is named after bits, such as ``[export.w4a8]`` or with wildcards
    ``[export."w4*"]``, holds for those bits; of several the last that matches wins.

    Raises:
        UsageError: the file cannot be read, or has an unknown key or a value of another type.
    """
    where = f"recipe {request.recipe or request.method}, export"
    table = recipe_table(request.method) if request.recipe is None else read_recipe(request.recipe)
    given = table.get("export", {})
    if not isinstance(given, dict):
        raise UsageError(f"{where}: expected a table")
    tables = {key: value for key, value in given.items() if isinstance(value, dict)}
    plain_keys = {key: value for key, value in given.items() if key not in tables}
    request = _with(request, plain_keys, where)
    merged: dict[str, Any] = {}
    for pattern, own in tables.items():
        if not pattern.startswith("w"):
            raise UsageError(
                f"{where}: unknown key {pattern!r}: expected one of {', '.join(FIELDS)}, or bits"
            )
        if fnmatchcase(request.resolved_bits.lower(), pattern):
            merged |= own
    return _with(request, merged, where)


def _with(request: ExportRequest, given: Mapping[str, Any], where: str) -> ExportRequest:
    unknown = next((key for key in given if key not in FIELDS), None)
    if unknown is not None:
        raise UsageError(f"{where}: unknown key {unknown!r}: expected one of {', '.join(FIELDS)}")
    hints = get_type_hints(ExportRequest, include_extras=True)
    try:
        found = {key: of_type(get_args(hints[key])[0], given[key], key) for key in given}
    except WrongType as error:
        raise UsageError(f"{where}: {error}") from error
    return replace(
        request, **{k: v for k, v in found.items() if getattr(request, k) in (None, ())}
    )


def recipe_text(request: ExportRequest, method: Method) -> str:
    """What ``--save-recipe`` writes: the method as it was resolved, and the request's formats."""
    settled = replace(
        request,
        bits=request.resolved_bits,
        form=request.resolved_form,
        target=request.resolved_target,
    )
    asked: dict[str, Any] = {key: plain(getattr(settled, key)) for key in FIELDS}
    asked = {key: value for key, value in asked.items() if value is not None and value != []}
    return tomli_w.dumps({**method.to_json(), "export": asked})


def save_recipe(request: ExportRequest, method: Method) -> Path | None:
    """Write the recipe of a request where it asks for that; the path, or None.

    Raises:
        UsageError: the file cannot be written.
    """
    path = request.save_recipe
    if path is None:
        return None
    with written_whole(path) as partial:
        write_text(partial, recipe_text(request, method))
    return path
