"""How tools/train_demo.py trains: budgets, objectives, a step, running averages of the weights."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch

__all__ = ["BETAS", "Budget", "Flow", "Noised", "Objective", "Predicted", "descend", "update"]

BETAS: dict[str, Any] = {
    "num_train_timesteps": 1000,
    "beta_start": 1e-4,
    "beta_end": 0.02,
    "beta_schedule": "linear",
}
SNR_LIMIT = 5
"""Gamma of min-SNR weighting."""


@dataclass(frozen=True)
class Budget:
    """How long a training lasts: minutes, or a number of steps if that is given."""

    minutes: float
    steps: int | None = None

    def progress(self) -> Iterator[tuple[int, float]]:
        """Step number and done share below 1, until the budget is spent."""
        start, step = time.time(), 0
        while (done := self._done(step, time.time() - start)) < 1:
            yield step, done
            step += 1

    def _done(self, step: int, seconds: float) -> float:
        return seconds / (self.minutes * 60) if self.steps is None else step / self.steps


@dataclass(frozen=True)
class Noised:
    """A batch to learn from.

    Attributes:
        latents: with noise, float32 [B, C, H, W].
        timesteps: of the noise, [B].
        target: what the transformer should give for them, float32 [B, C, H, W].
        weight: of each one's squared error, float32 [B].
    """

    latents: torch.Tensor
    timesteps: torch.Tensor
    target: torch.Tensor
    weight: torch.Tensor


class Objective(Protocol):
    """What a transformer learns to predict."""

    def __call__(self, clean: torch.Tensor, noise: torch.Tensor) -> Noised:
        """Random timesteps for latents and noise, both float32 [B, C, H, W]."""


@dataclass(frozen=True)
class Predicted:
    """The noise of a diffusion, or its velocity, by errors in min-SNR weights.

    Attributes:
        signal: share of the image's variance at each timestep, float32 [T].
        velocity: whether sqrt(a) noise - sqrt(1 - a) clean is predicted, of a the signal.
    """

    signal: torch.Tensor
    velocity: bool = False

    def __call__(self, clean: torch.Tensor, noise: torch.Tensor) -> Noised:
        """See `Objective`."""
        t = torch.randint(0, len(self.signal), (len(clean),))
        signal = self.signal[t]
        a = signal[:, None, None, None]
        noisy = a.sqrt() * clean + (1 - a).sqrt() * noise
        snr = signal / (1 - signal)
        weight = torch.clamp(snr, max=SNR_LIMIT) / (snr + 1 if self.velocity else snr)
        target = a.sqrt() * noise - (1 - a).sqrt() * clean if self.velocity else noise
        return Noised(noisy, t.float(), target, weight)


@dataclass(frozen=True)
class Flow:
    """The direction from the image to the noise, of flow matching.

    Attributes:
        timesteps: that stand for the share 1 of noise.
    """

    timesteps: int = 1000

    def __call__(self, clean: torch.Tensor, noise: torch.Tensor) -> Noised:
        """See `Objective`; shares of noise are logit-normal, as Stable Diffusion 3 learns."""
        share = torch.sigmoid(torch.randn(len(clean)))
        s = share[:, None, None, None]
        noisy = (1 - s) * clean + s * noise
        return Noised(noisy, share * self.timesteps, noise - clean, torch.ones(len(clean)))


def update(
    optimizer: torch.optim.Optimizer,
    loss: torch.Tensor,
    parameters: Sequence[torch.nn.Parameter],
    rate: float,
) -> None:
    """One step down the gradient of `loss`, its norm cut at 1."""
    for group in optimizer.param_groups:
        group["lr"] = rate
    optimizer.zero_grad()
    torch.autograd.backward(loss)
    torch.nn.utils.clip_grad_norm_(parameters, 1.0)
    optimizer.step()


def descend(
    parameters: Sequence[torch.nn.Parameter],
    loss_of_batch: Callable[[], torch.Tensor],
    budget: Budget,
) -> None:
    """Train `parameters`, which end as running averages of themselves."""
    average = [p.detach().clone() for p in parameters]
    optimizer = torch.optim.AdamW(parameters, 1e-3, betas=(0.9, 0.99), weight_decay=0.01)
    for step, done in budget.progress():
        decay = max(0.02, 0.5 + 0.5 * math.cos(math.pi * (done - 0.6) / 0.4))
        rate = 1e-3 * min(1, (step + 1) / 200) * (1 if done < 0.6 else decay)
        loss = loss_of_batch()
        update(optimizer, loss, parameters, rate)
        weight = 1 - min(0.999, (1 + step) / (10 + step))
        torch._foreach_lerp_(average, [p.detach() for p in parameters], weight)
        if (step + 1) % 100 == 0:
            print(f"step {step + 1}  loss {loss.item():.4f}  {done:.0%}", flush=True)
    with torch.no_grad():
        for parameter, mean in zip(parameters, average, strict=True):
            parameter.copy_(mean)
