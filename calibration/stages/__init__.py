"""The stages of which methods are made: a file and a line each. Their modules load no torch."""

from __future__ import annotations

from fp4dit_onnx.calibration.stages.absmax import Absmax
from fp4dit_onnx.calibration.stages.adaround import AdaRound
from fp4dit_onnx.calibration.stages.choose_format import ChooseFormat
from fp4dit_onnx.calibration.stages.gptq import Gptq
from fp4dit_onnx.calibration.stages.mse import Mse
from fp4dit_onnx.calibration.stages.nearest import Nearest
from fp4dit_onnx.calibration.stages.stage import KINDS, Evidence, LayerStage, Stage

__all__ = ["KINDS", "STAGES", "Evidence", "LayerStage", "Stage"]

STAGES: dict[str, type[Stage]] = {
    "choose-format": ChooseFormat,
    "absmax": Absmax,
    "mse": Mse,
    "nearest": Nearest,
    "adaround": AdaRound,
    "gptq": Gptq,
}
"""By the name that recipes use."""
