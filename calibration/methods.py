"""Methods: how weights are quantized, as lists of stages that TOML files hold. No torch here.

A recipe file has a grid, ``[data]`` (calibration data), the stages in order, and presets
that change settings. ``extends`` starts from another recipe. A stage's keys are the fields of its
dataclass in `calibration.stages`; a table named after a stage changes that stage's settings.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, TypeVar

from fp4dit_onnx.calibration.recipe_tables import (
    DEFAULT_METHOD,
    changed,
    method_names,
    read_recipe,
    recipe_table,
)
from fp4dit_onnx.calibration.stages import INPUTS, KINDS, MAXIMA, MOMENTS, STAGES, WEIGHTS, Stage
from fp4dit_onnx.calibration.stages.branch import Branch
from fp4dit_onnx.calibration.stages.budget import Budget
from fp4dit_onnx.calibration.stages.evolve import Evolve
from fp4dit_onnx.calibration.stages.salient import SalientInputs
from fp4dit_onnx.errors import UsageError
from fp4dit_onnx.spec.low_rank import LowRank
from fp4dit_onnx.spec.spec import LayerSpec
from fp4dit_onnx.spec.transforms import TRANSFORMS
from fp4dit_onnx.values import real, whole

__all__ = [
    "INPUTS_FROM",
    "PARALLEL",
    "SEQUENTIAL",
    "Data",
    "Method",
    "measuring_names",
    "method_by_name",
    "preset_names",
    "range_names",
    "read_method",
]

SEQUENTIAL, PARALLEL = INPUTS_FROM = ("sequential", "parallel")
"""Where what a unit is trained on comes from, see `Data`."""
DEFAULT_PRESET = "balanced"
CHOOSING = ("transform", "branch", "choice", "budget")
_GRIDS = ("fp", "int")
Made = TypeVar("Made")


@dataclass(frozen=True)
class Data:
    """Data for calibration.

    Attributes:
        prompts: images that the float sampler generates.
        samples: inputs of the network that are recorded, both halves of guidance counted.
        even: share of the samples spread evenly over the timesteps; the others go where an error
            changes the final latents most.
        guided: weight of the guided combination's error beside that of its two halves.
        inputs: of a unit that is trained: ``sequential``, from the network quantized so far, or
            ``parallel``, from the float network, so that units do not wait for each other.
    """

    prompts: int
    samples: int
    even: float = 0.5
    guided: float = 1.0
    inputs: str = SEQUENTIAL

    def __post_init__(self) -> None:
        """Check the settings."""
        whole("data.prompts", self.prompts, 1)
        whole("data.samples", self.samples, 1)
        real("data.even", self.even, 0, 1)
        real("data.guided", self.guided, 0)
        if self.inputs not in INPUTS_FROM:
            raise UsageError(
                f"data.inputs {self.inputs!r}: expected one of {', '.join(INPUTS_FROM)}"
            )


@dataclass(frozen=True)
class Method:
    """How weights are quantized.

    Attributes:
        name: of the recipe.
        grid: ``fp`` for FP4DiT's formats, ``int`` for integers of the same bits.
        data: for calibration.
        stages: in order, one range and one rounding among them.
        presets: names of the efforts that the recipe knows.
    """

    name: str
    grid: str
    data: Data
    stages: tuple[Stage, ...]
    presets: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Check that the stages make a method."""
        order = [KINDS.index(stage.kind) for stage in self.stages]
        counts = {kind: sum(s.kind == kind for s in self.stages) for kind in ("range", "rounding")}
        if order != sorted(order) or set(counts.values()) != {1}:
            found = ", ".join(f"{use_of(s)} ({s.kind})" for s in self.stages) or "none"
            raise UsageError(
                f"recipe {self.name}: stages {found}: expected one range and one rounding, in the "
                f"order {', '.join(KINDS)}"
            )
        made = [(use_of(s), s.transform.name) for s in self.stages if hasattr(s, "transform")]
        order = [list(TRANSFORMS).index(name) for _, name in made]
        if order != sorted(set(order)):
            raise UsageError(
                f"recipe {self.name}: stages {', '.join(use for use, _ in made)}: expected one at most "
                f"for each transform, in the order {', '.join(TRANSFORMS)}"
            )
        rounding = next(stage for stage in self.stages if stage.kind == "rounding")
        if rounding.needs == INPUTS and any(isinstance(s, SalientInputs) for s in self.stages):
            raise UsageError(
                f"recipe {self.name}: {use_of(rounding)} trains between neighbours on a grid, and after "
                "salient most weights are a sign: expected another rounding, such as gptq"
            )

    @property
    def range(self) -> Stage:
        """The stage that finds scales."""
        return next(stage for stage in self.stages if stage.kind == "range")

    @property
    def after_choices(self) -> tuple[Stage, ...]:
        """The stages that follow transforms, a branch, choices and a budget."""
        return tuple(stage for stage in self.stages if stage.kind not in CHOOSING)

    @property
    def changes_specs(self) -> bool:
        """Whether a stage transforms or chooses: specifications are known once it ran."""
        return self.after_choices != self.stages

    @property
    def budget(self) -> Budget | None:
        """The budget of bits or quality, None for none."""
        return next((s for s in self.stages if isinstance(s, Budget) and s.asked), None)

    def branched(self, spec: LayerSpec, n: int, k: int) -> LayerSpec:
        """The specification of a layer [n, k] with the branch that a stage will find, where one does."""
        ranks = (s.rank_of(spec, n, k) for s in self.stages if isinstance(s, Branch))
        rank = next(ranks, 0)
        return replace(spec, branch=LowRank(rank)) if rank else spec

    def label(self, bits: str) -> str:
        """Bits as bundles say them: with signs for four fifths of the inputs w4a8 is w1.6a8."""
        salient = next((s for s in self.stages if isinstance(s, SalientInputs)), None)
        if salient is None:
            return bits
        weight, _, activations = bits.lower().removeprefix("w").partition("a")
        return f"w{salient.mean_bits(int(weight)):.3g}a{activations}"

    @property
    def evolution(self) -> Evolve | None:
        """The search over group sizes, None for none."""
        return next((s for s in self.stages if isinstance(s, Evolve)), None)

    def needs(self, what: str) -> bool:
        """Whether a stage looks at ``moments``, ``maxima`` (which come with them) or ``inputs``."""
        found = {stage.needs for stage in self.stages}
        return what in found or (what == MOMENTS and MAXIMA in found)

    @property
    def needs_data(self) -> bool:
        """Whether a stage looks at what layers receive, so at prompts and the float sampler."""
        return any(stage.needs != WEIGHTS for stage in self.stages)

    @property
    def iterations(self) -> int:
        """Iterations per unit, for progress."""
        return sum(stage.iterations for stage in self.stages)

    def with_budget(self, budget: Budget | None) -> Method:
        """The same with another budget, None for none."""
        rest = [stage for stage in self.stages if not isinstance(stage, Budget)]
        return self._with([*rest, *([budget] if budget else [])])

    def _with(self, stages: Iterable[Stage]) -> Method:
        """The same with these stages, in the order of their kinds."""
        return replace(self, stages=tuple(sorted(stages, key=lambda s: KINDS.index(s.kind))))

    def with_stage(self, use: str, **settings: Any) -> Method:
        """The same with a stage in place of those of its kind, or added; it keeps its other settings."""
        own: dict[str, Any] = next((vars(s) for s in self.stages if use_of(s) == use), {})
        stage = _stage(self.name, {"use": use, **own, **settings})
        return self._with([*(s for s in self.stages if s.kind != stage.kind), stage])

    def to_json(self) -> dict[str, Any]:
        """Plain data, as a recipe file has it."""
        stages = [{"use": use_of(s), **asdict(s)} for s in self.stages]  # type: ignore[call-overload]
        return {"grid": self.grid, "data": asdict(self.data), "stage": stages}


def use_of(stage: Stage) -> str:
    """The name of a stage in recipes."""
    return next(name for name, cls in STAGES.items() if type(stage) is cls)


def measuring_names() -> tuple[str, ...]:
    """Names of the recipes that measure second moments, as a budget needs them."""
    return tuple(name for name in method_names() if method_by_name(name).needs(MOMENTS))


def range_names() -> tuple[str, ...]:
    """Names of the stages that find scales."""
    return tuple(name for name, stage in STAGES.items() if stage.kind == "range")


def preset_names() -> tuple[str, ...]:
    """Names of the usual presets."""
    return tuple(recipe_table(DEFAULT_METHOD)["preset"])


def method_by_name(
    name: str, preset: str = DEFAULT_PRESET, range: str | None = None, **changes: float | str
) -> Method:
    """The method of a recipe of the package.

    Args:
        name: see `method_names`.
        preset: effort; without effect where the recipe has none.
        range: a range stage in place of the recipe's.
        changes: settings of its data or stages by name, such as ``samples`` or ``iterations``.

    Raises:
        UsageError: no such method, preset, range or setting; the message lists the known ones.
    """
    return _method(recipe_table(name), name, preset, range, changes)


def read_method(
    path: Path, preset: str = DEFAULT_PRESET, range: str | None = None, **changes: float | str
) -> Method:
    """The method of a recipe file; arguments as `method_by_name`.

    Raises:
        UsageError: the file cannot be read, or has an unknown key, stage or setting.
    """
    return _method(read_recipe(path), path.stem, preset, range, changes)


def _method(
    table: Mapping[str, Any],
    name: str,
    preset: str,
    range: str | None,
    changes: Mapping[str, float | str],
) -> Method:
    _check_tables(table, name)
    presets = table.get("preset", {})
    known = tuple(presets) or preset_names()
    if preset not in known:
        raise UsageError(f"unknown preset {preset!r}: expected one of {', '.join(known)}")
    table = changed(table, presets.get(preset, {}))
    rows = table.get("stage", ())
    stages = tuple(_stage(name, {**row, **table.get(row.get("use"), {})}) for row in rows)
    data = _checked(Data, table.get("data", {}), f"recipe {name}, data")
    method = Method(name, table["grid"], data, stages, tuple(presets))
    if range is not None:
        if range not in range_names():
            expected = ", ".join(range_names())
            raise UsageError(f"unknown range {range!r}: expected one of {expected}")
        if use_of(method.range) != range:
            method = method.with_stage(range)
    return with_settings(method, changes)


def _check_tables(table: Mapping[str, Any], name: str) -> None:
    """What the checks of single settings take for granted."""
    if table.get("grid") not in _GRIDS:
        raise UsageError(f"recipe {name}: grid {table.get('grid')!r}: expected fp or int")
    rows, presets = table.get("stage", []), table.get("preset", {})
    if not isinstance(rows, list) or not all(isinstance(row, Mapping) for row in rows):
        raise UsageError(f"recipe {name}: stage {rows!r}: expected tables, [[stage]]")
    if not isinstance(presets, Mapping) or not all(
        isinstance(changes, Mapping) for changes in presets.values()
    ):
        raise UsageError(f"recipe {name}: preset {presets!r}: expected tables, [preset.NAME]")
    own = {key: table[key] for key in ("data", *STAGES) if key in table}
    used = [row.get("use") for row in rows]
    for preset, changes in {"": own, **presets}.items():
        where = f"recipe {name}, preset {preset}" if preset else f"recipe {name}"
        for key, value in changes.items():
            if key not in ("data", *STAGES):
                raise UsageError(f"{where}: unknown key {key!r}: expected data or a stage")
            if not isinstance(value, Mapping):
                raise UsageError(f"{where}: {key} {value!r}: expected a table")
            if key in STAGES and key not in used:
                raise UsageError(f"{where}: settings of {key}, which is none of its stages")


def with_settings(method: Method, changes: Mapping[str, float | str]) -> Method:
    """The method with settings of its data or stages changed by name; what no stage has is left."""
    for key, value in changes.items():
        if key in {f.name for f in fields(Data)}:
            data = replace(method.data, **{key: value})  # type: ignore[arg-type]
            method = replace(method, data=data)
            continue
        changed = [
            replace(s, **{key: value}) if key in _names(s) else s  # type: ignore[type-var]
            for s in method.stages
        ]
        if not any(key in _names(stage) for stage in STAGES.values()):
            raise UsageError(f"unknown setting {key!r} of method {method.name!r}")
        method = replace(method, stages=tuple(changed))
    return method


def _names(stage: Stage | type[Stage]) -> set[str]:
    return {field.name for field in fields(stage)}  # type: ignore[arg-type]


def _stage(recipe: str, row: Mapping[str, Any]) -> Stage:
    use = row.get("use")
    if use not in STAGES:
        raise UsageError(
            f"recipe {recipe}: unknown stage {use!r}: expected one of {', '.join(STAGES)}"
        )
    settings = {key: value for key, value in row.items() if key != "use"}
    return _checked(STAGES[use], settings, f"recipe {recipe}, stage {use}")


def _checked(make: Callable[..., Made], settings: Mapping[str, Any], where: str) -> Made:
    """An instance of a dataclass from a table, its keys and types checked."""
    types = {field.name: str(field.type) for field in fields(make)}  # type: ignore[arg-type]
    for key, value in settings.items():
        if key not in types:
            known = ", ".join(types) or "none"
            raise UsageError(f"{where}: unknown setting {key!r}: expected one of {known}")
        if not _fits(value, types[key]):
            raise UsageError(f"{where}: {key} {value!r}: expected {types[key]}")
    try:
        return make(**settings)
    except TypeError as error:
        raise UsageError(f"{where}: {error}") from error


def _fits(value: object, kind: str) -> bool:
    accepted: dict[str, tuple[type, ...]] = {
        "int": (int,),
        "float": (int, float),
        "bool": (bool,),
        "str": (str,),
    }
    return isinstance(value, accepted[kind]) and (kind == "bool") == isinstance(value, bool)
