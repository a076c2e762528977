"""Defocus: the blur of a lens, stronger the farther things are from the plane in focus."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from .base import Bounds, Degradation, Draws, bounds
from .checks import probability, whole_bounds
from .filters import filter_same, grid, normalized
from .pipeline import register_degradation

_LEVELS, _SPACING = 5, 1.5
_WAVES = 4  # cosines of 0 to 3 half periods each way


@register_degradation
class Defocus(Degradation):
    """Blur by the image of an aperture, whose radius varies smoothly over the picture as depth does.

    The picture is blurred with a few radii, and every pixel blends the two nearest to its own. There is no
    light below 0: such values become 0.

    Parameters
    ----------
    radius : float or pair of float
        Pixels, 0..30: the radius of a disc, or of the disc of the same area as a polygon. Between bounds,
        each image has a smallest and a largest radius; a number alone is the radius everywhere. Time grows
        with the square of the upper bound.
    blades : int or pair of int
        Corners of the aperture, 3..12; drawn uniformly between bounds.
    disc : float
        Probability of a disc instead of a polygon.
    gamma : float
        Exponent that turns values into linear light, in which lenses blur; 1 for linear values.
    """

    def __init__(
        self, radius: Bounds = (0, 6), blades: Bounds = (5, 9), disc: float = 0.5, gamma: float = 2.2
    ) -> None:
        low, high = bounds(radius, "radius", 0, 30)
        self.blades = whole_bounds(blades, "blades", 3, 12)
        self.disc = probability(disc, "disc")
        self.gamma = bounds(gamma, "gamma", 0.1, 10)[1]
        # Small radii differ more: closer together.
        shares = np.linspace(0, 1, _LEVELS if low < high else 1) ** _SPACING
        self.radii = (low + (high - low) * shares).tolist()

    def __call__(self, degraded: Tensor, clean: Tensor, draws: Draws) -> tuple[Tensor, Tensor]:
        blades = draws.integers(self.blades[0], self.blades[1] + 1)
        number = draws.on_device(np.where(draws.uniform() < self.disc, 0, blades))
        turn = draws.on_device(draws.uniform(0, 2 * np.pi))
        light = degraded.clamp(min=0).pow_(self.gamma)
        light = light.transpose(0, 1).contiguous().transpose(0, 1)  # spares each filter a copy
        level = self._levels(draws, *degraded.shape[2:])
        blurred = torch.zeros_like(light)
        for i, radius in enumerate(self.radii):
            half = math.ceil(radius * _reach(self.blades[0]))
            one = filter_same(light, aperture(radius, number, turn, half)) if half else light
            blurred.addcmul_(one, (1 - (level - i).abs_()).clamp_(min=0))
        return blurred.pow_(1 / self.gamma).contiguous(), clean

    def _levels(self, draws: Draws, height: int, width: int) -> Tensor:
        """Draw the radius of every pixel, (B, 1, H, W), as a fractional index of `radii`."""
        ends = np.sort([draws.uniform() for _ in range(2)], axis=0)
        waves = torch.arange(_WAVES, device=draws.device) * math.pi
        down, across = (
            torch.cos(waves[:, None] * torch.linspace(0, 1, n, device=draws.device)) for n in (height, width)
        )
        smooth = down.T @ draws.normal_map(1, _WAVES, _WAVES) @ across
        least, most = smooth.amin((2, 3), keepdim=True), smooth.amax((2, 3), keepdim=True)
        depth = (smooth - least) / (most - least).clamp(min=1e-6)
        share = draws.on_device(ends[0]) + depth * draws.on_device(ends[1] - ends[0])
        return share.pow_(1 / _SPACING).mul_(len(self.radii) - 1)


def _reach(corners: int) -> float:
    """Distance of a regular polygon's corners, where its area is that of a disc of radius 1."""
    angle = math.pi / corners
    return math.sqrt(angle / math.tan(angle)) / math.cos(angle)


def aperture(radius: float, blades: Tensor, turn: Tensor, half: int) -> Tensor:
    """Draw apertures of the area of a disc.

    Parameters
    ----------
    radius : float
        Of the disc, in pixels.
    blades : Tensor
        (B, 1, 1, 1): corners, or 0 for a disc.
    turn : Tensor
        (B, 1, 1, 1): radians.
    half : int
        Half the size of the kernels, rounded down.

    Returns
    -------
    Tensor
        (B, 2 half + 1, 2 half + 1), each summing to 1.
    """
    y, x = grid(half, blades.device)
    corners = blades[:, 0].clamp(min=3)
    inner = radius * torch.sqrt(math.pi / (corners * torch.tan(math.pi / corners)))
    side = torch.arange(12, device=blades.device)[None, :, None, None]
    direction = side * (2 * math.pi / blades.clamp(min=3)) + turn
    outwards = (x * direction.cos() + y * direction.sin()).amax(1)
    distance = torch.where(blades[:, 0] > 0, outwards - inner, torch.sqrt(x * x + y * y) - radius)
    return normalized((0.5 - distance).clamp_(0, 1))
