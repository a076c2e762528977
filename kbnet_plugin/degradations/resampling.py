"""Loss of resolution: shrinking and enlarging, and Gaussian blur."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..errors import BadInput, nearest
from .base import Bounds, Degradation, Draws, bounds
from .checks import probability
from .filters import filter_same, gaussian_kernels
from .pipeline import Pipeline, register_degradation

KERNELS = ("area", "bilinear", "bicubic")


@register_degradation
class Resize(Degradation):
    """Shrink, and enlarge to the old size.

    Parameters
    ----------
    factor : float or pair of float
        Size of the small image over that of the large one, 0.05..1; drawn uniformly between bounds.
    kernels : sequence of str
        ``area``, ``bilinear`` and ``bicubic``, drawn once for shrinking, where they are widened to prevent
        aliasing, and once for enlarging, where ``area`` is ``bilinear``.
    between : sequence of mapping
        Steps as for `Pipeline` that degrade the small image, such as noise and JPEG, which are then enlarged
        with it.
    """

    def __init__(
        self,
        factor: Bounds = (0.3, 1),
        kernels: Sequence[str] = KERNELS,
        between: Sequence[Mapping[str, Any]] = (),
    ) -> None:
        self.factor = bounds(factor, "factor", 0.05, 1)
        self.kernels = [kernels] if isinstance(kernels, str) else list(kernels)
        if not self.kernels:
            raise BadInput(f"kernels must name at least one of {', '.join(KERNELS)}")
        for name in self.kernels:
            if name not in KERNELS:
                raise BadInput(f"kernels: no kernel {name!r}{nearest(name, KERNELS)}")
        self.between = Pipeline(between)

    def __call__(self, degraded: Tensor, clean: Tensor, draws: Draws) -> tuple[Tensor, Tensor]:
        H, W = degraded.shape[2:]
        factor = draws.uniform(*self.factor)
        codes = np.array([KERNELS.index(name) for name in self.kernels])
        down, up = (codes[draws.integers(0, len(codes))] for _ in range(2))
        small = {n: np.maximum(np.rint(n * factor), 1) for n in (H, W)}
        shrink = {n: _matrix(draws, np.full_like(m, n), m, down, n) for n, m in small.items()}
        enlarge = {n: _matrix(draws, m, np.full_like(m, n), np.maximum(up, 1), n) for n, m in small.items()}
        if not self.between.steps:  # one matrix does both
            return _both_ways(degraded, {n: enlarge[n] @ shrink[n] for n in small}), clean
        # Small images lie in the top left corner of the large frame, their borders repeated in the rest.
        changed, _ = self.between(_both_ways(degraded, shrink), draws)
        return _both_ways(changed, enlarge), clean


def _both_ways(image: Tensor, matrices: Mapping[int, Tensor]) -> Tensor:
    H, W = image.shape[2:]
    return matrices[H][:, None] @ image @ matrices[W].transpose(1, 2)[:, None]


def _matrix(draws: Draws, old: NDArray[Any], new: NDArray[Any], kernel: NDArray[Any], frame: int) -> Tensor:
    """Return the matrices, (B, frame, frame), that bring a line of `old` samples to `new` ones.

    Both are aligned at their outer edges. Beyond `new`, the last sample is repeated.
    """
    ratio, last = draws.on_device(old / new)[:, 0], draws.on_device(new - 1)[:, 0]
    length, kind = draws.on_device(old)[:, 0], draws.on_device(kernel)[:, 0]
    index = torch.arange(frame, device=draws.device, dtype=torch.float32)
    wide = ratio.clamp(min=1)
    centre = (torch.minimum(index[None, :, None], last) + 0.5) * ratio - 0.5
    distance = (index - centre).abs_()
    area = (wide / 2 + 0.5 - distance).clamp(0, 1)
    t = distance / wide
    linear = (1 - t).clamp(min=0)
    # Keys' kernel with a = -0.5.
    cubic = torch.where(t < 1, (1.5 * t - 2.5) * t * t + 1, ((2.5 - 0.5 * t) * t - 4) * t + 2)
    cubic = cubic.masked_fill_(t >= 2, 0)
    weights = torch.where(kind == 0, area, torch.where(kind == 1, linear, cubic))
    weights = weights * (index < length)
    return weights / weights.sum(2, keepdim=True)


@register_degradation
class Blur(Degradation):
    """Gaussian blur.

    Parameters
    ----------
    sigma : float or pair of float
        Standard deviation, 0..15 pixels; drawn uniformly between bounds.
    anisotropic : float
        Probability that a second sigma is drawn for the other axis, at any angle.
    """

    def __init__(self, sigma: Bounds = (0.2, 3), anisotropic: float = 0.5) -> None:
        self.sigma = bounds(sigma, "sigma", 0, 15)
        self.anisotropic = probability(anisotropic, "anisotropic")

    def __call__(self, degraded: Tensor, clean: Tensor, draws: Draws) -> tuple[Tensor, Tensor]:
        first, second = draws.uniform(*self.sigma), draws.uniform(*self.sigma)
        second = np.where(draws.uniform() < self.anisotropic, second, first)
        angle = draws.uniform(0, np.pi)
        major, minor, turn = (draws.on_device(v) for v in (first, second, angle))
        kernels = gaussian_kernels(major, minor, turn, math.ceil(3 * self.sigma[1]))
        return filter_same(degraded, kernels).contiguous(), clean
