"""The stages of which methods are made: a file and a line each. Their modules load no torch."""

from __future__ import annotations

from fp4dit_onnx.calibration.stages.absmax import Absmax
from fp4dit_onnx.calibration.stages.adaround import AdaRound
from fp4dit_onnx.calibration.stages.affine import AffineQuant
from fp4dit_onnx.calibration.stages.balance import Awq, Salience, SmoothQuant
from fp4dit_onnx.calibration.stages.branch import Branch
from fp4dit_onnx.calibration.stages.budget import Budget
from fp4dit_onnx.calibration.stages.choose_format import ChooseFormat
from fp4dit_onnx.calibration.stages.dobi import Dobi
from fp4dit_onnx.calibration.stages.dqc import Dqc
from fp4dit_onnx.calibration.stages.evolve import Evolve
from fp4dit_onnx.calibration.stages.four_over_six import FourOverSix
from fp4dit_onnx.calibration.stages.gptq import Gptq
from fp4dit_onnx.calibration.stages.joint import Joint, OutputRange
from fp4dit_onnx.calibration.stages.mse import Mse
from fp4dit_onnx.calibration.stages.nearest import Nearest
from fp4dit_onnx.calibration.stages.preshift import Preshift
from fp4dit_onnx.calibration.stages.regularize import Regularize
from fp4dit_onnx.calibration.stages.reparametrize import Reparametrize
from fp4dit_onnx.calibration.stages.restore import Restore
from fp4dit_onnx.calibration.stages.salient import SalientInputs
from fp4dit_onnx.calibration.stages.smooth import Smooth
from fp4dit_onnx.calibration.stages.stage import (
    INPUTS,
    KINDS,
    MAXIMA,
    MOMENTS,
    WEIGHTS,
    Evidence,
    LayerStage,
    Stage,
)
from fp4dit_onnx.calibration.stages.static import Static
from fp4dit_onnx.calibration.stages.transform import stage_of
from fp4dit_onnx.calibration.stages.weighted import Weighted
from fp4dit_onnx.spec.transforms import TRANSFORMS

__all__ = [
    "INPUTS",
    "KINDS",
    "MAXIMA",
    "MOMENTS",
    "STAGES",
    "WEIGHTS",
    "Evidence",
    "LayerStage",
    "Stage",
]

STAGES: dict[str, type[Stage]] = {
    "smoothquant": SmoothQuant,
    "awq": Awq,
    "salience": Salience,
    "smooth": Smooth,
    "affinequant": AffineQuant,
    **{name: stage_of(one) for name, one in TRANSFORMS.items() if not one.roles},
    "preshift": Preshift,
    "reparametrize": Reparametrize,
    "branch": Branch,
    "choose-format": ChooseFormat,
    "joint": Joint,
    "static": Static,
    "salient": SalientInputs,
    "budget": Budget,
    "evolve": Evolve,
    "regularize": Regularize,
    "restore": Restore,
    "absmax": Absmax,
    "mse": Mse,
    "weighted": Weighted,
    "four-over-six": FourOverSix,
    "output-range": OutputRange,
    "dobi": Dobi,
    "nearest": Nearest,
    "adaround": AdaRound,
    "gptq": Gptq,
    "dqc": Dqc,
}
"""By the name that recipes use."""
