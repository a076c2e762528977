"""Degrade clean images as cameras, lenses, weather and file formats do: batches of tensors, on any device."""

from . import noise  # registers its classes
from .base import Degradation, Draws
from .pipeline import DEGRADATIONS, Pipeline, register_degradation

__all__ = ["DEGRADATIONS", "Degradation", "Draws", "Pipeline", "noise", "register_degradation"]
