"""How noisy an image is, and how close to the truth."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kbnet_plugin.ranges import Range

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


def measure(
    before: NDArray[Any], after: NDArray[Any], truth: NDArray[Any] | None, scale: Range, colours: bool
) -> Quality:
    """Compare two versions of a picture, (H, W) or with `colours` (H, W, C).

    Parameters
    ----------
    before, after : ndarray
    truth : ndarray or None
    scale : Range
        Its span is the largest difference that PSNR and SSIM know.
    colours : bool

    Raises
    ------
    ValueError
        If the truth has another shape.
    """
    from skimage.metrics import peak_signal_noise_ratio, structural_similarity
    from skimage.restoration import estimate_sigma

    axis = -1 if colours else None
    noise = [float(estimate_sigma(_float(x), channel_axis=axis, average_sigmas=True)) for x in (before, after)]
    if truth is None:
        return Quality((noise[0], noise[1]))
    if truth.shape != before.shape:
        raise ValueError(f"the truth is {truth.shape} where the layer is {before.shape}; choose another truth")
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
    return f"{value:.3g}"
