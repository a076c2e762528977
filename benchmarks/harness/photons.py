"""Made stacks with the noise of few photons: filaments and nuclei, drawn, no two planes alike."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

PHOTON, OFFSET, READ_NOISE = 20.0, 20.0, 6.0
"""Gray value of a photon and of darkness, and standard deviation of reading out."""

_PHOTONS = {
    "filaments": (1.0, 8.0),
    "nuclei": (0.5, 4.0),
}  # of background and structures


def stack(kind: str, planes: int = 16, side: int = 256) -> tuple[NDArray[Any], NDArray[Any]]:
    """Draw a stack.

    Parameters
    ----------
    kind : {"filaments", "nuclei"}
    planes, side : int
        Number of planes, and their height and width in pixels.

    Returns
    -------
    noisy, clean : ndarray
        (planes, side, side), gray values, not clipped.
    """
    rng = np.random.default_rng([0, list(_PHOTONS).index(kind)])
    draw = {"filaments": _filaments, "nuclei": _nuclei}[kind]
    background, peak = _PHOTONS[kind]
    photons = background + peak * np.stack([draw(rng, side) for _ in range(planes)])
    counts = rng.poisson(photons)
    noisy = OFFSET + PHOTON * counts + rng.normal(0, READ_NOISE, photons.shape)
    return noisy.astype(np.float32), (OFFSET + PHOTON * photons).astype(np.float32)


def _filaments(rng: np.random.Generator, side: int, count: int = 40, steps: int = 600) -> NDArray[Any]:
    picture = np.zeros((side, side))
    for _ in range(count):
        angle = rng.uniform(0, 2 * np.pi) + np.cumsum(rng.normal(0, 0.03, steps))
        rows = (rng.uniform(0, side) + np.cumsum(np.sin(angle))).astype(int)
        columns = (rng.uniform(0, side) + np.cumsum(np.cos(angle))).astype(int)
        inside = (rows >= 0) & (rows < side) & (columns >= 0) & (columns < side)
        np.add.at(picture, (rows[inside], columns[inside]), rng.uniform(0.5, 1))
    picture = gaussian_filter(picture, 1.2)
    return np.clip(picture / np.quantile(picture, 0.995), 0, 1.3)


def _nuclei(rng: np.random.Generator, side: int, count: int = 45) -> NDArray[Any]:
    rows, columns = np.mgrid[:side, :side]
    picture = np.zeros((side, side))
    texture = gaussian_filter(rng.normal(size=(side, side)), 2.0)
    for _ in range(count):
        row, column = rng.uniform(0, side, 2)
        (a, b), angle = rng.uniform(8, 16, 2), rng.uniform(0, np.pi)
        along = (rows - row) * np.cos(angle) + (columns - column) * np.sin(angle)
        across = (columns - column) * np.cos(angle) - (rows - row) * np.sin(angle)
        inside = (along / a) ** 2 + (across / b) ** 2 < 1
        picture = np.maximum(picture, inside * rng.uniform(0.5, 1))
    return np.clip(gaussian_filter(picture * (1 + 0.25 * texture / texture.std()), 1.0), 0, 1.5)
