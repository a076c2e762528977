"""How far to follow a denoiser that learned without truth, found without truth too.

A network that never sees the pixel it is asked for gives away what that pixel knows; and one that was stopped
early may follow it too far. For noise that is independent from pixel to pixel, Stein's unbiased estimate of
the risk (C. Stein, Annals of Statistics 9, 1981) tells the error of ``x + s * g(x)``, where g is a network's
correction, from the noisy x alone, and so the best s.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .nn import KBNet_l, KBNet_s

_BINS = 16  # of brightness, as noise may depend on it
_MEDIAN = 0.6745  # of |N(0, 1)|
_PROBE = 0.01  # of 0..1; how far an input is moved to see how the output follows
DOUBTFUL = 0.4
"""Of `independence`; below it, learning from hidden pixels is not promising."""

BOUNDS = 0.25, 1.5
"""A share beyond these says that the assumptions do not hold."""


def noise_variance(pictures: Sequence[NDArray[np.float32]], distance: int = 1) -> float:
    """Mean variance of the noise of pictures (H, W, C), from corners of squares `distance` pixels wide."""
    details, levels = [], []
    for picture in pictures:
        whole = picture.astype(np.float64)
        a, b, c, d = (whole[i, j] for i in _ends(distance) for j in _ends(distance))
        details.append((a - b - c + d).ravel() / 2)
        levels.append((a + b + c + d).ravel() / 4)
    detail, level = np.concatenate(details), np.concatenate(levels)
    known = np.isfinite(detail)
    ordered = detail[known][np.argsort(level[known], kind="stable")]
    parts = [part for part in np.array_split(np.abs(ordered), _BINS) if part.size]
    return float(np.mean([(np.median(part) / _MEDIAN) ** 2 for part in parts])) if parts else 0.0


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
def best_share(network: KBNet_s | KBNet_l, pictures: Tensor, variance: float) -> float:
    """Share of a network's correction that leaves the least squared error, within `BOUNDS`.

    Parameters
    ----------
    network : KBNet_s or KBNet_l
    pictures : Tensor
        (B, C, H, W), noisy, in 0..1, where the network is.
    variance : float
        Of their noise, in the same units.
    """
    probe = torch.randint(0, 2, pictures.shape, generator=torch.Generator().manual_seed(0))
    direction = (2 * probe - 1).to(pictures)
    power = divergence = 0.0
    for x, along in zip(pictures.split(8), direction.split(8), strict=True):
        correction = network(x) - x
        moved = network(x + _PROBE * along) - x - _PROBE * along
        power += float(correction.square().sum())
        divergence += float(((moved - correction) * along).sum()) / _PROBE
    share = -variance * divergence / power if power > 0 else 1.0
    return min(max(share, BOUNDS[0]), BOUNDS[1])


def scale_correction(network: KBNet_s | KBNet_l, share: float) -> None:
    """Make a network correct its input by so much of what it does now; in place, in its last layer."""
    last = network.ending if isinstance(network, KBNet_s) else network.output
    with torch.no_grad():
        for parameter in last.parameters():
            parameter.mul_(share)
