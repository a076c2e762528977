"""Measure the squared error of a denoiser without clean pictures.

For noise that is independent from pixel to pixel, Stein's unbiased risk estimate (SURE) gives the expected
error from the noisy pictures alone. Where another recording of the same scene exists, the error against that
one is unbiased for any noise that the two do not share.

References
----------
C. Stein, "Estimation of the mean of a multivariate normal distribution", Annals of Statistics 9(6), 1981.
S. Ramani, T. Blu, M. Unser, "Monte-Carlo SURE: a black-box optimization of regularization parameters for
general denoising algorithms", IEEE TIP 17(9), 2008.
F. Luisier, T. Blu, M. Unser, "Image denoising in mixed Poisson-Gaussian noise", IEEE TIP 20(3), 2011.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..nn import KBNet_l, KBNet_s
from .noise import NoiseCurve

_SHARE = 0.1  # of the variance, in the probe; more would measure the error on noisier pictures
_BATCH = 8

BOUNDS = 0.25, 1.5
"""Limits of the shrinkage; values beyond them mean that its assumptions do not hold."""


class Risk(NamedTuple):
    """Estimated squared error of a denoiser on every picture, mean over its pixels.

    Attributes
    ----------
    power : ndarray
        Mean square of the correction that the network adds to its input.
    covariance : ndarray
        Mean product of the correction with the noise; negative, as the correction removes noise.
    variance : ndarray
        Of the noise.
    """

    power: NDArray[np.float64]
    covariance: NDArray[np.float64]
    variance: NDArray[np.float64]

    def errors(self, scale: float = 1.0) -> NDArray[np.float64]:
        """Return the errors if the correction is scaled; an estimate, so below 0 where they are small."""
        return scale**2 * self.power + 2 * scale * self.covariance + self.variance

    def error(self, scale: float = 1.0) -> float:
        """Return the mean error, at least a thousandth of the noise's variance."""
        return float(max(self.errors(scale).mean(), 1e-3 * self.variance.mean(), 1e-12))

    @property
    def shrinkage(self) -> float:
        """Scale of the correction with the least error, within `BOUNDS`; 1 if nothing is corrected."""
        power = float(self.power.mean())
        best = -float(self.covariance.mean()) / power if power > 0 else 1.0
        return min(max(best, BOUNDS[0]), BOUNDS[1])


class SingleRisk:
    """Stein's unbiased risk estimate on single pictures.

    Parameters
    ----------
    pictures : Tensor
        (B, C, H, W), noisy, in 0..1.
    noise : sequence of NoiseCurve
        Of every picture.
    outputs : sequence of Tensor
        Of denoisers, for the pictures; their mean shows the brightness. By default that of the one that is
        measured. To compare denoisers, give the same: where the output follows the noise, so does the
        variance there.

    Notes
    -----
    The probe is noise like the pictures' own, so that its skewness is taken into account as in the estimate
    for Poisson noise.
    """

    def __init__(
        self,
        pictures: Tensor,
        noise: Sequence[NoiseCurve],
        outputs: Sequence[Tensor] = (),
    ) -> None:
        self._pictures, self._noise = pictures, noise
        self._levels = torch.stack(list(outputs)).mean(0) if outputs else None

    @torch.inference_mode()
    def __call__(self, network: Callable[[Tensor], Tensor], output: Tensor | None = None) -> Risk:
        """Measure a denoiser, whose output may be known; the noise drawn is the same for each."""
        x = self._pictures
        restored = applied(network, x) if output is None else output
        levels = restored if self._levels is None else self._levels
        generator = torch.Generator().manual_seed(0)
        each = list(zip(self._noise, levels.cpu(), strict=True))
        probe = torch.stack([noise.draw(level, _SHARE, generator) for noise, level in each]).to(x)
        response = applied(network, x + probe) - restored - probe
        return Risk(
            _means((restored - x).square()),
            _means(probe * response / _SHARE),
            _means(torch.stack([noise.variance(level) for noise, level in each])),
        )


class PairRisk:
    """Error on pairs of pictures of the same scene, whose noise is independent.

    Parameters
    ----------
    first, second : Tensor
        (B, C, H, W), noisy, in 0..1. The first are restored.
    """

    def __init__(self, first: Tensor, second: Tensor) -> None:
        self._first, self._second = first, second

    @torch.inference_mode()
    def __call__(self, network: Callable[[Tensor], Tensor], output: Tensor | None = None) -> Risk:
        """Measure a denoiser, whose output for the first may be known."""
        correction = (applied(network, self._first) if output is None else output) - self._first
        apart = self._first - self._second
        return Risk(_means(correction.square()), _means(correction * apart), _means(apart.square() / 2))


@torch.inference_mode()
def applied(network: Callable[[Tensor], Tensor], pictures: Tensor) -> Tensor:
    """Return a network's output for pictures, some at a time."""
    return torch.cat([network(part) for part in pictures.split(_BATCH)])


def _means(values: Tensor) -> NDArray[np.float64]:
    means: NDArray[np.float64] = values.double().mean((1, 2, 3)).cpu().numpy()
    return means


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
