"""From pixels to what a network is given, and from its answer to a correction that can be trusted."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor

from ..arrays.intensity import LUMA, Range, cast, working
from ..arrays.noise import Noise, isolated, spike

_HOLE = 8  # pixels around a NaN whose mean stands for it
_CLIP = -1.0, 2.0  # of the range: what lies beyond is of no use to a network, and may spoil its surroundings
_LIMIT = 17  # pixels of the square in which a correction is compared with the noise
_LEVEL = 65  # pixels of the square whose mean is kept
_FLAT = 7  # pixels of a square of one value that is left as it is


class Context(NamedTuple):
    """What a tile needs to know of its channel.

    Attributes
    ----------
    scale : Range
    noise : Noise or None
        As measured, where it limits the correction.
    """

    scale: Range
    noise: Noise | None = None


def prepare(colour: NDArray[Any], context: Context) -> tuple[NDArray[np.float32], NDArray[np.float32] | None]:
    """Values for the network, and what replacing hot pixels has changed, both in units of the range.

    Parameters
    ----------
    colour : ndarray
        (H, W, C), without opacity.
    context : Context

    Returns
    -------
    values : ndarray
        (H, W, C), float32, clipped; NaN, infinity and hot pixels replaced by what is around them.
    change : ndarray or None
        (H, W, 1), of the hot and dead pixels; None where there are none.
    """
    finite = np.isfinite(colour) if colour.dtype.kind == "f" else None
    values = _filled(colour, context.scale, finite)
    change = None
    if context.noise is not None and colour.shape[2] == 1:
        found, median = isolated(values[..., 0], spike(context.noise) / context.scale.span)
        if found.any():
            change = np.where(found, median - values[..., 0], np.float32(0))[..., None]
            values = values + change
    return values.clip(*_CLIP), change


def limited(
    change: NDArray[np.float32], values: NDArray[np.float32], context: Context, limit: float
) -> NDArray[np.float32]:
    """A correction that is nowhere stronger than the noise."""
    noise, scale = context.noise, context.scale
    assert noise is not None
    if not noise.known:
        return change
    bright = values @ np.asarray(LUMA, np.float32) if values.shape[2] == 3 else values[..., 0]
    level = ndimage.uniform_filter(bright, _LIMIT) * scale.span + scale.low
    power = ndimage.uniform_filter(np.square(change).mean(axis=2), _LIMIT)
    allowed = limit * noise.deviation_at(level) / scale.span
    share = np.minimum(1, allowed / np.sqrt(np.maximum(power, 1e-20)))
    return change * share[..., None].astype(np.float32)


def weighted(delta: Tensor, strength: float, chroma: float | None) -> Tensor:
    """The correction, by the strength of brightness and colours."""
    if chroma is None or delta.shape[1] != 3:
        return strength * delta
    bright = (delta * delta.new_tensor(LUMA).view(3, 1, 1)).sum(1, keepdim=True)
    return strength * bright + chroma * (delta - bright)


def corrected(
    block: NDArray[Any], change: NDArray[np.float32], span: float, crop: tuple[slice, slice], alpha: bool
) -> NDArray[Any]:
    """Pixels (H, W, C) of a crop with a correction, in units of the range, added; opacity is copied."""
    kept = block[crop]
    colour = kept[..., : change.shape[2]]
    work = working(block.dtype)
    with np.errstate(invalid="ignore"):  # of pixels that are NaN or infinite, and stay so
        restored = cast(colour.astype(work) + change[crop].astype(work) * work(span), block.dtype)
    finite = np.isfinite(colour) if colour.dtype.kind == "f" else None
    if finite is not None and not finite.all():
        restored = np.where(finite, restored, colour)
    return np.concatenate([restored, kept[..., -1:]], axis=2) if alpha else restored


def keep_level(change: NDArray[np.float32]) -> NDArray[np.float32]:
    """A correction (H, W, C) that leaves the mean of every neighbourhood as it is."""
    level: NDArray[np.float32] = ndimage.uniform_filter(change, (_LEVEL, _LEVEL, 1))
    return change - level


def flat(picture: NDArray[Any]) -> NDArray[np.bool_]:
    """Where nothing varies around a pixel, (H, W, 1)."""
    size = (_FLAT, _FLAT, 1)
    same = ndimage.maximum_filter(picture, size) == ndimage.minimum_filter(picture, size)
    flat: NDArray[np.bool_] = same.all(axis=2, keepdims=True)
    return flat


def _filled(colour: NDArray[Any], scale: Range, finite: NDArray[np.bool_] | None) -> NDArray[np.float32]:
    """Values for the network; NaN and infinity replaced by the mean around them, or nought."""
    if finite is None or finite.all():
        return scale.apply(colour)
    values = scale.apply(np.where(finite, colour, colour.dtype.type(scale.low)))
    x = torch.from_numpy(np.stack([values * finite, finite.astype(np.float32)])).permute(0, 3, 1, 2)
    sums = F.avg_pool2d(x, 2 * _HOLE + 1, stride=1, padding=_HOLE).permute(0, 2, 3, 1).numpy()
    return np.where(finite, values, sums[0] / np.maximum(sums[1], 1e-9)).astype(np.float32)
