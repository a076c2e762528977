"""Prepare pixels for a network, and limit and apply the correction that it computes."""

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

_HOLE = 8  # pixels on each side of a NaN whose mean replaces it
_CLIP = -1.0, 2.0  # in units of the range; more extreme values would only disturb their surroundings
# Sides of squares, in pixels:
_LIMIT = 17  # in which a correction is compared with the noise
_LEVEL = 65  # whose mean is kept
_FLAT = 7  # which are left unchanged if all values are equal


class Context(NamedTuple):
    """Facts about a channel that all its tiles share.

    Attributes
    ----------
    scale : Range
        Values that the network sees as 0 and 1.
    noise : Noise or None
        Measured noise that limits the correction; None for no limit.
    """

    scale: Range
    noise: Noise | None = None


def prepare(colour: NDArray[Any], context: Context) -> tuple[NDArray[np.float32], NDArray[np.float32] | None]:
    """Scale pixels for the network and replace those that would disturb it.

    Parameters
    ----------
    colour : ndarray
        (H, W, C), without opacity.
    context : Context

    Returns
    -------
    values : ndarray
        (H, W, C), float32, in units of the range, clipped to -1..2. NaN, infinity, hot and dead pixels are
        replaced by their surroundings.
    change : ndarray or None
        What replacing hot and dead pixels added to `values`, (H, W, 1); None if there are none.
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
    """Weaken a correction wherever it is stronger than the noise.

    Parameters
    ----------
    change, values : ndarray
        The correction and the input of the network, (H, W, C), in units of the range.
    context : Context
        With noise.
    limit : float
        Largest ratio of the correction's root mean square to the noise's standard deviation, in squares of
        17 x 17 pixels.
    """
    noise, scale = context.noise, context.scale
    assert noise is not None
    if not noise.known:
        return change
    bright = values @ np.asarray(LUMA, np.float32) if values.shape[2] == 3 else values[..., 0]
    level = ndimage.uniform_filter(bright, _LIMIT) * scale.span + scale.low
    power = ndimage.uniform_filter(np.square(change).mean(axis=2), _LIMIT)
    allowed = limit * noise.deviation_at(level) / scale.span
    factor = np.minimum(1, allowed / np.sqrt(np.maximum(power, 1e-20)))
    return change * factor[..., None].astype(np.float32)


def weighted(delta: Tensor, strength: float, chroma: float | None) -> Tensor:
    """Scale a correction (B, C, H, W) by `strength`, and its colours by `chroma` unless that is None."""
    if chroma is None or delta.shape[1] != 3:
        return strength * delta
    bright = (delta * delta.new_tensor(LUMA).view(3, 1, 1)).sum(1, keepdim=True)
    return strength * bright + chroma * (delta - bright)


def corrected(
    block: NDArray[Any], change: NDArray[np.float32], span: float, crop: tuple[slice, slice], alpha: bool
) -> NDArray[Any]:
    """Add a correction to the pixels of a crop.

    Parameters
    ----------
    block : ndarray
        (H, W, C), opacity included.
    change : ndarray
        (H, W, C') in units of the range, for the first C' channels.
    span : float
        Unit of the range.
    crop : (slice, slice)
        Rows and columns to return.
    alpha : bool
        Whether the last channel of `block` is opacity, which is copied.

    Returns
    -------
    ndarray
        (h, w, C') or with opacity (h, w, C' + 1), in the dtype of `block`. NaN and infinity are kept.
    """
    kept = block[crop]
    colour = kept[..., : change.shape[2]]
    work = working(block.dtype)
    with np.errstate(invalid="ignore"):  # from NaN and infinity, which are kept below
        added = change[crop].astype(work) * work(span)
        restored = cast(colour.astype(work) + added, block.dtype)
    if block.dtype.kind in "iu" and block.dtype.itemsize == 8:  # float64 skips integers beyond 2**53
        restored = np.where(np.abs(added) < 0.5, colour, restored)
    finite = np.isfinite(colour) if colour.dtype.kind == "f" else None
    if finite is not None and not finite.all():
        restored = np.where(finite, restored, colour)
    return np.concatenate([restored, kept[..., -1:]], axis=2) if alpha else restored


def keep_level(change: NDArray[np.float32]) -> NDArray[np.float32]:
    """Remove from a correction (H, W, C) its mean over every neighbourhood of 65 x 65 pixels."""
    level: NDArray[np.float32] = ndimage.uniform_filter(change, (_LEVEL, _LEVEL, 1))
    return change - level


def flat(picture: NDArray[Any]) -> NDArray[np.bool_]:
    """Find the pixels of (H, W, C) whose neighbourhood of 7 x 7 is constant, (H, W, 1)."""
    size = (_FLAT, _FLAT, 1)
    if picture.dtype.kind == "f":  # scipy does not filter float16
        picture = picture.astype(working(picture.dtype), copy=False)
    if not _has_constant_squares(picture):
        return np.zeros((*picture.shape[:2], 1), bool)
    same = ndimage.maximum_filter(picture, size) == ndimage.minimum_filter(picture, size)
    flat: NDArray[np.bool_] = same.all(axis=2, keepdims=True)
    return flat


def _has_constant_squares(picture: NDArray[Any]) -> bool:
    """Say whether any aligned square of 2 x 2 pixels is constant; without one, nothing larger is.

    In a noisy picture there is none, which saves the filters.
    """
    if min(picture.shape[:2]) < 4:
        return True
    height, width = (n // 2 * 2 for n in picture.shape[:2])
    first = picture[:height:2, :width:2]
    same = np.ones(first.shape[:2], bool)
    for y, x in ((0, 1), (1, 0), (1, 1)):
        same &= (picture[y:height:2, x:width:2] == first).all(axis=2)
        if not same.any():
            return False
    return True


def _filled(colour: NDArray[Any], scale: Range, finite: NDArray[np.bool_] | None) -> NDArray[np.float32]:
    """Scale (H, W, C); NaN and infinity become the mean of their surroundings, or 0 if there is none."""
    if finite is None or finite.all():
        return scale.apply(colour)
    values = scale.apply(np.where(finite, colour, colour.dtype.type(scale.low)))
    x = torch.from_numpy(np.stack([values * finite, finite.astype(np.float32)])).permute(0, 3, 1, 2)
    sums = F.avg_pool2d(x, 2 * _HOLE + 1, stride=1, padding=_HOLE).permute(0, 2, 3, 1).numpy()
    return np.where(finite, values, sums[0] / np.maximum(sums[1], 1e-9)).astype(np.float32)
