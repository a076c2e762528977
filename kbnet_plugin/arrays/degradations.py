"""Add noise of known strength to clean pictures, for validation, benchmarks and samples.

Training has `kbnet_plugin.degradations`, which works on batches of tensors.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


def seeded_by_index(index: int) -> np.random.Generator:
    """Return the generator for the noise of one picture of a test set.

    Validation and the benchmarks draw from it, so a picture gets the same noise in every run.

    Parameters
    ----------
    index : int
        Position of the picture in its set, from 0.
    """
    return np.random.default_rng([0, index])


def add_gaussian(image: NDArray[Any], sigma: float, generator: np.random.Generator) -> NDArray[np.float64]:
    """Add white Gaussian noise, without clipping.

    Parameters
    ----------
    image : ndarray
        Any shape; one value is drawn for each of its elements, in C order.
    sigma : float
        Standard deviation, in the units of `image`.
    generator : numpy Generator

    Returns
    -------
    ndarray of float64
        Of the same shape.
    """
    return image + generator.standard_normal(image.shape) * sigma


def add_poisson_gaussian(
    signal: NDArray[Any], gain: float, read_noise: float, generator: np.random.Generator
) -> NDArray[np.float64]:
    """Add shot noise and read noise as a sensor does, without clipping.

    The result is ``gain * Poisson(signal / gain) + read_noise * N(0, 1)``.

    Parameters
    ----------
    signal : ndarray
        Proportional to the light on the sensor, any shape. Negative values count as 0, unless `gain` is 0.
    gain : float
        Variance per unit of signal; 0 for no shot noise.
    read_noise : float
        Standard deviation in the dark, in the units of `signal`.
    generator : numpy Generator

    Returns
    -------
    ndarray of float64
        Of the same shape.

    References
    ----------
    A. Foi, M. Trimeche, V. Katkovnik, K. Egiazarian, "Practical Poissonian-Gaussian noise modeling and
    fitting for single-image raw-data", IEEE TIP 17(10), 2008.
    """
    noisy = signal if gain == 0 else generator.poisson(signal.clip(min=0) / gain) * gain
    return add_gaussian(noisy, read_noise, generator)


def to_linear(image: NDArray[Any]) -> NDArray[Any]:
    """Convert sRGB to linear light, both 0..1 (IEC 61966-2-1)."""
    return np.where(image <= 0.04045, image / 12.92, ((image.clip(min=0) + 0.055) / 1.055) ** 2.4)


def to_srgb(image: NDArray[Any]) -> NDArray[Any]:
    """Convert linear light to sRGB, both 0..1 (IEC 61966-2-1)."""
    return np.where(image <= 0.0031308, image * 12.92, 1.055 * image.clip(min=0) ** (1 / 2.4) - 0.055)
