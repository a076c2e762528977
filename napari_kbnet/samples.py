"""Noisy images with their clean originals, made from images in scikit-image; nothing is downloaded."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from kbnet_plugin.arrays.degradations import add_gaussian, add_poisson_gaussian

LayerData = tuple[NDArray[Any], dict[str, Any], str]

_SIGMA = 25  # of 255, like the photograph in the README
_GAIN, _READ_NOISE = 0.03, 0.02  # of full scale: the brightest pixel is 33 photons
_PIXEL = 0.25  # micrometres
_STEP, _SECONDS = 1.0, 30.0  # between planes, between frames
_FRAMES, _PLANES = 3, 7
_ROW, _COLUMN, _SIDE = 230, 200, 256  # the part of the tissue in the stack


def photograph() -> list[LayerData]:
    """Make an RGB photograph with Gaussian noise."""
    from skimage import data

    clean = data.chelsea()
    noisy = add_gaussian(clean, _SIGMA, np.random.default_rng(0))
    noisy = np.clip(noisy, 0, 255).round().astype(np.uint8)
    return _layers("photograph", noisy, clean, rgb=True)


def cells() -> list[LayerData]:
    """Make an image of stained tissue as in a fluorescence microscope with few photons."""
    nuclei, membranes = _stains()
    clean = np.clip(nuclei + 0.3 * membranes, 0, 1)
    noisy = _expose(clean)
    scale, units = (_PIXEL,) * 2, ("um",) * 2
    return _layers("cells", noisy, _digital(clean), scale=scale, units=units, axis_labels=("y", "x"))


def stack() -> list[LayerData]:
    """Make a stack of that tissue over time: planes go out of focus, the stage drifts, the dye bleaches."""
    nuclei, membranes = _stains()
    rng = np.random.default_rng(1)
    parts = [
        _planes(part, _relief(rng, part.shape, sharp)) for part, sharp in ((nuclei, 2.0), (membranes, 4.5))
    ]
    planes = np.clip(sum(parts), 0, 1)
    drift = [(_ROW + 8 * frame, _COLUMN + 5 * frame) for frame in range(_FRAMES)]
    clean = np.array(
        [
            [0.9**frame * plane[row : row + _SIDE, column : column + _SIDE] for plane in planes]
            for frame, (row, column) in enumerate(drift)
        ]
    )
    noisy = _expose(clean)
    return _layers(
        "stack",
        noisy,
        _digital(clean),
        scale=(_SECONDS, _STEP, _PIXEL, _PIXEL),
        units=("s", "um", "um", "um"),
        axis_labels=("t", "z", "y", "x"),
    )


def _layers(name: str, noisy: NDArray[Any], clean: NDArray[Any], **settings: Any) -> list[LayerData]:
    """Put the noisy layer last, so that it is on top and selected."""
    # Both need the same limits: napari's own would hide the noise.
    limits = (0, float(np.quantile(noisy, 0.999))) if noisy.dtype == np.uint16 else (0, 255)
    settings |= {"contrast_limits": limits}
    return [
        (clean, settings | {"name": f"Clean {name}", "visible": False}, "image"),
        (noisy, settings | {"name": f"Noisy {name}"}, "image"),
    ]


def _stains() -> tuple[NDArray[Any], NDArray[Any]]:
    """Return nuclei and membranes, 0 to 1, bright where the tissue took up the dye."""
    from scipy.ndimage import gaussian_filter
    from skimage import color, data

    stains = color.rgb2hed(data.immunohistochemistry())
    parts = [gaussian_filter(stains[..., i], 0.7) for i in (0, 2)]  # the photograph itself is noisy
    bounds = [np.quantile(part, (0.02, 0.998)) for part in parts]
    nuclei, membranes = (
        np.clip((p - low) / (high - low), 0, 1) for p, (low, high) in zip(parts, bounds, strict=True)
    )
    return nuclei, membranes


def _relief(rng: np.random.Generator, shape: tuple[int, ...], middle: float) -> NDArray[Any]:
    """Draw at random in which plane each pixel is sharp."""
    from scipy.ndimage import gaussian_filter

    rough = gaussian_filter(rng.standard_normal(shape), 40)
    return middle + 1.2 * rough / rough.std()


def _planes(part: NDArray[Any], depth: NDArray[Any]) -> NDArray[Any]:
    """Make the planes, blurred and dimmed with the distance from where each pixel is sharp."""
    from scipy.ndimage import gaussian_filter

    # Blurs for integer distances; fractions in between are interpolated.
    blurs = [gaussian_filter(part, 1.5 * level) / (1 + 0.5 * level) for level in range(_PLANES + 1)]
    distances = [np.minimum(np.abs(depth - plane), _PLANES) for plane in range(_PLANES)]
    return np.array(
        [
            sum(np.clip(1 - np.abs(distance - level), 0, None) * blur for level, blur in enumerate(blurs))
            for distance in distances
        ]
    )


def _expose(clean: NDArray[Any]) -> NDArray[Any]:
    """Add the noise of photon counts and of reading them out."""
    return _digital(add_poisson_gaussian(clean, _GAIN, _READ_NOISE, np.random.default_rng(2)))


def _digital(image: NDArray[Any]) -> NDArray[Any]:
    """Convert to 16 bits, with headroom for noise above the brightest pixel."""
    return (65535 * np.clip(0.05 + 0.7 * image, 0, 1)).round().astype(np.uint16)
