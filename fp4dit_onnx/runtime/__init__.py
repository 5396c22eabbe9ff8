"""Text or class to image on ONNX Runtime alone: numpy, tokenizers and pillow, never torch."""

from __future__ import annotations

from fp4dit_onnx.runtime.pipeline import Pipeline
from fp4dit_onnx.runtime.sampling import Sampling, Step, initial_latents
from fp4dit_onnx.runtime.schedulers import SCHEDULERS, scheduler_from_config
from fp4dit_onnx.runtime.session import session
from fp4dit_onnx.runtime.tokenizer import Tokenizer

__all__ = [
    "SCHEDULERS",
    "Pipeline",
    "Sampling",
    "Step",
    "Tokenizer",
    "initial_latents",
    "scheduler_from_config",
    "session",
]
