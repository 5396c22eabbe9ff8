"""How tools/hostile.py alters files: a grammar, driven by a random generator."""

from __future__ import annotations

import copy
import json
import os
import random
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx

__all__ = ["CANARY", "SECRET", "alter"]

CANARY = "canary-7c1e: no file outside the folder is read"
"""What a file beside the altered folder holds; nothing of it may come out."""
SECRET = "secret.txt"

RAW = {
    "@@nan@@": "NaN",
    "@@infinity@@": "-Infinity",
    "@@overflow@@": "1e999",
    "@@digits@@": "9" * 5000,
    "@@deep@@": "[" * 5000 + "]" * 5000,
    "@@deep objects@@": '{"a":' * 300 + "1" + "}" * 300,
    "@@surrogate@@": '"\\ud800"',
    "@@twice@@": '{"shape": 1, "shape": 2}',
}
"""What json.dumps does not write, by what stands for it."""
VALUES: tuple[Any, ...] = (
    *RAW,
    *(None, True, False, 0, -1, 1, 3, 2**31, 2**40, 2**63, 10**30, 0.5, -0.0, 1e-320, 1e308),
    *(
        "",
        "eight",
        "a" * 10_000,
        "\x1b[31mred\x1b[0m",
        "\0",
        "line\nline",
        "äöü\u202e",
        "*",
        "%s{0}",
    ),
    *(f"../{SECRET}", f"../../{SECRET}", "/etc/passwd", "..", ".", "/", "a/b", "con"),
    *([], {}, [[]], [None, None], [1, "a", None], {"": None}, [0] * 1000, [2**40, 2**40]),
    *("Transformer2DModel", "PixArtSigmaPipeline", "UniPCMultistepScheduler", "os.system"),
    *(
        ["diffusers", "AutoencoderKL"],
        ["os", "system"],
        "float16",
        "F16",
        "e2m1",
        "w4a6",
        "sigmoid",
    ),
)


def alter(rng: random.Random, path: Path, folder: Path) -> str:
    """Alter one file of `folder`; returns what was done. The file is replaced, never written into."""
    data = path.read_bytes()
    if rng.random() < 0.08:
        return _misplaced(rng, path, folder)
    if rng.random() < 0.15:
        changed, what = _bytes(rng, data)
    else:
        changed, what = _GRAMMARS.get(path.suffix, _bytes)(rng, data)
    path.unlink()
    path.write_bytes(changed)
    return what


def _misplaced(rng: random.Random, path: Path, folder: Path) -> str:
    """Something else in the file's place."""
    kinds: dict[str, Callable[[], object]] = {
        "absent": lambda: None,
        "a folder": path.mkdir,
        "a link to a file outside": lambda: path.symlink_to(folder.parent / SECRET),
        "a link to itself": lambda: path.symlink_to(path),
        "a link to nothing": lambda: path.symlink_to("nothing"),
        "a pipe": lambda: os.mkfifo(path),
        "a device": lambda: path.symlink_to("/dev/zero"),
    }
    what = rng.choice(sorted(kinds))
    path.unlink()
    kinds[what]()
    return what


def _bytes(rng: random.Random, data: bytes) -> tuple[bytes, str]:
    """Damage below any format."""
    at = rng.randrange(len(data) + 1)
    end = min(len(data), at + rng.choice((1, 4, 1000)))
    kinds: dict[str, Callable[[], bytes]] = {
        "empty": lambda: b"",
        "truncated": lambda: data[:at],
        "bits": lambda: (
            data[:at] + bytes(b ^ (1 << rng.randrange(8)) for b in data[at:end]) + data[end:]
        ),
        "bytes inserted": lambda: data[:at] + rng.randbytes(rng.choice((1, 8, 300))) + data[at:],
        "bytes lost": lambda: data[:at] + data[end:],
        "twice": lambda: data + data,
        "byte order mark": lambda: b"\xef\xbb\xbf" + data,
        "UTF-16": lambda: data[:100_000].decode("latin-1").encode("utf-16"),
        "NULs": lambda: bytes(64) + data,
        "a page of HTML": lambda: b"<!doctype html><title>404</title>",
        "a pointer of git LFS": lambda: (
            b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n"
        ),
        "open brackets": lambda: b"[" * 200_000,
    }
    what = rng.choice(sorted(kinds))
    return kinds[what](), what


def _json(rng: random.Random, data: bytes) -> tuple[bytes, str]:
    """A few values of a JSON text replaced, lost, renamed or repeated."""
    content = json.loads(data)
    done = []
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        if rng.random() < 0.03:
            content = copy.deepcopy(rng.choice(VALUES))
        done.append(_edit(rng, content))
    text = json.dumps(content)
    for token, raw in RAW.items():
        text = text.replace(json.dumps(token), raw)
    return text.encode("utf-8", "surrogatepass"), "; ".join(done)


def _edit(rng: random.Random, content: Any) -> str:
    holder, key, place = content, None, ""
    while isinstance(holder, dict | list) and holder:
        key = (
            rng.choice(sorted(holder)) if isinstance(holder, dict) else rng.randrange(len(holder))
        )
        place += f"/{str(key)[:60]}"
        inner = holder[key]
        if not (isinstance(inner, dict | list) and inner) or rng.random() < 0.25:
            break
        holder = inner
    if key is None:
        return "the whole"
    value = copy.deepcopy(rng.choice(VALUES))  # later edits may go into it
    kind = rng.random()
    if kind < 0.7:
        holder[key] = value
        return f"{place} = {str(value)[:40]!r}"
    if kind < 0.85:
        del holder[key]
        return f"{place} is lost"
    if isinstance(holder, dict):
        holder[str(value)[:200]] = holder[key]
        return f"{place} also as {str(value)[:40]!r}"
    holder.insert(0, value)
    return f"{str(value)[:40]!r} before {place}"


def _safetensors(rng: random.Random, data: bytes) -> tuple[bytes, str]:
    """A header whose values, or whose length, are others."""
    (length,) = struct.unpack("<Q", data[:8])
    if rng.random() < 0.2:
        said = rng.choice((0, 1, length - 1, length + 1, len(data), 2**31, 2**63 - 1, 2**64 - 1))
        return struct.pack("<Q", said) + data[8:], f"a header of {said} bytes"
    header, what = _json(rng, data[8 : 8 + length])
    return struct.pack("<Q", len(header)) + header + data[8 + length :], what


def _onnx(rng: random.Random, data: bytes) -> tuple[bytes, str]:
    """A model with other nodes, attributes, tensors or operator sets."""
    model = onnx.ModelProto.FromString(data)
    graph, done = model.graph, []
    for _ in range(rng.choice((1, 1, 2, 3))):
        kind = rng.choice(sorted(_MODEL_EDITS))
        try:
            _MODEL_EDITS[kind](rng, model, graph)
        except (IndexError, ValueError):  # it has no such part
            continue
        done.append(kind)
    return model.SerializeToString(), ", ".join(done) or "nothing"


def _change_node(rng: random.Random, model: Any, graph: Any) -> None:
    node = rng.choice(graph.node)
    node.op_type = rng.choice(("Nothing", "MatMul", "FpLinear", "Loop", "\x1b[31m", ""))


def _lose_node(rng: random.Random, model: Any, graph: Any) -> None:
    del graph.node[rng.randrange(len(graph.node))]


def _change_input(rng: random.Random, model: Any, graph: Any) -> None:
    node = rng.choice([n for n in graph.node if n.input])
    others = [t.name for t in graph.initializer] + ["", "nothing", node.output[0]]
    node.input[rng.randrange(len(node.input))] = rng.choice(others)


def _change_attribute(rng: random.Random, model: Any, graph: Any) -> None:
    attribute = rng.choice(rng.choice([n for n in graph.node if n.attribute]).attribute)
    attribute.i = rng.choice((0, -1, 2**40, -(2**63)))
    attribute.s = rng.choice((b"", b"e9m9", b"\xff\xfe", b"e2m1"))


def _change_tensor(rng: random.Random, model: Any, graph: Any) -> None:
    tensor = rng.choice(graph.initializer)
    kind = rng.randrange(3)
    if kind == 0:
        tensor.dims[:] = rng.choice(([2**40, 2**40], [-1], [0], [], [1, 1, 1, 1], [2**31]))
    elif kind == 1:
        tensor.data_type = rng.choice((0, 1, 7, 8, 16, 99))
    else:
        tensor.name = rng.choice(("", "\0", graph.initializer[0].name, "a" * 5000))


def _change_data(rng: random.Random, model: Any, graph: Any) -> None:
    entry = rng.choice(rng.choice([t for t in graph.initializer if t.external_data]).external_data)
    entry.value = rng.choice(
        (
            f"../{SECRET}",
            f"../../{SECRET}",
            "/etc/passwd",
            "",
            "-1",
            str(2**63),
            "eight",
            "model.onnx",
        )
    )


def _change_opset(rng: random.Random, model: Any, graph: Any) -> None:
    opset = rng.choice(model.opset_import)
    opset.version = rng.choice((-1, 0, 1, 99, 2**40))
    opset.domain = rng.choice((opset.domain, "nobody", ""))


def _change_interface(rng: random.Random, model: Any, graph: Any) -> None:
    value = rng.choice([*graph.input, *graph.output])
    if rng.random() < 0.5:
        value.name = rng.choice(("", "other", "\x1b]0;title\x07"))
    else:
        value.type.tensor_type.elem_type = rng.choice((0, 1, 7, 8, 99))


def _change_function(rng: random.Random, model: Any, graph: Any) -> None:
    function = rng.choice(model.functions)
    function.node[0].op_type = rng.choice((function.name, "Nothing"))  # one that calls itself
    function.node[0].domain = rng.choice((function.domain, ""))


_MODEL_EDITS: dict[str, Callable[[random.Random, Any, Any], None]] = {
    "a node of another operator": _change_node,
    "a node lost": _lose_node,
    "an input of a node": _change_input,
    "an attribute": _change_attribute,
    "a tensor": _change_tensor,
    "a place of data": _change_data,
    "an operator set": _change_opset,
    "an input or output": _change_interface,
    "a function's body": _change_function,
}
_GRAMMARS: dict[str, Callable[[random.Random, bytes], tuple[bytes, str]]] = {
    ".json": _json,
    ".safetensors": _safetensors,
    ".onnx": _onnx,
}
