"""Names of tensors in files of a whole transformer, as its authors and ComfyUI have them.

diffusers converts most families itself (`from_single_file`), and its own functions are run. Tables
stand for those of PixArt, Hunyuan-DiT and DiT, which are scripts that no package has, and for that of
Flux, which assumes the official width.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from fp4dit_onnx.checkpoint.rows import Rows
from fp4dit_onnx.checkpoint.tensor_files import TensorInfo
from fp4dit_onnx.errors import CheckpointError
from fp4dit_onnx.official.parts import Part

__all__ = ["LAYOUTS", "Layout", "Names"]

Tensors = dict[str, Rows]


@dataclass(frozen=True)
class Names:
    """Original names -> those of diffusers, without ``.weight`` and ``.bias``; # is a block's number.

    Attributes:
        table: a tensor of several names there is cut into as many equal parts along its first axis;
            those of one name are one. A name with # of a tensor without is one of every block.
        swapped: names there of linears whose halves change places: shift and scale.
        cut: name there -> rows that are taken.
    """

    table: Mapping[str, tuple[str, ...]]
    swapped: tuple[str, ...] = ()
    cut: Mapping[str, int] = field(default_factory=dict)

    def __call__(self, tensors: Tensors) -> Tensors:
        """The tensors by diffusers' names; those of no name in the table keep theirs."""
        found = {}
        numbers = [int(m[1]) for name in tensors if (m := re.match(r"blocks\.(\d+)\.", name))]
        blocks = max(numbers, default=-1) + 1
        for name, rows in tensors.items():
            made = next(
                filter(None, (self._made(p, name, rows, blocks) for p in self.table)), None
            )
            found.update({name: rows} if made is None else made)
        return found

    def _made(self, pattern: str, name: str, rows: Rows, blocks: int) -> Tensors | None:
        expression = re.escape(pattern).replace(r"\#", r"(\d+)") + r"(\.weight|\.bias)?"
        match = re.fullmatch(expression, name)
        if match is None:
            return None
        *number, end = match.groups(default="")
        targets = self.table[pattern]
        parts = rows.chunk(len(targets)) if len(targets) > 1 else [rows]
        made: Tensors = {}
        for target in dict.fromkeys(targets):
            part = Rows.joined([p for p, t in zip(parts, targets, strict=True) if t == target])
            if target in self.swapped:
                part = Rows.joined(part.chunk(2)[::-1])
            if target in self.cut:
                part = part[: self.cut[target]]
            for block in number or (range(blocks) if "#" in target else ("",)):
                made[target.replace("#", str(block)) + end] = part
        return made


@dataclass(frozen=True)
class Layout:
    """How a family's transformer is stored in one file.

    Attributes:
        transformer: class of diffusers.
        known_by: names that every such file has, and no file of another family.
        names: what converts; None for diffusers' own function.
        told: name of a stored tensor that the network has not -> its size by an official
            configuration, (axis, size): what tells configurations of equal tensors apart.
    """

    transformer: str
    known_by: tuple[str, ...]
    names: Names | None = None
    told: Mapping[str, Callable[[Mapping[str, Any]], tuple[int, int]]] = field(
        default_factory=dict
    )

    def fits(self, tensors: Mapping[str, Any]) -> bool:
        """Whether a file with these names is of this layout."""
        return all(name in tensors for name in self.known_by)

    def is_of(self, tensors: Mapping[str, TensorInfo], part: Part) -> bool:
        """Whether a file of this layout may be of an official configuration, by what is `told`."""
        if part.class_name != self.transformer:
            return False
        sizes = {name: size(part.config) for name, size in self.told.items() if name in tensors}
        return all(tensors[name].shape[axis] == size for name, (axis, size) in sizes.items())

    def converted(self, tensors: Mapping[str, Rows]) -> Tensors:
        """Tensors by diffusers' names.

        Raises:
            CheckpointError: a tensor is absent, or diffusers makes more of one than joins and slices.
        """
        left = dict(tensors)
        try:
            made = (self.names or _of_diffusers(self.transformer))(left)
        except (KeyError, IndexError, ValueError, TypeError, AttributeError) as error:
            raise CheckpointError(
                f"not a whole {self.transformer} in the original layout, as its names promise: the "
                f"conversion ends at {error}; expected all of its tensors: download the file again"
            ) from error
        unused = {} if self.names else left
        return {**unused, **{name: rows for name, rows in made.items() if rows is not None}}


def _of_diffusers(transformer: str) -> Callable[[Tensors], Mapping[str, Rows | None]]:
    """What `from_single_file` converts names with; it takes out of its argument what it knows."""
    from diffusers.loaders.single_file_model import SINGLE_FILE_LOADABLE_CLASSES

    known: Mapping[str, Any] = SINGLE_FILE_LOADABLE_CLASSES
    convert = known[transformer]["checkpoint_mapping_fn"]
    return lambda tensors: convert(checkpoint=tensors)


def _pairs(
    first: str, second: str, names: str = "linear_1 linear_2"
) -> dict[str, tuple[str, ...]]:
    """Both linears of an embedder ``first.0`` and ``first.2``."""
    one, two = names.split()
    return {f"{first}.0": (f"{second}.{one}",), f"{first}.2": (f"{second}.{two}",)}


def _qkv(attention: str) -> tuple[str, ...]:
    return tuple(f"{attention}.to_{letter}" for letter in "qkv")


_BLOCK = "transformer_blocks.#"
_VIT = {
    "x_embedder.proj": ("pos_embed.proj",),
    "blocks.#.attn.qkv": _qkv(f"{_BLOCK}.attn1"),
    "blocks.#.attn.proj": (f"{_BLOCK}.attn1.to_out.0",),
    "blocks.#.mlp.fc1": (f"{_BLOCK}.ff.net.0.proj",),
    "blocks.#.mlp.fc2": (f"{_BLOCK}.ff.net.2",),
}
_ADALN = "adaln_single.emb"
# huggingface/diffusers, scripts/convert_pixart_sigma_to_diffusers.py
_PIXART = Names(
    {
        **_VIT,
        "y_embedder.y_proj.fc1": ("caption_projection.linear_1",),
        "y_embedder.y_proj.fc2": ("caption_projection.linear_2",),
        **_pairs("t_embedder.mlp", f"{_ADALN}.timestep_embedder"),
        **_pairs("csize_embedder.mlp", f"{_ADALN}.resolution_embedder"),
        **_pairs("ar_embedder.mlp", f"{_ADALN}.aspect_ratio_embedder"),
        "t_block.1": ("adaln_single.linear",),
        "blocks.#.scale_shift_table": (f"{_BLOCK}.scale_shift_table",),
        "blocks.#.cross_attn.q_linear": (f"{_BLOCK}.attn2.to_q",),
        "blocks.#.cross_attn.kv_linear": _qkv(f"{_BLOCK}.attn2")[1:],
        "blocks.#.cross_attn.proj": (f"{_BLOCK}.attn2.to_out.0",),
        "final_layer.linear": ("proj_out",),
        "final_layer.scale_shift_table": ("scale_shift_table",),
    }
)
_TIME = "time_extra_emb"
_HUNYUAN_ATTENTION = {
    f"blocks.#.attn{n}.{old}": (f"blocks.#.attn{n}.{new}",)
    for n in (1, 2)
    for old, new in (("q_norm", "norm_q"), ("k_norm", "norm_k"), ("out_proj", "to_out.0"))
}
# huggingface/diffusers, scripts/convert_hunyuandit_to_diffusers.py
_HUNYUAN = Names(
    {
        "x_embedder.proj": ("pos_embed.proj",),
        **_pairs("t_embedder.mlp", f"{_TIME}.timestep_embedder"),
        **_pairs("extra_embedder", f"{_TIME}.extra_embedder"),
        **_pairs("mlp_t5", "text_embedder"),
        "style_embedder": (f"{_TIME}.style_embedder",),
        "pooler.positional_embedding": (f"{_TIME}.pooler.positional_embedding",),
        **{f"pooler.{n}_proj": (f"{_TIME}.pooler.{n}_proj",) for n in "kqvc"},
        **_HUNYUAN_ATTENTION,
        "blocks.#.attn1.Wqkv": _qkv("blocks.#.attn1"),
        "blocks.#.attn2.q_proj": ("blocks.#.attn2.to_q",),
        "blocks.#.attn2.kv_proj": _qkv("blocks.#.attn2")[1:],
        "blocks.#.norm1": ("blocks.#.norm1.norm",),
        "blocks.#.norm2": ("blocks.#.norm3",),
        "blocks.#.norm3": ("blocks.#.norm2",),
        "blocks.#.default_modulation.1": ("blocks.#.norm1.linear",),
        "blocks.#.mlp.fc1": ("blocks.#.ff.net.0.proj",),
        "blocks.#.mlp.fc2": ("blocks.#.ff.net.2",),
        "final_layer.adaLN_modulation.1": ("norm_out.linear",),
        "final_layer.linear": ("proj_out",),
    },
    swapped=("norm_out.linear",),
    cut={f"{_TIME}.style_embedder": 1},
)
_EMBEDDED = f"{_BLOCK}.norm1.emb"
# huggingface/diffusers, scripts/convert_dit_to_diffusers.py
_DIT = Names(
    {
        **_VIT,
        **_pairs("t_embedder.mlp", f"{_EMBEDDED}.timestep_embedder"),
        "y_embedder.embedding_table": (f"{_EMBEDDED}.class_embedder.embedding_table",),
        "blocks.#.adaLN_modulation.1": (f"{_BLOCK}.norm1.linear",),
        "final_layer.adaLN_modulation.1": ("proj_out_1",),
        "final_layer.linear": ("proj_out_2",),
    }
)


_FLUX_BLOCKS = {
    "img_mod.lin": ("norm1.linear",),
    "txt_mod.lin": ("norm1_context.linear",),
    "img_attn.qkv": _qkv("attn"),
    "txt_attn.qkv": tuple(f"attn.add_{letter}_proj" for letter in "qkv"),
    "img_attn.norm.query_norm.scale": ("attn.norm_q.weight",),
    "img_attn.norm.key_norm.scale": ("attn.norm_k.weight",),
    "txt_attn.norm.query_norm.scale": ("attn.norm_added_q.weight",),
    "txt_attn.norm.key_norm.scale": ("attn.norm_added_k.weight",),
    "img_attn.proj": ("attn.to_out.0",),
    "txt_attn.proj": ("attn.to_add_out",),
    "img_mlp.0": ("ff.net.0.proj",),
    "img_mlp.2": ("ff.net.2",),
    "txt_mlp.0": ("ff_context.net.0.proj",),
    "txt_mlp.2": ("ff_context.net.2",),
}
_SINGLE = "single_transformer_blocks.#"
_FLUX = Names(
    {
        "img_in": ("x_embedder",),
        "txt_in": ("context_embedder",),
        **{
            f"{old}_in.{way}_layer": (f"time_text_embed.{new}_embedder.linear_{number}",)
            for old, new in (("time", "timestep"), ("vector", "text"), ("guidance", "guidance"))
            for way, number in (("in", 1), ("out", 2))
        },
        **{
            f"double_blocks.#.{old}": tuple(f"{_BLOCK}.{name}" for name in new)
            for old, new in _FLUX_BLOCKS.items()
        },
        "single_blocks.#.modulation.lin": (f"{_SINGLE}.norm.linear",),
        "single_blocks.#.linear1": (*_qkv(f"{_SINGLE}.attn"), *[f"{_SINGLE}.proj_mlp"] * 4),
        "single_blocks.#.linear2": (f"{_SINGLE}.proj_out",),
        "single_blocks.#.norm.query_norm.scale": (f"{_SINGLE}.attn.norm_q.weight",),
        "single_blocks.#.norm.key_norm.scale": (f"{_SINGLE}.attn.norm_k.weight",),
        "final_layer.adaLN_modulation.1": ("norm_out.linear",),
        "final_layer.linear": ("proj_out",),
    },
    swapped=("norm_out.linear",),
)


def _positions(config: Mapping[str, Any]) -> tuple[int, int]:
    return 1, (config["sample_size"] // config["patch_size"]) ** 2


def _caption(config: Mapping[str, Any]) -> tuple[int, int]:
    """Tokens of the empty caption: PixArt-Sigma's texts are longer, and its config says a scale."""
    return 0, 300 if "interpolation_scale" in config else 120


LAYOUTS = (
    Layout(
        "PixArtTransformer2DModel",
        ("t_block.1.weight", "blocks.0.cross_attn.kv_linear.weight", "blocks.0.mlp.fc1.weight"),
        _PIXART,
        {"pos_embed": _positions, "y_embedder.y_embedding": _caption},
    ),
    Layout("HunyuanDiT2DModel", ("blocks.0.default_modulation.1.weight",), _HUNYUAN),
    Layout(
        "DiTTransformer2DModel",
        ("y_embedder.embedding_table.weight", "blocks.0.adaLN_modulation.1.weight"),
        _DIT,
        {"pos_embed": _positions},
    ),
    Layout("SD3Transformer2DModel", ("joint_blocks.0.context_block.adaLN_modulation.1.weight",)),
    Layout("FluxTransformer2DModel", ("double_blocks.0.img_mod.lin.weight",), _FLUX),
    Layout("Flux2Transformer2DModel", ("single_stream_modulation.lin.weight",)),
    Layout("AuraFlowTransformer2DModel", ("double_layers.0.attn.w2q.weight",)),
    Layout("SanaTransformer2DModel", ("blocks.0.mlp.inverted_conv.conv.weight",)),
    Layout(
        "ZImageTransformer2DModel", ("layers.0.adaLN_modulation.0.weight", "cap_embedder.0.weight")
    ),
)
