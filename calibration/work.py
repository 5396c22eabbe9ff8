"""A calibration's folder: recorded activations, and the result of each finished unit.

A killed run resumes from here. A fingerprint of model, data and recipe keeps runs apart.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from fp4dit_onnx.calibration.samples import Samples, Stored
from fp4dit_onnx.errors import UsageError
from fp4dit_onnx.files import Origin, plain, read_json, write_text
from fp4dit_onnx.network.execution import HOST, Execution
from fp4dit_onnx.network.network import Network
from fp4dit_onnx.spec.state import (
    WORK_MANIFEST,
    QuantizedLayer,
    QuantizedState,
    load_state,
    save_state,
)

__all__ = ["ENCODINGS", "RECORDED", "Work", "model_digest"]

RECORDED = "recorded"
"""What one whole run of the sampler gave."""
ENCODINGS = "encodings.pt"
"""File of the prompts' encodings."""


def model_digest(network: Network) -> str:
    """SHA-256 over the names and bytes of a network's tensors."""
    digest = hashlib.sha256()
    for name in sorted(network.module.state_dict()):
        digest.update(name.encode())
        digest.update(network.tensor(name).contiguous().numpy().tobytes())
    return digest.hexdigest()


def _flat(value: Any, path: str = "") -> dict[str, Any]:
    """Leaves of nested dictionaries by dotted path."""
    if not isinstance(value, Mapping):
        return {path: value}
    found: dict[str, Any] = {}
    for key, item in value.items():
        found |= _flat(item, f"{path}.{key}" if path else str(key))
    return found


class Work:
    """The folder of one calibration.

    Args:
        folder: made if need be; what an earlier run of the same fingerprint left is used.
        fingerprint: JSON values that say what is calibrated, with what, and how.

    Raises:
        UsageError: the folder holds another run, or something else.
    """

    def __init__(self, folder: Path, fingerprint: Mapping[str, Any]) -> None:
        self.folder = folder.absolute()
        manifest = self.manifest
        wanted = plain(fingerprint)
        if not manifest.exists():
            if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
                raise UsageError(
                    f"work folder {folder} exists and holds no calibration: expected a new or empty "
                    "folder; choose another with --work"
                )
            folder.mkdir(parents=True, exist_ok=True)
            self._write(manifest, json.dumps(wanted, indent=1))
            return
        origin = Origin(UsageError, f"delete {folder}")
        found = read_json(manifest, "what is calibrated there", origin)
        self._compare(_flat(found), _flat(wanted))

    @property
    def manifest(self) -> Path:
        """The file that says what is calibrated here."""
        return self.folder / WORK_MANIFEST

    def _compare(self, found: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
        absent = object()
        different = [
            f"{key} ({found.get(key)} there, {wanted.get(key)} now)"
            for key in {**found, **wanted}
            if found.get(key, absent) != wanted.get(key, absent)
        ]
        if different:
            more = f" and {len(different) - 3} more" if len(different) > 3 else ""
            raise UsageError(
                f"work folder {self.folder} holds another calibration: it differs in "
                f"{'; '.join(different[:3])}{more}. Go on with the same settings, choose another "
                "folder with --work, or start again with --restart"
            )

    @staticmethod
    def _write(path: Path, text: str) -> None:
        partial = path.with_name(f".{path.name}.partial")
        write_text(partial, text)
        partial.replace(path)

    def finished(self, unit: str) -> tuple[dict[str, QuantizedLayer], float] | None:
        """Layers and error of a unit, None if it is not done; codes and scales stay on disk."""
        path = self._unit(unit)
        if not path.exists():
            return None
        state = load_state(path, stored=True)
        return dict(state.layers), float(state.provenance["error"])

    def layers(self, unit: str) -> dict[str, QuantizedLayer]:
        """Those of a unit that is done."""
        known = self.finished(unit)
        assert known is not None, unit
        return known[0]

    def finish(self, unit: str, layers: Mapping[str, QuantizedLayer], error: float) -> None:
        """Keep a unit's layers; a resumed run skips it."""
        self._unit(unit).parent.mkdir(exist_ok=True)
        save_state(QuantizedState(dict(layers), {"error": error}), self._unit(unit))

    def stored(self, name: str, layer: QuantizedLayer) -> QuantizedLayer:
        """The layer with its codes and scales in a file called `name`, until that is cleared."""
        save_state(QuantizedState({layer.name: layer}), self.folder / name)
        return load_state(self.folder / name, stored=True).layers[layer.name]

    def _unit(self, unit: str) -> Path:
        return self.folder / "units" / f"{unit}.safetensors"

    def save(self, name: str, value: Any) -> None:
        """Keep tensors in dictionaries, lists and tuples, or `Samples`."""
        if isinstance(value, Samples):
            value = {**vars(value), "folder": value.folder.name}
            del value["execution"]
        partial = self.folder / f".{name}.partial"
        torch.save(value, partial)
        partial.replace(self.folder / f"{name}.pt")

    def load(self, name: str) -> Any:
        """What `save` kept, None if there is nothing."""
        path = self.folder / f"{name}.pt"
        if not path.exists():
            return None
        with torch.serialization.safe_globals([Stored]):
            return torch.load(path, weights_only=True)

    def load_samples(self, name: str, execution: Execution = HOST) -> Samples | None:
        """Samples that `save` kept, taken to where `execution` says; None if there are none."""
        fields = self.load(name)
        if fields is None:
            return None
        folder = self.folder / fields["folder"]
        return Samples(**{**fields, "folder": folder, "execution": execution})

    def clear(self, name: str) -> Path:
        """An empty place called `name`, for a file or a folder."""
        path = self.folder / name
        if path.is_dir():
            shutil.rmtree(path)
        path.unlink(missing_ok=True)
        return path

    def keeps(self, name: str) -> bool:
        """Whether `save` kept something under a name."""
        return (self.folder / f"{name}.pt").exists()

    @property
    def begun(self) -> bool:
        """Whether there is anything that a later run would go on from."""
        return any(path.suffix == ".pt" for path in self.folder.iterdir())

    def remove(self) -> None:
        """Delete the folder."""
        shutil.rmtree(self.folder, ignore_errors=True)
