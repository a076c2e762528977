"""How far to follow a denoiser that learned without truth, found without truth too.

A network that never sees the pixel it is asked for gives away what that pixel knows; and one that was stopped
early may follow it too far. For noise that is independent from pixel to pixel, Stein's unbiased estimate of
the risk (C. Stein, Annals of Statistics 9, 1981) tells the error of ``x + s * g(x)``, where g is a network's
correction, from the noisy x alone, and so the best s.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..nn import KBNet_l, KBNet_s

_BINS = 16  # of brightness, as noise may depend on it
_MEDIAN = 0.6745  # of |N(0, 1)|
_PROBE = 0.01  # of 0..1; how far an input is moved to see how the output follows
DOUBTFUL = 0.4
"""Of `independence`; below it, learning from hidden pixels is not promising."""

BOUNDS = 0.25, 1.5
"""A factor beyond these says that the assumptions do not hold."""


def noise_variance(pictures: Sequence[NDArray[np.float32]], distance: int = 1) -> float:
    """Mean variance of the noise of pictures (H, W, C), from corners of squares `distance` pixels wide."""
    _, variances = _bins(pictures, distance)
    return float(variances.mean()) if variances.size else 0.0


def variance_by_brightness(pictures: Sequence[NDArray[np.float32]]) -> Callable[[Tensor], Tensor]:
    """How the variance of the noise of pictures (H, W, C) depends on brightness.

    Returns
    -------
    callable
        From brightness to variance, in the units of the pictures: linear between bins of brightness with
        equally many pixels, and beyond the outermost as there.
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
    """Mean brightness of every bin, ascending, and the variance of the noise there."""
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
    """How much of the noise neighbouring pixels do not share: 1 for all of it.

    It is the ratio of the noise found from neighbours to that found from pixels two apart. White noise gives
    0.6 to 1; demosaicked, resampled and compressed pictures 0.1 to 0.3, and so do pictures without noise, of
    which only structure is left.
    """
    apart = noise_variance(pictures, 2)
    return noise_variance(pictures) / apart if apart > 0 else 1.0


@torch.inference_mode()
def sure_shrinkage(
    network: KBNet_s | KBNet_l, pictures: Tensor, variance: float | Callable[[Tensor], Tensor]
) -> float:
    """Factor of a network's correction that leaves the least squared error, within `BOUNDS`.

    Parameters
    ----------
    network : KBNet_s or KBNet_l
    pictures : Tensor
        (B, C, H, W), noisy, in 0..1, where the network is.
    variance : float or callable
        Of their noise, in the same units: everywhere, or from the brightness of pixels to that of their
        noise. What the network makes of a pixel counts as its brightness.
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
        # Each pixel's own variance, as the correction follows some pixels more than others.
        gained -= float((strength * (moved - correction) * along).sum()) / _PROBE
    shrinkage = gained / power if power > 0 else 1.0
    return min(max(shrinkage, BOUNDS[0]), BOUNDS[1])


def scale_correction(network: KBNet_s | KBNet_l, shrinkage: float) -> None:
    """Make a network correct its input by so much of what it does now; in place, in its last layer."""
    last = network.ending if isinstance(network, KBNet_s) else network.output
    with torch.no_grad():
        for parameter in last.parameters():
            parameter.mul_(shrinkage)
