"""Builds the networks of a checkpoint without their weights, ready to be traced."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import diffusers
import torch
import transformers

from fp4dit_onnx.errors import CheckpointError
from fp4dit_onnx.silence import quiet
from fp4dit_onnx.tensor_files import TensorInfo
from fp4dit_onnx.tensor_reading import check_tensors
from fp4dit_onnx.tracing.fake import fake_network

__all__ = ["FakeNetwork", "fake_text_encoder", "fake_transformer", "fake_vae_decoder"]


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
            CheckpointError: a tensor is absent, or of another shape or type.
        """
        state = self.module.state_dict(keep_vars=True)
        same: dict[int, list[str]] = {}
        for name, tensor in state.items():
            same.setdefault(id(tensor), []).append(name)
        found = {}
        for name, tensor in state.items():
            names = [n for own in (name, *same[id(tensor)]) for n in (own, other(own))]
            found[name] = next((stored[n] for n in names if n in stored), None)
        given = {name: info for name, info in found.items() if info is not None}
        wanted = {name: tuple(t.shape) for name, t in state.items()}
        check_tensors(type(self.module).__name__, given, wanted)
        return given


def fake_text_encoder(class_name: str, config: Mapping[str, Any]) -> FakeNetwork:
    """A text encoder of transformers, of `config`.

    Raises:
        CheckpointError: the class refuses the configuration.
    """
    cls = getattr(transformers, class_name)

    def make() -> torch.nn.Module:
        made: torch.nn.Module = cls(cls.config_class.from_dict(dict(config)))
        return made

    return _made(class_name, make)


class _VaeDecoder(torch.nn.Module):
    """The half of an autoencoder that makes pictures, as ``AutoencoderKL.decode`` without tiles."""

    def __init__(self, vae: Any) -> None:
        super().__init__()
        self.decoder, self.post_quant_conv = vae.decoder, vae.post_quant_conv
        self.config = vae.config

    def forward(self, latent_sample: torch.Tensor) -> tuple[torch.Tensor]:
        conv = self.post_quant_conv
        return (self.decoder(latent_sample if conv is None else conv(latent_sample)),)


def fake_vae_decoder(class_name: str, config: Mapping[str, Any]) -> FakeNetwork:
    """The decoder half of an autoencoder of diffusers, of `config`.

    Raises:
        CheckpointError: the class refuses the configuration.
    """
    cls = getattr(diffusers, class_name)
    return _made(class_name, lambda: _VaeDecoder(cls.from_config(dict(config))))


def fake_transformer(class_name: str, config: Mapping[str, Any]) -> FakeNetwork:
    """A diffusers transformer of `config`.

    Raises:
        CheckpointError: diffusers has no such class, or the class refuses the configuration.
    """
    cls = getattr(diffusers, class_name, None)
    if cls is None:
        raise CheckpointError(
            f"diffusers {diffusers.__version__} has no class {class_name}: install a newer one"
        )
    return _made(class_name, lambda: cls.from_config(dict(config)))


def _made(class_name: str, make: Callable[[], torch.nn.Module]) -> FakeNetwork:
    try:
        with quiet():
            module, mode = fake_network(make)
    except (TypeError, ValueError, RuntimeError, AttributeError, ZeroDivisionError) as error:
        raise CheckpointError(
            f"config.json makes no {class_name}: {str(error).splitlines()[0]}; "
            "it is damaged or of another version: download it again"
        ) from error
    config: Any = module.config
    return FakeNetwork(
        module, mode, dict(config.to_dict() if hasattr(config, "to_dict") else config)
    )
