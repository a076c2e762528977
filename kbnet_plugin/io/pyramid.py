"""Compute the levels of multiscale pyramids: each pixel is the mean of 2 x 2 pixels of the level below."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..arrays.axes import Layout
from ..arrays.intensity import cast

TILE = 512
"""Side of the tiles and chunks that levels are written in, in pixels."""

_SMALLEST_LEVEL = 256  # side in pixels; levels up to this size are not reduced further
_BLOCK = 2048  # side in pixels of what is read at a time


def halve(source: Any, target: Any, axes: str) -> None:
    """Fill a level with the means of 2 x 2 pixels of the level below, block by block.

    Parameters
    ----------
    source, target : array
        The level below, and the level to fill; its shape is `half_shape` of the source's.
    axes : str
        Axes of both.
    """
    channel_axis = "S" if "S" in axes else ""
    below = Layout(axes, tuple(source.shape), channel_axis, alpha=False)
    above = Layout(axes, tuple(target.shape), channel_axis, alpha=False)
    height, width = above.size
    step = _BLOCK // 2
    for plane in above.planes():
        for y in range(0, height, step):
            for x in range(0, width, step):
                rows, columns = slice(y, min(y + step, height)), slice(x, min(x + step, width))
                doubled = slice(2 * rows.start, 2 * rows.stop), slice(2 * columns.start, 2 * columns.stop)
                part = below.to_picture(np.asarray(source[below.key(plane, doubled)]))
                target[above.key(plane, (rows, columns))] = above.from_picture(_means(part, target.dtype))


def _means(part: NDArray[Any], dtype: np.dtype[Any]) -> NDArray[Any]:
    part = np.pad(part, [*((0, n % 2) for n in part.shape[:2]), (0, 0)], mode="edge")
    blocks = part.reshape(part.shape[0] // 2, 2, part.shape[1] // 2, 2, -1)
    if dtype.kind in "ui" and dtype.itemsize == 8:  # float64 does not hold them all, and their sum overflows
        quotient, remainder = np.divmod(blocks, 4)
        rest = np.rint(remainder.sum(axis=(1, 3)) / 4)
        return quotient.sum(axis=(1, 3)).astype(dtype) + rest.astype(dtype)
    with np.errstate(invalid="ignore", over="ignore"):  # infinities, and sums of the largest floats
        wide = [blocks[:, y, :, x].astype(np.float64) for y in (0, 1) for x in (0, 1)]
        return cast((wide[0] + wide[1] + wide[2] + wide[3]) / 4, dtype)


def half_shape(shape: tuple[int, ...], axes: str) -> tuple[int, ...]:
    """Return the shape of the next level: Y and X halved, rounded up."""
    return tuple((n + 1) // 2 if a in "YX" else n for a, n in zip(axes, shape, strict=True))


def level_count(shape: tuple[int, ...], axes: str, least: int) -> int:
    """Return the number of levels: at least `least`, and as many as it takes to end at 256 pixels or less."""
    side = max(shape[axes.index("Y")], shape[axes.index("X")])
    count = 1
    while side > _SMALLEST_LEVEL:
        side, count = (side + 1) // 2, count + 1
    return max(count, least)
