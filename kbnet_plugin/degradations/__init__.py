"""Degrade clean images as cameras, lenses, weather and file formats do: batches of tensors, on any device."""

from . import camera, color, defocus, jpeg, noise, rain, resampling  # registers their classes
from .base import Degradation, Draws
from .pipeline import DEGRADATIONS, Pipeline, register_degradation

__all__ = [
    "DEGRADATIONS",
    "Degradation",
    "Draws",
    "Pipeline",
    "camera",
    "color",
    "defocus",
    "jpeg",
    "noise",
    "rain",
    "register_degradation",
    "resampling",
]
