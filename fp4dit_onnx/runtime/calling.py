"""A pipeline called with the argument names of diffusers, and what it gives."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from PIL import Image

from fp4dit_onnx.errors import UsageError
from fp4dit_onnx.runtime.reopening import check_unchanged, copy_bundle

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["OURS", "DiffusersNames", "PipelineOutput", "in_our_names"]

OURS = {
    "num_inference_steps": "steps",
    "guidance_scale": "guidance",
    "num_images_per_prompt": "count",
    "generator": "seeds",
    "mask_image": "mask",
}
"""diffusers' name of an argument -> that of `Pipeline.generate`; all others are the same."""
SEEDS = 2**63
"""Seeds from a generator of numpy are below it."""


class PipelineOutput(NamedTuple):
    """What calling a pipeline gives; as in diffusers, ``[0]`` is ``images``.

    Attributes:
        images: those of one prompt side by side.
    """

    images: list[Image.Image]


def in_our_names(given: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments as `Pipeline.generate` takes them.

    Args:
        given: by diffusers' names or ours; None for the default.

    Raises:
        UsageError: one is given by both names, or a generator has no seed.
    """
    found: dict[str, Any] = {}
    for name, value in given.items():
        own = OURS.get(name, name)
        if value is None:
            continue
        if own in found:
            raise UsageError(f"{own} and its name in diffusers are both given: expected one")
        found[own] = seeds_of(value) if name == "generator" else value
    return found


def seeds_of(generator: Any) -> Any:
    """Seeds of generators: of torch's the one it was made with; of numpy's its next number."""
    if isinstance(generator, list | tuple):
        return [seeds_of(one) for one in generator]
    if hasattr(generator, "initial_seed"):
        return generator.initial_seed()
    if hasattr(generator, "integers"):
        return int(generator.integers(SEEDS))
    if isinstance(generator, int):
        return generator
    raise UsageError(
        f"generator is of type {type(generator).__name__}: expected a generator of torch or numpy, a "
        "seed, or a list of these, one per prompt"
    )


class DiffusersNames:
    """What pipelines of diffusers offer beside generating, of a pipeline that a bundle makes."""

    _folder: Path
    _arguments: Mapping[str, Any]
    _parts: Mapping[str, Any]
    _adapters: Mapping[str, Any]
    generate: Callable[..., list[Image.Image]]

    @classmethod
    def from_pretrained(cls, bundle_folder: Path | str, **options: Any) -> Self:
        """A pipeline of a bundle: the constructor by diffusers' name, whose arguments it takes."""
        made: Any = cls
        opened: Self = made(bundle_folder, **options)
        return opened

    @classmethod
    def from_pipe(cls, pipeline: Self) -> Self:
        """Another pipeline with the same parts, loaded once; replacing one there leaves this as it is.

        Raises:
            UsageError: `pipeline` is of another kind, such as diffusers'.
        """
        if not isinstance(pipeline, cls):
            raise UsageError(
                f"from_pipe was given a {type(pipeline).__name__}: expected a Pipeline of a bundle; "
                "fp4dit_onnx.quantize makes a bundle of a pipeline of diffusers"
            )
        made = cls.__new__(cls)
        vars(made).update(vars(pipeline))
        return made

    def save_pretrained(self, folder: Path | str, *, overwrite: bool = False) -> None:
        """Copy the bundle; parts that were replaced are not part of it.

        Raises:
            BundleError: files of it are no longer there.
            UsageError: `folder` is not empty, or cannot be written.
        """
        copy_bundle(self._folder, Path(folder), overwrite=overwrite)

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickled as the path of the bundle, from which it is opened again, and adapters in use.

        Raises:
            UsageError: a part of it was replaced.
        """
        check_unchanged(self._parts, vars(self))
        folder = self._folder.resolve()
        state = {"_adapters": self._adapters}
        return partial(type(self), **self._arguments), (folder,), state

    def __call__(
        self,
        prompt: str | Sequence[str],
        *,
        negative_prompt: str | None = None,
        height: int | None = None,
        width: int | None = None,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        num_images_per_prompt: int | None = None,
        generator: Any = None,
        image: Image.Image | None = None,
        strength: float | None = None,
        mask_image: Image.Image | None = None,
        **ours: Any,
    ) -> PipelineOutput:
        """`generate` by diffusers' names of arguments; its own are understood too.

        Args:
            prompt: one, or a list.
            negative_prompt: see `generate`, as for what is not said here.
            height: in pixels.
            width: in pixels.
            num_inference_steps: `steps`.
            guidance_scale: `guidance`.
            num_images_per_prompt: `count`.
            generator: of torch or numpy, or a seed, or a list of them, one per prompt; by default the
                seed 0. The noise is that of `initial_latents`, not the generator's own.
            image: to begin with.
            strength: how much of it is changed.
            mask_image: `mask`.
            ours: arguments of `generate` by their own names.

        Raises:
            UsageError: see `generate`; or an argument that is given by both names.
        """
        named = {
            "negative_prompt": negative_prompt,
            "height": height,
            "width": width,
            "num_inference_steps": num_inference_steps,
            "guidance_scale": guidance_scale,
            "num_images_per_prompt": num_images_per_prompt,
            "generator": generator,
            "image": image,
            "strength": strength,
            "mask_image": mask_image,
        }
        prompts = [prompt] if isinstance(prompt, str) else prompt
        return PipelineOutput(self.generate(prompts, **in_our_names({**named, **ours})))
