"""Mask pixels of noisy pictures, and compute the loss on them.

Noise2Void masks a few pixels and predicts their noisy values from their surroundings. The surroundings
predict the signal, but not noise that is independent from pixel to pixel, so the best prediction is the
signal. N2V2 replaces masked pixels by the median of their surroundings. Structured Noise2Void masks lines of
pixels, for noise that neighbours along a line share.

References
----------
A. Krull, T.-O. Buchholz, F. Jug, "Noise2Void - learning denoising from single noisy images", CVPR 2019,
arXiv 1811.10980. E. Höck, T.-O. Buchholz, A. Brachmann, F. Jug, A. Freytag, "N2V2 - fixing Noise2Void
checkerboard artifacts with modified sampling strategies and a tweaked network architecture", ECCV Workshops
2022, arXiv 2211.08512. C. Broaddus, A. Krull, M. Weigert, U. Schmidt, G. Myers, "Removing structured noise
with self-supervised blind-spot networks", ISBI 2020.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from torch import Tensor

Strategy = Literal["median", "uniform"]
Norm = Literal["l2", "l1"]
Direction = Literal["horizontal", "vertical"]

STRATEGIES: tuple[str, ...] = get_args(Strategy)
NORMS: tuple[str, ...] = get_args(Norm)
DIRECTIONS: tuple[str, ...] = get_args(Direction)

# Measured on BSD68 at sigma 25 with few steps, the usual case: training is faster with more masked pixels and
# smaller surroundings than in the papers.
MASKED_PIXEL_PERCENTAGE = 10.0
STRATEGY: Strategy = "median"
RADIUS = 1
"""Radius of the surroundings in pixels: 3 x 3 pixels, without the masked one."""

REACH = 5
"""Pixels on either side of a masked one that are masked with it, if noise is correlated along lines."""


def masked_pixels(
    size: tuple[int, int], percentage: float, generator: np.random.Generator
) -> tuple[NDArray[Any], ...]:
    """Choose the pixels to mask: one at random in every box of a grid.

    Parameters
    ----------
    size : (int, int)
        Height and width of the picture, in pixels.
    percentage : float
        How many pixels to mask, in percent: above 0, at most 100. A box has about 100 / percentage pixels.
    generator : numpy Generator

    Returns
    -------
    rows, columns : ndarray of int
        (pixels,) each; no pixel twice.

    Raises
    ------
    ValueError
        If the percentage is out of range.
    """
    if not 0 < percentage <= 100:
        raise ValueError(f"masked_pixel_percentage must be above 0 and at most 100, not {percentage:g}")
    counts = [max(1, round(side * (percentage / 100) ** 0.5)) for side in size]
    # Borders lie between pixels, or two boxes could draw the same one. They move from call to call, because
    # boxes differ in size and pixels of smaller boxes are drawn more often.
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
    *,
    own_row: bool = True,
) -> NDArray[np.float32]:
    """Compute values to replace some pixels with, which do not depend on these pixels themselves.

    Parameters
    ----------
    picture : ndarray
        (H, W, C), with NaN for missing values. It is mirrored at its edges.
    rows, columns : ndarray of int
        (pixels,) each: the pixels to replace.
    strategy : {"median", "uniform"}
        Median of the surroundings, or one of their pixels drawn at random.
    generator : numpy Generator
    radius : int
        Radius of the surroundings, in pixels.
    own_row : bool
        Whether pixels of the same row belong to the surroundings.

    Returns
    -------
    ndarray
        (pixels, C); 0 if all the surroundings are missing.

    Raises
    ------
    ValueError
        If there is no such strategy.
    """
    if strategy not in STRATEGIES:
        raise ValueError(f"strategy must be {' or '.join(STRATEGIES)}, not {strategy!r}")
    span = np.arange(-radius, radius + 1)
    down, right = (offset.ravel() for offset in np.meshgrid(span, span, indexing="ij"))
    around = (down != 0) | ((right != 0) & own_row)
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
    # Not nanmedian, which warns if all values are missing.
    ordered = np.sort(near, axis=1)  # NaN last
    count = (~missing).sum(axis=1, keepdims=True)
    low, high = (np.take_along_axis(ordered, n.clip(min=0), 1) for n in ((count - 1) // 2, count // 2))
    middle: NDArray[np.float32] = np.nan_to_num((low + high)[:, 0] / 2, nan=0.0).astype(np.float32)
    return middle


def _mirrored(index: NDArray[Any], side: int) -> NDArray[Any]:
    """Reflect indices at the edges without repeating the edge; clip them if the picture is too small."""
    index = np.abs(index)
    return (side - 1 - np.abs(side - 1 - index)).clip(0, side - 1)


def mask(
    picture: NDArray[np.float32],
    generator: np.random.Generator,
    percentage: float = MASKED_PIXEL_PERCENTAGE,
    strategy: Strategy = STRATEGY,
    correlated: Direction | None = None,
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Mask some pixels of a noisy picture.

    Parameters
    ----------
    picture : ndarray
        (H, W, C), with NaN for missing values. All channels of a pixel are masked together.
    generator : numpy Generator
    percentage, strategy
        As in `masked_pixels` and `replacements`.
    correlated : {"horizontal", "vertical"}, optional
        Direction in which neighbouring pixels share their noise. With each target, `REACH` pixels on either
        side are masked too, and replaced from other lines; there are fewer targets accordingly.

    Returns
    -------
    masked : ndarray
        (H, W, C). Input of the network: the picture with masked and missing pixels replaced.
    target : ndarray
        (H, W, C). Target of `masked_loss`: the values of masked pixels, NaN elsewhere.

    Raises
    ------
    ValueError
        If the percentage is out of range or there is no such strategy.
    """
    if correlated == "vertical":
        turned = mask(picture.swapaxes(0, 1), generator, percentage, strategy, "horizontal")
        return turned[0].swapaxes(0, 1), turned[1].swapaxes(0, 1)
    span = 1 if correlated is None else 2 * REACH + 1
    rows, columns = masked_pixels((picture.shape[0], picture.shape[1]), percentage / span, generator)
    target = np.full_like(picture, np.nan)
    target[rows, columns] = picture[rows, columns]
    masked = fill_missing(picture, generator)
    if correlated is not None:
        line = columns[:, None] + np.arange(-REACH, REACH + 1)
        rows, columns = np.repeat(rows, span), line.clip(0, picture.shape[1] - 1).ravel()
    masked[rows, columns] = replacements(
        picture, rows, columns, strategy, generator, own_row=correlated is None
    )
    return masked, target


def fill_missing(picture: NDArray[np.float32], generator: np.random.Generator) -> NDArray[np.float32]:
    """Return a copy of a picture (H, W, C) with missing pixels (NaN) replaced by the median around them."""
    whole = picture.copy()
    if (missing := np.isnan(picture).any(axis=2)).any():
        rows, columns = np.nonzero(missing)
        whole[rows, columns] = replacements(picture, rows, columns, "median", generator)
    return whole


def masked_loss(output: Tensor, target: Tensor, norm: Norm = "l2") -> Tensor:
    """Return the mean squared or absolute error where the target is not NaN; 0 if all of it is NaN.

    Parameters
    ----------
    output, target : Tensor
        Of the same shape; in 0..1.
    norm : {"l2", "l1"}
        Squared errors train the network to predict the mean of the noisy values, absolute ones their median.
        These differ if the noise is skewed, as shot noise is.

    Returns
    -------
    Tensor
        Scalar.
    """
    known = ~target.isnan()
    difference = (output - target.nan_to_num()).where(known, 0)
    error = difference.square() if norm == "l2" else difference.abs()
    return error.sum() / known.sum().clamp(min=1)
