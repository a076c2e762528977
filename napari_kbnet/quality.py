"""How noisy an image is, and how close to the ground truth."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kbnet_plugin.arrays.axes import Layout
from kbnet_plugin.arrays.intensity import Range

from . import worker
from .layers import cut, picture
from .options import Options

_SMALLEST = 7  # pixels; the window of SSIM


@dataclass(frozen=True, slots=True)
class Quality:
    """Quality of an image before and after restoration.

    Attributes
    ----------
    noise : (float, float)
        Estimated standard deviations of the noise, in the units of the image.
    psnr, ssim : (float, float) or None
        None without a ground truth. PSNR is in decibels, for the range that the model saw.
    """

    noise: tuple[float, float]
    psnr: tuple[float, float] | None = None
    ssim: tuple[float, float] | None = None

    def __str__(self) -> str:
        lines = [f"noise {_short(self.noise[0])} → {_short(self.noise[1])}"]
        if self.psnr is not None:
            lines.append(f"PSNR {self.psnr[0]:.2f} → {self.psnr[1]:.2f} dB")
        if self.ssim is not None:
            lines.append(f"SSIM {self.ssim[0]:.3f} → {self.ssim[1]:.3f}")
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
    return preview, compare(
        preview.before, preview.after, truth, preview.arranged, plane, window, preview.scale
    )


def compare_result(
    job: worker.Job, after: Any, plane: Mapping[str, int], window: tuple[slice, slice], truth: Any
) -> str:
    """Describe the quality of a window of a result; see `compare`."""
    arranged, scale = worker.layout_and_range(job.options, job.array, job.axes, plane)
    blocks = [np.asarray(array[cut(arranged, plane, window)]) for array in (job.array, after)]
    return compare(*blocks, truth, arranged, plane, window, scale)


def compare(
    before: NDArray[Any],
    after: NDArray[Any],
    truth: Any,
    arranged: Layout,
    plane: Mapping[str, int],
    window: tuple[slice, slice],
    scale: Range,
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
    scale : Range
        As for `measure`.
    """
    if before.shape != after.shape:
        return "The result and the layer differ in their channels and cannot be compared."
    expected = None
    if truth is not None:
        shape = tuple(truth.shape)
        if shape == arranged.shape:
            expected = picture(arranged, truth[cut(arranged, plane, window)])
        elif shape in (arranged.size, (*arranged.size, arranged.channels)):
            expected = np.asarray(truth[window])
        else:
            return f"Shape {shape} of the ground truth does not fit the layer, {arranged.shape}."
    pictures = picture(arranged, before), picture(arranged, after)
    return str(measure(*pictures, expected, scale, colours=bool(arranged.channel_axis)))


def measure(
    before: NDArray[Any], after: NDArray[Any], truth: NDArray[Any] | None, scale: Range, *, colours: bool
) -> Quality:
    """Measure the quality of two versions of a picture.

    Parameters
    ----------
    before, after : ndarray
        (H, W), or (H, W, C) with `colours`.
    truth : ndarray or None
        Of the same shape.
    scale : Range
        Its span is the data range of PSNR and SSIM.
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
    expected = _float(truth)
    psnr = [
        float(peak_signal_noise_ratio(expected, _float(x), data_range=scale.span)) for x in (before, after)
    ]
    ssim = None
    if min(before.shape[:2]) >= _SMALLEST:
        values = [
            float(structural_similarity(expected, _float(x), data_range=scale.span, channel_axis=axis))
            for x in (before, after)
        ]
        ssim = values[0], values[1]
    return Quality((noise[0], noise[1]), (psnr[0], psnr[1]), ssim)


def _float(picture: NDArray[Any]) -> NDArray[np.float64]:
    return np.nan_to_num(picture.astype(np.float64))


def _short(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"
