"""Builds the networks of a checkpoint without their weights, ready to be traced."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import diffusers
import torch
import transformers
from huggingface_hub.errors import StrictDataclassError

from fp4dit_onnx.checkpoint.tensor_files import TensorInfo
from fp4dit_onnx.checkpoint.tensor_reading import check_tensors, same_data
from fp4dit_onnx.errors import CheckpointError
from fp4dit_onnx.families import DYNAMIC, Interface
from fp4dit_onnx.network.fake import fake_network
from fp4dit_onnx.network.z_image import BatchedZImage
from fp4dit_onnx.system.silence import quiet

__all__ = [
    "EXAMPLE_SIZES",
    "FakeNetwork",
    "VaeDecoder",
    "VaeEncoder",
    "diffusers_maker",
    "example_inputs",
    "fake_text_encoder",
    "fake_transformer",
    "fake_vae_decoder",
    "fake_vae_encoder",
    "faked",
    "refusals",
    "stored_names",
    "stored_tensors",
    "text_encoder_maker",
    "weights_of",
]


EXAMPLE_SIZES = dict(zip(DYNAMIC, (3, 7, 20, 26, 11), strict=True))
"""Of dynamic axes: unlike each other, and unlike 0 and 1, which torch specializes."""
REFUSALS = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    LookupError,
    MemoryError,
    NameError,
    RuntimeError,
    StrictDataclassError,
    TypeError,
    ValueError,
)
"""What classes of diffusers and transformers raise for configurations that they cannot be made of."""


BATCHED = {"ZImageTransformer2DModel": BatchedZImage}
"""Class of diffusers that takes lists -> one that takes batches and has the same tensors."""


@dataclass(frozen=True)
class FakeNetwork:
    """A network without weights.

    Attributes:
        module: in evaluation mode.
        mode: of its parameters.
        config: all its settings, defaults included.
    """

    module: torch.nn.Module
    mode: Any
    config: Mapping[str, Any]

    @property
    def linears(self) -> tuple[str, ...]:
        """Names of the linear layers, in the order of the modules."""
        modules = self.module.named_modules()
        return tuple(name for name, m in modules if isinstance(m, torch.nn.Linear))

    def shape(self, linear: str) -> tuple[int, int]:
        """(N, K) of a linear's weight."""
        weight: Any = self.module.get_submodule(linear).weight
        return int(weight.shape[0]), int(weight.shape[1])

    def stored_under(
        self, stored: Mapping[str, TensorInfo], other: Callable[[str], str] = str
    ) -> dict[str, TensorInfo]:
        """Every tensor of the network by its name there, once its shape and type are known to fit.

        Args:
            stored: a checkpoint's tensors; of tied ones it may have any.
            other: from a name to another that the checkpoint may have instead.

        Raises:
            CheckpointError: a tensor is absent, of another shape or type, or stored twice with
                different values.
        """
        return stored_tensors(self.module, stored, other)


def stored_tensors(
    module: torch.nn.Module,
    stored: Mapping[str, TensorInfo],
    other: Callable[[str], str] = str,
) -> dict[str, TensorInfo]:
    """Every tensor of `module` by its name there; see `FakeNetwork.stored_under`."""
    found = {
        name: stored[places[0]]
        for names, places in stored_names(module, stored, other)
        for name in names
        if places
    }
    what = type(module).__name__
    wanted = {name: tuple(t.shape) for name, t in weights_of(module).items()}
    for name in wanted.keys() - found.keys():
        longer = next((n for n in stored if n.endswith(f".{name}")), None)
        if longer:
            raise CheckpointError(
                f"{stored[longer].file} has {longer!r} in place of {name!r}: expected the names of "
                f"{what}, and what a name begins with is not known; save the network by itself"
            )
    check_tensors(what, found, wanted)
    return found


def weights_of(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    """What a module stores, less counters: single integers, which training alone reads."""
    found = module.state_dict(keep_vars=True)
    return {n: tensor for n, tensor in found.items() if tensor.is_floating_point() or tensor.ndim}


def stored_names(
    module: torch.nn.Module, stored: Mapping[str, TensorInfo], other: Callable[[str], str] = str
) -> list[tuple[list[str], list[str]]]:
    """For each tensor of `module`: its names there, several where it is tied, and those in `stored`.

    Raises:
        CheckpointError: `stored` has two values for one tensor.
    """
    tied: dict[int, list[str]] = {}
    for name, tensor in weights_of(module).items():
        tied.setdefault(id(tensor), []).append(name)
    pairs = []
    for names in tied.values():
        possible = dict.fromkeys(n for name in names for n in (name, other(name)))
        places = [n for n in possible if n in stored]
        for place in places[1:]:
            if not same_data(stored[places[0]], stored[place]):
                raise CheckpointError(
                    f"{stored[place].file}: tensors {places[0]!r} and {place!r} are one tensor of "
                    f"{type(module).__name__} and differ: expected equal values; save the model again"
                )
        pairs.append((names, places))
    return pairs


def text_encoder_maker(
    class_name: str, config: Mapping[str, Any]
) -> Callable[[], torch.nn.Module]:
    """What builds a text encoder of transformers, of `config`."""
    cls = getattr(transformers, class_name)

    def make() -> torch.nn.Module:
        made: torch.nn.Module = cls(cls.config_class.from_dict(dict(config)))
        return made

    return make


def diffusers_maker(class_name: str, config: Mapping[str, Any]) -> Callable[[], torch.nn.Module]:
    """What builds a network of diffusers, of `config`.

    Raises:
        CheckpointError: diffusers has no such class.
    """
    cls = BATCHED.get(class_name) or getattr(diffusers, class_name, None)
    if cls is None:
        raise CheckpointError(
            f"diffusers {diffusers.__version__} has no class {class_name}: install a newer one"
        )

    def make() -> torch.nn.Module:
        made: torch.nn.Module = cls.from_config(dict(config))
        return made

    return make


class VaeDecoder(torch.nn.Module):
    """The half of an autoencoder that makes images, as its ``decode`` without tiles.

    FLUX.2's normalizes squares of its latents by statistics of its own, which pipelines undo first.
    """

    def __init__(self, vae: Any) -> None:
        super().__init__()
        self.decoder = vae.decoder
        self.post_quant_conv = getattr(vae, "post_quant_conv", None)
        self.bn = getattr(vae, "bn", None)
        self.config = vae.config

    def forward(self, latent_sample: torch.Tensor) -> tuple[torch.Tensor]:
        """Images [B, 3, f H, f W], of latents [B, C, H, W]."""
        x, conv = latent_sample, self.post_quant_conv
        if self.bn is not None:
            deviation, mean = _of_squares(self.bn)
            x = _in_squares(x, self.config, lambda squares: squares * deviation + mean)
        return (self.decoder(x if conv is None else conv(x)),)


class VaeEncoder(torch.nn.Module):
    """The half of an autoencoder that takes images, as its ``encode`` without tiles.

    Of FLUX.2's the mean is taken, as its pipelines do, and its squares are normalized.
    """

    def __init__(self, vae: Any) -> None:
        super().__init__()
        self.encoder = vae.encoder
        self.quant_conv = getattr(vae, "quant_conv", None)
        self.bn = getattr(vae, "bn", None)
        self.config = vae.config
        self._varies = self.bn is None and hasattr(
            vae, "quant_conv"
        )  # AutoencoderDC has no variances

    def forward(self, image: torch.Tensor) -> tuple[torch.Tensor]:
        """Means and logarithms of variances [B, 2 C, H, W], or latents [B, C, H, W].

        They are as `VaeDecoder` takes them; images are [B, 3, f H, f W], -1 .. 1.
        """
        x, conv = self.encoder(image), self.quant_conv
        x = x if conv is None else conv(x)
        if self.bn is not None:
            deviation, mean = _of_squares(self.bn)
            latents = x.chunk(2, dim=1)[0]
            x = _in_squares(latents, self.config, lambda squares: (squares - mean) / deviation)
        return (x,)

    def latents(self, image: torch.Tensor) -> torch.Tensor:
        """Latents [B, C, H, W]: of a distribution, the mean."""
        found: torch.Tensor = self(image)[0]
        return found.chunk(2, dim=1)[0] if self._varies else found


def _of_squares(bn: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Standard deviation and mean of the squares of FLUX.2's latents, [1, channels, 1, 1] each."""
    variance, mean = (v.view(1, -1, 1, 1) for v in (bn.running_var, bn.running_mean))
    return torch.sqrt(variance + bn.eps), mean


def _in_squares(
    latents: torch.Tensor, config: Any, change: Callable[[torch.Tensor], torch.Tensor]
) -> torch.Tensor:
    """Latents of which the squares that FLUX.2's transformer takes as tokens are changed."""
    side = config.patch_size[0]
    squares = torch.nn.functional.pixel_unshuffle(latents, side)
    return torch.nn.functional.pixel_shuffle(change(squares), side)


def fake_text_encoder(class_name: str, config: Mapping[str, Any]) -> FakeNetwork:
    """A text encoder of transformers, of `config`; raises as `faked`."""
    return faked(class_name, text_encoder_maker(class_name, config))


def fake_vae_decoder(class_name: str, config: Mapping[str, Any]) -> FakeNetwork:
    """The decoder half of an autoencoder of diffusers, of `config`; raises as `faked`."""
    make = diffusers_maker(class_name, config)
    return faked(class_name, lambda: VaeDecoder(make()))


def fake_vae_encoder(class_name: str, config: Mapping[str, Any]) -> FakeNetwork:
    """The encoder half likewise."""
    make = diffusers_maker(class_name, config)
    return faked(class_name, lambda: VaeEncoder(make()))


def fake_transformer(class_name: str, config: Mapping[str, Any]) -> FakeNetwork:
    """A diffusers transformer of `config`; raises as `diffusers_maker` and `faked`."""
    return faked(class_name, diffusers_maker(class_name, config))


def faked(class_name: str, make: Callable[[], torch.nn.Module]) -> FakeNetwork:
    """What `make` builds, without weights.

    Raises:
        CheckpointError: the class refuses its configuration.
    """
    with refusals(class_name):
        module, mode = fake_network(make)
    config: Any = module.config
    return FakeNetwork(
        module, mode, dict(config.to_dict() if hasattr(config, "to_dict") else config)
    )


@contextmanager
def refusals(class_name: str) -> Iterator[None]:
    """Turn what a class says of a wrong configuration into a CheckpointError."""
    try:
        with quiet():
            yield
    except REFUSALS as error:
        said = next(iter(str(error).splitlines()), type(error).__name__)
        raise CheckpointError(
            f"config.json makes no {class_name}: {said}; "
            "it is damaged or of another version: download it again"
        ) from error


def example_inputs(interface: Interface, config: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """Inputs of `EXAMPLE_SIZES` and of the sizes that `config` says, by name."""
    return {
        spec.name: torch.ones(
            [
                size * spec.unit(d)
                for size, d in zip(spec.shape(config, EXAMPLE_SIZES), spec.dims, strict=True)
            ],
            dtype=getattr(torch, spec.dtype),
        )
        for spec in interface.inputs
    }
