"""Degrade clean images as cameras, lenses, weather and file formats do: batches of tensors, on any device."""

from . import (  # registers their classes
    camera,
    color,
    defocus,
    jpeg,
    microscopy,
    noise,
    rain,
    resampling,
    shapes,
)
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
    "microscopy",
    "noise",
    "rain",
    "register_degradation",
    "resampling",
    "shapes",
]
