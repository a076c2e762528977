"""How noisy an image is, and how close to the ground truth."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kbnet_plugin.arrays.axes import Layout

from . import worker
from .layers import cut, picture
from .options import Options
from .restoring import Job

_MOST = 2048  # rows and columns of a ground truth that its range is taken from
_SMALLEST = 7  # pixels; the window of SSIM


@dataclass(frozen=True, slots=True)
class Quality:
    """Quality of an image before and after restoration.

    Attributes
    ----------
    noise : (float, float)
        Estimated standard deviations of the noise, in the units of the image.
    psnr, ssim : (float, float) or None
        None without a ground truth. PSNR is in decibels, for `range`.
    range : (float, float)
        Values of the ground truth.
    """

    noise: tuple[float, float]
    psnr: tuple[float, float] | None = None
    ssim: tuple[float, float] | None = None
    range: tuple[float, float] = (0.0, 1.0)

    def __str__(self) -> str:
        lines = [
            f"noise {_short(self.noise[0])} → {_short(self.noise[1])} (standard deviation, in pixel values)"
        ]
        if self.psnr is not None:
            lines.append(f"PSNR {self.psnr[0]:.2f} → {self.psnr[1]:.2f} dB")
        if self.ssim is not None:
            lines.append(f"SSIM {self.ssim[0]:.3f} → {self.ssim[1]:.3f}")
        if self.psnr is not None:
            lines.append(
                f"for the ground truth's range of {_short(self.range[0])} to {_short(self.range[1])}"
            )
        return ", ".join(lines)


def preview_and_compare(
    options: Options,
    array: Any,
    axes: str,
    plane: Mapping[str, int],
    window: tuple[slice, slice],
    truth: Any,
) -> tuple[worker.Preview, str]:
    """Restore a window of a plane, and describe its quality; see `worker.preview` and `compare`."""
    preview = worker.preview(options, array, axes, plane, window)
    return preview, compare(preview.before, preview.after, truth, preview.arranged, plane, window)


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
    return str(measure(*pictures, expected, limits, colours=bool(arranged.channel_axis)))


def measure(
    before: NDArray[Any],
    after: NDArray[Any],
    truth: NDArray[Any] | None,
    limits: tuple[float, float],
    *,
    colours: bool,
) -> Quality:
    """Measure the quality of two versions of a picture.

    Parameters
    ----------
    before, after : ndarray
        (H, W), or (H, W, C) with `colours`.
    truth : ndarray or None
        Of the same shape.
    limits : (float, float)
        The data range of PSNR and SSIM is from one to the other.
    colours : bool
    """
    from skimage.metrics import peak_signal_noise_ratio, structural_similarity
    from skimage.restoration import estimate_sigma

    axis = -1 if colours else None
    noise = [
        float(estimate_sigma(_float(x), channel_axis=axis, average_sigmas=True)) for x in (before, after)
    ]
    if truth is None:
        return Quality((noise[0], noise[1]))
    expected, span = _float(truth), limits[1] - limits[0]
    psnr = [float(peak_signal_noise_ratio(expected, _float(x), data_range=span)) for x in (before, after)]
    ssim = None
    if min(before.shape[:2]) >= _SMALLEST:
        values = [
            float(structural_similarity(expected, _float(x), data_range=span, channel_axis=axis))
            for x in (before, after)
        ]
        ssim = values[0], values[1]
    return Quality((noise[0], noise[1]), (psnr[0], psnr[1]), ssim, limits)


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
