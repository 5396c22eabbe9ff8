"""The custom-op library through real ONNX Runtime sessions, bit for bit against `numerics`.

The instruction set is chosen once a process, so test_library.py checks each one in a process of its
own: this file is also that process's program.
"""

from __future__ import annotations

import itertools
import json
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime as ort
import pytest
from one_layer import (
    Layer,
    activations,
    custom,
    expect,
    layer_session,
    same,
    session,
    value_info,
)
from onnxruntime.capi.onnxruntime_pybind11_state import RuntimeException

from fp4dit_onnx import ops
from fp4dit_onnx.numbers import numerics
from fp4dit_onnx.numbers.formats import FORMATS, FloatFormat
from fp4dit_onnx.runtime.library import Library

Array = npt.NDArray[Any]

ROWS = (0, 1, 2, 5, 17)
SHAPES = ((37, 70, 32), (16, 64, 64), (5, 33, 7), (1, 1, 1), (40, 300, 128), (17, 257, 300))
"""N, K, group size: whole panels and not, short last groups, groups longer than a chunk."""


def layers() -> Iterator[Layer]:
    """Every activation format with every weight format that FpLinear takes with it."""
    acts: list[FloatFormat | None] = [None, *FORMATS.values()]
    index = 0
    for act in acts:
        for weight in FORMATS.values():
            integer = act is not None and act.integer_type != np.float32
            if integer and weight.integer_type == np.float32:
                continue
            n, k, group_size = SHAPES[index % len(SHAPES)]
            yield Layer(act, weight, n, k, group_size, half=index % 3 != 0, seed=index)
            index += 1


def check_layer(layer: Layer, threads: int) -> None:
    run = layer_session(layer, threads)
    names = [o.name for o in run.get_outputs()]
    x = activations(max(ROWS), layer.k, layer.seed)
    q, s = numerics.quantize(x, layer.act) if layer.act else (x, np.ones(1, np.float32))
    wanted = {"y": layer.reference(q, s), "q": q, "s": s}
    wanted["d"] = numerics.dequantize(q, s, layer.k)
    for rows in ROWS:
        found = dict(zip(names, run.run(None, {"x": x[:rows]}), strict=True))
        unpacked = np.nan_to_num(numerics.decode(layer.codes, layer.weight))
        expect(found.pop("u"), unpacked, f"{layer.name}: u")
        for name, value in found.items():
            expect(value, wanted[name][:rows], f"{layer.name}, {rows} rows: {name}")


def direct_session(layer: Layer, constant: bool, threads: int = 1) -> ort.InferenceSession:
    """FpLinear alone, with q and its scale as inputs, and the weights if they are not constant."""
    weights = {"codes": layer.packed(), "ws": layer.scale, "bias": layer.bias}
    inputs = [value_info("q", layer.q_type, ["b", "t", layer.k])]
    inputs.append(value_info("s", np.float32, ["b", "t", 1]))
    if not constant:
        inputs += [value_info(name, w.dtype, w.shape) for name, w in weights.items()]
    node = custom(ops.LINEAR, ["q", "s", "codes", "ws", "bias"], ["y"], **layer.attributes())
    return session([node], inputs, [("y", np.float32)], weights if constant else {}, threads)


def check_any_integers(constant: bool) -> None:
    """Integers of the whole type for int8, beyond what the formats have, and many rows."""
    for act, weight in (("e2m3", "e2m1"), ("e2m1", "e3m0"), ("int8", "int8"), ("e3m4", "e1m2")):
        layer = Layer(FORMATS[act], FORMATS[weight], 35, 200, 128, seed=7)
        random = np.random.default_rng(8)
        limit = 128 if layer.act and layer.act.max_integer <= 127 else 1984
        q = random.integers(-limit, limit, (3, 47, 200)).astype(layer.q_type)
        q[1] = -limit
        s = random.standard_normal((3, 47, 1)).astype(np.float32)
        feed = {"q": q, "s": s}
        if not constant:
            feed |= {"codes": layer.packed(), "ws": layer.scale, "bias": layer.bias}
        wanted = layer.reference(q.reshape(-1, 200), s.reshape(-1, 1)).reshape(3, 47, 35)
        for threads in (1, 2):
            run = direct_session(layer, constant, threads)
            for _ in range(2):
                expect(run.run(None, feed)[0], wanted, f"{layer.name}, constant {constant}")


def check_dequantize_groups() -> None:
    random = np.random.default_rng(9)
    for dtype in (np.int8, np.int16, np.float32):
        for scale_dtype in (np.float32, np.float16):
            for scale_rows in (6, 1):
                q: Array = random.integers(-100, 100, (6, 50)).astype(dtype)
                s: Array = random.standard_normal((scale_rows, 4)).astype(scale_dtype)
                node = custom(
                    ops.DEQUANTIZE,
                    ["q", "s"],
                    ["y"],
                    **ops.dequantize_attributes(FORMATS["int8"], 16),
                )
                inputs = [value_info("q", dtype, q.shape), value_info("s", scale_dtype, s.shape)]
                found = session([node], inputs, [("y", np.float32)], {}).run(
                    None, {"q": q, "s": s}
                )
                expect(
                    found[0], numerics.dequantize(q, s, 16), f"dequantize {dtype} {scale_dtype}"
                )


def one_group(act: FloatFormat, weight: FloatFormat, k: int) -> None:
    """Make a kernel for one group of `k` products."""
    weights = {
        "codes": (np.uint8, ("n", -(-k * weight.storage_bits // 8))),
        "ws": (np.float32, ("n", 1)),
        "bias": (np.float32, ("n",)),
    }
    inputs = [value_info("q", act.integer_type, ("m", k)), value_info("s", np.float32, ("m", 1))]
    inputs += [value_info(name, dtype, shape) for name, (dtype, shape) in weights.items()]
    attributes = ops.linear_attributes(act, weight, k, k)
    node = custom(ops.LINEAR, ["q", "s", *weights], ["y"], **attributes)
    session([node], inputs, [("y", np.float32)], {})


def check_longest_groups() -> None:
    """The library's bound of a group is numerics.largest_sum, for all pairs of formats."""
    integer = [fmt for fmt in FORMATS.values() if fmt.integer_type != np.float32]
    for act, weight in itertools.product(integer, integer):
        longest = (numerics.SUM_LIMIT - 1) // numerics.largest_sum(act, weight, 1)
        one_group(act, weight, longest)
        with pytest.raises(RuntimeException, match=f"a group of {longest + 1} products"):
            one_group(act, weight, longest + 1)


def check_everything() -> None:
    """What a process for one instruction set does; prints the counters as JSON."""
    library = Library()  # first: the counters live as long as the library stays loaded
    np.seterr(all="ignore")
    for index, layer in enumerate(layers()):
        check_layer(layer, 1 + index % 2)
    check_any_integers(constant=True)
    check_any_integers(constant=False)
    check_dequantize_groups()
    check_longest_groups()
    print(json.dumps(library.counters()))


def test_comparator_sees_differences() -> None:
    one = np.array([1.0, np.nan], np.float32)
    assert same(one, one.copy())
    assert not same(one, np.array([-1.0, np.nan], np.float32))
    assert not same(
        one, np.array([np.nextafter(np.float32(1), np.float32(2)), np.nan], np.float32)
    )
    assert not same(one, np.array([1.0, 1.0], np.float32))
    assert not same(one, one.astype(np.float64))
    assert not same(one, one[:1])


def test_counters_tell_what_ran() -> None:
    library = Library()
    run = layer_session(Layer(FORMATS["e2m3"], FORMATS["e2m1"], 5, 40, 16))
    library.reset_counters()
    assert library.counters() == {}
    for _ in range(3):
        run.run(None, {"x": activations(2, 40, 0)})
    counters = library.counters()
    isa = library.isa
    assert counters[f"FpLinear/int8/{isa}"] == 3
    assert counters[f"FpQuantize/int8/{isa}"] == 3
    run.run(None, {"x": activations(0, 40, 0)})
    assert library.counters()[f"FpLinear/int8/{isa}"] == 3


def test_shapes_are_inferred() -> None:
    run = layer_session(Layer(FORMATS["e2m3"], FORMATS["e2m1"], 5, 40, 16), lead=("b", "t"))
    shapes = {o.name: o.shape for o in run.get_outputs()}
    assert shapes == {
        "y": ["b", "t", 5],
        "u": [5, 40],
        "q": ["b", "t", 40],
        "s": ["b", "t", 1],
        "d": ["b", "t", 40],
    }


def test_unknown_rank_runs() -> None:
    layer = Layer(FORMATS["e2m3"], FORMATS["e2m1"], 5, 40, 16)
    node = custom(ops.quantize_op(FORMATS["e2m3"]), ["x"], ["q", "s"], **QUANTIZE)
    inputs = [value_info("x", np.float32, None)]
    run = session([node], inputs, [("q", np.int8), ("s", np.float32)], {})
    x = activations(17, 40, layer.seed).reshape(17, 1, 1, 40)
    q, s = numerics.quantize(x, FORMATS["e2m3"])
    found = run.run(None, {"x": x})
    expect(found[0], q, "q")
    expect(found[1], s, "s")


QUANTIZE = ops.quantize_attributes(FORMATS["e2m3"])


def test_sessions_in_threads() -> None:
    layer = Layer(FORMATS["e2m3"], FORMATS["e2m1"], 37, 130, 32)
    run = layer_session(layer, threads=2)
    x = np.random.default_rng(0).standard_normal((9, 130)).astype(np.float32)
    wanted = run.run(["y"], {"x": x})[0]
    found: list[Array] = []

    def work() -> None:
        found.extend(run.run(["y"], {"x": x})[0] for _ in range(20))

    workers = [threading.Thread(target=work) for _ in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert len(found) == 60
    assert all(same(y, wanted) for y in found)


BASE = Layer(FORMATS["e2m3"], FORMATS["e2m1"], 5, 40, 16)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"weight_format": "e9m9"}, ["'weight_format' is 'e9m9'", "e2m1, e1m2"]),
        ({"act_format": "e3m4"}, ["input 'q' is int8", "wanted int16", "e3m4"]),
        ({"group_size": 0}, ["'group_size' is 0"]),
        ({"group_size": 8}, ["'weight_scale' has shape [5, 3]", "[5, 5]"]),
        ({"K": 41, "act_group_size": 41}, ["'codes' has shape [5, 20]", "[N, 21]", "K = 41"]),
        ({"grid": [0.0] * 16}, ["'grid' has 0 at entry 1", "wanted 1"]),
        ({"K": None}, ["'K' is missing"]),
    ],
)
def test_wrong_attributes_are_named(changes: dict[str, Any], words: list[str]) -> None:
    given = {k: v for k, v in (BASE.attributes() | changes).items() if v is not None}
    weights = {"codes": BASE.packed(), "ws": BASE.scale, "bias": BASE.bias}
    node = custom(ops.LINEAR, ["q", "s", "codes", "ws", "bias"], ["y"], **given)
    inputs = [value_info("q", np.int8, ["m", "k"]), value_info("s", np.float32, ["m", 1])]
    feed = {"q": np.zeros((2, 40), np.int8), "s": np.ones((2, 1), np.float32)}
    with pytest.raises(Exception, match="FpLinear node 'the_FpLinear'") as error:
        session([node], inputs, [("y", np.float32)], weights).run(None, feed)
    for word in words:
        assert word in str(error.value)


@pytest.mark.parametrize(
    ("feed", "words"),
    [
        ({"q": np.zeros((2, 39), np.int8)}, ["'q' has shape [2, 39]", "K = 40"]),
        ({"s": np.zeros((3, 1), np.float32)}, ["'scale' has shape [3, 1]", "[2, 40]"]),
        ({"codes": np.zeros((5, 19), np.uint8)}, ["'codes' has shape [5, 19]", "[N, 20]"]),
        ({"ws": np.zeros((4, 3), np.float16)}, ["'weight_scale' has shape [4, 3]", "[5, 3]"]),
        ({"bias": np.zeros(6, np.float32)}, ["'bias' has shape [6]", "[5]"]),
    ],
)
def test_wrong_inputs_are_named(feed: dict[str, Array], words: list[str]) -> None:
    right: dict[str, Array] = {
        "q": np.zeros((2, 40), np.int8),
        "s": np.ones((2, 1), np.float32),
        "codes": BASE.packed(),
        "ws": BASE.scale,
        "bias": BASE.bias,
    }
    inputs = [value_info(k, v.dtype, [f"{k}{i}" for i in range(v.ndim)]) for k, v in right.items()]
    node = custom(ops.LINEAR, list(right), ["y"], **BASE.attributes())
    run = session([node], inputs, [("y", np.float32)], {})
    expect(run.run(None, right)[0], np.broadcast_to(BASE.bias, (2, 5)).copy(), "y of zeros")
    with pytest.raises(Exception, match="FpLinear node 'the_FpLinear'") as error:
        run.run(None, right | feed)
    for word in words:
        assert word in str(error.value)


def test_quantize_names_the_operator_wanted() -> None:
    node = custom("FpQuantize", ["x"], ["q", "s"], **ops.quantize_attributes(FORMATS["e3m4"]))
    outputs: list[tuple[str, npt.DTypeLike]] = [("q", np.int8), ("s", np.float32)]
    with pytest.raises(Exception, match="wanted op FpQuantizeInt16"):
        session([node], [value_info("x", np.float32, ["m", 8])], outputs, {})


if __name__ == "__main__":
    check_everything()
