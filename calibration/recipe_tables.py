"""Recipes as files hold them: TOML tables, with what they extend."""

from __future__ import annotations

import importlib.resources
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fp4dit_onnx.calibration.stages import STAGES
from fp4dit_onnx.errors import UsageError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

__all__ = ["DEFAULT_METHOD", "changed", "method_names", "read_recipe", "recipe_table"]

DEFAULT_METHOD = "fp4dit"
_HEAD = (
    "summary",
    "source",
    "cost",
    "grid",
    "extends",
    "data",
    "stage",
    "preset",
    "export",
    "measured",
)


def _folder() -> Path:
    return Path(str(importlib.resources.files("fp4dit_onnx") / "recipes"))


def method_names() -> tuple[str, ...]:
    """Names of the recipes that the package has, the default first."""
    names = (path.stem for path in _folder().glob("*.toml"))
    return tuple(sorted(names, key=lambda name: (name != DEFAULT_METHOD, name)))


def recipe_table(name: str) -> dict[str, Any]:
    """The tables of a recipe of the package, what it extends included.

    Raises:
        UsageError: there is none; the message lists the known ones.
    """
    names = method_names()
    if name not in names:
        raise UsageError(f"unknown method {name!r}: expected one of {', '.join(names)}")
    return _extended(_parsed(_folder() / f"{name}.toml"), name)


def read_recipe(path: Path) -> dict[str, Any]:
    """The tables of a recipe file, what it extends included.

    Raises:
        UsageError: the file cannot be read or has an unknown key.
    """
    return _extended(_parsed(path), path.stem)


def _parsed(path: Path) -> dict[str, Any]:
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise UsageError(f"recipe {path}: {error}: expected a TOML file") from error
    known = (*_HEAD, *STAGES)
    for key in table:
        if key not in known:
            raise UsageError(f"recipe {path}: unknown key {key!r}: expected {', '.join(known)}")
    return table


def _extended(table: dict[str, Any], name: str) -> dict[str, Any]:
    base = table.pop("extends", None)
    if base is None:
        return table
    if not isinstance(base, str):
        raise UsageError(f"recipe {name}: extends {base!r}: expected a recipe's name")
    return changed(recipe_table(base), table)


def changed(table: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Tables within tables replaced key by key, everything else whole."""
    both = {**table, **changes}
    for key in table.keys() & changes.keys():
        if isinstance(table[key], Mapping) and isinstance(changes[key], Mapping):
            both[key] = changed(table[key], changes[key])
    return both
