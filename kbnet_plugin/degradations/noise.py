"""Noise: Gaussian in several correlations, shot and read noise, and what sensors add to it."""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..errors import BadInput
from .base import Bounds, Degradation, Draws, bounds
from .checks import log_bounds, probability, whole_bounds
from .filters import filter_each, gaussian_kernels
from .pipeline import register_degradation


@register_degradation
class Gaussian(Degradation):
    """Gaussian noise, neither clipped nor rounded; white, unless asked otherwise.

    Parameters
    ----------
    sigma : float or pair of float
        Standard deviation in gray levels, 0..255; drawn uniformly between bounds.
    gray : float
        Probability that the noise is the same in all channels.
    colored : float
        Probability that channels correlate at random. The mean of their variances is then sigma squared.
    blur : float or pair of float
        Standard deviation, 0..10 pixels, of the Gaussian that the noise is blurred with; drawn uniformly
        between bounds. The noise keeps its sigma.
    """

    def __init__(
        self, sigma: Bounds = (0, 55), gray: float = 0.0, colored: float = 0.0, blur: Bounds = 0.0
    ) -> None:
        self.sigma, self.blur = bounds(sigma, "sigma"), bounds(blur, "blur", 0, 10)
        shares = [probability(gray, "gray"), probability(colored, "colored")]
        if sum(shares) > 1:
            raise BadInput(f"gray and colored must not exceed 1 together, not {gray!r} and {colored!r}")
        self.weights = [1 - sum(shares), *shares]

    def __call__(self, degraded: Tensor, clean: Tensor, draws: Draws) -> tuple[Tensor, Tensor]:
        C, H, W = degraded.shape[1:]
        sigma = draws.on_device(draws.uniform(*self.sigma) / 255)
        radius = math.ceil(3 * self.blur[1])
        noise = draws.normal_map(C, H + 2 * radius, W + 2 * radius)
        if C == 3 and self.weights[0] < 1:
            factors = _factors(draws.choice(self.weights), draws)
            noise = (draws.on_device(factors.reshape(-1, 9)).view(-1, 3, 3) @ noise.flatten(2)).view_as(noise)
        if radius:
            blur = draws.on_device(draws.uniform(*self.blur))
            kernels = gaussian_kernels(blur, blur, torch.zeros_like(blur), radius)
            noise = filter_each(noise, kernels / kernels.square().sum((1, 2), keepdim=True).sqrt())
        return degraded + noise * sigma, clean


def _factors(kind: NDArray[np.int64], draws: Draws) -> NDArray[np.float64]:
    """Return (B, 3, 3): each times its transpose is the channels' covariance, of trace 3."""

    def colored(generator: np.random.Generator) -> NDArray[np.float64]:
        axes = np.linalg.qr(generator.normal(size=(3, 3)))[0]
        variances = generator.uniform(size=3)
        return axes * np.sqrt(3 * variances / variances.sum())

    gray = np.array([[1.0, 0, 0]] * 3)
    return np.stack([(np.eye(3), gray, c)[k] for k, c in zip(kind, draws.host(colored), strict=True)])


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

    def __init__(self, gain: Bounds = (1e-4, 2e-2), read_noise: Bounds = (1e-3, 3e-2)) -> None:
        self.gain, self.read_noise = log_bounds(gain, "gain"), log_bounds(read_noise, "read_noise")

    def __call__(self, degraded: Tensor, clean: Tensor, draws: Draws) -> tuple[Tensor, Tensor]:
        noisy = degraded
        if self.gain[1] > 0:
            gain = draws.on_device(draws.log_uniform(*self.gain))
            noisy = draws.poisson(degraded.clamp(min=0) / gain) * gain
        if self.read_noise[1] > 0:
            read = draws.on_device(draws.log_uniform(*self.read_noise))
            noisy = noisy + draws.normal_map(*degraded.shape[1:]) * read
        return noisy, clean


@register_degradation
class HotPixels(Degradation):
    """Single pixels that are too bright, in each channel by itself.

    Parameters
    ----------
    share : float or pair of float
        Share of the pixels, 0..1; drawn log-uniformly between bounds.
    brightness : float or pair of float
        What is added at most, drawn uniformly between bounds for an image; a pixel gets 0 to that much.
    """

    def __init__(self, share: Bounds = (1e-5, 1e-3), brightness: Bounds = (0.2, 1)) -> None:
        self.share, self.brightness = log_bounds(share, "share", 1), bounds(brightness, "brightness")

    def __call__(self, degraded: Tensor, clean: Tensor, draws: Draws) -> tuple[Tensor, Tensor]:
        if self.share[1] == 0:
            return degraded, clean
        share = draws.on_device(draws.log_uniform(*self.share))
        brightness = draws.on_device(draws.uniform(*self.brightness))
        # Below the share, a uniform number over the share is uniform in 0..1.
        excess = 1 - draws.uniform_map(*degraded.shape[1:]) / share
        return degraded + excess.clamp_(min=0) * brightness, clean


@register_degradation
class Quantize(Degradation):
    """Analog to digital conversion: saturates, rounds to whole numbers, and takes the black level off again.

    Parameters
    ----------
    bits : int or pair of int
        1..16; 8 bits round to multiples of 1/255. Drawn uniformly between bounds.
    black_level : float or pair of float
        Number that stands for 0, as a share of the largest one, 0..0.9; drawn uniformly between bounds. Noise
        below 0 is kept down to there.
    saturation : float or pair of float
        Intensity that gives the largest number, 0.01 or more; drawn uniformly between bounds.
    """

    def __init__(self, bits: Bounds = 8, black_level: Bounds = 0.0, saturation: Bounds = 1.0) -> None:
        self.bits = whole_bounds(bits, "bits", 1, 16)
        self.black_level = bounds(black_level, "black_level", 0, 0.9)
        self.saturation = bounds(saturation, "saturation", 0.01)

    def __call__(self, degraded: Tensor, clean: Tensor, draws: Draws) -> tuple[Tensor, Tensor]:
        largest = draws.on_device(2.0 ** draws.integers(self.bits[0], self.bits[1] + 1) - 1)
        black = draws.on_device(draws.uniform(*self.black_level))
        saturation = draws.on_device(draws.uniform(*self.saturation))
        numbers = (degraded / saturation * (1 - black) + black) * largest
        numbers = numbers.round_().clamp_(min=0).minimum(largest)
        return (numbers / largest - black) / (1 - black) * saturation, clean
