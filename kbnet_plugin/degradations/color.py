"""Changes of colour that concern the clean image as well: more variety from the same pictures."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from .base import Bounds, Degradation, Draws, bounds
from .checks import probability
from .pipeline import register_degradation

_LUMA = np.array([0.299, 0.587, 0.114])


@register_degradation
class ColorJitter(Degradation):
    """Change the colours of the clean and the degraded image alike.

    Values are changed linearly, and the clean image is clipped to 0..1. The degraded one moves with it: what
    was between the two is changed as the colours are, and not clipped. Gray images change in contrast,
    brightness and by inversion alone.

    Parameters
    ----------
    saturation : float or pair of float
        Distance from the gray of the same luma, 1 leaving it as it is; drawn uniformly between bounds.
    hue : float or pair of float
        Degrees, -180..180, of a turn about the gray axis; drawn uniformly between bounds.
    permutation : float
        Probability that channels change places.
    inversion : float
        Probability that x becomes 1 - x.
    contrast : float or pair of float
        Distance from 0.5, 1 leaving it as it is; drawn uniformly between bounds.
    brightness : float or pair of float
        What is added, -1..1; drawn uniformly between bounds.
    """

    def __init__(
        self,
        saturation: Bounds = (0.5, 1.5),
        hue: Bounds = (-20, 20),
        permutation: float = 0.5,
        inversion: float = 0.1,
        contrast: Bounds = (0.8, 1.1),
        brightness: Bounds = (-0.1, 0.1),
    ) -> None:
        self.saturation, self.hue = bounds(saturation, "saturation"), bounds(hue, "hue", -180, 180)
        self.permutation = probability(permutation, "permutation")
        self.inversion = probability(inversion, "inversion")
        self.contrast, self.brightness = bounds(contrast, "contrast"), bounds(brightness, "brightness", -1, 1)

    def __call__(self, degraded: Tensor, clean: Tensor, draws: Draws) -> tuple[Tensor, Tensor]:
        scale = draws.uniform(*self.contrast)
        offset = (1 - scale) / 2 + draws.uniform(*self.brightness)
        inverted = draws.uniform() < self.inversion
        offset, scale = np.where(inverted, 1 - offset, offset), np.where(inverted, -scale, scale)
        matrix = draws.on_device(scale[:, None])
        if clean.shape[1] == 3:
            matrices = self._matrices(draws) * scale[:, None, None]
            matrix = draws.on_device(matrices.reshape(-1, 9)).view(-1, 3, 3)
        changed = (_mix(matrix, clean) + draws.on_device(offset)).clamp_(0, 1)
        if degraded is clean:
            return changed, changed
        return changed + _mix(matrix, degraded - clean), changed

    def _matrices(self, draws: Draws) -> NDArray[np.float64]:
        """Draw what happens to colours, (B, 3, 3); rows sum to 1, so that gray stays gray."""
        gray = np.tile(_LUMA, (3, 1))
        saturated = gray + draws.uniform(*self.saturation)[:, None, None] * (np.eye(3) - gray)
        orders = np.stack(draws.host(lambda g: np.eye(3)[g.permutation(3)]))
        kept = draws.uniform() >= self.permutation
        orders[kept] = np.eye(3)
        return orders @ saturated @ _turns(np.deg2rad(draws.uniform(*self.hue)))


def _turns(angle: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the rotations, (B, 3, 3), by angles, (B,), about the gray axis (Rodrigues' formula)."""
    axis = np.full(3, 3**-0.5)
    cross = np.cross(np.eye(3), axis)
    cos, sin = np.cos(angle)[:, None, None], np.sin(angle)[:, None, None]
    return cos * np.eye(3) + sin * cross + (1 - cos) * np.outer(axis, axis)


def _mix(matrix: Tensor, image: Tensor) -> Tensor:
    if image.shape[1] == 1:
        return matrix * image
    return (matrix @ image.flatten(2)).view_as(image)
