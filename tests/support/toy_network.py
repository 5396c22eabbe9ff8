"""A small network of blocks with a guided sampler, for tests of calibration."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from fp4dit_onnx.calibration.record import Sampler
from fp4dit_onnx.families.guidance import Guided

WIDTH, TOKENS, STEPS, PICTURES, BATCH, GUIDANCE = 16, 6, 4, 12, 4, 3.0

LAYERS = (
    "head",
    "blocks.1.mix",
    "blocks.0.mix",
    "blocks.0.ff.0",
    "blocks.0.ff.1",
    "blocks.1.ff.0",
    "blocks.1.ff.1",
    "blocks.2.mix",
    "embed",
)


class Block(torch.nn.Module):
    """Mixes tokens, then channels, by an embedded time."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = torch.nn.Linear(WIDTH, WIDTH)
        self.ff = torch.nn.ModuleList(
            [torch.nn.Linear(WIDTH, 2 * WIDTH), torch.nn.Linear(2 * WIDTH, WIDTH)]
        )

    def forward(self, x: Any, time: Any, scale: float = 1.0) -> Any:
        """[B, S, C] and [B, C] -> [B, S, C]."""
        x = x + self.mix(x - x.mean(dim=1, keepdim=True)) * scale
        return x + self.ff[1](torch.nn.functional.gelu(self.ff[0](x + time[:, None])))


class Network(torch.nn.Module):
    """An embedder, three blocks and a head, as diffusers' transformers are built."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = torch.nn.Linear(WIDTH, WIDTH)
        self.blocks = torch.nn.ModuleList([Block() for _ in range(3)])
        self.head = torch.nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Any, time: Any = None) -> tuple[Any]:
        """[B, S, C] and [B, C] -> [B, S, C]."""
        embedded = self.embed(time)
        for block in self.blocks:
            x = block(x, embedded, scale=0.5)
        return (self.head(x),)


def toy_network() -> Network:
    """Always the same one, in float32."""
    torch.manual_seed(0)
    return Network().requires_grad_(requires_grad=False).eval()


def draw(
    network: Any,
    seed: int,
    count: int,
    on_call: Callable[[], None] = lambda: None,
    only: int | None = None,
) -> Any:
    """A sampler of `STEPS` steps with guidance, of batch `only` or all; both halves in one batch."""
    generator = torch.Generator().manual_seed(seed)
    where = next(network.parameters())
    results = []
    for batch in range(-(-count // BATCH)):
        x = torch.randn((BATCH, TOKENS, WIDTH), generator=generator)
        text = torch.randn((BATCH, WIDTH), generator=generator)
        x, text = x.to(where), text.to(where)
        for step in range(STEPS if only in (None, batch) else 0):
            time = torch.cat([torch.zeros_like(text), text]) + step
            both = network(torch.cat([x, x]), time=time)[0]
            unconditional, conditional = both.chunk(2)
            x = x - 0.2 * (unconditional + GUIDANCE * (conditional - unconditional))
            on_call()
        results.append(x)
    return torch.cat(results)


def sampler_of(network: Any, **changes: Any) -> Sampler:
    """The sampler over `PICTURES` images."""
    fields = {
        "sample": lambda on_call, batch: draw(network, 0, PICTURES, on_call, batch),
        "calls": STEPS * PICTURES // BATCH,
        "prompts": PICTURES,
        "batch": BATCH,
        "steps": STEPS,
        "guidance": Guided(asked=GUIDANCE),
        "probe": lambda *steps: draw(network, 0, BATCH),
    }
    return Sampler(**{**fields, **changes})
