"""What fluorescence microscopes see, and how their frames reach a network."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..arrays.intensity import PERCENTILES
from .base import Bounds, Degradation, Draws, bounds
from .checks import log_bounds, probability
from .pipeline import register_degradation

SAMPLES = 4096
"""Values that tell a quantile; sorting all would take longer than the noise."""

CLIP = -1.0, 2.0
"""Limits of what inference shows a network."""


@register_degradation
class Fluorescence(Degradation):
    """Make pictures look like fluorescence: sparse structures of any brightness on a dark ground.

    The structures are what is brighter in the picture than a random quantile, steepened; or they are drawn:
    cells with or without nuclei, and in them networks of filaments, points, grains and an even glow. All
    channels of a drawn sample are alike. The microscope blurs, and light from out of focus lies over it.

    Takes the place of the clean and of the degraded image.

    Parameters
    ----------
    drawn : float
        Probability that the structures are drawn.
    blur : float or pair of float
        Blur by the microscope, standard deviation in pixels, 0..10; drawn uniformly between bounds.
    haze : float or pair of float
        Share of the light, 0..1, that comes from out of focus; drawn uniformly between bounds.
    peak : float or pair of float
        Brightest value, 0..1; drawn log-uniformly between bounds.
    background : float or pair of float
        Value of the ground, 0..1; drawn uniformly between bounds. Nothing is seen on one above the peak.
    """

    def __init__(
        self,
        drawn: float = 0.7,
        blur: Bounds = (0, 2.5),
        haze: Bounds = (0, 0.8),
        peak: Bounds = (0.05, 1),
        background: Bounds = (0, 0.1),
    ) -> None:
        self.drawn = probability(drawn, "drawn")
        self.blur, self.haze = bounds(blur, "blur", 0, 10), bounds(haze, "haze", 0, 1)
        self.peak, self.background = log_bounds(peak, "peak", 1), bounds(background, "background", 0, 1)

    def __call__(self, degraded: Tensor, clean: Tensor, draws: Draws) -> tuple[Tensor, Tensor]:
        structure = _brighter(clean, draws)
        peak, background = draws.log_uniform(*self.peak), draws.uniform(*self.background)
        steepness = draws.uniform(0.7, 2)
        if self.drawn:
            chosen = np.flatnonzero(draws.uniform() < self.drawn)
            if len(chosen):
                where = torch.from_numpy(chosen).to(clean.device, non_blocking=True)
                cells = _cells(draws.subset(chosen.tolist()), *clean.shape[2:])
                structure = structure.index_copy(0, where, cells.expand(-1, clean.shape[1], -1, -1))
        structure = structure ** draws.on_device(steepness)
        if self.blur[1] or self.haze[1]:
            structure = self._seen(structure, draws)
        contrast = draws.on_device(peak - np.minimum(peak, background))
        made = draws.on_device(background) + contrast * structure
        return made, made

    def _seen(self, structure: Tensor, draws: Draws) -> Tensor:
        blur, haze = draws.uniform(*self.blur), draws.uniform(*self.haze)
        far = draws.log_uniform(4, 25)
        margin = min(32, min(structure.shape[2:]) - 1)
        waves = _Waves(draws, *(side + 2 * margin for side in structure.shape[2:]))
        share = draws.on_device(haze)
        seen = (1 - share) * waves.gaussian(blur, blur) + share * waves.gaussian(far, far)
        # Mirrored around, as the product takes the picture for a torus.
        mirrored = F.pad(structure, (margin,) * 4, mode="reflect") if margin else structure
        blurred = waves.back(torch.fft.rfft2(mirrored) * seen)
        height, width = structure.shape[2:]
        return _to_unit(blurred[..., margin : margin + height, margin : margin + width].clamp(min=0))


def _brighter(clean: Tensor, draws: Draws) -> Tensor:
    """Return by how much values exceed a random quantile of their sample, in 0..1."""
    values = _sorted(clean)
    place = draws.uniform(0.2, 0.95) * (values.shape[1] - 1)
    rank = draws.on_device(np.floor(place)).flatten(1).long()
    between = draws.on_device(place % 1)
    below, above = (values.gather(1, rank + n)[..., None, None] for n in (0, 1))
    dark = below + (above - below) * between
    bright = clean.amax((1, 2, 3), keepdim=True)
    return (clean - dark).clamp(min=0) / (bright - dark).clamp(min=1e-3)


def _sorted(images: Tensor) -> Tensor:
    """Return some values of each sample, sorted, (B, N)."""
    values = images.flatten(1)
    return values[:, :: values.shape[1] // SAMPLES | 1].sort(1).values


def _to_unit(structure: Tensor) -> Tensor:
    return structure / structure.amax((1, 2, 3), keepdim=True).clamp(min=1e-6)


class _Waves:
    """Random fields and filters as sums of waves on a torus."""

    def __init__(self, draws: Draws, height: int, width: int) -> None:
        self.draws, self.size = draws, (height, width)
        self.y = torch.fft.fftfreq(height, device=draws.device)[:, None]
        self.x = torch.fft.rfftfreq(width, device=draws.device)

    def gaussian(self, along: np.ndarray, across: np.ndarray, angle: np.ndarray | None = None) -> Tensor:
        """Return the spectra, (B, 1, H, W / 2 + 1), of Gaussians with these standard deviations in pixels."""
        turn = np.zeros_like(along) if angle is None else angle
        cos, sin, long, wide = (self.draws.on_device(v) for v in (np.cos(turn), np.sin(turn), along, across))
        turned = (self.x * cos + self.y * sin) * long, (self.y * cos - self.x * sin) * wide
        squares = turned[0].square_().add_(turned[1].square_())
        # No denormals, which are slow on a CPU.
        return torch.exp((squares * (-2 * math.pi**2)).clamp_(min=-60))

    def field(
        self, white: Tensor, along: np.ndarray, across: np.ndarray, angle: np.ndarray | None = None
    ) -> Tensor:
        """Smooth white noise, (B, 1, H, W / 2 + 1), to values of mean 0 and variance 1, (B, 1, H, W)."""
        scale = self.draws.on_device(np.sqrt(4 * np.pi * along * across))
        return self.back(white * self.gaussian(along, across, angle)).mul_(scale)

    def back(self, spectrum: Tensor) -> Tensor:
        return torch.fft.irfft2(spectrum, s=self.size)


def _cells(draws: Draws, height: int, width: int) -> Tensor:
    """Draw cells and what is in them, (B, 1, H, W), in 0..1."""
    waves = _Waves(draws, height, width)
    white = torch.fft.rfft2(draws.normal_map(3, height, width)).split(1, 1)

    # Cells: where a smooth field is above a level; nuclei: where it is highest.
    size = draws.log_uniform(12, 60)
    body = waves.field(white[0], size, size)
    level, edge = draws.uniform(-1.8, 1), draws.log_uniform(1, 8) / size
    inside = torch.sigmoid((body - draws.on_device(level)) / draws.on_device(edge))
    nucleus = torch.sigmoid((body - draws.on_device(level + draws.uniform(0.7, 2))) / draws.on_device(edge))

    kinds = (_filaments, _points, _grains)
    shares = [draws.uniform() ** 2 * (draws.uniform() < share) for share in (0.7, 0.6, 0.4)]
    shares[0] += (sum(shares) == 0) * 1.0
    content = draws.on_device(0.5 * draws.uniform() ** 2 * (draws.uniform() < 0.6))
    speckles = draws.uniform_map(1, height, width)
    for kind, share in zip(kinds, shares, strict=True):
        some = draws.host(lambda g: g.random(6))  # of every kind, whichever is shown
        if share.any():
            content = content + draws.on_device(share) * kind(waves, white, speckles, np.array(some).T)

    within = draws.on_device(draws.uniform(0, 1.5) * (draws.uniform() < 0.5))
    has_nuclei = draws.on_device((draws.uniform() < 0.5) * draws.uniform(0.5, 1))
    content = content * (1 - has_nuclei * nucleus) + within * has_nuclei * nucleus
    return _to_unit(content * inside)


def _between(u: np.ndarray, low: float, high: float) -> np.ndarray:
    return low * (high / low) ** u


def _filaments(waves: _Waves, white: Sequence[Tensor], speckles: Tensor, u: np.ndarray) -> Tensor:
    """Draw lines where a field is 0, as thick everywhere, and brighter in some places than in others."""
    on_device = waves.draws.on_device
    spacing = _between(u[0], 2.5, 12)
    stretched = spacing * np.where(u[1] < 0.5, 1 + 2 * u[1], _between(2 * u[1] - 1, 2, 12))
    field = waves.field(white[1], stretched, spacing, np.pi * u[2])
    slope = torch.hypot(field - field.roll(1, 3), field - field.roll(1, 2)) + on_device(0.15 / spacing)
    lines = torch.exp(
        (field / slope / on_device(_between(u[3], 0.5, 2))).square_().mul_(-0.5).clamp_(min=-60)
    )
    return lines * torch.exp(waves.field(white[2], spacing * 2, spacing * 2) * on_device(u[4]))


def _points(waves: _Waves, white: Sequence[Tensor], speckles: Tensor, u: np.ndarray) -> Tensor:
    """Draw round points, a few of them bright."""
    on_device, radius = waves.draws.on_device, 0.6 + u[1]
    points = (1 - speckles / on_device(_between(u[0], 3e-4, 2e-2))).clamp_(min=0)
    points = points * points.square()
    kernel = waves.gaussian(radius, radius) * on_device(4 * np.pi * radius * radius)
    return waves.back(torch.fft.rfft2(points) * kernel).clamp_(min=0)


def _grains(waves: _Waves, white: Sequence[Tensor], speckles: Tensor, u: np.ndarray) -> Tensor:
    size = _between(u[0], 0.8, 3)
    return waves.field(white[2], size, size).clamp_(min=0) / 2


@register_degradation
class Stretch(Degradation):
    """Scale the degraded and the clean image as inference scales frames of more than 8 bits.

    The 0.1th and 99.9th percentiles of the degraded image become 0 and 1, for both images, which are then
    clipped to -1..2: so the ground lies as far above 0 as noise reaches, and noise that is all there is fills
    the range.
    """

    def __call__(self, degraded: Tensor, clean: Tensor, draws: Draws) -> tuple[Tensor, Tensor]:
        values = _sorted(degraded)
        ranks = [round(share / 100 * (values.shape[1] - 1)) for share in PERCENTILES]
        low, high = (values[:, rank, None, None, None] for rank in ranks)
        span = high - low
        span = torch.where(span > 0, span, 1)
        stretched, target = (((image - low) / span).clamp_(*CLIP) for image in (degraded, clean))
        return stretched, target
