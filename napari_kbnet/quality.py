"""How much a restoration removed, compared with the noise, and how close it is to the ground truth."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from kbnet_plugin.arrays.axes import Layout
from kbnet_plugin.arrays.intensity import LUMA
from kbnet_plugin.arrays.noise import BLOCK, measure_noise

from . import worker
from .layers import cut, picture
from .restoring import Job

_MOST = 2048  # rows and columns of a ground truth that its range is taken from
_SMALLEST = 7  # pixels; the window of SSIM
# Of what was removed and the noise, in blocks of 16 x 16: more than this ratio in a twentieth of the blocks
# is not noise alone. It is 1.02 to 1.12 for the shipped models, where the truth is known.
_TOO_MUCH = 1.2
_SHARED = 0.3  # correlation of neighbouring pixels from which noise looks like fine structure


@dataclass(frozen=True, slots=True)
class Removed:
    """What a restoration removed; `str` formats it for people.

    Attributes
    ----------
    deviation : float
        Standard deviation of what was removed, in the units of the image.
    noise : float or None
        That of the noise, as measured before; None if it could not be measured.
    excess : bool
        In places more was removed than noise.
    correlated : bool
        Neighbouring pixels share the noise, so that nobody can tell it from fine structure.
    """

    deviation: float
    noise: float | None
    excess: bool = False
    correlated: bool = False

    def __str__(self) -> str:
        text = f"removed {_short(self.deviation)}"
        if self.noise is not None:
            text += f" of a noise of {_short(self.noise)}"
        text += " (standard deviation, in pixel values)"
        if self.excess:
            text += "; in places that is more than noise: see the residual"
        elif self.correlated:
            text += "; neighbouring pixels share this noise, so it may include structure: see the residual"
        elif self.noise is None:
            text += "; the area is too small to measure its noise"
        return text


@dataclass(frozen=True, slots=True)
class Quality:
    """Closeness to the ground truth, before and after restoration; `str` formats it for people.

    Attributes
    ----------
    psnr : (float, float)
        In decibels, for `range`.
    ssim : (float, float) or None
        None if the picture is too small.
    range : (float, float)
        Values of the ground truth.
    """

    psnr: tuple[float, float]
    ssim: tuple[float, float] | None
    range: tuple[float, float]

    def __str__(self) -> str:
        lines = [f"PSNR {self.psnr[0]:.2f} → {self.psnr[1]:.2f} dB"]
        if self.ssim is not None:
            lines.append(f"SSIM {self.ssim[0]:.3f} → {self.ssim[1]:.3f}")
        lines.append(f"for the ground truth's range of {_short(self.range[0])} to {_short(self.range[1])}")
        return ", ".join(lines)


def compare_result(
    job: Job, after: Any, plane: Mapping[str, int], window: tuple[slice, slice], truth: Any
) -> str:
    """Describe the quality of a window of a result; see `compare`."""
    arranged = worker.layout_of(job.options, job.array, job.axes)
    blocks = [np.asarray(array[cut(arranged, plane, window)]) for array in (job.array, after)]
    return compare(*blocks, truth, arranged, plane, window)


def compare(
    before: NDArray[Any],
    after: NDArray[Any],
    truth: Any,
    arranged: Layout,
    plane: Mapping[str, int],
    window: tuple[slice, slice],
) -> str:
    """Describe the quality of a window of a plane before and after restoration.

    Parameters
    ----------
    before, after : ndarray
        Blocks indexed by `cut`.
    truth : array or None
        In the shape of the whole array, or of a single plane that holds for all planes.
    arranged : Layout
        Of the whole array.
    plane, window
        As for `cut`.
    """
    if before.shape != after.shape:
        return "The result and the layer differ in their channels and cannot be compared."
    expected, limits = None, (0.0, 1.0)
    if truth is not None:
        shape = tuple(truth.shape)
        if shape == arranged.shape:
            expected = picture(arranged, truth[cut(arranged, plane, window)])
        elif shape in (arranged.size, (*arranged.size, arranged.channels)):
            expected = np.asarray(truth[window])
        else:
            return f"Shape {shape} of the ground truth does not fit the layer, {arranged.shape}."
        whole = tuple(slice(None, None, -(-n // _MOST)) for n in arranged.size)
        limits = truth_range(truth[cut(arranged, plane, whole) if shape == arranged.shape else whole])
    pictures = picture(arranged, before), picture(arranged, after)
    said = [str(removed(*pictures))]
    if expected is not None:
        said.append(str(measure(*pictures, expected, limits, colours=bool(arranged.channel_axis))))
    return "\n".join(said)


def removed(before: NDArray[Any], after: NDArray[Any]) -> Removed:
    """Compare what was removed from a picture with its noise.

    Parameters
    ----------
    before, after : ndarray
        (H, W) or (H, W, C).
    """
    before = _float(before if before.ndim == 3 else before[..., None])
    gone = before - _float(after).reshape(before.shape)
    deviation = float(np.sqrt(np.square(gone).mean()))
    noise = measure_noise([before])
    if not noise.known or not noise.deviation:
        return Removed(deviation, None)
    bright = before @ np.array(LUMA) if before.shape[2] == 3 else before.mean(axis=2)
    expected = noise.deviation_at(ndimage.uniform_filter(bright, BLOCK))
    height, width = (n // BLOCK * BLOCK for n in bright.shape)
    power, allowed = (
        values[:height, :width].reshape(height // BLOCK, BLOCK, width // BLOCK, BLOCK).mean(axis=(1, 3))
        for values in (np.square(gone).mean(axis=2), np.square(expected))
    )
    return Removed(
        deviation,
        float(np.sqrt(np.square(expected).mean())),
        excess=bool(np.percentile(power / np.maximum(allowed, 1e-300), 95) > _TOO_MUCH**2),
        correlated=min(near for near, _ in noise.correlation) > _SHARED,
    )


def measure(
    before: NDArray[Any],
    after: NDArray[Any],
    truth: NDArray[Any],
    limits: tuple[float, float],
    *,
    colours: bool,
) -> Quality:
    """Measure how close two versions of a picture are to the ground truth.

    Parameters
    ----------
    before, after, truth : ndarray
        (H, W), or (H, W, C) with `colours`.
    limits : (float, float)
        The data range of PSNR and SSIM is from one to the other.
    colours : bool
    """
    from skimage.metrics import peak_signal_noise_ratio, structural_similarity

    axis = -1 if colours else None
    expected, span = _float(truth), limits[1] - limits[0]
    psnr = [float(peak_signal_noise_ratio(expected, _float(x), data_range=span)) for x in (before, after)]
    ssim = None
    if min(before.shape[:2]) >= _SMALLEST:
        values = [
            float(structural_similarity(expected, _float(x), data_range=span, channel_axis=axis))
            for x in (before, after)
        ]
        ssim = values[0], values[1]
    return Quality((psnr[0], psnr[1]), ssim, limits)


def truth_range(truth: Any) -> tuple[float, float]:
    """Return the least and largest value of a ground truth; of 8 bits, as is usual, 0 and 255."""
    values = np.asarray(truth)
    if values.dtype.kind in "bui" and values.dtype.itemsize == 1:
        return (0.0, 1.0) if values.dtype.kind == "b" else (0.0, 255.0)
    values = _float(values)
    low, high = float(values.min()), float(values.max())
    return (low, high) if high > low else (low, low + 1)


def _float(picture: NDArray[Any]) -> NDArray[np.float64]:
    return np.nan_to_num(picture.astype(np.float64))


def _short(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"
