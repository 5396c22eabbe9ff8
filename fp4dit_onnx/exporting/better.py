"""What to tell who exports with the default method: the recipe that keeps more."""

from __future__ import annotations

from dataclasses import replace

from fp4dit_onnx.calibration.recipe_tables import DEFAULT_METHOD, recipe_table
from fp4dit_onnx.errors import UsageError
from fp4dit_onnx.exporting.plan import Plan, plan
from fp4dit_onnx.system.texts import size

__all__ = ["better_recipe"]

BETTER_METHOD = "tuned"


def better_recipe(planned: Plan) -> str | None:
    """A line on the recipe that keeps more than the default; None where another was asked for.

    None too where what else is asked for does not go with it.
    """
    request = planned.request
    if request.method != DEFAULT_METHOD or request.recipe is not None:
        return None
    measured = recipe_table(BETTER_METHOD).get("measured", {}).get(request.resolved_bits.lower())
    if measured is None:
        return None
    try:
        other = plan(replace(request, method=BETTER_METHOD))
    except UsageError:
        return None
    after, before = other.totals.transformer_bytes, planned.totals.transformer_bytes
    return f"--method {BETTER_METHOD}: {measured}; {size(after)} in place of {size(before)}"
