"""JPEG compression: what a decoder returns, without the file."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from .base import Bounds, Degradation, Draws, bounds, to_device
from .checks import probability
from .pipeline import register_degradation

# Kornia's codec knows 4:2:0 and RGB only, leaves values unrounded so that gradients pass, and reads its
# quality back from the device. This one follows libjpeg to the rounding.

_LUMA = [
    [16, 11, 10, 16, 24, 40, 51, 61],
    [12, 12, 14, 19, 26, 58, 60, 55],
    [14, 13, 16, 24, 40, 57, 69, 56],
    [14, 17, 22, 29, 51, 87, 80, 62],
    [18, 22, 37, 56, 68, 109, 103, 77],
    [24, 35, 55, 64, 81, 104, 113, 92],
    [49, 64, 78, 87, 103, 121, 120, 101],
    [72, 92, 95, 98, 112, 100, 103, 99],
]
_CHROMA = np.full((8, 8), 99)
_CHROMA[:4, :4] = [[17, 18, 24, 47], [18, 21, 26, 66], [24, 26, 56, 99], [47, 66, 99, 99]]
_BASE = np.stack([np.array(_LUMA), _CHROMA])

_TO_YCC = [[0.299, 0.587, 0.114], [-0.168736, -0.331264, 0.5], [0.5, -0.418688, -0.081312]]


def quantization_tables(quality: NDArray[Any]) -> NDArray[np.int64]:
    """Return the quantization tables of libjpeg.

    Parameters
    ----------
    quality : ndarray
        (B,), 1..100; rounded.

    Returns
    -------
    ndarray
        (B, 2, 8, 8), 1..255: of luma and chroma, rows being vertical frequencies.
    """
    q = np.clip(np.rint(quality), 1, 100).astype(np.int64)
    scale = np.where(q < 50, 5000 // q, 200 - 2 * q)
    return np.clip((_BASE * scale[:, None, None, None] + 50) // 100, 1, 255)


def compress(image: Tensor, quality: NDArray[Any], subsampling: NDArray[np.bool_]) -> Tensor:
    """Compress a batch as JPEG and decode it.

    Follows libjpeg with its defaults (standard tables, accurate transform, triangle filter for chroma), save
    for the rounding inside its integer transforms.

    Parameters
    ----------
    image : Tensor
        (B, C, H, W), float32, C being 3 (RGB) or 1 (gray); clipped to 0..1 and rounded to 8 bits.
    quality : ndarray
        (B,), 1..100.
    subsampling : ndarray
        (B,), bool: whether chroma has half the resolution both ways (4:2:0) or the full one (4:4:4).

    Returns
    -------
    Tensor
        Of the same shape, in 0..1, a multiple of 1/255.
    """
    _, C, H, W = image.shape
    tables = to_device(quantization_tables(quality).astype(np.float32), image.device)
    levels = (image.clamp(0, 1) * 255).round_()
    if C == 1:
        return _through_blocks(levels, tables[:, :1]) / 255
    to_ycc, to_rgb = _matrices(image.device)
    ycc = _mix(to_ycc, levels)
    ycc[:, 1:] += 128 - 2**-15  # libjpeg rounds chroma's halves down
    ycc = ycc.add_(0.5).floor_()
    chroma = ycc[:, 1:].clone()
    for half in np.unique(subsampling):
        where = to_device(np.flatnonzero(subsampling == half), image.device)
        some, table = chroma[where], tables[where, 1:]
        chroma[where] = (
            _upsample(_through_blocks(_downsample(some), table), H, W)
            if half
            else _through_blocks(some, table)
        )
    luma = _through_blocks(ycc[:, :1], tables[:, :1])
    rgb = _mix(to_rgb, chroma.sub_(128)).round_().add_(luma)
    return rgb.clamp_(0, 255).div_(255)


@register_degradation
class JPEG(Degradation):
    """JPEG compression with the tables of libjpeg, rounded to 8 bits.

    Parameters
    ----------
    quality : float or pair of float
        Quality of libjpeg, 1..100; drawn uniformly between bounds, and rounded.
    subsampling : float
        Probability that chroma has half the resolution both ways (4:2:0), otherwise the full one (4:4:4).
    """

    def __init__(self, quality: Bounds = (75, 100), subsampling: float = 0.5) -> None:
        self.quality = bounds(quality, "quality", 1, 100)
        self.subsampling = probability(subsampling, "subsampling")

    def __call__(self, degraded: Tensor, clean: Tensor, draws: Draws) -> tuple[Tensor, Tensor]:
        quality = draws.uniform(*self.quality)
        return compress(degraded, quality, draws.uniform() < self.subsampling), clean


@lru_cache
def _matrices(device: torch.device) -> tuple[Tensor, Tensor]:
    to_rgb = [[0, 1.402], [-0.344136, -0.714136], [1.772, 0]]
    return torch.tensor(_TO_YCC, device=device), torch.tensor(to_rgb, device=device)


@lru_cache
def _cosines(device: torch.device) -> Tensor:
    """The orthonormal transform of 8 samples, (8, 8), one frequency a row."""
    k, n = torch.arange(8.0, dtype=torch.float64)[:, None], torch.arange(8.0, dtype=torch.float64)
    matrix = torch.cos((2 * n + 1) * k * (torch.pi / 16)) / 2
    matrix[0] /= 2**0.5
    return matrix.to(device, torch.float32)


def _mix(matrix: Tensor, image: Tensor) -> Tensor:
    return (matrix @ image.flatten(2)).unflatten(2, image.shape[2:])


def _through_blocks(levels: Tensor, table: Tensor) -> Tensor:
    """Quantize the coefficients of blocks of 8 x 8; levels (B, P, H, W) in 0..255, table (B, 1, 8, 8)."""
    H, W = levels.shape[2:]
    d = _cosines(levels.device)
    padded = F.pad(levels - 128, (0, -W % 8, 0, -H % 8), mode="replicate")
    coefficients = d @ (padded.unflatten(3, (-1, 8)) @ d.T).flatten(3).unflatten(2, (-1, 8))
    # (B, P, rows of blocks, 8, W); the table is written out along a row, as CPUs are slow with lines of 8.
    step = table.repeat(1, 1, 1, padded.shape[3] // 8)[:, :, None]
    # libjpeg holds coefficients as whole eighths, and rounds halves away from 0: flat areas often meet these.
    eighths = coefficients.mul_(8).round_()
    whole = (eighths.abs() / (8 * step)).add_(0.5).floor_().copysign_(eighths)
    back = d.T @ (whole.mul_(step).unflatten(4, (-1, 8)) @ d).flatten(4)
    return back.flatten(2, 3)[..., :H, :W].add(128).round_().clamp_(0, 255)


def _downsample(chroma: Tensor) -> Tensor:
    H, W = chroma.shape[2:]
    padded = F.pad(chroma, (0, W % 2, 0, H % 2), mode="replicate")
    mean = F.avg_pool2d(padded, 2)
    mean[..., 0::2] += 0.25  # libjpeg rounds halves down and up in turn
    mean[..., 1::2] += 0.5
    return mean.floor_()


def _upsample(chroma: Tensor, height: int, width: int) -> Tensor:
    """Double the size by the triangle filter: 3/4 of the nearer sample and 1/4 of the farther one."""
    h, w = chroma.shape[2:]
    large = F.interpolate(chroma, size=(2 * h, 2 * w), mode="bilinear", align_corners=False)
    large[..., 0::2] += 0.5
    large[..., 1::2] += 7 / 16  # libjpeg rounds halves up and down in turn
    return large.floor_()[..., :height, :width]
