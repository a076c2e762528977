"""SURE shrinkage: scale the correction of a self-supervised denoiser to the smallest expected error.

A network trained on masked pixels ignores the information in the pixel itself, and one that was stopped early
may correct too much. For noise that is independent from pixel to pixel, Stein's unbiased risk estimate (SURE)
gives the expected error of ``x + s * g(x)``, where g is the network's correction, from the noisy x alone, and
so the best s.

References
----------
C. Stein, "Estimation of the mean of a multivariate normal distribution", Annals of Statistics 9(6), 1981.
S. Ramani, T. Blu, M. Unser, "Monte-Carlo SURE: a black-box optimization of regularization parameters for
general denoising algorithms", IEEE TIP 17(9), 2008.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..nn import KBNet_l, KBNet_s

_BINS = 16  # of brightness, on which noise may depend
_MEDIAN = 0.6745  # of |N(0, 1)|
_PROBE = 0.01  # of 0..1; step for the derivative of the output with respect to the input

DOUBTFUL = 0.4
"""Value of `independence` below which training on masked pixels may gain little."""

BOUNDS = 0.25, 1.5
"""Limits of the shrinkage; values beyond them mean that its assumptions do not hold."""


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


def variance_by_brightness(pictures: Sequence[NDArray[np.float32]]) -> Callable[[Tensor], Tensor]:
    """Measure how the variance of the noise depends on brightness.

    Parameters
    ----------
    pictures : sequence of ndarray
        (H, W, C), with NaN for missing values.

    Returns
    -------
    callable
        From brightness to variance, both tensors of one shape, in the units of the pictures. It interpolates
        between bins of equally many pixels and is constant beyond the outermost.
    """
    levels, variances = _bins(pictures)
    if not levels.size:
        return torch.zeros_like
    levels, bin_of = np.unique(levels, return_inverse=True)  # a flat picture fills several bins
    means = np.bincount(bin_of, variances) / np.bincount(bin_of)

    def variance(brightness: Tensor) -> Tensor:
        return torch.from_numpy(np.interp(brightness.cpu().numpy(), levels, means)).to(brightness)

    return variance


def _bins(
    pictures: Sequence[NDArray[np.float32]], distance: int = 1
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the mean brightness of every bin, ascending, and the variance of the noise there."""
    details, levels = [], []
    for picture in pictures:
        whole = picture.astype(np.float64)
        a, b, c, d = (whole[i, j] for i in _ends(distance) for j in _ends(distance))
        details.append((a - b - c + d).ravel() / 2)
        levels.append((a + b + c + d).ravel() / 4)
    detail, level = np.concatenate(details), np.concatenate(levels)
    known = np.isfinite(detail)
    detail, level = detail[known], level[known]
    order = np.argsort(level, kind="stable")
    parts = [part for part in np.array_split(order, _BINS) if part.size]
    return (
        np.array([level[part].mean() for part in parts]),
        np.array([(np.median(np.abs(detail[part])) / _MEDIAN) ** 2 for part in parts]),
    )


def _ends(distance: int) -> tuple[slice, slice]:
    return slice(None, -distance), slice(distance, None)


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


@torch.inference_mode()
def sure_shrinkage(
    network: KBNet_s | KBNet_l, pictures: Tensor, variance: float | Callable[[Tensor], Tensor]
) -> float:
    """Estimate the factor of a network's correction that minimizes the squared error (see the module).

    Parameters
    ----------
    network : KBNet_s or KBNet_l
    pictures : Tensor
        (B, C, H, W), noisy, in 0..1, on the network's device.
    variance : float or callable
        Variance of the noise of the pictures: one for all pixels, or a function of their brightness, as
        `variance_by_brightness` returns it. A pixel's brightness is the network's prediction.

    Returns
    -------
    float
        Within `BOUNDS`; 1 if the network corrects nothing.
    """
    probe = torch.randint(0, 2, pictures.shape, generator=torch.Generator().manual_seed(0))
    direction = (2 * probe - 1).to(pictures)
    power = gained = 0.0
    for x, along in zip(pictures.split(8), direction.split(8), strict=True):
        restored = network(x)
        correction = restored - x
        moved = network(x + _PROBE * along) - x - _PROBE * along
        power += float(correction.square().sum())
        strength = variance(restored) if callable(variance) else variance
        # Each pixel's own variance, because the correction depends on some pixels more than on others.
        gained -= float((strength * (moved - correction) * along).sum()) / _PROBE
    shrinkage = gained / power if power > 0 else 1.0
    return min(max(shrinkage, BOUNDS[0]), BOUNDS[1])


def scale_correction(network: KBNet_s | KBNet_l, shrinkage: float) -> None:
    """Scale the correction that a network adds to its input, in place, in its last layer.

    Parameters
    ----------
    network : KBNet_s or KBNet_l
    shrinkage : float
        Factor of the correction; 1 changes nothing.
    """
    last = network.ending if isinstance(network, KBNet_s) else network.output
    with torch.no_grad():
        for parameter in last.parameters():
            parameter.mul_(shrinkage)
