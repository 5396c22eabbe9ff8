"""The arithmetic of a denoising step as a model, for latents that stay in a device's memory."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from onnx import TensorProto, ValueInfoProto, helper

from fp4dit_onnx import ops

__all__ = ["StepModel", "step_model"]


@dataclass(frozen=True)
class StepModel:
    """What the model of a step depends on besides its numbers.

    Attributes:
        taps: samples and predictions that it looks at, its own the first.
        channels: of the transformer's output, those that are the prediction, along axis 1; None for
            all of it.
        guided: whether the output has two rows per image.
        negative_first: of these, whether the rows without the condition precede the others.
        stochastic: whether it takes noise.
    """

    taps: int
    channels: int | None
    guided: bool
    negative_first: bool
    stochastic: bool

    @property
    def samples(self) -> list[str]:
        """Names of the current sample and those before it."""
        return [f"x{tap}" for tap in range(self.taps)]

    @property
    def predictions(self) -> list[str]:
        """Names of the predictions, of which the first is an output."""
        return [f"o{tap}" for tap in range(self.taps)]

    @property
    def noise(self) -> list[str]:
        """Name of the noise, if there is any."""
        return ["z"] if self.stochastic else []


@lru_cache(maxsize=8)
def step_model(step: StepModel) -> bytes:
    """The model of a step, serialized.

    Inputs, float32: ``output`` of the transformer; ``guidance`` [1]; ``weights`` of the samples, the
    predictions, the noise if any, and of the next sample in what the transformer is given next; the
    samples, the predictions before this one, the noise. Outputs: ``next``, the next sample; ``o0``,
    this prediction; ``given``, the transformer's next rows.
    """
    terms = [*step.samples, *step.predictions, *step.noise]
    weights = [f"weight_of_{name}" for name in (*terms, "next")]
    node = helper.make_node
    constants, nodes = [], []
    prediction = "output"
    if step.channels is not None:
        for name, value in (("first", 0), ("end", step.channels), ("axis", 1)):
            constants.append(helper.make_tensor(name, TensorProto.INT64, [1], [value]))
        nodes.append(node("Slice", ["output", "first", "end", "axis"], ["prediction"]))
        prediction = "prediction"
    if step.guided:
        halves = ["without", "with"] if step.negative_first else ["with", "without"]
        nodes += [
            node("Split", [prediction], halves, axis=0, num_outputs=2),
            node("Sub", ["with", "without"], ["difference"]),
            node("Mul", ["difference", "guidance"], ["led"]),
            node("Add", ["without", "led"], ["o0"]),
        ]
    else:
        nodes.append(node("Identity", [prediction], ["o0"]))
    nodes.append(node("Split", ["weights"], weights, axis=0, num_outputs=len(weights)))
    products = [f"part_of_{name}" for name in terms]
    nodes += [
        node("Mul", [name, weight], [product])
        for name, weight, product in zip(terms, weights, products, strict=False)
    ]
    nodes.append(node("Sum", products, ["next"]))
    nodes.append(node("Mul", ["next", weights[-1]], ["rows"]))
    rows = ["rows"] * (2 if step.guided else 1)
    nodes.append(node("Concat", rows, ["given"], axis=0))
    taken = ["output", *step.samples, *step.predictions[1:], *step.noise]

    def tensor(name: str, shape: list[int] | None = None) -> ValueInfoProto:
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)

    graph = helper.make_graph(
        nodes,
        "step",
        [tensor("guidance", [1]), tensor("weights", [len(weights)]), *map(tensor, taken)],
        [tensor(name) for name in ("next", "o0", "given")],
        constants,
    )
    opset = helper.make_opsetid("", ops.OPSET)
    model = helper.make_model(graph, opset_imports=[opset], ir_version=ops.IR_VERSION)
    return bytes(model.SerializeToString())
