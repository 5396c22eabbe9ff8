"""Text encoders of transformers, as data."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from fp4dit_onnx.families.interface import InputSpec, Interface

__all__ = ["JOINED", "QWEN3_CHAT", "TEXT_ENCODERS", "TextEncoder"]

JOINED = "joined_hidden_states"
"""Output of a graph whose family reads some of the encoder's hidden states."""
QWEN3_CHAT = "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"
"""What the template of Qwen3's tokenizers makes of a user's message before an answer."""


@dataclass(frozen=True)
class TextEncoder:
    """A class of text encoders.

    Attributes:
        outputs: of the graph, under the names that transformers gives them.
        prefix: of the names of stored tensors, where transformers takes it off.
        unused: patterns of linears that no output depends on.
        results: see `Interface`.
        caches: whether it would keep what later tokens need, unless told not to.
        blocks: see `Interface`.
    """

    outputs: tuple[str, ...] = ("last_hidden_state",)
    prefix: str = ""
    unused: tuple[str, ...] = ()
    results: Callable[[Any], tuple[Any, ...]] | None = None
    caches: bool = False
    blocks: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    @property
    def interface(self) -> Interface:
        """input_ids and attention_mask, both int64 [B, L], B and L open."""
        states = {} if self.results is None else {"output_hidden_states": True}
        states |= {"use_cache": False} if self.caches else {}
        return Interface(
            inputs=(
                InputSpec("input_ids", "int64", ("batch", "text"), values="vocab_size"),
                InputSpec("attention_mask", "int64", ("batch", "text")),
            ),
            outputs=self.outputs,
            constants={"return_dict": True, **states},
            results=self.results,
            blocks=self.blocks,
        )


def _projected(result: Any) -> tuple[Any, ...]:
    """What Stable Diffusion 3 takes of a CLIP: the projection, and the states before the last layer."""
    return result.text_embeds, result.hidden_states[-2]


def _layers(name: str) -> dict[str, tuple[str, ...]]:
    """Of a decoder, as transformers writes them: each gives the next one's hidden states alone."""
    return {name: ("hidden_states",)}


TEXT_ENCODERS: Mapping[str, TextEncoder] = {
    "BertModel": TextEncoder(unused=("pooler.*",)),
    "CLIPTextModel": TextEncoder(("last_hidden_state", "pooler_output"), "text_model."),
    "CLIPTextModelWithProjection": TextEncoder(
        ("text_embeds", "penultimate_hidden_state"), results=_projected
    ),
    "Gemma2Model": TextEncoder(caches=True, blocks=_layers("layers")),
    "Qwen3ForCausalLM": TextEncoder(
        unused=("lm_head",), caches=True, blocks=_layers("model.layers")
    ),
    "Qwen3Model": TextEncoder(caches=True, blocks=_layers("layers")),
    "T5EncoderModel": TextEncoder(),
    "UMT5EncoderModel": TextEncoder(),
}
"""Class of transformers -> what the tool must know of it."""
