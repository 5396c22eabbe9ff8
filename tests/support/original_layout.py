"""Transformers of diffusers as their authors store them: in one file, q, k and v in one tensor."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import numpy.typing as npt
from safetensors.numpy import load_file, save_file

__all__ = ["ORIGINALS", "Original", "rounded", "save_gguf", "save_original", "weights_of"]

Array = npt.NDArray[Any]
Arrays = dict[str, Array]


@dataclass(frozen=True)
class Original:
    """What is called otherwise there.

    Attributes:
        names: pattern of diffusers' names -> the original ones, in order of application.
        joined: pattern of the first of several tensors -> ends of all, and the end of the original.
        swapped: original names of tensors whose halves change places.
        prefix: before all names.
        more: tensors that diffusers leaves out.
    """

    names: tuple[tuple[str, str], ...]
    joined: tuple[tuple[str, tuple[str, ...], str], ...]
    swapped: tuple[str, ...] = ()
    prefix: str = ""
    more: Mapping[str, tuple[int, ...]] = field(default_factory=dict)

    def of(self, tensors: Mapping[str, Array]) -> Arrays:
        """The tensors in this layout."""
        left, found = dict(tensors), {}
        for pattern, ends, whole in self.joined:
            for name in [n for n in left if re.search(rf"{pattern}{re.escape(ends[0])}\.", n)]:
                start, end = name.split(ends[0])
                parts = [left.pop(f"{start}{e}{end}") for e in ends]
                found[f"{start}{whole}{end}"] = np.concatenate(parts)
        renamed = {}
        for name, values in {**left, **found}.items():
            for pattern, new in self.names:
                name = re.sub(pattern, new, name)
            if any(re.fullmatch(pattern, name) for pattern in self.swapped):
                values = np.concatenate(np.split(values, 2)[::-1])
            renamed[self.prefix + name] = values
        return {**renamed, **{n: np.ones(s, np.float32) for n, s in self.more.items()}}


QKV = ("to_q", "to_k", "to_v")
MLP = ((r"ff\.net\.0\.proj", "mlp.fc1"), (r"ff\.net\.2", "mlp.fc2"))
TIME = ((r"linear_1", "mlp.0"), (r"linear_2", "mlp.2"))
ENDS = (
    ("^norm_out.linear", "final_layer.adaLN_modulation.1"),
    (r"^proj_out\.", "final_layer.linear."),
)
PIXART = Original(
    names=(
        (r"^pos_embed\.proj", "x_embedder.proj"),
        (r"^caption_projection\.linear_", "y_embedder.y_proj.fc"),
        (r"^adaln_single\.linear", "t_block.1"),
        (r"^adaln_single\.emb\.timestep_embedder\.", "t_embedder."),
        (r"^adaln_single\.emb\.resolution_embedder\.", "csize_embedder."),
        (r"^adaln_single\.emb\.aspect_ratio_embedder\.", "ar_embedder."),
        *TIME,
        *MLP,
        (r"^transformer_blocks", "blocks"),
        (r"attn1\.to_out\.0", "attn.proj"),
        (r"attn2\.to_out\.0", "cross_attn.proj"),
        (r"attn2\.to_q", "cross_attn.q_linear"),
        (r"attn2\.kv", "cross_attn.kv_linear"),
        (r"attn1\.qkv", "attn.qkv"),
        (r"^scale_shift_table", "final_layer.scale_shift_table"),
        *ENDS,
    ),
    joined=((r"attn1\.", QKV, "qkv"), (r"attn2\.", QKV[1:], "kv")),
    more={"pos_embed": (1, 16, 96), "y_embedder.y_embedding": (120, 64)},
)
HUNYUAN = Original(
    names=(
        (r"^pos_embed\.proj", "x_embedder.proj"),
        (r"^text_embedder\.linear_1", "mlp_t5.0"),
        (r"^text_embedder\.linear_2", "mlp_t5.2"),
        (r"extra_embedder\.linear_1", "extra_embedder.0"),
        (r"extra_embedder\.linear_2", "extra_embedder.2"),
        (r"^time_extra_emb\.timestep_embedder", "t_embedder"),
        (r"^time_extra_emb\.", ""),
        *TIME,
        *MLP,
        (r"norm_q", "q_norm"),
        (r"norm_k", "k_norm"),
        (r"to_out\.0", "out_proj"),
        (r"attn2\.to_q", "attn2.q_proj"),
        (r"norm1\.linear", "default_modulation.1"),
        (r"norm1\.norm", "norm1"),
        (r"norm2", "norm#"),
        (r"norm3", "norm2"),
        (r"norm#", "norm3"),
        *ENDS,
    ),
    joined=((r"attn1\.", QKV, "Wqkv"), (r"attn2\.", QKV[1:], "kv_proj")),
    swapped=(r"final_layer\.adaLN_modulation\.1\.\w+",),
    prefix="model.",
)
SD3 = Original(
    names=(
        (r"^pos_embed\.proj", "x_embedder.proj"),
        (r"^pos_embed\.pos_embed", "pos_embed"),
        (r"^time_text_embed\.timestep_embedder", "t_embedder"),
        (r"^time_text_embed\.text_embedder", "y_embedder"),
        *TIME,
        (r"ff_context\.net\.0\.proj", "context_block.mlp.fc1"),
        (r"ff_context\.net\.2", "context_block.mlp.fc2"),
        (r"ff\.net\.0\.proj", "x_block.mlp.fc1"),
        (r"ff\.net\.2", "x_block.mlp.fc2"),
        (r"norm1\.linear", "x_block.adaLN_modulation.1"),
        (r"norm1_context\.linear", "context_block.adaLN_modulation.1"),
        (r"attn\.to_out\.0", "x_block.attn.proj"),
        (r"attn\.to_add_out", "context_block.attn.proj"),
        (r"attn\.qkv", "x_block.attn.qkv"),
        (r"attn\.add_qkv", "context_block.attn.qkv"),
        (r"^transformer_blocks", "joint_blocks"),
        *ENDS,
    ),
    joined=(
        (r"attn\.", QKV, "qkv"),
        (r"attn\.", ("add_q_proj", "add_k_proj", "add_v_proj"), "add_qkv"),
    ),
    swapped=(
        r"final_layer\.adaLN_modulation\.1\.\w+",
        r"joint_blocks\.3\.context_block\.adaLN_modulation\.1\.\w+",
    ),
    prefix="model.diffusion_model.",
    more={"first_stage_model.decoder.conv_in.weight": (2, 2)},
)
FLUX = Original(
    names=(
        (r"^x_embedder", "img_in"),
        (r"^context_embedder", "txt_in"),
        (r"^time_text_embed\.timestep_embedder", "time_in"),
        (r"^time_text_embed\.text_embedder", "vector_in"),
        (r"^time_text_embed\.guidance_embedder", "guidance_in"),
        (r"_in\.linear_1", "_in.in_layer"),
        (r"_in\.linear_2", "_in.out_layer"),
        (r"attn\.norm_added_q\.weight", "txt_attn.norm.query_norm.scale"),
        (r"attn\.norm_added_k\.weight", "txt_attn.norm.key_norm.scale"),
        (r"^(single.*)attn\.norm_q\.weight", r"\1norm.query_norm.scale"),
        (r"^(single.*)attn\.norm_k\.weight", r"\1norm.key_norm.scale"),
        (r"attn\.norm_q\.weight", "img_attn.norm.query_norm.scale"),
        (r"attn\.norm_k\.weight", "img_attn.norm.key_norm.scale"),
        (r"ff_context\.net\.0\.proj", "txt_mlp.0"),
        (r"ff_context\.net\.2", "txt_mlp.2"),
        (r"ff\.net\.0\.proj", "img_mlp.0"),
        (r"ff\.net\.2", "img_mlp.2"),
        (r"norm1\.linear", "img_mod.lin"),
        (r"norm1_context\.linear", "txt_mod.lin"),
        (r"\.norm\.linear", ".modulation.lin"),
        (r"attn\.to_out\.0", "img_attn.proj"),
        (r"attn\.to_add_out", "txt_attn.proj"),
        (r"attn\.qkv", "img_attn.qkv"),
        (r"attn\.add_qkv", "txt_attn.qkv"),
        (r"^(single\w+\.\d+)\.proj_out", r"\1.linear2"),
        (r"^transformer_blocks", "double_blocks"),
        (r"^single_transformer_blocks", "single_blocks"),
        *ENDS,
    ),
    joined=(
        (r"single.*", ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp"), "linear1"),
        *SD3.joined,
    ),
    swapped=(r"final_layer\.adaLN_modulation\.1\.\w+",),
)
ORIGINALS = {
    "pixart-alpha-256": PIXART,
    "hunyuan-dit-1.2": HUNYUAN,
    "sd3-medium": SD3,
    "flux-dev": FLUX,
}
"""By the name of an official model."""


def weights_of(folder: Path) -> Arrays:
    """The transformer's tensors of a pipeline with one weight file or several."""
    found: Arrays = {}
    for path in sorted((folder / "transformer").glob("*.safetensors")):
        found |= load_file(path)
    return found


def save_original(name: str, tensors: Mapping[str, Array], path: Path) -> Path:
    """A transformer of an official model's layout, in one safetensors file."""
    made = ORIGINALS[name].of(tensors)
    save_file({n: np.ascontiguousarray(values) for n, values in made.items()}, path)
    return path


def rounded(values: Array, kind: gguf.GGMLQuantizationType) -> Array:
    """A matrix as GGUF keeps it in a type; other tensors are kept as they are."""
    if values.ndim != 2 or values.shape[1] % gguf.GGML_QUANT_SIZES[kind][0]:
        return values
    return gguf.dequantize(gguf.quantize(values, kind), kind)


def save_gguf(
    name: str, tensors: Mapping[str, Array], path: Path, kind: gguf.GGMLQuantizationType
) -> Path:
    """The same in GGUF, matrices in the type given."""
    writer = gguf.GGUFWriter(path, "test")
    for key, values in ORIGINALS[name].of(tensors).items():
        if values.ndim == 2 and values.shape[1] % gguf.GGML_QUANT_SIZES[kind][0] == 0:
            writer.add_tensor(key, gguf.quantize(values, kind), raw_dtype=kind)
        else:
            writer.add_tensor(key, np.ascontiguousarray(values))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
