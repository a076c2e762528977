"""White noise: Gaussian, and the shot and read noise of sensors."""

from __future__ import annotations

from torch import Tensor

from ..errors import BadInput
from .base import Bounds, Degradation, Draws, bounds
from .pipeline import register_degradation


@register_degradation
class Gaussian(Degradation):
    """White Gaussian noise, neither clipped nor rounded.

    Parameters
    ----------
    sigma : float or pair of float
        Standard deviation in gray levels, 0..255; drawn uniformly between bounds.
    """

    def __init__(self, sigma: Bounds) -> None:
        self.sigma = bounds(sigma, "sigma")

    def __call__(self, degraded: Tensor, clean: Tensor, draws: Draws) -> tuple[Tensor, Tensor]:
        sigma = draws.on_device(draws.uniform(*self.sigma) / 255)
        return degraded + draws.normal_map(*degraded.shape[1:]) * sigma, clean


@register_degradation
class PoissonGaussian(Degradation):
    """Shot noise and read noise of a sensor: ``gain * Poisson(x / gain) + read_noise * N(0, 1)``.

    Parameters
    ----------
    gain : float or pair of float
        Variance per unit of intensity (0..1); drawn log-uniformly between bounds.
    read_noise : float or pair of float
        Standard deviation in the dark (0..1), likewise.

    References
    ----------
    Foi et al., "Practical Poissonian-Gaussian noise modeling and fitting for single-image raw-data", IEEE TIP
    17(10), 2008.
    """

    def __init__(self, gain: Bounds, read_noise: Bounds) -> None:
        self.gain, self.read_noise = bounds(gain, "gain"), bounds(read_noise, "read_noise")
        for name, (low, high) in (("gain", self.gain), ("read_noise", self.read_noise)):
            if low == 0 < high:
                raise BadInput(f"{name}: the lower bound must be above 0, as it is drawn log-uniformly")

    def __call__(self, degraded: Tensor, clean: Tensor, draws: Draws) -> tuple[Tensor, Tensor]:
        noisy = degraded
        if self.gain[1] > 0:
            gain = draws.on_device(draws.log_uniform(*self.gain))
            noisy = draws.poisson(degraded.clamp(min=0) / gain) * gain
        if self.read_noise[1] > 0:
            read = draws.on_device(draws.log_uniform(*self.read_noise))
            noisy = noisy + draws.normal_map(*degraded.shape[1:]) * read
        return noisy, clean
