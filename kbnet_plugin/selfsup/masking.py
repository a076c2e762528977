"""Learning from noisy pictures alone: which pixels are hidden, what stands in for them, what the loss sees.

Noise2Void (Krull et al., arXiv 1811.10980) hides a few pixels and asks for their noisy values. Signal can be
told from the surroundings and noise that is independent from pixel to pixel cannot, so the best answer is the
signal. Noise2Void2 (Hoeck et al., arXiv 2211.08512) puts the median of the surroundings in the hidden places.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from torch import Tensor

Strategy = Literal["median", "uniform"]
Norm = Literal["l2", "l1"]

STRATEGIES: tuple[str, ...] = get_args(Strategy)
NORMS: tuple[str, ...] = get_args(Norm)

# Measured on BSD68 at sigma 25 with few steps, which is what people have: more hidden pixels and nearer
# surroundings than the papers take teach faster.
MASKED_PIXEL_PERCENTAGE = 10.0
STRATEGY: Strategy = "median"
RADIUS = 1
"""Of the surroundings, in pixels: 3 x 3, the hidden pixel left out."""


def masked_pixels(
    size: tuple[int, int], percentage: float, generator: np.random.Generator
) -> tuple[NDArray[Any], ...]:
    """Choose the pixels to hide: one at random in every box of a grid.

    Parameters
    ----------
    size : (int, int)
        Height and width of the picture.
    percentage : float
        Of its pixels, above 0 and at most 100; a box holds about 100 / percentage pixels.
    generator : numpy Generator

    Returns
    -------
    rows, columns : ndarray of int
        No pixel twice.
    """
    if not 0 < percentage <= 100:
        raise ValueError(f"masked_pixel_percentage must be above 0 and at most 100, not {percentage:g}")
    counts = [max(1, round(side * (percentage / 100) ** 0.5)) for side in size]
    # Borders between whole pixels, or two boxes could draw the same one; moved from call to call, as boxes
    # are not all of one size and a pixel of a smaller one is drawn more often.
    borders = [
        (np.arange(n + 1) * side + generator.integers(n)) // n for side, n in zip(size, counts, strict=True)
    ]
    starts = np.meshgrid(*(border[:-1] for border in borders), indexing="ij")
    ends = np.meshgrid(*(border[1:] for border in borders), indexing="ij")
    rows, columns = (generator.integers(low, high).ravel() for low, high in zip(starts, ends, strict=True))
    return rows, columns


def replacements(
    picture: NDArray[np.float32],
    rows: NDArray[Any],
    columns: NDArray[Any],
    strategy: Strategy,
    generator: np.random.Generator,
    radius: int = RADIUS,
) -> NDArray[np.float32]:
    """Values to put in the place of some pixels, none of which sees the pixel itself.

    Parameters
    ----------
    picture : ndarray
        (H, W, C); NaN counts as missing. Beyond its edges it is mirrored.
    rows, columns : ndarray of int
        The pixels.
    strategy : {"median", "uniform"}
        Median of the surroundings, or one of their pixels drawn at random.
    generator : numpy Generator
    radius : int
        Of the surroundings.

    Returns
    -------
    ndarray
        (pixels, C); 0 where all the surroundings are missing.
    """
    if strategy not in STRATEGIES:
        raise ValueError(f"strategy must be {' or '.join(STRATEGIES)}, not {strategy!r}")
    span = np.arange(-radius, radius + 1)
    down, right = (offset.ravel() for offset in np.meshgrid(span, span, indexing="ij"))
    around = (down != 0) | (right != 0)
    down, right = down[around], right[around]
    height, width = picture.shape[:2]
    if strategy == "uniform":
        drawn = generator.integers(len(down), size=len(rows))
        at = _mirrored(rows + down[drawn], height), _mirrored(columns + right[drawn], width)
        return np.nan_to_num(picture[at], nan=0.0)
    near = picture[_mirrored(rows[:, None] + down, height), _mirrored(columns[:, None] + right, width)]
    missing = np.isnan(near)
    if not missing.any():
        return np.median(near, axis=1).astype(np.float32)
    # Not nanmedian: it warns where nothing is there.
    ordered = np.sort(near, axis=1)  # NaN last
    count = (~missing).sum(axis=1, keepdims=True)
    low, high = (np.take_along_axis(ordered, n.clip(min=0), 1) for n in ((count - 1) // 2, count // 2))
    middle: NDArray[np.float32] = np.nan_to_num((low + high)[:, 0] / 2, nan=0.0).astype(np.float32)
    return middle


def _mirrored(index: NDArray[Any], side: int) -> NDArray[Any]:
    """Indices beyond the edges reflected, without repeating the edge; of a thin picture, clipped."""
    index = np.abs(index)
    return (side - 1 - np.abs(side - 1 - index)).clip(0, side - 1)


def mask(
    picture: NDArray[np.float32],
    generator: np.random.Generator,
    percentage: float = MASKED_PIXEL_PERCENTAGE,
    strategy: Strategy = STRATEGY,
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Hide some pixels of a noisy picture.

    Parameters
    ----------
    picture : ndarray
        (H, W, C); NaN where a value is missing. All channels of a pixel are hidden together.
    generator : numpy Generator
    percentage, strategy
        As in `masked_pixels` and `replacements`.

    Returns
    -------
    masked : ndarray
        For the network: the picture with other values where it is hidden or missing.
    target : ndarray
        For `masked_loss`: the picture's values where it is hidden, NaN elsewhere.
    """
    rows, columns = masked_pixels((picture.shape[0], picture.shape[1]), percentage, generator)
    target = np.full_like(picture, np.nan)
    target[rows, columns] = picture[rows, columns]
    masked = fill_missing(picture, generator)
    masked[rows, columns] = replacements(picture, rows, columns, strategy, generator)
    return masked, target


def fill_missing(picture: NDArray[np.float32], generator: np.random.Generator) -> NDArray[np.float32]:
    """Copy of a picture (H, W, C) with the median of the surroundings where a value is missing (NaN)."""
    whole = picture.copy()
    if (missing := np.isnan(picture).any(axis=2)).any():
        rows, columns = np.nonzero(missing)
        whole[rows, columns] = replacements(picture, rows, columns, "median", generator)
    return whole


def masked_loss(output: Tensor, target: Tensor, norm: Norm = "l2") -> Tensor:
    """Mean squared (l2) or absolute (l1) difference where `target` is a number; 0 where it nowhere is.

    l2 finds the mean of noisy values, l1 their median; they differ where noise is skewed, as shot noise is.
    """
    known = ~target.isnan()
    difference = (output - target.nan_to_num()).where(known, 0)
    error = difference.square() if norm == "l2" else difference.abs()
    return error.sum() / known.sum().clamp(min=1)
