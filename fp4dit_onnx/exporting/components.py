"""The parts of a bundle beside transformer and text encoders: the VAE's halves and the settings."""

from __future__ import annotations

import inspect
import json
import shutil
from pathlib import Path

from fp4dit_onnx.bundle.names import CONFIG, SCHEDULER_CONFIG, VAE_DECODER, VAE_ENCODER
from fp4dit_onnx.bundle.writing import copy_files
from fp4dit_onnx.checkpoint import checkpoint
from fp4dit_onnx.errors import UsageError
from fp4dit_onnx.exporting.component_writing import Component, ComponentWriter
from fp4dit_onnx.families.autoencoders import DECODER, VAES, encoder, older_vae_name
from fp4dit_onnx.families.request import tokenizer_of
from fp4dit_onnx.families.table import find_family
from fp4dit_onnx.files import CHECKPOINT, json_text, read_json, write_text
from fp4dit_onnx.files.settings import vae_settings
from fp4dit_onnx.runtime.sizes import pixels_a_latent
from fp4dit_onnx.runtime.step_table import write_step_table
from fp4dit_onnx.tokenizer_files import copy_tokenizer

__all__ = ["absent_parts", "check_parts", "check_vae", "copy_settings", "write_vae"]

INDEX = "model_index.json"


def _instructions(source: checkpoint.Checkpoint) -> dict[str, str]:
    """What diffusers' pipeline puts before prompts, by its argument."""
    family = find_family(source.pipeline_class)
    keys = {text.instruction for text in family.texts if text.instruction} if family else ()
    if not keys:
        return {}
    import diffusers

    arguments = inspect.signature(getattr(diffusers, source.pipeline_class).__call__).parameters
    return {key: "\n".join(arguments[key].default) for key in keys}


def absent_parts(source: checkpoint.Checkpoint) -> str:
    """Parts that a pipeline lists not, or as null, and its images need: ``a and no b``, or nothing."""
    family = find_family(source.pipeline_class)
    if family is None or not family.generates:  # no images are made of it here
        return ""
    encoders = [n for n in family.encoders if n not in {*family.optional} & {*source.absent}]
    needed = (*encoders, *map(tokenizer_of, encoders), "scheduler", "vae")
    return " and no ".join(name for name in needed if name not in source.components)


def check_parts(source: checkpoint.Checkpoint) -> None:
    """Raise UsageError where a pipeline lists no part, or null for one, that its images need."""
    if absent := absent_parts(source):
        raise UsageError(
            f"{source.folder / INDEX} names no {absent}, without which "
            f"{source.pipeline_class} makes no image of a prompt: give the whole pipeline, or "
            "--components transformer exports the transformer alone"
        )


def check_vae(part: checkpoint.Component) -> None:
    """Raise UsageError where `part` is a VAE of an unsupported class."""
    if part.class_name not in VAES:
        raise UsageError(
            f"VAE of class {part.class_name} is not supported: expected {', '.join(VAES)}; "
            "--components transformer exports the transformer alone"
        )


def write_vae(part: checkpoint.Component, writer: ComponentWriter) -> None:
    """Write the halves of a VAE, large tensors stored as float16; they compute in float32.

    ``vae_decoder/`` takes latent_sample, float32 [B, C, H, W], already divided by the scaling factor,
    and gives sample, float32 [B, 3, f H, f W], about -1 .. 1. ``vae_encoder/`` takes image, as the
    decoder gives it, and gives latent_parameters, float32: means and logarithms of variances [B, 2 C,
    H, W] or, of a VAE without variances, latents [B, C, H, W]. B, H and W are dynamic.

    Raises:
        CheckpointError: configuration and weights do not fit.
    """
    from fp4dit_onnx.network.networks import fake_vae_decoder, fake_vae_encoder

    config = vae_settings(part.folder / CONFIG, CHECKPOINT)
    halves = (
        (VAE_DECODER, fake_vae_decoder, DECODER),
        (VAE_ENCODER, fake_vae_encoder, encoder(pixels_a_latent(config))),
    )
    for name, fake, interface in halves:
        network = fake(part.class_name, config)
        tensors = network.stored_under(part.tensors, older_vae_name)
        writer.write(Component(name, network, interface, tensors, half=True))
        shutil.copyfile(part.folder / CONFIG, writer.bundle / name / CONFIG)


def copy_settings(
    source: checkpoint.Checkpoint, bundle_folder: Path, steps: int | None = None
) -> None:
    """Copy what needs no export: model_index.json, scheduler, tokenizers, configurations.

    A tokenizer gets a tokenizer.json where it has none.

    Args:
        source: the pipeline.
        bundle_folder: exists.
        steps: those of a run by default, whose table is written beside the scheduler's settings;
            None for no table.
    """
    for name, part in source.components.items():
        if name.startswith("scheduler"):
            copy_files(part.folder, bundle_folder / name)
            if part.notes:  # the file is not what is used
                text = json.dumps(checkpoint.scheduler_settings(part), indent=2)
                write_text(bundle_folder / SCHEDULER_CONFIG, text + "\n")
        elif name.startswith("tokenizer"):
            copy_tokenizer(part.folder, part.class_name, bundle_folder / name)
    encoders = [n for n in source.components if n.startswith("text_encoder")]
    for name in (INDEX, *(f"{part}/config.json" for part in encoders)):
        (bundle_folder / name).parent.mkdir(exist_ok=True)
        shutil.copyfile(source.folder / name, bundle_folder / name)
    if instructions := _instructions(source):
        index = read_json(source.folder / INDEX, "the list of components", CHECKPOINT)
        (bundle_folder / INDEX).write_bytes(json_text({**instructions, **index}))
    config = bundle_folder / "transformer" / "config.json"
    config.parent.mkdir(exist_ok=True)
    config.write_bytes(json_text(source.transformer_config))
    if steps is not None and "scheduler" in source.components:
        write_step_table(bundle_folder, steps)
