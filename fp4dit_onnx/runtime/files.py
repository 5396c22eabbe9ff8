"""Reading the JSON files of a bundle."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from fp4dit_onnx.errors import BundleError

__all__ = ["read_json"]


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in `path`.

    Raises:
        BundleError: there is no such file, or it holds no JSON object.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise BundleError(
            f"{path} does not exist: expected a file of the bundle; give the folder that "
            "fp4dit-onnx export wrote"
        ) from None
    except ValueError as cause:
        raise BundleError(f"{path} is no JSON: {cause}; export the bundle again") from cause
    if not isinstance(value, dict):
        raise BundleError(f"{path} holds no JSON object: export the bundle again")
    return value
