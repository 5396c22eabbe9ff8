"""The deployed folder: its layout, its manifest, and how it is written in one step.

    model_index.json  scheduler/  tokenizer/  quantization.json
    transformer/model.onnx (+ model.onnx.data)  text_encoder/model.onnx  vae_decoder/model.onnx
    report.html  report.json

The manifest, quantization.json, holds ``format_version``, ``recipe``, ``sampling``, ``layers``,
``skipped``, ``passes``, ``versions``, ``source`` and ``files``: bytes and sha256 of the others.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from fp4dit_onnx.bundle_writing import new_bundle
from fp4dit_onnx.errors import BundleError
from fp4dit_onnx.files import BUNDLE, json_text, plain, read_json
from fp4dit_onnx.links import followed
from fp4dit_onnx.locking import locked
from fp4dit_onnx.outputs import written_whole

__all__ = [
    "EVIDENCE",
    "FORMAT_VERSION",
    "MANIFEST",
    "REPORT",
    "Bundle",
    "new_bundle",
    "put_files",
    "write_manifest",
]

FORMAT_VERSION = 1
MANIFEST = "quantization.json"
REPORT, EVIDENCE = "report.html", "report.json"
"""The report and the measurements it shows. For people: a bundle opens without them."""

REQUIRED_FILES = ("model_index.json", "transformer/config.json", "transformer/model.onnx")
"""Of every bundle; what else there is, the manifest lists."""
MANIFEST_KEYS: dict[str, type] = {
    "recipe": dict,
    "sampling": dict,
    "layers": list,
    "skipped": list,
    "passes": list,
    "totals": dict,
    "case_sqnr_db": list,
    "source": dict,
    "versions": dict,
    "files": dict,
}
"""Entries that every manifest has, and their JSON type."""

_EXPORT_AGAIN = "export the bundle again, or copy it whole"


@dataclass(frozen=True)
class Bundle:
    """An opened bundle: every file of the manifest is there with its size.

    Attributes:
        folder: the bundle's folder.
        manifest: the content of quantization.json.
    """

    folder: Path
    manifest: Mapping[str, Any]

    @classmethod
    def open(cls, folder: Path | str) -> Bundle:
        """Open a bundle and check layout, version, presence and sizes (not the hashes).

        Raises:
            BundleError: no bundle, of another version, or incomplete, or with a link that leads out
                of it; see `links`.
        """
        root = Path(folder)
        _check_is_bundle(root)
        bundle = cls(root, _read_manifest(root / MANIFEST))
        for name in (MANIFEST, *bundle.manifest["files"], *REQUIRED_FILES):
            followed(root / name, root)
        for name in REQUIRED_FILES:
            if not (root / name).is_file():
                raise BundleError(f"{root / name} not found: every bundle has it; {_EXPORT_AGAIN}")
        bundle.check_files(deep=False)
        return bundle

    @property
    def transformer(self) -> Path:
        """The quantized transformer."""
        return self.folder / "transformer" / "model.onnx"

    @property
    def whole(self) -> bool:
        """Whether it has all that drawing needs, not the transformer alone."""
        return "vae_decoder/model.onnx" in self.manifest["files"]

    @property
    def text_encoder(self) -> Path:
        """The text encoder, float32."""
        return self.folder / "text_encoder" / "model.onnx"

    @property
    def vae_decoder(self) -> Path:
        """The decoder from latents to pixels, float32."""
        return self.folder / "vae_decoder" / "model.onnx"

    @property
    def tokenizer(self) -> Path:
        """The tokenizer in one file."""
        return self.folder / "tokenizer" / "tokenizer.json"

    @property
    def scheduler(self) -> Path:
        """The scheduler's settings."""
        return self.folder / "scheduler" / "scheduler_config.json"

    @property
    def model_index(self) -> Path:
        """The list of components."""
        return self.folder / "model_index.json"

    def check_files(self, *, deep: bool) -> None:
        """Compare the files with the manifest: sizes, and with `deep` the sha256 and the report too.

        Raises:
            BundleError: a file is absent or differs; names the first one.
        """
        for name, entry in self.manifest["files"].items():
            path = self.folder / name
            if name in (REPORT, EVIDENCE) and not deep:
                continue
            if not path.is_file():
                raise BundleError(f"{path} not found: {MANIFEST} lists it; {_EXPORT_AGAIN}")
            size = path.stat().st_size
            if size != entry["bytes"]:
                raise BundleError(
                    f"{path} has {size} bytes, {MANIFEST} says {entry['bytes']}; {_EXPORT_AGAIN}"
                )
            if deep and (found := _sha256(path)) != entry["sha256"]:
                raise BundleError(
                    f"{path} has sha256 {found[:12]}..., {MANIFEST} says "
                    f"{entry['sha256'][:12]}...; {_EXPORT_AGAIN}"
                )


def write_manifest(folder: Path, manifest: Mapping[str, Any]) -> dict[str, Any]:
    """Write quantization.json into `folder`, adding "format_version" and "files".

    Numbers that JSON lacks (infinity, NaN) are written as null.

    Args:
        folder: holds every other file of the bundle already.
        manifest: the remaining entries.

    Returns:
        The manifest as written.
    """
    paths = sorted(p for p in folder.rglob("*") if p.is_file() and p != folder / MANIFEST)
    files = {p.relative_to(folder).as_posix(): _entry(p) for p in paths}
    content = {"format_version": FORMAT_VERSION, **manifest, "files": files}
    finite: dict[str, Any] = plain(content)
    (folder / MANIFEST).write_bytes(json_text(finite))
    return finite


def put_files(
    folder: Path, contents: Mapping[str, bytes], note: Callable[[str], None] = lambda text: None
) -> dict[str, Any]:
    """Write files into a finished bundle, and their bytes and sha256 into its manifest.

    The manifest forgets the files before they change and lists them after: a kill at any moment
    leaves a bundle that is valid.

    Args:
        folder: of the bundle.
        contents: name -> bytes.
        note: told of a lock that is taken over.

    Returns:
        The manifest as written.

    Raises:
        BundleError: no readable manifest.
        UsageError: another process writes to the bundle, or a file cannot be written.
    """
    with locked(folder, note):
        manifest = _read_manifest(folder / MANIFEST)
        files = {name: entry for name, entry in manifest["files"].items() if name not in contents}
        if files != manifest["files"]:
            _write_whole(folder / MANIFEST, json_text({**manifest, "files": files}))
        for name, content in contents.items():
            _write_whole(folder / name, content)
        files |= {name: _entry(folder / name) for name in contents}
        listed = {**manifest, "files": dict(sorted(files.items()))}
        _write_whole(folder / MANIFEST, json_text(listed))
        return listed


def _entry(path: Path) -> dict[str, Any]:
    return {"sha256": _sha256(path), "bytes": path.stat().st_size}


def _write_whole(path: Path, content: bytes) -> None:
    with written_whole(path) as partial:
        partial.write_bytes(content)


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _check_is_bundle(root: Path) -> None:
    expected = "expected a folder made by 'fp4dit-onnx export'"
    if not root.exists():
        raise BundleError(f"{root} not found: {expected}; check the path")
    if not root.is_dir():
        raise BundleError(f"{root} is a file: {expected}")
    if (root / MANIFEST).is_file():
        return
    if (root / "model_index.json").is_file():
        raise BundleError(
            f"{root} is an unquantized pipeline (no {MANIFEST}): {expected}; "
            f"run  fp4dit-onnx export {root} -o DIR"
        )
    raise BundleError(f"{root} has no {MANIFEST}: {expected}")


def _read_manifest(path: Path) -> dict[str, Any]:
    manifest = read_json(path, "the bundle's manifest", BUNDLE)
    version = manifest.get("format_version")
    if version != FORMAT_VERSION:
        raise BundleError(
            f"{path} has format_version {version!r}: this program reads {FORMAT_VERSION}; "
            "export the bundle again, or install the version that made it"
        )
    for key, kind in MANIFEST_KEYS.items():
        if not isinstance(manifest.get(key), kind):
            found = type(manifest[key]).__name__ if key in manifest else "nothing"
            raise BundleError(
                f"{path}: entry {key!r} is {found}, expected a {kind.__name__}; {_EXPORT_AGAIN}"
            )
    for name, entry in manifest["files"].items():
        _check_entry(path, name, entry)
    return dict(manifest)


def _check_entry(path: Path, name: str, entry: object) -> None:
    pure = PurePosixPath(name)
    if pure.is_absolute() or ".." in pure.parts or "\\" in name:
        raise BundleError(f"{path}: file {name!r} lies outside the bundle; {_EXPORT_AGAIN}")
    well_formed = (
        isinstance(entry, dict)
        and isinstance(entry.get("bytes"), int)
        and isinstance(entry.get("sha256"), str)
    )
    if not well_formed:
        raise BundleError(f"{path}: file {name!r} has no 'bytes' and 'sha256'; {_EXPORT_AGAIN}")
