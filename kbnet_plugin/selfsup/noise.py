"""Measure the noise of pictures, and draw more of the same kind.

The variance of camera noise grows with brightness. Where there are few photons, its distribution is skewed,
most of all with electron multiplication. Training that takes such noise for Gaussian makes a network worse.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

_BINS = 16  # of brightness
_MEDIAN = 0.6745  # of |N(0, 1)|
_OUTLIER = 100.0  # times the mean square, which hot pixels exceed
_PROBE = 0.01  # of 0..1; step for the derivative of the output with respect to the input
_LEAST = 0.1  # share of the noise that is removed; less shows too little of it
_GAUSSIAN = 50.0  # photons from which their distribution counts as Gaussian

DOUBTFUL = 0.4
"""Value of `independence` below which noise is not independent from pixel to pixel, or hardly there."""


@dataclass(frozen=True)
class NoiseCurve:
    """Noise by brightness, in the units of the pictures; interpolated, and constant beyond the ends.

    Attributes
    ----------
    levels : tuple of float
        Brightness, ascending; the last may be repeated.
    variances : tuple of float
        Variance of the noise there.
    steps : tuple of float
        Third cumulant over variance: 0 for Gaussian noise, for Poisson noise the intensity of one photon.
    """

    levels: tuple[float, ...]
    variances: tuple[float, ...]
    steps: tuple[float, ...]

    def variance(self, level: Tensor) -> Tensor:
        """Return the variance of the noise at any brightness."""
        return _interpolated(level, self.levels, self.variances)

    def draw(self, level: Tensor, share: float, generator: torch.Generator | None = None) -> Tensor:
        """Draw noise with a share of the pictures' variance: that many more photons, less their mean.

        Parameters
        ----------
        level : Tensor
            Brightness of every pixel without noise.
        share : float
            Above 0.
        generator : torch.Generator, optional

        Returns
        -------
        Tensor
        """
        variance = share * self.variance(level)
        step = _interpolated(level, self.levels, self.steps)
        drawn = torch.randn(level.shape, generator=generator, device=level.device, dtype=level.dtype)
        photons = variance / step.square().clamp(min=1e-12)
        few = photons < _GAUSSIAN
        counts = torch.poisson(photons.where(few, photons.new_zeros(())), generator)
        return (step * (counts - photons)).where(few, drawn * variance.sqrt())


def _interpolated(level: Tensor, levels: Sequence[float], values: Sequence[float]) -> Tensor:
    at, known = (torch.tensor(v).to(level) for v in (levels, values))
    right = torch.searchsorted(at, level.contiguous()).clamp(1, len(at) - 1)
    low, high = at[right - 1], at[right]
    weight = ((level - low) / (high - low).clamp(min=1e-12)).clamp(0, 1)
    return known[right - 1] + weight * (known[right] - known[right - 1])


def measure_curve(pictures: Sequence[NDArray[np.float32]], network: Callable[[Tensor], Tensor]) -> NoiseCurve:
    """Measure how the noise depends on brightness, if it is independent from pixel to pixel.

    Parameters
    ----------
    pictures : sequence of ndarray
        (H, W, C).
    network : callable
        A denoiser of (B, C, H, W). What it removes shows the noise without most of the structure, and its
        output the brightness.

    Returns
    -------
    NoiseCurve

    Notes
    -----
    The variance is that of the detail ``(a - b - c + d) / 2`` of squares of four pixels in what the denoiser
    removes. It removes ``(1 - J) n`` of noise n, with its derivative J: random probes instead of n show how
    much of the noise's power that leaves, and of its third cumulant.
    """
    columns = _residual_bins(pictures, network) if pictures else (np.zeros(1),) * 3
    levels, bin_of = np.unique(columns[0], return_inverse=True)  # a flat picture fills several bins
    count = np.bincount(bin_of)
    means = [np.bincount(bin_of, values) / count for values in columns[1:]]
    padded = [np.pad(column, (0, _BINS - len(levels)), "edge") for column in (levels, *means)]
    return NoiseCurve(*(tuple(column.tolist()) for column in padded))


def noise_variance(pictures: Sequence[NDArray[np.float32]], distance: int = 1) -> float:
    """Measure the mean variance of the noise, from the corners of squares.

    Parameters
    ----------
    pictures : sequence of ndarray
        (H, W, C), with NaN for missing values.
    distance : int
        Side of the squares, in pixels.

    Returns
    -------
    float
        In the squared units of the pictures.
    """
    _, variances = _bins(pictures, distance)
    return float(variances.mean()) if variances.size else 0.0


def independence(pictures: Sequence[NDArray[np.float32]]) -> float:
    """Measure how independent the noise of neighbouring pixels is.

    Parameters
    ----------
    pictures : sequence of ndarray
        (H, W, C), with NaN for missing values.

    Returns
    -------
    float
        Ratio of the variance measured between neighbours to that between pixels two apart: 0.6 to 1 for white
        noise; 0.1 to 0.3 after demosaicking, resampling or compression, and without noise, where only
        structure is measured.
    """
    apart = noise_variance(pictures, 2)
    return noise_variance(pictures) / apart if apart > 0 else 1.0


def _bins(
    pictures: Sequence[NDArray[np.float32]], distance: int = 1
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the mean brightness of every bin, ascending, and the variance of the noise there."""
    details, levels = [], []
    for picture in pictures:
        a, b, c, d = _corners(picture.astype(np.float64), distance, (0, 1))
        details.append((a - b - c + d).ravel() / 2)
        levels.append((a + b + c + d).ravel() / 4)
    detail, level = np.concatenate(details), np.concatenate(levels)
    known = np.isfinite(detail)
    detail, level = detail[known], level[known]
    parts = _parts(level)
    return (
        np.array([level[part].mean() for part in parts]),
        np.array([(np.median(np.abs(detail[part])) / _MEDIAN) ** 2 for part in parts]),
    )


@torch.inference_mode()
def _residual_bins(
    pictures: Sequence[NDArray[np.float32]], network: Callable[[Tensor], Tensor]
) -> tuple[NDArray[np.float64], ...]:
    """Return brightness, variance and step of every bin."""
    rows: list[list[NDArray[np.float64]]] = []
    generator = torch.Generator().manual_seed(0)
    for picture in pictures:
        noisy = torch.from_numpy(picture).permute(2, 0, 1)[None]
        probe = 2.0 * torch.randint(0, 2, noisy.shape, generator=generator) - 1
        clean = network(noisy)
        response = (network(noisy + _PROBE * probe) - clean) / _PROBE
        a, b, c, d = _corners(clean, 1, (2, 3))
        removed = noisy - clean
        left = probe - response  # what remains of noise in what is removed
        seen = removed, left.square(), probe * left
        inner = (x[..., 1:, 1:] for x in seen)
        details = _detail(removed).square(), _detail(left).square()
        rows.append([x.flatten().numpy().astype(np.float64) for x in ((a + b + c + d) / 4, *details, *inner)])
    level, square, share, rest, power, own = (np.concatenate(column) for column in zip(*rows, strict=True))
    found = []
    for part in _parts(level):
        variance = _typical(square[part]) / max(float(share[part].mean()), _LEAST)
        noise = rest[part] - rest[part].mean()
        noise = noise[noise**2 <= _OUTLIER * (noise**2).mean()]
        step = (noise**3).mean() / max(float((noise**2).mean()), 1e-12)
        step *= max(float(power[part].mean()), _LEAST) / max(float(own[part].mean()), _LEAST) ** 3
        found.append((level[part].mean(), variance, step))
    return tuple(np.array(values) for values in zip(*found, strict=True))


def _typical(squares: NDArray[np.float64]) -> float:
    """Return the mean without outliers. Not the median, which is 0 where photons are rare."""
    return float(squares[squares <= _OUTLIER * squares.mean()].mean())


def _parts(level: NDArray[np.float64]) -> list[NDArray[np.intp]]:
    order = np.argsort(level, kind="stable")
    return [part for part in np.array_split(order, _BINS) if part.size]


def _detail(x: Tensor) -> Tensor:
    a, b, c, d = _corners(x, 1, (2, 3))
    detail: Tensor = (a - b - c + d) / 2
    return detail


def _corners(x: Any, distance: int, axes: tuple[int, int]) -> list[Any]:
    ends = slice(None, -distance), slice(distance, None)
    whole = [slice(None)] * axes[0]
    return [x[(*whole, i, j)] for i in ends for j in ends]
