"""Options of schedulers: their defaults, and which of their values are known.

An option whose value is not known is refused, never ignored; so is one that no scheduler here has.
What another scheduler has, diffusers leaves in the file when schedulers are exchanged, and ignores.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from fp4dit_onnx.errors import UsageError
from fp4dit_onnx.values import real, whole

__all__ = [
    "BOOLEAN",
    "MOST_TIMESTEPS",
    "SCHEDULE",
    "SIGMAS",
    "SIGMA_BOUNDS",
    "SPACINGS",
    "THRESHOLDING",
    "Option",
    "Options",
    "checked_options",
    "nothing_or",
    "number",
    "whole_number",
]

Options = Mapping[str, Any]
Check = Callable[[str, Any], object]

MOST_TIMESTEPS = 100_000
"""Of training; a table of that many is made."""


@dataclass(frozen=True)
class Option:
    """One option.

    Attributes:
        default: diffusers' own.
        accepts: values that are known, or a function that raises UsageError, given name and value;
            None takes any, of options that act only together with a refused one.
        aliases: values that diffusers takes for another.
    """

    default: Any
    accepts: tuple[Any, ...] | Check | None = None
    aliases: Mapping[str, str] = field(default_factory=dict)


def number(least: float, most: float | None = None) -> Check:
    """Accepts numbers of a range."""
    return lambda name, value: real(name, value, least, most)


def whole_number(least: int, most: int) -> Check:
    """Accepts whole numbers of a range."""
    return lambda name, value: whole(name, value, least, most)


def nothing_or(check: Check) -> Check:
    """Accepts null too."""
    return lambda name, value: None if value is None else check(name, value)


def _variances(name: str, value: Any) -> None:
    if not isinstance(value, list | tuple) or not 2 <= len(value) <= MOST_TIMESTEPS:
        raise UsageError(f"{name}: expected a list of 2 to {MOST_TIMESTEPS} numbers")
    for one in value:
        real(name, one, 0, 1)


BOOLEAN = (True, False)
SPACINGS = ("linspace", "leading", "trailing")
SCHEDULE = {
    "num_train_timesteps": Option(1000, whole_number(2, MOST_TIMESTEPS)),
    "beta_start": Option(0.0001, number(0, 1)),
    "beta_end": Option(0.02, number(0, 1)),
    "beta_schedule": Option("linear", ("linear", "scaled_linear", "squaredcos_cap_v2")),
    "trained_betas": Option(None, nothing_or(_variances)),
    "prediction_type": Option("epsilon", ("epsilon", "v_prediction", "sample")),
    "timestep_spacing": Option("leading", SPACINGS),
    "steps_offset": Option(0, whole_number(0, MOST_TIMESTEPS)),
    "rescale_betas_zero_snr": Option(False, BOOLEAN),
}
"""Of the noise that models of epsilon, velocity and data were trained with."""
THRESHOLDING = {
    "thresholding": Option(False, (False,)),
    "dynamic_thresholding_ratio": Option(0.995),
    "sample_max_value": Option(1.0),
}
SIGMAS = {
    "use_karras_sigmas": Option(False, BOOLEAN),
    "use_exponential_sigmas": Option(False, BOOLEAN),
    "use_beta_sigmas": Option(False, (False,)),
}
"""How the noise falls along a run, at most one of them."""
SIGMA_BOUNDS = {
    "sigma_min": Option(None, nothing_or(number(1e-6))),
    "sigma_max": Option(None, nothing_or(number(1e-6))),
}
"""Of noise that falls by `SIGMAS`; null is the run's, or training's."""
FOREIGN = (
    "skip_prk_steps",
    "timestep_values",
)
"""Options that only schedulers have which are not known here."""


def checked_options(
    name: str, config: Options, known: Mapping[str, Option], others: Iterable[str] = ()
) -> dict[str, Any]:
    """`config` over the defaults of `known`; keys with a leading underscore are notes.

    Args:
        name: the scheduler, for messages.
        config: the contents of scheduler_config.json.
        known: its options.
        others: names of options that other schedulers have: ignored.

    Raises:
        UsageError: an option that is unknown, or whose value is not known.
    """
    options = {key: option.default for key, option in known.items()}
    ignored = {*others, *FOREIGN}
    for key, value in config.items():
        if key in known:
            options[key] = _checked(name, key, value, known[key])
        elif not key.startswith("_") and key not in ignored and value not in (None, False):
            raise UsageError(
                f"{name}: option {key} = {value!r} is not supported: remove it from "
                f"scheduler_config.json, or choose among {', '.join(sorted(known))}"
            )
    spacings = [key for key in SIGMAS if options.get(key)]
    if len(spacings) > 1:
        raise UsageError(
            f"{name}: {' and '.join(spacings)} are both true: expected at most one; set the others "
            "to false in scheduler_config.json"
        )
    return options


def _checked(name: str, key: str, value: Any, option: Option) -> Any:
    """`value` of an option, or what it is an alias of."""
    if isinstance(value, str):
        value = option.aliases.get(value, value)
    if callable(option.accepts):
        option.accepts(f"{name}: option {key}", value)
    elif option.accepts is not None and value not in option.accepts:
        raise UsageError(
            f"{name}: option {key} = {value!r} is not supported: "
            f"expected one of {', '.join(map(repr, option.accepts))}"
        )
    return value
