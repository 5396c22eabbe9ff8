"""Where a transformer's inputs come from that no denoising step changes.

Each kind of source is a frozen dataclass of settings with one function. The page reads the same
settings from families.json, and ``web/js/sources.js`` has the same functions under the same names.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from fp4dit_onnx.errors import BundleError, UsageError
from fp4dit_onnx.families.config import size_of
from fp4dit_onnx.families.request import Encoded, Request, Text, has_component
from fp4dit_onnx.files import BUNDLE, checked

__all__ = [
    "ClassLabels",
    "Grid",
    "Mask",
    "Numbers",
    "Order",
    "Pooled",
    "Source",
    "States",
    "Wanted",
    "Zeros",
]

Array = npt.NDArray[Any]
_NUMBER = re.compile(r"[0-9]{1,9}")


@dataclass(frozen=True)
class Wanted:
    """One input of a batch.

    Attributes:
        request: the batch.
        encoded: gives the rows' texts as one of the pipeline's encoders has them.
        dims: of the input, as `InputSpec` has them.
        dtype: of the input.
    """

    request: Request
    encoded: Callable[[Text], Encoded]
    dims: tuple[str | int, ...]
    dtype: str


class Source(Protocol):
    """Gives one input of the transformer for all rows of a batch.

    One that reads no text raises UsageError for a request that no image can be generated of.
    """

    @property
    def texts(self) -> tuple[Text, ...]:
        """What has to be encoded for it."""

    def __call__(self, wanted: Wanted) -> Array:
        """The input, of the dims and dtype wanted."""


@dataclass(frozen=True)
class States:
    """What text encoders give for each token, [rows, L, D].

    Attributes:
        parts: their tokens follow each other; within a part the vectors of each token are joined.
            Narrower parts are padded with zeros at the end.
    """

    parts: tuple[tuple[Text, ...], ...]

    @property
    def texts(self) -> tuple[Text, ...]:
        """Those of all parts."""
        return tuple(text for part in self.parts for text in part)

    def __call__(self, wanted: Wanted) -> Array:
        """Zeros stand for an encoder that the pipeline does without."""
        found = [_states(part, wanted) for part in self.parts]
        width = max(states.shape[2] for states in found)
        padded = [np.pad(s, ((0, 0), (0, 0), (0, width - s.shape[2]))) for s in found]
        return np.concatenate(padded, axis=1)


def _states(part: tuple[Text, ...], wanted: Wanted) -> Array:
    request, first = wanted.request, part[0]
    if first.optional and not has_component(request.model_index, first.encoder):
        width = size_of(request.transformer_config, str(wanted.dims[-1]))
        return np.zeros((request.rows, first.tokens(request), width), np.float32)
    return np.concatenate([_of_text(text, wanted.encoded(text)) for text in part], axis=2)


def _of_text(text: Text, encoded: Encoded) -> Array:
    return (
        encoded.states * encoded.mask[..., None].astype(np.float32)
        if text.blank
        else encoded.states
    )


@dataclass(frozen=True)
class Mask:
    """Which tokens of a text are no padding, [rows, L]."""

    text: Text

    @property
    def texts(self) -> tuple[Text, ...]:
        """The one."""
        return (self.text,)

    def __call__(self, wanted: Wanted) -> Array:
        """As the tokenizer has it."""
        return wanted.encoded(self.text).mask


@dataclass(frozen=True)
class Pooled:
    """One vector per text, those of several encoders joined, [rows, P]."""

    texts: tuple[Text, ...]

    def __call__(self, wanted: Wanted) -> Array:
        """Raises BundleError where an encoder gives none."""
        found = {text.encoder: wanted.encoded(text).pooled for text in self.texts}
        for encoder, pooled in found.items():
            if pooled is None:
                raise BundleError(
                    f"{encoder} gives no vector for a whole text: expected one; export the bundle again"
                )
        return np.concatenate([p for p in found.values() if p is not None], axis=1)


@dataclass(frozen=True)
class Numbers:
    """The same numbers in each row, [rows, numbers], or [rows] where the input has that one axis.

    Attributes:
        values: numbers, or what is known of the image: height and width in pixels, aspect_ratio
            of the one over the other, guidance.
    """

    values: tuple[float | str, ...]

    @property
    def texts(self) -> tuple[Text, ...]:
        """None."""
        return ()

    def __call__(self, wanted: Wanted) -> Array:
        """See `Numbers`."""
        sampling = wanted.request.sampling
        known: Mapping[Any, float] = {
            "height": sampling.height,
            "width": sampling.width,
            "aspect_ratio": sampling.height / sampling.width,
            "guidance": sampling.guidance,
        }
        row = np.array([known.get(value, value) for value in self.values], wanted.dtype)
        rows = np.tile(row, (wanted.request.rows, 1))
        return rows if len(wanted.dims) > 1 else rows[:, 0]


@dataclass(frozen=True)
class Grid:
    """Zero, row and column of each token of the image, and zeros after them, [tokens, n].

    Attributes:
        pixels: of the image in a token, along one side.
    """

    pixels: int

    @property
    def texts(self) -> tuple[Text, ...]:
        """None."""
        return ()

    def __call__(self, wanted: Wanted) -> Array:
        """See `Grid`."""
        sampling = wanted.request.sampling
        grid = np.indices((sampling.height // self.pixels, sampling.width // self.pixels))
        places = np.pad(grid.reshape(2, -1).T, ((0, 0), (1, int(wanted.dims[1]) - 3)))
        return places.astype(wanted.dtype)


@dataclass(frozen=True)
class Zeros:
    """Zeros for each token of a text, [L, n]."""

    text: Text

    @property
    def texts(self) -> tuple[Text, ...]:
        """None: only their number counts."""
        return ()

    def __call__(self, wanted: Wanted) -> Array:
        """See `Zeros`."""
        return np.zeros((self.text.tokens(wanted.request), int(wanted.dims[1])), wanted.dtype)


@dataclass(frozen=True)
class Order:
    """Zeros and, last of all, the place of each token of a text, [L, n]."""

    text: Text

    @property
    def texts(self) -> tuple[Text, ...]:
        """None: only their number counts."""
        return ()

    def __call__(self, wanted: Wanted) -> Array:
        """See `Order`."""
        places = np.arange(self.text.tokens(wanted.request))[:, None]
        return np.pad(places, ((0, 0), (int(wanted.dims[1]) - 1, 0))).astype(wanted.dtype)


@dataclass(frozen=True)
class _Index:
    """What model_index.json says of classes: names, with commas, by number."""

    id2label: Mapping[str, str] | None = None


@dataclass(frozen=True)
class ClassLabels:
    """The class that a prompt names or numbers, [rows]; without the condition the one after the last.

    Attributes:
        key: of the transformer's config, which has how many classes there are.
        classes: the same where the config does not say.
    """

    key: str
    classes: int

    @property
    def texts(self) -> tuple[Text, ...]:
        """None: prompts are not texts here."""
        return ()

    def __call__(self, wanted: Wanted) -> Array:
        """Raises UsageError for a prompt that is not a class."""
        request = wanted.request
        classes = int(request.transformer_config.get(self.key) or self.classes)
        names = _numbers_by_name(request, classes)
        labels = [_class_of(prompt, names, classes) for prompt in request.prompts]
        return np.array(request.in_order(labels, classes), wanted.dtype)


def _numbers_by_name(request: Request, classes: int) -> dict[str, int]:
    """Class numbers by name; a class of several names, such as "tench, Tinca tinca", has each."""
    names = checked(_Index, request.model_index, "model_index.json", BUNDLE).id2label or {}
    wrong = [n for n in names if not _NUMBER.fullmatch(n) or int(n) >= classes]
    if wrong:
        raise BundleError(
            f"model_index.json: id2label.{wrong[0][:20]} is not a number of a class: expected 0 to "
            f"{classes - 1}, as many as the transformer has; copy or export the bundle again"
        )
    return {
        name.strip(): int(number) for number, text in names.items() for name in text.split(",")
    }


def _class_of(prompt: str, numbers: Mapping[str, int], classes: int) -> int:
    """The class that `prompt` names or numbers."""
    name = prompt.strip()
    if name in numbers:
        return numbers[name]
    if _NUMBER.fullmatch(name) and int(name) < classes:
        return int(name)
    near = difflib.get_close_matches(name, numbers, 3, 0.5)
    hint = f", such as {' or '.join(map(repr, near))}" if near else ""
    expected = f"a number from 0 to {classes - 1}"
    expected += f" or a name of id2label in model_index.json{hint}" if numbers else ""
    raise UsageError(f"no class {prompt!r}: expected {expected}")
