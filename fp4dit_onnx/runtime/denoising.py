"""The denoising loop: with latents in the machine's memory, or in that of a device."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fp4dit_onnx.errors import BundleError, UsageError, VerificationError
from fp4dit_onnx.families import Family
from fp4dit_onnx.families.request import Request
from fp4dit_onnx.runtime.beginning import Start
from fp4dit_onnx.runtime.bound import Bound, Recorder
from fp4dit_onnx.runtime.providers import Placement
from fp4dit_onnx.runtime.schedulers import Run
from fp4dit_onnx.runtime.session import Session, explaining, session_options, started
from fp4dit_onnx.runtime.step_table import StepTable, step_table

__all__ = ["Denoising", "Made", "check_finite", "declared", "first_output"]

Array = npt.NDArray[Any]
FloatArray = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Made:
    """What a denoising step was given and made; arrays come from a device when they are asked for.

    Attributes:
        index: 0, 1, ...
        timestep: that the model was told.
        given: the sample as the model took it, float32 [B, C, H, W].
        output: the prediction after guidance, the same shape.
        latents: the next sample, the same shape.
    """

    index: int
    timestep: float
    given: Callable[[], FloatArray]
    output: Callable[[], FloatArray]
    latents: Callable[[], FloatArray]


@dataclass(frozen=True)
class Denoising:
    """A batch of images to denoise.

    Attributes:
        transformer: runs.
        family: its.
        request: of the batch.
        fixed: what every call of the transformer is given besides latents and timestep.
        start: begins a run of the scheduler; called more than once.
        noise: of the step of an index, float32 [B, C, H, W]; None where the scheduler takes none.
        begun: what it begins with in place of noise alone, whose steps alone are in a run of `start`.
        adapters: matrices for slots of the transformer, which every call is given too.
        recorder: makes the transformer whose run is replayed; None: it is run.
    """

    transformer: Session
    family: Family
    request: Request
    fixed: Mapping[str, Array]
    start: Callable[[], Run]
    noise: Callable[[int], FloatArray] | None
    begun: Start | None = None
    adapters: Mapping[str, Array] = field(default_factory=dict)
    recorder: Recorder | None = None

    def steps(self, noise: FloatArray, placed: Placement) -> Iterator[Made]:
        """One after the other, from noise, or from an image with noise.

        Latents stay in the device's memory if it has one, the scheduler's steps are linear and there
        is no mask; else they are copied there and back at every step.

        Args:
            noise: standard normal, [B, C, H, W].
            placed: of the transformer.

        Raises:
            UsageError: the transformer's run is to be replayed, and latents cannot stay there.
        """
        run = self.start()
        if self.begun is None:
            latents = noise * np.float32(run.initial_scale)
        else:
            latents = run.noised(self.begun.latents, noise)
        table, masked = None, self.begun is not None and self.begun.mask is not None
        if placed.memory is not None and not masked and hasattr(self.transformer, "io_binding"):
            try:
                table = step_table(self.start)
            except UsageError:  # steps that are not linear
                table = None
        if table is None:
            if self.recorder is not None:
                raise UsageError(
                    "--cuda-graph takes latents that stay on the device: expected no mask and a "
                    "scheduler whose steps are linear; leave it out"
                )
            return self._here(latents, run, noise)
        return self._there(latents, table, placed)

    def _feed(self, rows: Any, timestep: float) -> dict[str, Any]:
        """What the transformer declares of all that it may be given."""
        family = self.family
        told = np.full(self.request.rows, family.told(timestep), family.timestep.dtype)
        given = {"hidden_states": rows, "timestep": told, **self.fixed}
        return {**declared(self.transformer, given, "transformer"), **self.adapters}

    def _here(self, latents: FloatArray, run: Run, first: FloatArray) -> Iterator[Made]:
        family, request = self.family, self.request
        for index, timestep in enumerate(run.timesteps.tolist()):
            given = run.model_input(index, latents)
            rows = np.concatenate([given, given]) if request.guided else given
            feed = self._feed(family.latents.pack(rows), timestep)
            prediction = family.latents.prediction(self.transformer.run(None, feed)[0], rows.shape)
            output = family.guidance.combined(prediction, request.sampling.guidance)
            output = -output if family.reversed else output
            noise = None if self.noise is None else self.noise(index)
            latents = run.step(output, latents, noise)
            if self.begun is not None:
                latents = self.begun.kept(latents, run, index, first)
            yield Made(index, timestep, *map(_constant, (given, output, latents)))

    def _there(self, latents: FloatArray, table: StepTable, placed: Placement) -> Iterator[Made]:
        """As `_here`; tokens stay as the transformer takes them."""
        from fp4dit_onnx.bundle.step_model import StepModel, step_model

        request, layout = self.request, self.family.latents
        guidance = request.guidance
        step = StepModel(
            taps=table.sample.shape[1],
            channels=latents.shape[1] if layout.packing == 1 else None,
            guided=request.guided,
            negative_first=guidance.negative_first,
            stochastic=self.noise is not None,
        )
        loaded = started(step_model(step), session_options(placed), placed)
        stepper = Bound(explaining(loaded, "a step of the sampler", placed), placed)
        put = stepper.put

        def back(value: Any, factor: np.float32) -> FloatArray:
            """Of one row per image, or of the first of two."""
            found: FloatArray = factor * value.numpy()[: len(latents)]
            return layout.unpack(found, latents.shape)

        weight = np.asarray([request.sampling.guidance + guidance.added], np.float32)
        sign = np.float32(-1 if self.family.reversed else 1)
        following = np.append(table.input[1:], np.float32(1))
        packed = layout.pack(latents)
        samples: list[Any] = [put(packed)]
        predictions: list[Any] = []
        first = packed * table.input[0]
        rows = np.concatenate([first, first]) if request.guided else first
        feed = self._feed(rows, float(table.timesteps[0]))
        transformer = Bound(self.transformer, placed)
        if self.recorder is not None:
            transformer = self.recorder(self.transformer, feed)
        transformer.write(feed)
        for index, timestep in enumerate(table.timesteps.tolist()):
            told = self._feed(rows, timestep)["timestep"]
            transformer.write({"timestep": told})
            (output, *_) = transformer.run()
            weights = [*table.sample[index], *(sign * table.output[index])]
            noise = [table.noise[index]] if self.noise is not None else []
            numbers = np.asarray([*weights, *noise, following[index]], np.float32)
            taken = {"output": output, "guidance": weight, "weights": numbers}
            # A tap before the first step has the weight 0, of whatever sample.
            taken |= {name: _tap(samples, tap) for tap, name in enumerate(step.samples)}
            for tap, name in enumerate(step.predictions[1:]):
                taken[name] = _tap(predictions or samples, tap)
            if self.noise is not None:
                taken["z"] = put(layout.pack(self.noise(index)))
            given = samples[0], table.input[index]
            sample, prediction, _ = stepper(taken, {"given": transformer.inputs["hidden_states"]})
            samples = [sample, *samples][: step.taps]
            predictions = [prediction, *predictions][: step.taps]
            shown = given, (prediction, sign), (samples[0], np.float32(1))
            yield Made(index, timestep, *(partial(back, *one) for one in shown))


def declared(part: Session, given: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Those values of `given` that `part`, which is called `name`, declares.

    Raises:
        BundleError: it declares another.
    """
    names = [item.name for item in part.get_inputs()]
    unknown = [item for item in names if item not in given]
    if unknown:
        raise BundleError(
            f"{name} needs the input {unknown[0]}, which this version does not feed: expected "
            f"inputs among {', '.join(given)}; export the bundle again"
        )
    return {item: given[item] for item in names}


def check_finite(latents: FloatArray, prompts: Sequence[str], model: Path) -> None:
    """Raise VerificationError where latents [B, C, H, W] that a model made are not finite."""
    for prompt, row in zip(prompts, latents, strict=True):
        if not np.isfinite(row).all():
            raise VerificationError(
                f"{model} gave numbers that are not finite for the prompt {prompt!r}: export the "
                "bundle again with another recipe"
            )


def _constant(value: FloatArray) -> Callable[[], FloatArray]:
    return lambda: value


def _tap(values: list[Any], tap: int) -> Any:
    return values[min(tap, len(values) - 1)]


def first_output(part: Session, given: Mapping[str, Any], name: str) -> Array:
    """What `part` gives first, given what it declares; raises as `declared`."""
    found: Array = part.run(None, declared(part, given, name))[0]
    return found
