"""A whole image, from a prompt to a PNG file: a bundle, and what would be run in its place."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from fp4dit_onnx.benchmark.backend import Absent, Backend, Loaded, package
from fp4dit_onnx.benchmark.case import Array
from fp4dit_onnx.benchmark.int8_models import quantized
from fp4dit_onnx.benchmark.openvino_models import INT8, OpenVinoSession, int8_model
from fp4dit_onnx.benchmark.stopwatch import Stopwatch
from fp4dit_onnx.bundle.manifest import Sampling
from fp4dit_onnx.bundle.names import MODEL, VAE_DECODER
from fp4dit_onnx.runtime.pipeline import Pipeline
from fp4dit_onnx.runtime.session import Session, session
from fp4dit_onnx.system.devices import CPU
from fp4dit_onnx.system.resources import available_memory

__all__ = ["DECODER", "ENCODER", "LOAD", "PEERS", "STEP", "ImageCase", "Painter", "ours"]

LOAD, ENCODER, STEP, DECODER = "load", "text encoder", "step", "VAE decoder"
"""Stages that are timed."""
NO_FLOAT = "needs the float models as a bundle: give it with --float-bundle"
NO_MODEL = "needs the diffusers pipeline: give it with --model"
ORT_INT8 = "ort-int8"


@dataclass(frozen=True)
class ImageCase:
    """One image of a prompt; all backends begin with the same noise.

    Attributes:
        bundle: folder.
        float_bundle: folder of a bundle of the same pipeline that leaves all layers in float, or None.
        model: folder of the diffusers pipeline, or None.
        prompt: text, or a class.
        sampling: steps, guidance and size.
        work: folder for files that backends prepare.
        device: where ONNX Runtime runs, see `Pipeline`.
        seed: of the noise.
    """

    bundle: Path
    float_bundle: Path | None
    model: Path | None
    prompt: str
    sampling: Sampling
    work: Path = Path()
    device: str = CPU
    seed: int = 0

    kind = "image"
    operations = None
    product = None

    @property
    def name(self) -> str:
        """As tables show it."""
        s = self.sampling
        guided = f"guidance {s.guidance:g}" if s.guidance > 1 else "no guidance"
        return f"{s.width} x {s.height} pixels, {s.steps} steps, {guided}"

    @property
    def folders(self) -> tuple[Path, ...]:
        """Of the files that backends read."""
        given = (self.bundle, self.float_bundle, self.model, self.work)
        return tuple(folder for folder in given if folder is not None)

    def sqnr(self, result: Array) -> float | None:
        """None: images are compared with the baseline's, see `image_rounds`."""
        return None

    def to_json(self) -> dict[str, Any]:
        """For the process that makes the image."""
        return {k: str(v) if isinstance(v, Path) else v for k, v in asdict(self).items()}

    @classmethod
    def from_json(cls, given: Mapping[str, Any]) -> ImageCase:
        """What `to_json` gave."""
        paths = {
            name: None if given[name] is None else Path(given[name])
            for name in ("bundle", "float_bundle", "model", "work")
        }
        return cls(**{**given, **paths, "sampling": Sampling(**given["sampling"])})


@dataclass(frozen=True)
class Painter(Loaded):
    """A backend that is ready to make the image.

    Attributes:
        watch: has the times of the stages.
    """

    watch: Stopwatch


def _painter(watch: Stopwatch, paint: Callable[[], Image.Image]) -> Painter:
    made: list[Image.Image] = []

    def run() -> Image.Image:
        made[:] = [paint()]
        return made[0]

    return Painter(run, lambda: np.asarray(made[0]), watch)


def _stage_of(part: str) -> str:
    """Of a folder of a bundle."""
    return {"transformer": STEP, VAE_DECODER: DECODER}.get(part, ENCODER)


def _of_bundle(
    case: ImageCase,
    folder: Path,
    threads: int,
    open_session: Callable[..., Session],
    watch: Stopwatch | None = None,
    **given: Any,
) -> Painter:
    """The image by the pipeline of a bundle, whose parts `open_session` opens."""
    watch = watch or Stopwatch()

    def timed_session(path: Path, **named: Any) -> Session:
        part = open_session(path, **named)
        for name in ("run", "run_with_iobinding"):
            if hasattr(part, name):
                setattr(part, name, watch.timed(_stage_of(path.parent.name), getattr(part, name)))
        return part

    pipeline = Pipeline(
        folder, device=case.device, threads=threads, open_session=timed_session, **given
    )
    pipeline.check(case.sampling, [case.prompt])

    def paint() -> Image.Image:
        latents = pipeline.sample([case.prompt], [case.seed], case.sampling)
        with watch.stage(DECODER):
            return pipeline.decode(latents)[0]

    return _painter(watch, paint)


def ours(isa: str) -> Backend[ImageCase]:
    """The bundle with the kernels of one instruction set."""

    def load(case: ImageCase, threads: int) -> Painter:
        return _of_bundle(case, case.bundle, threads, session)

    return Backend(f"fp4dit {isa}", "the bundle", load, isa=isa)


def _low_memory(case: ImageCase, threads: int) -> Painter:
    watch = Stopwatch()
    opened = watch.timed(LOAD, session)
    painter = _of_bundle(case, case.bundle, threads, opened, watch, low_memory=True)
    watch.seconds.clear()  # what was opened so far counts as loading already
    return painter


def _bodies(case: ImageCase, threads: int) -> Painter:
    return _of_bundle(case, case.bundle, threads, session, library=False)


def _floats(case: ImageCase) -> Path:
    """The float bundle, which fits into memory."""
    if case.float_bundle is None:
        raise Absent(NO_FLOAT)
    _check_room(sum(p.stat().st_size for p in case.float_bundle.glob("*/*") if p.is_file()))
    return case.float_bundle


def _check_room(needed: float) -> None:
    """Raise Absent where weights of so many bytes do not fit into memory."""
    there = available_memory()
    if there is not None and needed > there:
        raise Absent(f"its weights take {needed / 1e9:.1f} GB, and {there / 1e9:.1f} GB are free")


def _ort_float32(case: ImageCase, threads: int) -> Painter:
    return _of_bundle(case, _floats(case), threads, session, library=False)


def _int8_models(case: ImageCase) -> Path:
    return case.work / ORT_INT8


def _prepare_int8(case: ImageCase) -> None:
    """`quantize_dynamic` of the transformer and the text encoders; the VAE has convolutions."""
    for path in sorted(_floats(case).glob(f"*/{MODEL}")):
        part = path.parent.name
        if not part.startswith("vae"):
            quantized(path, _int8_models(case) / part / MODEL)


def _ort_int8(case: ImageCase, threads: int) -> Painter:
    def opened(path: Path, **named: Any) -> Session:
        int8 = _int8_models(case) / path.parent.name / MODEL
        found: Session = session(int8 if int8.is_file() else path, **named)
        return found

    return _of_bundle(case, _floats(case), threads, opened, library=False)


def _prepare_openvino(case: ImageCase) -> None:
    """The float models as OpenVINO's own, linear layers' weights in int8."""
    package("openvino")
    for path in sorted(_floats(case).glob(f"*/{MODEL}")):
        target = _openvino_model(case, path)
        target.parent.mkdir(parents=True)
        int8_model(path, target)


def _openvino_model(case: ImageCase, path: Path) -> Path:
    return case.work / "openvino" / path.parent.name / "model.xml"


def _openvino(precision: str, short: str) -> Backend[ImageCase]:
    def load(case: ImageCase, threads: int) -> Painter:
        watch = Stopwatch()

        def opened(path: Path, **named: Any) -> Session:
            model = _openvino_model(case, path) if precision == INT8 else path
            return OpenVinoSession(model, threads, precision, partial(watch.stage, LOAD))

        return _of_bundle(case, _floats(case), threads, opened, watch, library=False)

    about, prepare = f"the float models, {precision}", None
    if precision == INT8:
        about, prepare = "int8 weights, activations quantized at run time", _prepare_openvino
    return Backend(f"openvino-{short}", about, load, "openvino", prepare=prepare)


def _torch(dtype: str, short: str) -> Backend[ImageCase]:
    def load(case: ImageCase, threads: int) -> Painter:
        torch = package("torch")
        torch.set_num_threads(threads)
        if case.model is None:
            raise Absent(NO_MODEL)
        from fp4dit_onnx.calibration.sampling import decode, load_pipeline, sample_latents
        from fp4dit_onnx.checkpoint.checkpoint import open_checkpoint
        from fp4dit_onnx.families import family_of
        from fp4dit_onnx.network.execution import Execution

        checkpoint, where = open_checkpoint(case.model), Execution(dtype=getattr(torch, dtype))
        tensors = [t for part in checkpoint.components.values() for t in part.tensors.values()]
        _check_room(sum(where.dtype.itemsize * math.prod(t.shape) for t in tensors))
        family = family_of(checkpoint.pipeline_class, checkpoint.transformer_class)
        pipeline = load_pipeline(checkpoint, budget=math.inf, execution=where)
        watch = Stopwatch()
        for part, module in pipeline.components.items():
            if isinstance(module, torch.nn.Module) and part != "vae":
                module.forward = watch.timed(_stage_of(part), module.forward)

        def paint() -> Image.Image:
            latents = sample_latents(
                pipeline, family, [case.prompt], [case.seed], case.sampling, execution=where
            )
            with watch.stage(DECODER):
                return decode(pipeline, family, latents)[0]

        return _painter(watch, paint)

    about = f"the diffusers pipeline in {dtype}"
    return Backend(f"torch-{short}", about, load, "torch")


PEERS: tuple[Backend[ImageCase], ...] = (
    Backend("ort-float32", "the float models", _ort_float32),
    Backend(
        ORT_INT8,
        "quantize_dynamic of transformer and text encoders",
        _ort_int8,
        prepare=_prepare_int8,
    ),
    Backend("fp4dit-low-memory", "the bundle, a model at a time", _low_memory),
    Backend("ort-functions", "the bundle through its function bodies", _bodies, by_default=False),
    _torch("float32", "float32"),
    _torch("bfloat16", "bf16"),
    _openvino("f32", "float32"),
    _openvino("bf16", "bf16"),
    _openvino(INT8, "int8"),
)
"""Other backends for an image; another one is another entry."""
