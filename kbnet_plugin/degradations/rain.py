"""Rain: bright streaks and mist."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..errors import BadInput, nearest
from .base import Bounds, Degradation, Draws, bounds
from .checks import whole_bounds
from .pipeline import register_degradation

Floats = NDArray[np.float64]
BLENDS = ("screen", "add")


@register_degradation
class Rain(Degradation):
    """Streaks of rain, gray and brighter than what is behind them.

    Drops lie at random points, and a streak grows around each. A layer's streaks share direction, length and
    thickness; an image has several layers.

    Parameters
    ----------
    density : float or pair of float
        Share of the picture, 0..2, that streaks cover as far as they do not overlap: their number per pixel
        times length and thickness; drawn uniformly between bounds, and divided among the layers.
    length : float or pair of float
        Pixels, 1 or more; drawn log-uniformly for a layer.
    thickness : float or pair of float
        Full width at half maximum, 0.5..30 pixels; drawn log-uniformly for a layer.
    angle : float or pair of float
        Degrees from the vertical, -90..90; positive ones lean to the right at the top. Drawn uniformly for an
        image.
    spread : float
        Standard deviation of the layers' angles around it, in degrees.
    brightness : float or pair of float
        Of the brightest streaks in their middle, 0..1; drawn uniformly for a layer. The others have this
        times the square of a uniform number: many are faint.
    layers : int or pair of int
        1..8; drawn uniformly for an image.
    veil : float or pair of float
        Brightness of a mist over the whole picture, 0..1; drawn uniformly for an image.
    blend : str
        ``screen``, 1 - (1 - x) (1 - s), as light through scattering drops; or ``add``, min(x + s, 1), as in
        Rain100L.

    References
    ----------
    Yang et al., "Deep joint rain detection and removal from a single image", CVPR 2017.
    """

    def __init__(
        self,
        density: Bounds = (0.05, 0.5),
        length: Bounds = (15, 90),
        thickness: Bounds = (1, 3),
        angle: Bounds = (-30, 30),
        spread: float = 3.0,
        brightness: Bounds = (0.1, 0.8),
        layers: Bounds = (1, 3),
        veil: Bounds = 0.0,
        blend: str = "screen",
    ) -> None:
        self.density, self.length = bounds(density, "density", 0, 2), bounds(length, "length", 1)
        self.thickness = bounds(thickness, "thickness", 0.5, 30)
        self.angle, self.spread = bounds(angle, "angle", -90, 90), bounds(spread, "spread", 0, 90)[1]
        self.brightness, self.veil = bounds(brightness, "brightness", 0, 1), bounds(veil, "veil", 0, 1)
        self.layers = whole_bounds(layers, "layers", 1, 8)
        if blend not in BLENDS:
            raise BadInput(f"blend: no blend {blend!r}{nearest(blend, BLENDS)}")
        self.blend = blend

    def __call__(self, degraded: Tensor, clean: Tensor, draws: Draws) -> tuple[Tensor, Tensor]:
        dark = 1 - self.streaks(draws, *degraded.shape[2:])
        dark *= 1 - draws.on_device(draws.uniform(*self.veil))
        if self.blend == "screen":
            return 1 - (1 - degraded) * dark, clean
        # Values above 1, as noise leaves them, are not taken away.
        return torch.minimum(degraded + (1 - dark), degraded.clamp(min=1)), clean

    def streaks(self, draws: Draws, height: int, width: int) -> Tensor:
        """Draw the layer of streaks, (B, 1, H, W), in 0..1."""
        layers = draws.integers(self.layers[0], self.layers[1] + 1)
        density, angle = draws.uniform(*self.density) / layers, draws.uniform(*self.angle)
        dark = torch.ones(len(draws), 1, height, width, device=draws.device)
        for i in range(self.layers[1]):
            length, thickness = draws.log_uniform(*self.length), draws.log_uniform(*self.thickness)
            brightness = np.where((i < layers) & (density > 0), draws.uniform(*self.brightness), 0)
            points = density / (length * thickness)
            turn = np.deg2rad(angle + draws.normal(0, self.spread))
            drops = _drops(draws, points, brightness, height, width)
            turned, long, thick = (draws.on_device(v) for v in (turn, length, thickness))
            kernels = _streak(turned, long, thick, height, width)
            # The picture is a torus to this product, so that streaks neither begin nor end at its borders.
            spectrum = torch.fft.rfft2(drops) * torch.fft.rfft2(kernels)
            dark *= 1 - torch.fft.irfft2(spectrum, s=(height, width)).clamp_(0, 1)
        return 1 - dark


def _drops(draws: Draws, points: Floats, brightness: Floats, height: int, width: int) -> Tensor:
    """Draw points, (B, 1, H, W), as bright as streaks are in their middle, and 0 elsewhere."""
    share = draws.on_device(np.minimum(points, 1))
    # Below the share, a uniform number over the share is uniform in 0..1.
    relative = draws.uniform_map(1, height, width) / share.clamp(min=1e-12)
    return (1 - relative).clamp_(min=0).square_().mul_(draws.on_device(brightness))


def _streak(angle: Tensor, length: Tensor, thickness: Tensor, height: int, width: int) -> Tensor:
    """Draw one streak around the origin of a torus, (B, 1, H, W), 1 in the middle and fading to its ends."""
    y = torch.fft.fftfreq(height, 1 / height, device=angle.device)[:, None]
    x = torch.fft.fftfreq(width, 1 / width, device=angle.device)
    along, across = x * angle.sin() - y * angle.cos(), x * angle.cos() + y * angle.sin()
    fading = (1 - (2 * along / length) ** 2).clamp_(min=0)
    # No denormals, which are slow on a CPU.
    return fading * torch.exp2(-((2 * across / thickness) ** 2).clamp_(max=60))
