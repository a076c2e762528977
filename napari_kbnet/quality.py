"""How noisy an image is, and how close to the truth."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kbnet_plugin.arrays.axes import Layout
from kbnet_plugin.arrays.intensity import Range

from .layers import cut, picture

_SMALLEST = 7  # pixels, of the window that SSIM is taken of


@dataclass(frozen=True, slots=True)
class Quality:
    """Of one image before and after.

    Attributes
    ----------
    noise : (float, float)
        Standard deviations of the noise, estimated, in the image's own units.
    psnr, ssim : (float, float) or None
        Where the truth is known. PSNR in decibels, for the range that the model saw.
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


def compare(
    before: NDArray[Any],
    after: NDArray[Any],
    truth: Any,
    arranged: Layout,
    plane: Mapping[str, int],
    window: tuple[slice, slice],
    scale: Range,
) -> str:
    """Say how a window of a plane was before and is after.

    Parameters
    ----------
    before, after : ndarray
        As `cut` gives them.
    truth : array or None
        Of the whole array's shape, or of one plane's for all planes.
    arranged : Layout
        Of the whole array.
    plane, window
        As for `cut`.
    scale : Range
    """
    if before.shape != after.shape:
        return "The result has other channels than the layer: nothing to compare."
    wanted = None
    if truth is not None:
        shape = tuple(truth.shape)
        if shape == arranged.shape:
            wanted = picture(arranged, truth[cut(arranged, plane, window)])
        elif shape in (arranged.size, (*arranged.size, arranged.channels)):
            wanted = np.asarray(truth[window])
        else:
            return f"The truth is {shape}, the layer {arranged.shape}: choose another truth."
    pictures = picture(arranged, before), picture(arranged, after)
    return str(measure(*pictures, wanted, scale, colours=bool(arranged.channel_axis)))


def measure(
    before: NDArray[Any], after: NDArray[Any], truth: NDArray[Any] | None, scale: Range, *, colours: bool
) -> Quality:
    """Compare two versions of a picture, (H, W) or with `colours` (H, W, C).

    Parameters
    ----------
    before, after : ndarray
    truth : ndarray or None
    scale : Range
        Its span is the largest difference that PSNR and SSIM know.
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
    wanted = _float(truth)
    psnr = [float(peak_signal_noise_ratio(wanted, _float(x), data_range=scale.span)) for x in (before, after)]
    ssim = None
    if min(before.shape[:2]) >= _SMALLEST:
        values = [
            float(structural_similarity(wanted, _float(x), data_range=scale.span, channel_axis=axis))
            for x in (before, after)
        ]
        ssim = values[0], values[1]
    return Quality((noise[0], noise[1]), (psnr[0], psnr[1]), ssim)


def _float(picture: NDArray[Any]) -> NDArray[np.float64]:
    return np.nan_to_num(picture.astype(np.float64))


def _short(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"
