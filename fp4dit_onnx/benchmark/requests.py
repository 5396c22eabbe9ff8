"""From what a user asks for to cases."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from fp4dit_onnx.benchmark.attention import AttentionCase
from fp4dit_onnx.benchmark.case import Case, parse_sizes
from fp4dit_onnx.benchmark.image import ImageCase
from fp4dit_onnx.benchmark.linear import DEFAULT_SHAPES, LinearCase
from fp4dit_onnx.benchmark.step import StepCase
from fp4dit_onnx.bundle.bundle import Bundle
from fp4dit_onnx.bundle.manifest import LARGEST_GUIDANCE
from fp4dit_onnx.bundle.names import CONFIG, MODEL_INDEX, TRANSFORMER, VAE_DECODER
from fp4dit_onnx.calibration.methods import method_by_name
from fp4dit_onnx.checkpoint.checkpoint import open_checkpoint
from fp4dit_onnx.errors import UsageError
from fp4dit_onnx.families.pixart import PIXART_ALPHA
from fp4dit_onnx.files import BUNDLE, read_json
from fp4dit_onnx.files.settings import transformer_settings, vae_settings
from fp4dit_onnx.numbers.scale_formats import DEFAULT_SCALE
from fp4dit_onnx.runtime.parts import family_in
from fp4dit_onnx.runtime.sizes import check_sides, pixels_a_latent
from fp4dit_onnx.spec.hadamard import Hadamard
from fp4dit_onnx.spec.recipe import Recipe, make_recipe
from fp4dit_onnx.spec.spec import DEFAULT_GROUP_SIZE, LayerSpec
from fp4dit_onnx.system.resources import checked_threads, usable_cores
from fp4dit_onnx.system.texts import utf8_text
from fp4dit_onnx.values import real, shown

__all__ = ["Formats", "ImageRequest", "image_case", "operator_cases", "step_case", "thread_counts"]

LAYER = "linear"


@dataclass(frozen=True)
class Formats:
    """Formats of single operators, asked for as those of an export are.

    Attributes:
        bits: such as ``w4a6``.
        weight: format of the weights; None is PixArt-alpha's for most layers.
        activation: format of the activations; None is that of the bits.
        group_size: inputs that share one weight scale.
        scale: format of these scales.
        activation_group_size: inputs of a row that share a scale; None is all of them.
        hadamard: block of the rotation before quantization; None is no rotation.
    """

    bits: str = "w4a6"
    weight: str | None = None
    activation: str | None = None
    group_size: int = DEFAULT_GROUP_SIZE
    scale: str = DEFAULT_SCALE
    activation_group_size: int | None = None
    hadamard: int | None = None

    def recipe(self) -> Recipe:
        """The recipe of an export with these formats.

        Raises:
            UsageError: they are unknown or do not fit each other.
        """
        recipe = make_recipe(
            self.bits,
            method=method_by_name("fp-rtn"),
            paper_rules=PIXART_ALPHA.paper_rules,
            weight_format=self.weight,
            activation_format=self.activation,
            group_size=self.group_size,
            scale=self.scale,
            activation_group_size=self.activation_group_size,
        )
        if recipe.search:
            raise UsageError(
                f"weight format {self.weight} chooses by a layer's weights, and there are none: "
                f"expected one of {', '.join(recipe.search)}"
            )
        return recipe

    def layer(self, n: int = 1, k: int = 1) -> LayerSpec:
        """How a linear [N, K] is quantized; raises as `recipe` does."""
        specs, _ = self.recipe().assign({LAYER: (n, k)})
        spec = specs[LAYER]
        if self.hadamard is None:
            return spec
        return replace(spec, input_ops=(Hadamard(self.hadamard),))


def thread_counts(text: str | None) -> tuple[int, ...]:
    """The numbers in `text`, such as ``1,2,4``; all cores for None.

    Raises:
        UsageError: other than numbers of threads, see `checked_threads`.
    """
    if text is None:
        return (usable_cores(),)
    if not re.fullmatch(r"\d{1,9}(,\d{1,9})*", text):
        raise UsageError(f"threads {shown(text)}: expected numbers with commas, such as 1,2,4")
    return tuple(dict.fromkeys(checked_threads(int(number)) for number in text.split(",")))


def operator_cases(
    shapes: Sequence[str], attentions: Sequence[str], formats: Formats, *, default: bool
) -> list[Case]:
    """A case for each of the sizes given.

    Args:
        shapes: MxKxN each.
        attentions: BxSxHxD each.
        formats: of all.
        default: where no sizes are given, take `DEFAULT_SHAPES`.

    Raises:
        UsageError: sizes or formats are unusable.
    """
    attention = formats.recipe().attention
    wanted = [parse_sizes(text, "MxKxN") for text in shapes]
    if default and not wanted and not attentions:
        wanted = list(DEFAULT_SHAPES)
    cases: list[Case] = [LinearCase(m, k, n, formats.layer(n, k)) for m, k, n in wanted]
    for text in attentions:
        b, s, h, d = parse_sizes(text, "BxSxHxD")
        cases.append(AttentionCase(b, s, h, d, attention))
    return cases


def step_case(bundle: Path, float_model: Path | None, batch: int, tokens: int | None) -> StepCase:
    """One step of `bundle`.

    Args:
        bundle: its folder, or a transformer's ONNX file.
        float_model: the ONNX file of its float model, or None.
        batch: images.
        tokens: of the text; None is the bundle's default.

    Raises:
        BundleError: no bundle.
        UsageError: the float model is unreadable or takes other inputs.
    """
    if bundle.is_file():
        if tokens is None:
            raise UsageError(f"{bundle} is a model alone: say the number of text tokens, --tokens")
        return StepCase(bundle, float_model, batch, tokens)
    opened = Bundle.open(bundle)
    if tokens is None:
        tokens = opened.manifest.sampling.max_sequence_length
    return StepCase(opened.transformer, float_model, batch, tokens)


@dataclass(frozen=True)
class ImageRequest:
    """A whole image; None is the bundle's own, or the first example prompt of its family.

    Attributes:
        float_bundle: folder of the bundle that leaves all layers in float.
        model: folder of the diffusers pipeline.
        prompt: text, or a class.
        steps: denoising steps.
        guidance: scale of classifier-free guidance.
        height: in pixels.
        width: in pixels.

    Raises:
        UsageError: guidance that no image can be made with.
    """

    float_bundle: Path | None = None
    model: Path | None = None
    prompt: str | None = None
    steps: int | None = None
    guidance: float | None = None
    height: int | None = None
    width: int | None = None

    def __post_init__(self) -> None:
        """Check what says nothing of the bundle."""
        if self.guidance is not None:
            real("guidance", self.guidance, 0, LARGEST_GUIDANCE)


def image_case(bundle: Path, request: ImageRequest, device: str) -> ImageCase:
    """One image by `bundle`, which ONNX Runtime runs on `device`.

    Raises:
        BundleError: no bundle.
        CheckpointError: no diffusers pipeline.
        UsageError: it makes no images, or not such.
    """
    manifest = Bundle.open(bundle).manifest
    family = family_in(bundle, read_json(bundle / MODEL_INDEX, "the list of components", BUNDLE))
    if request.float_bundle is not None:
        _check_float(Bundle.open(request.float_bundle))
    if request.model is not None:
        open_checkpoint(request.model)
    wanted = ((name, getattr(request, name)) for name in ("steps", "guidance", "height", "width"))
    given = {name: value for name, value in wanted if value is not None}
    sampling = replace(manifest.sampling, **given)
    factor = pixels_a_latent(vae_settings(bundle / VAE_DECODER / CONFIG, BUNDLE))
    config = transformer_settings(bundle / TRANSFORMER / CONFIG, BUNDLE)
    check_sides(sampling.height, sampling.width, family, config, factor)
    return ImageCase(
        bundle,
        request.float_bundle,
        request.model,
        family.prompts[0] if request.prompt is None else utf8_text("prompt", request.prompt),
        sampling,
        device=device,
    )


def _check_float(bundle: Bundle) -> None:
    """Refuse a bundle whose layers are quantized, as one to compare with."""
    if layers := len(bundle.manifest.layers):
        raise UsageError(
            f"{bundle.folder} has {layers} quantized layers: expected the bundle of "
            "export --rule '*=none' --text-encoder-bits none --attention-format none"
        )
