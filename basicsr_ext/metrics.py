"""PSNR and SSIM that clamp first.

A network's output may leave the image range. BasicSR's metrics take it as it comes, and the ones that
Restormer and KBNet ship guess the range from the largest value, so one pixel above 1 adds 48 dB.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from basicsr.metrics.psnr_ssim import calculate_psnr, calculate_ssim
from torch import Tensor

Image = np.ndarray | Tensor


def calculate_psnr_clamped(
    img: Image, img2: Image, crop_border: int = 0, test_y_channel: bool = False, **_: Any
) -> float:
    """Peak signal-to-noise ratio in dB after clamping to the range.

    Parameters
    ----------
    img, img2 : ndarray or Tensor
        Arrays (H, W, C) or (H, W), BGR, in 0..255, rounded or not; tensors (1, C, H, W), RGB, in 0..1.
    crop_border : int
        Pixels left out at every edge.
    test_y_channel : bool
        Compare luma (ITU-R BT.601) only.
    """
    images = (_clamped(img), _clamped(img2))
    return float(calculate_psnr(*images, crop_border=crop_border, test_y_channel=test_y_channel))


def calculate_ssim_clamped(
    img: Image, img2: Image, crop_border: int = 0, test_y_channel: bool = False, **_: Any
) -> float:
    """Structural similarity after clamping to the range, mean over channels; as `calculate_psnr_clamped`."""
    images = (_clamped(img), _clamped(img2))
    return float(calculate_ssim(*images, crop_border=crop_border, test_y_channel=test_y_channel))


def _clamped(image: Image) -> np.ndarray:
    if isinstance(image, Tensor):
        return to_image(image, rounded=False)
    return image if image.dtype == np.uint8 else image.clip(0, 255)


def to_image(tensor: Tensor, *, rounded: bool) -> np.ndarray:
    """Make BasicSR's image of a (1, C, H, W) tensor in 0..1: clamped, 0..255, (H, W, C), BGR.

    float32, or with `rounded` uint8 as a saved picture would have it.
    """
    image = tensor.detach()[0].float().clamp(0, 1).mul(255).cpu().numpy().transpose(1, 2, 0)
    if image.shape[2] == 3:
        image = image[..., ::-1]
    return np.ascontiguousarray(image.round().astype(np.uint8) if rounded else image)
