"""Names that files, folders and tensors have: of checkpoints, of bundles, and inside graphs."""

from __future__ import annotations

__all__ = [
    "CODES",
    "CONFIG",
    "EVIDENCE",
    "MANIFEST",
    "MODEL",
    "MODEL_INDEX",
    "REPORT",
    "SCHEDULER_CONFIG",
    "STEP_TABLE",
    "TOKENIZER",
    "TRANSFORMER",
    "VAE_DECODER",
    "VAE_ENCODER",
    "WEIGHT",
    "codes_of",
    "model_of",
    "part_of",
]

WEIGHT = ".weight"
"""Follows a layer's name: its float weight."""
CODES = f"{WEIGHT}.codes"
"""Likewise: its packed codes, uint8 [N, B]."""

MODEL_INDEX = "model_index.json"
CONFIG = "config.json"
SCHEDULER_CONFIG = "scheduler/scheduler_config.json"
TOKENIZER = "tokenizer.json"
TRANSFORMER, VAE_DECODER, VAE_ENCODER = "transformer", "vae_decoder", "vae_encoder"
"""Folders of a bundle; those of text encoders are named by the pipeline."""
MODEL = "model.onnx"
"""In the folder of each of a bundle's models; its tensors lie beside it."""
MANIFEST = "quantization.json"
"""Tells a bundle from any other folder."""
REPORT, EVIDENCE = "report.html", "report.json"
"""The report and the measurements it shows. For people: a bundle opens without them."""
STEP_TABLE = "scheduler/steps.json"
"""The run of a bundle's default number of steps."""


def codes_of(layer: str) -> str:
    """The tensor with the packed codes of the layer of that torch name."""
    return layer + CODES


def part_of(layer: str, role: str) -> str:
    """The tensor with a part of the layer of that torch name, see `state.QuantizedLayer`."""
    return f"{layer}{WEIGHT}.{role}"


def model_of(part: str) -> str:
    """The model of a part, such as ``transformer``, by its path in a bundle."""
    return f"{part}/{MODEL}"
