"""Text encodings of a run's prompts, computed before its first denoising step.

Text encoders can be many times larger than the transformer: each runs once over all prompts, equal
texts once among them, and nothing needs it afterwards.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.utils import _pytree as pytree

from fp4dit_onnx.calibration.patching import patched
from fp4dit_onnx.network.execution import HOST, Execution

__all__ = ["Encodings", "drop_encoders", "encode", "load_encodings"]

TOGETHER = 32
"""Prompts that an encoder is given at a time."""


class _Encoded(Exception):  # noqa: N818 - no error: it leaves a pipeline early
    """Raised to leave a pipeline once its prompts are encoded."""


@dataclass(frozen=True)
class Encodings:
    """What a pipeline's ``encode_prompt`` gives for each of a run's prompts.

    Attributes:
        parts: for each group of `TOGETHER` prompts, what each call returns.
        count: prompts.
    """

    parts: tuple[tuple[Any, ...], ...]
    count: int

    @contextmanager
    def given(self, pipeline: Any, chosen: range) -> Iterator[None]:
        """While open, the pipeline takes the encodings of the prompts `chosen` in place of encoding."""
        answers = iter(self._of(chosen))
        with patched(pipeline, "encode_prompt", lambda *_, **__: next(answers)):
            yield

    def save(self, file: Path) -> None:
        """Write them, from any device."""
        there = {"parts": HOST.there(self.parts), "count": self.count}
        partial = file.with_name(f".{file.name}.partial")
        torch.save(there, partial)
        partial.replace(file)

    def _of(self, chosen: range) -> list[Any]:
        """Each call's result for `chosen`, which lie in one group."""
        group, start = divmod(chosen.start, TOGETHER)
        count = min(TOGETHER, self.count - group * TOGETHER)
        rows = slice(start, start + len(chosen))
        return [_rows(result, count, rows) for result in self.parts[group]]


def load_encodings(file: Path, execution: Execution) -> Encodings:
    """What `Encodings.save` wrote, on a device."""
    found = torch.load(file, weights_only=True)
    return Encodings(execution.there(found["parts"]), found["count"])


def _rows(result: Any, count: int, rows: slice) -> Any:
    """A part of what was encoded for `count` prompts; what does not vary with them stays."""
    if isinstance(result, tuple):
        return tuple(_rows(each, count, rows) for each in result)
    if isinstance(result, list) and len(result) == count:  # of texts of unlike lengths
        return result[rows]
    varies = isinstance(result, torch.Tensor) and result.ndim > 1 and result.shape[0] == count
    return result[rows] if varies else result


def encode(pipeline: Any, count: int, run: Callable[[range], object]) -> Encodings:
    """Encode a run's prompts.

    Args:
        pipeline: of diffusers.
        count: prompts.
        run: begins to generate images of some of them with it; its transformer is not run.
    """
    found: list[tuple[Any, ...]] = []
    results: list[Any] = []

    def keep(original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        results.append(original(*args, **kwargs))
        return results[-1]

    def leave(*_: Any) -> None:
        raise _Encoded

    # Before the hooks of those who record calls of the transformer: this is none.
    handle = pipeline.transformer.register_forward_pre_hook(leave, prepend=True)
    encoders = [m for n, m in pipeline.components.items() if n.startswith("text_encoder") and m]
    try:
        with ExitStack() as stack:
            stack.enter_context(patched(pipeline, "encode_prompt", keep))
            for encoder in encoders:
                stack.enter_context(patched(encoder, "forward", _of_unlike_texts))
            for start in range(0, count, TOGETHER):
                results.clear()
                with suppress(_Encoded):
                    run(range(start, min(start + TOGETHER, count)))
                found.append(tuple(results))
    finally:
        handle.remove()
    return Encodings(tuple(found), count)


def _of_unlike_texts(original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """The results of an encoder, which runs once for texts that are the same, as empty ones are."""
    leaves, spec = pytree.tree_flatten((args, kwargs))
    tokens = next(leaf for leaf in leaves if isinstance(leaf, torch.Tensor))
    count = tokens.shape[0]
    at = [i for i, leaf in enumerate(leaves) if _has(leaf, count)]
    table = torch.cat([leaves[i].reshape(count, -1).long() for i in at], dim=1)
    _, place = torch.unique(table, dim=0, return_inverse=True)
    first = torch.stack(
        [(place == number).nonzero()[0, 0] for number in range(int(place.max()) + 1)]
    )
    for i in at:
        leaves[i] = leaves[i][first]
    few = pytree.tree_unflatten(leaves, spec)
    result = original(*few[0], **few[1])
    return pytree.tree_map(lambda leaf: leaf[place] if _has(leaf, len(first)) else leaf, result)


def _has(leaf: Any, count: int) -> bool:
    return isinstance(leaf, torch.Tensor) and leaf.ndim > 0 and leaf.shape[0] == count


def drop_encoders(pipeline: Any) -> None:
    """Let go of a pipeline's text encoders."""
    for name in pipeline.components:
        if name.startswith("text_encoder"):
            setattr(pipeline, name, None)
