"""Turns what a page shows into HTML: one file, no network, everything from outside escaped."""

from __future__ import annotations

import base64
import hashlib
import importlib.metadata
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

__all__ = ["rendered"]

TEMPLATES = Path(__file__).parent / "templates"


def rendered(template: str, page: Mapping[str, Any]) -> str:
    """The HTML of a page.

    Args:
        template: a file of `TEMPLATES`.
        page: what it shows; texts are escaped, `Markup` is taken as it is.
    """
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    script = (TEMPLATES / "tables.js").read_text(encoding="utf-8")
    digest = hashlib.sha256(script.encode()).digest()
    text = environment.get_template(template).render(
        page=page,
        style=Markup((TEMPLATES / "style.css").read_text(encoding="utf-8")),
        script=Markup(script),
        script_hash=base64.b64encode(digest).decode(),
        version=importlib.metadata.version("fp4dit-onnx"),
    )
    return text.encode(errors="backslashreplace").decode()  # names of files that are not UTF-8
