"""A bundle's transformer inside a diffusers pipeline, in place of the torch module.

    pipe = diffusers.PixArtAlphaPipeline.from_pretrained(folder, transformer=None)
    pipe.transformer = fp4dit_onnx.load_transformer("bundle")

Everything around the transformer stays in torch; the transformer runs in ONNX Runtime.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from fp4dit_onnx.errors import BundleError, MissingExtraError, UsageError
from fp4dit_onnx.families.config import size_of
from fp4dit_onnx.files import BUNDLE
from fp4dit_onnx.files.settings import transformer_settings, vae_settings
from fp4dit_onnx.runtime.providers import Placement
from fp4dit_onnx.runtime.session import session
from fp4dit_onnx.runtime.sizes import check_latents, pixels_a_latent
from fp4dit_onnx.system.devices import CPU

if TYPE_CHECKING:
    from torch import Tensor, nn

__all__ = ["load_transformer"]

FloatArray = npt.NDArray[np.float32]

_TYPES = {"tensor(float)": "float32", "tensor(int64)": "int64", "tensor(bool)": "bool"}
"""ONNX Runtime's name of an element type -> torch's."""
_COMPUTED = ("image_rotary_emb",)
"""Arguments that the graph makes itself."""
_SWITCHED = ("aspect_ratio", "image_meta_size", "resolution", "style")
"""Arguments that pipelines give to networks without the switch for them, which ignore them."""


def load_transformer(
    bundle: Path | str,
    *,
    device: str | Placement = CPU,
    library: bool | None = None,
    threads: int | None = None,
) -> nn.Module:
    """The transformer of `bundle` as a torch module that can be assigned to ``pipe.transformer``.

    It takes the arguments of the diffusers class that was exported and returns its output class,
    on the device and in the type of ``hidden_states``; inside it computes in float32, in ONNX
    Runtime. ``config`` is that of the class, ``dtype`` is float32 and ``device`` the CPU, where
    arguments pass through. It has no parameters and cannot be trained.

    Args:
        bundle: as ``fp4dit-onnx export`` writes it; only its transformer is read.
        device: where ONNX Runtime runs it, see `session`.
        library: see `session`.
        threads: see `session`.

    Raises:
        BundleError: a file is missing or damaged.
        CheckpointError: see `families.config.size_of`.
        MissingExtraError: onnxruntime, torch or diffusers is not installed.
        UsageError: the device cannot be used; when the module is called: an argument that the graph
            cannot take, or latents of another size than it takes.
    """
    folder = Path(bundle) / "transformer"
    config = transformer_settings(folder / "config.json", BUNDLE)
    original = _original_class(folder / "config.json", config)
    graph = _Graph(session(folder / "model.onnx", device=device, library=library, threads=threads))
    vae = Path(bundle) / "vae_decoder" / "config.json"
    factor = pixels_a_latent(vae_settings(vae, BUNDLE) if vae.is_file() else None)
    module: nn.Module = _module_class()(graph, original, config, factor)
    return module


def _original_class(path: Path, config: Mapping[str, Any]) -> type:
    """The diffusers class that `config` is of."""
    try:
        import diffusers
    except ImportError as cause:
        raise MissingExtraError("diffusers", "export") from cause
    name = str(config.get("_class_name"))
    if not hasattr(diffusers, name):
        raise BundleError(
            f"{path} names the class {name}: expected one of diffusers {diffusers.__version__}; "
            "export the bundle again, or install the version that it was exported with"
        )
    found: type = getattr(diffusers, name)
    return found


def _defaults(function: Any) -> dict[str, Any]:
    """Default values of a function's parameters."""
    parameters = inspect.signature(function).parameters.values()
    return {p.name: p.default for p in parameters if p.default is not p.empty}


@dataclass(frozen=True)
class _Graph:
    """A session and what it takes.

    Attributes:
        session: an onnxruntime.InferenceSession.
    """

    session: Any

    def run(self, arguments: Mapping[str, Any], defaults: Mapping[str, Any]) -> FloatArray:
        """The first output, float32.

        Args:
            arguments: of the original class, by name; the entries of a dictionary count as such.
            defaults: what the original class takes where nothing is given.

        Raises:
            UsageError: an argument that is missing, of another rank, or that the graph lacks.
        """
        declared = {item.name: item for item in self.session.get_inputs()}
        given = dict(_flat(arguments))
        for name, value in given.items():
            ignored = name in _COMPUTED or name in _SWITCHED or _is(value, defaults.get(name))
            if name not in declared and not ignored:
                raise UsageError(
                    f"{name} is given: expected nothing there, the exported transformer takes "
                    f"{', '.join(declared)}; leave it out"
                )
        missing = [name for name in declared if given.get(name) is None]
        if missing:
            raise UsageError(f"{missing[0]} is missing: the exported transformer needs it")
        rows = len(given["hidden_states"])
        feed = {name: _array(given[name], item, rows) for name, item in declared.items()}
        output: FloatArray = self.session.run(None, feed)[0]
        return output


def _flat(arguments: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Arguments with those inside dictionaries, such as added_cond_kwargs, among them."""
    for name, value in arguments.items():
        if isinstance(value, Mapping):
            yield from _flat(value)
        else:
            yield name, value


def _is(value: Any, default: Any) -> bool:
    """Whether `value` says nothing: None, or the default, which is not a tensor."""
    plain = isinstance(value, bool | int | float | str)
    return value is None or (plain and type(value) is type(default) and bool(value == default))


def _array(value: Tensor | float, item: Any, rows: int) -> npt.NDArray[Any]:
    """`value` as the input `item` takes it; one timestep for all is repeated `rows` times."""
    import torch

    tensor = torch.as_tensor(value).detach().to("cpu", getattr(torch, _TYPES[item.type]))
    rank = len(item.shape)
    if rank == 1 and tensor.ndim <= 1 and tensor.numel() == 1:
        tensor = tensor.reshape(1).expand(rows)
    if tensor.ndim != rank:
        raise UsageError(
            f"{item.name} has the shape {tuple(tensor.shape)}: expected {rank} dimensions, "
            f"as {item.shape}"
        )
    array: npt.NDArray[Any] = tensor.contiguous().numpy()
    return array


@functools.cache
def _module_class() -> Any:
    """The class of the modules, made when torch and diffusers are needed."""
    import torch
    from diffusers import ModelMixin
    from diffusers.configuration_utils import FrozenDict
    from diffusers.models.modeling_outputs import Transformer2DModelOutput

    from fp4dit_onnx.network.z_image import batch_of_lists

    class OnnxTransformer(ModelMixin):
        dtype = torch.float32
        device = torch.device("cpu")

        def __init__(
            self, graph: _Graph, original: Any, config: Mapping[str, Any], factor: int
        ) -> None:
            super().__init__()  # type: ignore[no-untyped-call]
            values = {**_defaults(original.__init__), **config}
            self.config = FrozenDict(values)  # type: ignore[no-untyped-call]
            self._graph, self._factor = graph, factor
            self._signature = inspect.signature(original.forward)
            self._argument_defaults = _defaults(original.forward)
            self.in_channels = size_of(self.config, "in_channels")
            if {"num_attention_heads", "attention_head_dim"} <= set(self.config):
                self.num_heads = size_of(self.config, "num_attention_heads")
                self.inner_dim = self.num_heads * size_of(self.config, "attention_head_dim")

        def forward(self, *arguments: Any, **named: Any) -> Any:
            given = self._signature.bind(self, *arguments, **named).arguments
            given.pop("self")
            return_dict = given.pop("return_dict", True)
            lists = "cap_feats" in given
            if lists:
                given |= batch_of_lists(*(given.pop(name) for name in ("x", "t", "cap_feats")))
            hidden = given["hidden_states"]
            check_latents(tuple(hidden.shape), self.config, self._factor)
            output = self._graph.run(given, self._argument_defaults)
            sample: Any = torch.from_numpy(output).to(hidden.device, hidden.dtype)
            sample = list(sample.unsqueeze(2)) if lists else sample
            return Transformer2DModelOutput(sample=sample) if return_dict else (sample,)

        @contextmanager
        def cache_context(self, *_: Any, **__: Any) -> Iterator[None]:
            """Nothing is cached between calls."""
            yield

    return OnnxTransformer
