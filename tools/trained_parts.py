"""The parts beside the transformer in tools/train_demo.py: autoencoders, tokenizer, text encoders."""

from __future__ import annotations

import math
import random
from typing import Any

import diffusers as untyped_diffusers
import torch
import torch.nn.functional as F  # noqa: N812
import transformers as untyped_transformers
from emoji_images import SIZE, Emoji, learned, pixels
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from training import Budget, update

__all__ = [
    "build_bert",
    "build_clip",
    "build_t5",
    "build_tokenizer",
    "coarser",
    "encode",
    "new_vae",
    "scaled",
    "train_vae",
]

diffusers: Any = untyped_diffusers
transformers: Any = untyped_transformers

VAE_BATCH = 32
WIDTHS = (32, 64, 64)


def new_vae(widths: tuple[int, ...] = WIDTHS, channels: int = 4) -> Any:
    """An autoencoder of untrained weights, whose latents are half as fine for each width but one."""
    return diffusers.AutoencoderKL(
        in_channels=3,
        out_channels=3,
        down_block_types=("DownEncoderBlock2D",) * len(widths),
        up_block_types=("UpDecoderBlock2D",) * len(widths),
        block_out_channels=widths,
        layers_per_block=1,
        latent_channels=channels,
        norm_num_groups=8,
        sample_size=SIZE,
        mid_block_add_attention=False,
    )


def coarser(vae: Any) -> Any:
    """An autoencoder to latents half as fine of 16 channels, of `vae`'s weights where it has them."""
    made = new_vae((*WIDTHS, WIDTHS[-1]), 16)
    given = vae.state_dict()
    for count in reversed(range(len(WIDTHS))):  # what is next to the image stays next to it
        names = [name for name in given if name.startswith(f"decoder.up_blocks.{count}.")]
        for name in names:
            moved = name.replace(f"up_blocks.{count}.", f"up_blocks.{count + 1}.", 1)
            given[moved] = given.pop(name)
    there = made.state_dict()
    made.load_state_dict(
        {n: given[n] if n in given and given[n].shape == t.shape else t for n, t in there.items()}
    )
    return made


def train_vae(vae: Any, images: torch.Tensor, budget: Budget) -> Any:
    """Train an autoencoder on `images` [n, 3, 64, 64]."""
    parameters = list(vae.parameters())
    optimizer = torch.optim.AdamW(parameters, 2e-3)
    for step, done in budget.progress():
        rate = 2e-3 * min(1, (step + 1) / 50) * (0.5 + 0.5 * math.cos(math.pi * done))
        x = images[torch.randint(0, len(images), (VAE_BATCH,))]
        x = x.flip(3) if random.random() < 0.5 else x
        posterior = vae.encode(x).latent_dist
        y = vae.decode(posterior.sample()).sample
        divergence = posterior.kl().mean() / SIZE
        loss = F.l1_loss(y, x) + 2 * F.mse_loss(y, x) + 1e-5 * divergence
        update(optimizer, loss, parameters, rate)
        if (step + 1) % 100 == 0:
            print(f"autoencoder, step {step + 1}  loss {loss.item():.4f}  {done:.0%}", flush=True)
    return vae.eval()


@torch.no_grad()
def encode(vae: Any, items: list[Emoji]) -> torch.Tensor:
    """Latents [n, C, H, W] as `vae` gives them, not scaled."""
    return torch.cat(
        [vae.encode(part).latent_dist.mean for part in torch.split(pixels(items), 64)]
    )


def scaled(vae: Any, everything: list[Emoji]) -> Any:
    """`vae` with the scaling factor that gives the latents of what is learned unit variance."""
    vae.register_to_config(scaling_factor=1 / encode(vae, learned(everything)).std().item())
    return vae


def build_tokenizer(items: list[Emoji]) -> Any:
    """A word-piece tokenizer of the captions."""
    tokenizer = Tokenizer(models.WordPiece(unk_token="<unk>"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    corpus = [f"{i.name} {i.short} {i.kind} {i.category.lower()} an emoji of" for i in items]
    special = ["<pad>", "</s>", "<unk>"]
    trainer = trainers.WordPieceTrainer(
        vocab_size=3000, special_tokens=special, show_progress=False
    )
    tokenizer.train_from_iterator(corpus, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", 1)]
    )
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="</s>",
        unk_token="<unk>",
        model_max_length=120,
    )


def build_t5(vocabulary: int) -> Any:
    """A small T5 encoder of untrained weights."""
    return transformers.T5EncoderModel(
        transformers.T5Config(
            vocab_size=vocabulary,
            d_model=128,
            d_kv=32,
            d_ff=256,
            num_layers=2,
            num_heads=4,
            feed_forward_proj="gated-gelu",
            dropout_rate=0.0,
            pad_token_id=0,
            eos_token_id=1,
        )
    )


def build_bert(vocabulary: int, tokens: int) -> Any:
    """A small BERT for texts of so many tokens, of untrained weights."""
    return transformers.BertModel(
        transformers.BertConfig(
            vocab_size=vocabulary,
            hidden_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            intermediate_size=128,
            max_position_embeddings=tokens,
            pad_token_id=0,
        )
    ).eval()


def build_clip(vocabulary: int, tokens: int) -> Any:
    """A small text encoder of CLIP for texts of so many tokens, of untrained weights."""
    return transformers.CLIPTextModelWithProjection(
        transformers.CLIPTextConfig(
            vocab_size=vocabulary,
            hidden_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            intermediate_size=128,
            projection_dim=64,
            max_position_embeddings=tokens,
            pad_token_id=0,
            bos_token_id=2,
            eos_token_id=1,
        )
    ).eval()
