"""Configurations of schedulers by class, without torch."""

from __future__ import annotations

from typing import Any

import numpy as np

Config = dict[str, Any]


def dpm(**options: Any) -> Config:
    return {"_class_name": "DPMSolverMultistepScheduler", **options}


def ddim(**options: Any) -> Config:
    return {"_class_name": "DDIMScheduler", "clip_sample": False, **options}


def ddpm(**options: Any) -> Config:
    return {"_class_name": "DDPMScheduler", "clip_sample": False, **options}


def flow(**options: Any) -> Config:
    return {"_class_name": "FlowMatchEulerDiscreteScheduler", **options}


def euler(**options: Any) -> Config:
    return {"_class_name": "EulerDiscreteScheduler", **options}


def ancestral(**options: Any) -> Config:
    return {"_class_name": "EulerAncestralDiscreteScheduler", **options}


def lcm(**options: Any) -> Config:
    return {"_class_name": "LCMScheduler", **options}


def unipc(**options: Any) -> Config:
    return {"_class_name": "UniPCMultistepScheduler", **options}


PREDICTIONS = ("epsilon", "v_prediction", "sample")
SPACINGS = ("linspace", "leading", "trailing")
BETAS: tuple[Config, ...] = (
    {"beta_schedule": "linear"},
    {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012},
    {"beta_schedule": "squaredcos_cap_v2", "lambda_min_clipped": -5.1},
    {"trained_betas": np.linspace(1e-3, 0.03, 400).tolist(), "num_train_timesteps": 400},
)
