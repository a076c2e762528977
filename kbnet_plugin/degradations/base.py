"""What a degradation is, and the random numbers that it draws."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..errors import BadInput

Key = tuple[int, ...]
"""Seed of a sample: whole numbers from 0, such as the seed of a run and the number of the sample."""

Bounds = float | Sequence[float]
"""A number, or the two bounds between which it is drawn."""


class Draws:
    """Random numbers for the samples of a batch.

    Parameters of a degradation, one number a sample, are drawn on the host, so that nothing waits for the
    device. Values for every pixel are drawn on the device.

    On a CPU, each sample draws from generators of its own: its numbers depend on its key alone, not on the
    batch or on the number of processes. Other devices draw the pixels of a whole batch from one generator,
    seeded by the key of the first sample, as many small calls would take longer than a training step.

    Parameters
    ----------
    keys : sequence of tuple of int
        Seed of each sample; see `Key`.
    device : torch.device
        Where values for every pixel are made.
    """

    def __init__(self, keys: Sequence[Key], device: torch.device | str = "cpu") -> None:
        self.device = torch.device(device)
        self._host = [np.random.default_rng(key) for key in keys]
        # Drawn from each in any case, so that the numbers on the host are the same on every device.
        seeds = [int(generator.integers(2**63)) for generator in self._host]
        used = seeds if self.device.type == "cpu" else seeds[:1]
        self._pixels = [torch.Generator(self.device).manual_seed(seed) for seed in used]

    def __len__(self) -> int:
        return len(self._host)

    def subset(self, index: Sequence[int]) -> Draws:
        """Return the draws of some samples; both go on with the same generators."""
        some = object.__new__(Draws)
        some.device, some._host = self.device, [self._host[i] for i in index]
        some._pixels = self._pixels if len(self._pixels) < len(self) else [self._pixels[i] for i in index]
        return some

    # One number a sample, (B,), on the host.

    def uniform(self, low: float = 0.0, high: float = 1.0) -> NDArray[np.float64]:
        """Draw uniformly from low..high."""
        return np.array([g.uniform(low, high) for g in self._host])

    def log_uniform(self, low: float, high: float) -> NDArray[np.float64]:
        """Draw so that the logarithm is uniform; both bounds above 0."""
        return np.exp(self.uniform(np.log(low), np.log(high)))

    def normal(self, mean: float = 0.0, std: float = 1.0) -> NDArray[np.float64]:
        """Draw from a normal distribution."""
        return np.array([g.normal(mean, std) for g in self._host])

    def integers(self, low: int, high: int) -> NDArray[np.int64]:
        """Draw whole numbers from low to high - 1."""
        return np.array([g.integers(low, high) for g in self._host], dtype=np.int64)

    def choice(self, weights: Sequence[float]) -> NDArray[np.int64]:
        """Draw indices of `weights`, each as often as its share of their sum."""
        ends = np.cumsum(weights) / np.sum(weights)
        return np.minimum(np.searchsorted(ends, self.uniform(), side="right"), len(ends) - 1)

    def host(self, function: Callable[[np.random.Generator], Any]) -> list[Any]:
        """Call a function with each sample's generator on the host, for what the methods above lack."""
        return [function(g) for g in self._host]

    def on_device(self, values: NDArray[Any]) -> Tensor:
        """Move numbers, (B,) or (B, C), to the device as float32, (B, 1 or C, 1, 1), without waiting."""
        return to_device(np.asarray(values, dtype=np.float32), self.device).reshape(len(self), -1, 1, 1)

    # Values for every pixel, (B, *shape), float32, on the device.

    def normal_map(self, *shape: int) -> Tensor:
        """Draw standard normal values."""
        return self._map(Tensor.normal_, shape)

    def uniform_map(self, *shape: int) -> Tensor:
        """Draw uniformly from 0..1."""
        return self._map(Tensor.uniform_, shape)

    def poisson(self, rate: Tensor) -> Tensor:
        """Draw counts with the means `rate`, (B, ...), which must not be negative."""
        parts = rate.chunk(len(self._pixels))
        return torch.cat([torch.poisson(r, generator=g) for r, g in zip(parts, self._pixels, strict=True)])

    def _map(self, fill: Callable[..., Tensor], shape: tuple[int, ...]) -> Tensor:
        out = torch.empty(len(self), *shape, device=self.device)
        for part, generator in zip(out.chunk(len(self._pixels)), self._pixels, strict=True):
            fill(part, generator=generator)
        return out


def to_device(values: NDArray[Any], device: torch.device) -> Tensor:
    """Move values to a device without waiting for it."""
    tensor = torch.from_numpy(values)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


class Degradation(ABC):
    """One step that turns clean images into degraded ones.

    A subclass takes its parameters as keyword arguments, which are the keys of an option file, checks them
    when it is built (raising `BadInput`), and documents their units. Steps follow one another, so the images
    may already be degraded, and values may lie outside 0..1.
    """

    @abstractmethod
    def __call__(self, degraded: Tensor, clean: Tensor, draws: Draws) -> tuple[Tensor, Tensor]:
        """Degrade a batch.

        Parameters
        ----------
        degraded, clean : Tensor
            (B, C, H, W), float32, nominally 0..1, on one device; C is 3 (RGB) or 1 (gray). Not modified.
        draws : Draws
            Of these samples, on the same device.

        Returns
        -------
        degraded, clean : Tensor
            Of the same shapes. The clean images change only if the step concerns both, as a change of colours
            does.
        """


def bounds(value: Bounds, name: str, least: float = 0.0, most: float = float("inf")) -> tuple[float, float]:
    """Return the bounds that a parameter gives, a number being both.

    Raises
    ------
    BadInput
        Unless they increase and lie within `least` and `most`.
    """
    given = [value, value] if isinstance(value, (int, float)) else list(value)
    if len(given) != 2 or any(isinstance(v, bool) or not isinstance(v, (int, float)) for v in given):
        raise BadInput(f"{name} must be a number or two bounds, not {value!r}")
    low, high = float(given[0]), float(given[1])
    if not least <= low <= high <= most:
        limit = f"{least:g} to {most:g}" if most < float("inf") else f"{least:g} or more"
        raise BadInput(f"{name} must be {limit}, the lower bound first, not {value!r}")
    return low, high
