"""The deployed folder: its layout, its manifest, and how it is written in one step.

    model_index.json  scheduler/  tokenizer/  quantization.json
    transformer/model.onnx (+ model.onnx.data)  text_encoder/model.onnx  vae_decoder/model.onnx
    report.html  report.json

The manifest, quantization.json, is `manifest.Manifest`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from fp4dit_onnx.bundle.card import CARD, card_text
from fp4dit_onnx.bundle.manifest import File, Manifest, manifest_text, read_manifest
from fp4dit_onnx.bundle.names import (
    CONFIG,
    EVIDENCE,
    MANIFEST,
    MODEL_INDEX,
    REPORT,
    SCHEDULER_CONFIG,
    TOKENIZER,
    TRANSFORMER,
    VAE_DECODER,
    model_of,
)
from fp4dit_onnx.bundle.writing import new_bundle
from fp4dit_onnx.errors import BundleError
from fp4dit_onnx.files import BUNDLE, sha256_of, write_text
from fp4dit_onnx.system.links import followed
from fp4dit_onnx.system.locking import locked
from fp4dit_onnx.system.outputs import check_file, written_whole

__all__ = [
    "EVIDENCE",
    "MANIFEST",
    "REPORT",
    "Bundle",
    "new_bundle",
    "put_files",
    "write_manifest",
]

REQUIRED_FILES = (MODEL_INDEX, f"{TRANSFORMER}/{CONFIG}", model_of(TRANSFORMER))
"""Of every bundle; what else there is, the manifest lists."""
_EXPORT_AGAIN = BUNDLE.cure


@dataclass(frozen=True)
class Bundle:
    """An opened bundle: every file of the manifest is there with its size.

    Attributes:
        folder: the bundle's folder.
        manifest: quantization.json.
    """

    folder: Path
    manifest: Manifest

    @classmethod
    def open(cls, folder: Path | str) -> Bundle:
        """Open a bundle and check layout, version, presence and sizes (not the hashes).

        Raises:
            BundleError: no bundle, of another version, or incomplete, or with a link that leads out
                of it; see `links`.
        """
        root = Path(folder)
        _check_is_bundle(root)
        bundle = cls(root, read_manifest(root / MANIFEST))
        for name in (MANIFEST, *bundle.manifest.files, *REQUIRED_FILES):
            followed(root / name, root)
        for name in REQUIRED_FILES:
            if not (root / name).is_file():
                raise BundleError(f"{root / name} not found: every bundle has it; {_EXPORT_AGAIN}")
        bundle.check_files(deep=False)
        return bundle

    @property
    def transformer(self) -> Path:
        """The quantized transformer."""
        return self.folder / model_of(TRANSFORMER)

    @property
    def whole(self) -> bool:
        """Whether it has all that generating images needs, not the transformer alone."""
        return model_of(VAE_DECODER) in self.manifest.files

    @property
    def text_encoder(self) -> Path:
        """The text encoder, float32."""
        return self.folder / model_of("text_encoder")

    @property
    def vae_decoder(self) -> Path:
        """The decoder from latents to pixels, float32."""
        return self.folder / model_of(VAE_DECODER)

    @property
    def tokenizer(self) -> Path:
        """The tokenizer in one file."""
        return self.folder / "tokenizer" / TOKENIZER

    @property
    def scheduler(self) -> Path:
        """The scheduler's settings."""
        return self.folder / SCHEDULER_CONFIG

    @property
    def model_index(self) -> Path:
        """The list of components."""
        return self.folder / MODEL_INDEX

    def card(self, *, overwrite: bool = False) -> Path:
        """Write the model card, README.md with metadata for a model hub; returns its path.

        Raises:
            UsageError: there is one already and `overwrite` is False, or it cannot be written.
        """
        path = self.folder / CARD
        check_file(path, overwrite=overwrite)
        with written_whole(path, overwrite=overwrite) as partial:
            write_text(partial, card_text(self.manifest))
        return path

    def check_files(self, *, deep: bool) -> None:
        """Compare the files with the manifest: sizes, and with `deep` the sha256 and the report too.

        Raises:
            BundleError: a file is absent or differs; names the first one.
        """
        for name, entry in self.manifest.files.items():
            path = self.folder / name
            if name in (REPORT, EVIDENCE) and not deep:
                continue
            if not path.is_file():
                raise BundleError(f"{path} not found: {MANIFEST} lists it; {_EXPORT_AGAIN}")
            size = path.stat().st_size
            if size != entry.bytes:
                raise BundleError(
                    f"{path} has {size} bytes, {MANIFEST} says {entry.bytes}; {_EXPORT_AGAIN}"
                )
            if deep and (found := sha256_of(path)) != entry.sha256:
                raise BundleError(
                    f"{path} has sha256 {found[:12]}..., {MANIFEST} says "
                    f"{entry.sha256[:12]}...; {_EXPORT_AGAIN}"
                )


def write_manifest(folder: Path, manifest: Manifest) -> Manifest:
    """Write quantization.json into `folder`, with the files that are there.

    Args:
        folder: holds every other file of the bundle already.
        manifest: all but the files.

    Returns:
        The manifest as written: a number that JSON lacks (infinity, NaN) is None.
    """
    paths = sorted(p for p in folder.rglob("*") if p.is_file() and p != folder / MANIFEST)
    files = {p.relative_to(folder).as_posix(): _entry(p) for p in paths}
    (folder / MANIFEST).write_bytes(manifest_text(replace(manifest, files=files)))
    return read_manifest(folder / MANIFEST)


def put_files(
    folder: Path, contents: Mapping[str, bytes], note: Callable[[str], None] = lambda text: None
) -> Manifest:
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
        manifest = read_manifest(folder / MANIFEST)
        files = {name: entry for name, entry in manifest.files.items() if name not in contents}
        if files != manifest.files:
            _write_whole(folder / MANIFEST, manifest_text(replace(manifest, files=files)))
        for name, content in contents.items():
            _write_whole(folder / name, content)
        files |= {name: _entry(folder / name) for name in contents}
        listed = replace(manifest, files=dict(sorted(files.items())))
        _write_whole(folder / MANIFEST, manifest_text(listed))
        return listed


def _entry(path: Path) -> File:
    return File(sha256_of(path), path.stat().st_size)


def _write_whole(path: Path, content: bytes) -> None:
    with written_whole(path) as partial:
        partial.write_bytes(content)


def _check_is_bundle(root: Path) -> None:
    expected = "expected a folder made by 'fp4dit-onnx export'"
    if not root.exists():
        raise BundleError(f"{root} not found: {expected}; check the path")
    if not root.is_dir():
        raise BundleError(f"{root} is a file: {expected}")
    if (root / MANIFEST).is_file():
        return
    if (root / MODEL_INDEX).is_file():
        raise BundleError(
            f"{root} is an unquantized pipeline (no {MANIFEST}): {expected}; "
            f"run  fp4dit-onnx export {root} -o DIR"
        )
    raise BundleError(f"{root} has no {MANIFEST}: {expected}")
