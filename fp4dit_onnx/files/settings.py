"""config.json of a network: read, with its sizes checked before anything is computed from them."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

from fp4dit_onnx.errors import UsageError
from fp4dit_onnx.files.decoding import Range, WrongType, of_type
from fp4dit_onnx.files.reading import Origin, checked, read_json

__all__ = ["LARGEST", "read_settings", "sampling_settings", "transformer_settings", "vae_settings"]

LARGEST = 2**20
"""Of any size in a configuration; the largest that is published is a vocabulary of 262,208."""
Size = Annotated[int, Range(1, LARGEST)]
_SIZE = re.compile(
    r"(?!use_|is_)(.*_)?(layers|layers_per_block|heads|dim|channels|size|groups|len|buckets|model|ff|kv)"
)
"""What diffusers and transformers call sizes."""
_AT_LEAST_0 = Annotated[int, Range(0, LARGEST)]
_SIZES = _AT_LEAST_0 | tuple[_AT_LEAST_0, ...] | None


@dataclass(frozen=True)
class _Transformer:
    """What is computed from a transformer's settings; null where its class has a default."""

    in_channels: Size
    sample_size: Size | None = None
    patch_size: Size | None = None
    pos_embed_max_size: Size | None = None
    num_embeds_ada_norm: Size | None = None


@dataclass(frozen=True)
class _Vae:
    """What is computed from a VAE's settings."""

    block_out_channels: tuple[Size, ...] | None = None
    encoder_block_out_channels: tuple[Size, ...] | None = None
    scaling_factor: Annotated[float, Range(1e-6, 1e6)] | None = None
    shift_factor: Annotated[float, Range(-1e6, 1e6)] | None = None

    def __post_init__(self) -> None:
        """Its depth has to be known, and be one that images have."""
        levels = self.block_out_channels or self.encoder_block_out_channels
        if not levels or len(levels) > 16:
            raise UsageError("block_out_channels is not a list of 1 to 16 numbers of channels")


@dataclass(frozen=True)
class _Sampling:
    """What a pipeline says of how its images are best generated; what it leaves out is the family's."""

    steps: Size | None = None
    guidance: Annotated[float, Range(0, LARGEST)] | None = None
    max_sequence_length: _AT_LEAST_0 | None = None


def read_settings(
    path: Path, what: str, origin: Origin, schema: type[object] | None = None
) -> dict[str, Any]:
    """The settings in a config.json.

    Args:
        path: of the file.
        what: its role, for messages.
        origin: whose file it is.
        schema: dataclass of the entries that have to be there and fit.

    Raises:
        UsageError: of `origin`'s class: the file is unreadable, or an entry is absent, of another
            type or out of range; names the file, the entry, what was found and expected.
    """
    config = read_json(path, what, origin)
    try:
        for key in filter(_SIZE.fullmatch, config):
            of_type(_SIZES, config[key], key)
    except WrongType as error:
        raise origin.error(f"{path}: {error}; {origin.cure}") from None
    if schema is not None:
        checked(schema, config, str(path), origin)
    return config


def transformer_settings(path: Path, origin: Origin) -> dict[str, Any]:
    """The settings in a transformer's config.json; raises as `read_settings` does."""
    return read_settings(path, "the transformer's settings", origin, _Transformer)


def vae_settings(path: Path, origin: Origin) -> dict[str, Any]:
    """The settings in a VAE's config.json; raises as `read_settings` does."""
    return read_settings(path, "the VAE's settings", origin, _Vae)


def sampling_settings(path: Path, origin: Origin) -> dict[str, Any]:
    """The values in a pipeline's sampling.json, see `_Sampling`; raises as `read_settings` does."""
    what = "how the pipeline samples"
    found = checked(_Sampling, read_json(path, what, origin), str(path), origin)
    return {key: value for key, value in asdict(found).items() if value is not None}
