"""The parts of a bundle that stay in float: text encoder and VAE decoder, from torch to ONNX.

Both are exported in float32 with every size dynamic that differs between calls. Their graphs use
opset 21 and IR version 10, which ONNX Runtime 1.18 loads.
"""

from __future__ import annotations

import importlib
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import onnx

from fp4dit_onnx.checkpoint import open_checkpoint
from fp4dit_onnx.errors import CheckpointError, MissingExtraError, UsageError
from fp4dit_onnx.ops import IR_VERSION, OPSET
from fp4dit_onnx.silence import quiet

if TYPE_CHECKING:
    from torch import Tensor, nn

__all__ = [
    "TEXT_ENCODERS",
    "VAES",
    "copy_settings",
    "export_text_encoder",
    "export_vae_decoder",
]

TEXT_ENCODERS = ("T5EncoderModel",)
"""Classes of transformers that take token ids and a mask and return last_hidden_state."""

VAES = ("AutoencoderKL",)
"""Classes of diffusers whose ``decode`` takes latents alone."""

_INLINE_LIMIT = 2_000_000_000
"""Weights of more bytes than this go to a file of their own: a protobuf ends at 2 GiB."""


@dataclass(frozen=True)
class _Interface:
    """Names and example of one graph.

    Attributes:
        inputs: name -> example; no dimension is 1, which the exporter would take for fixed.
        output: name of the only output.
        dynamic: input name -> axis -> name of the dimension.
    """

    inputs: Mapping[str, Tensor]
    output: str
    dynamic: Mapping[str, Mapping[int, str]]


def export_text_encoder(pipeline_folder: Path, out_folder: Path) -> None:
    """Export the text encoder of a diffusers folder.

    The graph takes input_ids and attention_mask, both int64 [B, L], and gives last_hidden_state,
    float32 [B, L, D]; B and L are dynamic.

    Args:
        pipeline_folder: holds ``model_index.json`` and ``text_encoder/``.
        out_folder: gets ``model.onnx`` and ``config.json``; is made if need be.

    Raises:
        CheckpointError: the folder lacks the component, or it cannot be read.
        MissingExtraError: torch, transformers or onnxscript is not installed.
        UsageError: the component's class is not supported.
    """
    torch = _module("torch")
    encoder = _load(pipeline_folder, "text_encoder", "transformers", TEXT_ENCODERS)

    class Encoder(torch.nn.Module):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.encoder = encoder

        def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
            output = self.encoder(input_ids=input_ids, attention_mask=attention_mask)
            states: Tensor = output.last_hidden_state
            return states

    ids = torch.arange(2 * 7).reshape(2, 7) % 5  # any ids will do: [2, 7]
    mask = torch.ones(2, 7, dtype=torch.int64)
    mask[1, 4:] = 0
    axes = {0: "batch", 1: "text_length"}
    interface = _Interface(
        inputs={"input_ids": ids, "attention_mask": mask},
        output="last_hidden_state",
        dynamic={"input_ids": axes, "attention_mask": axes},
    )
    _export(Encoder(), interface, out_folder)
    shutil.copyfile(pipeline_folder / "text_encoder" / "config.json", out_folder / "config.json")


def export_vae_decoder(pipeline_folder: Path, out_folder: Path) -> None:
    """Export the decoder half of the VAE of a diffusers folder.

    The graph takes latent_sample, float32 [B, C, H, W], already divided by the scaling factor, and
    gives sample, float32 [B, 3, f H, f W], about -1 .. 1; B, H and W are dynamic.

    Args:
        pipeline_folder: holds ``model_index.json`` and ``vae/``.
        out_folder: gets ``model.onnx`` and ``config.json``; is made if need be.

    Raises:
        CheckpointError: the folder lacks the component, or it cannot be read.
        MissingExtraError: torch, diffusers or onnxscript is not installed.
        UsageError: the component's class is not supported.
    """
    torch = _module("torch")
    vae = _load(pipeline_folder, "vae", "diffusers", VAES)

    class Decoder(torch.nn.Module):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.vae = vae

        def forward(self, latent_sample: Tensor) -> Tensor:
            sample: Tensor = self.vae.decode(latent_sample, return_dict=False)[0]
            return sample

    interface = _Interface(
        inputs={"latent_sample": torch.zeros(2, vae.config.latent_channels, 6, 10)},
        output="sample",
        dynamic={"latent_sample": {0: "batch", 2: "latent_height", 3: "latent_width"}},
    )
    vae.encoder = vae.quant_conv = None  # the decoder needs neither: less to trace, less memory
    _export(Decoder(), interface, out_folder)
    shutil.copyfile(pipeline_folder / "vae" / "config.json", out_folder / "config.json")


def copy_settings(pipeline_folder: Path, bundle_folder: Path) -> None:
    """Copy what needs no export: model_index.json, scheduler, tokenizer, transformer/config.json.

    Args:
        pipeline_folder: a pipeline in diffusers' format.
        bundle_folder: exists.

    Raises:
        CheckpointError: the pipeline is incomplete.
    """
    root = open_checkpoint(pipeline_folder).folder
    for name in ("scheduler", "tokenizer"):
        shutil.copytree(root / name, bundle_folder / name, dirs_exist_ok=True)
    (bundle_folder / "transformer").mkdir(exist_ok=True)
    for name in ("model_index.json", "transformer/config.json"):
        shutil.copyfile(root / name, bundle_folder / name)


def _module(name: str) -> Any:
    """The module `name`; absent, the error says which extra brings it."""
    try:
        return importlib.import_module(name)
    except ImportError as cause:
        raise MissingExtraError(name, "export") from cause


def _load(folder: Path, part: str, package: str, supported: tuple[str, ...]) -> Any:
    """Component `part` of the pipeline in `folder`: float32, in evaluation mode."""
    component = open_checkpoint(folder).components.get(part)
    if component is None:
        raise CheckpointError(
            f"{folder}/model_index.json names no {part}: expected [package, class]"
        )
    name = component.class_name
    if name not in supported:
        known = ", ".join(supported)
        raise UsageError(f"{part} of class {name} is not supported: expected one of {known}")
    torch, dtype_name = _module("torch"), "dtype" if package == "transformers" else "torch_dtype"
    cls = getattr(_module(package), name)
    options = {dtype_name: torch.float32, "variant": component.variant, "local_files_only": True}
    try:
        with quiet():
            model = cls.from_pretrained(component.folder, **options)
    except (OSError, ValueError, RuntimeError) as cause:
        reason = str(cause).splitlines()[0]
        raise CheckpointError(
            f"{component.folder} cannot be read as {name}: {reason}; download it again"
        ) from cause
    return model.eval().requires_grad_(requires_grad=False)


def _export(module: nn.Module, interface: _Interface, out_folder: Path) -> None:
    """Write `module` to ``out_folder/model.onnx`` and check it."""
    torch = _module("torch")
    _module("onnxscript")
    out_folder.mkdir(parents=True, exist_ok=True)
    path = out_folder / "model.onnx"
    weights = sum(p.numel() * p.element_size() for p in module.state_dict().values())
    with quiet(), torch.no_grad():
        program = torch.onnx.export(
            module.eval(),
            kwargs=dict(interface.inputs),
            input_names=list(interface.inputs),
            output_names=[interface.output],
            dynamic_shapes={name: dict(axes) for name, axes in interface.dynamic.items()},
            opset_version=OPSET,
            dynamo=True,
            optimize=True,
            verbose=False,
        )
        program.model.ir_version = IR_VERSION
        _strip(program.model)
        program.save(path, external_data=weights > _INLINE_LIMIT)
    onnx.checker.check_model(path, full_check=True)


def _strip(model: Any) -> None:
    """Drop what the exporter notes of its own run: stack traces, paths of source files."""
    model.metadata_props.clear()
    for graph in (model.graph, *model.functions.values()):
        graph.metadata_props.clear()
        for node in graph.all_nodes():
            node.metadata_props.clear()
            for value in node.outputs:
                value.metadata_props.clear()
    for value in (*model.graph.inputs, *model.graph.initializers.values()):
        value.metadata_props.clear()
