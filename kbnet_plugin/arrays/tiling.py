"""Cut a plane into overlapping tiles: what each reads, which part of its result is kept, where that goes."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product

HALO = 40
"""Overlap of tiles in pixels; what is further away changes the shipped models' output by less than 1/255."""

WINDOW = 128
"""Side in pixels of the patches of local pooling, about half that of the paper's training patches."""


@dataclass(frozen=True, slots=True)
class Tile:
    """One tile of a plane, as (rows, columns) slices.

    Attributes
    ----------
    source : (slice, slice)
        Pixels of the plane that the network sees.
    crop : (slice, slice)
        Part of the tile's result that is kept.
    target : (slice, slice)
        Where that part goes in the plane. Targets cover the plane exactly once.
    """

    source: tuple[slice, slice]
    crop: tuple[slice, slice]
    target: tuple[slice, slice]


def plan(shape: tuple[int, int], tile: int = 512, halo: int = 32, multiple: int = 16) -> list[Tile]:
    """Cut a plane into equal tiles whose halos overlap.

    Parameters
    ----------
    shape : (int, int)
        Height and width of the plane, in pixels.
    tile : int
        Largest side of a tile in pixels, halo included. A plane that fits is one tile.
    halo : int
        Width in pixels of the context at inner edges, which is computed but not kept.
    multiple : int
        Tiles start at multiples of this, so that a network that subsamples sees the same grid as in the
        whole plane. The last tile may therefore be up to ``multiple - 1`` pixels shorter.

    Returns
    -------
    list of Tile
        In row-major order.

    Raises
    ------
    ValueError
        If the halo is negative, or nothing of a tile remains between its halos.

    Examples
    --------
    >>> [t.target[1] for t in plan((100, 200), tile=128, halo=16)]
    [slice(0, 112, None), slice(112, 200, None)]
    """
    axes = [_cut(length, tile, halo, multiple) for length in shape]
    return [Tile((y[0], x[0]), (y[1], x[1]), (y[2], x[2])) for y, x in product(*axes)]


def _cut(length: int, tile: int, halo: int, multiple: int) -> list[tuple[slice, slice, slice]]:
    if halo < 0:
        raise ValueError(f"halo must not be negative: {halo}")
    if length <= tile:
        return [(slice(0, length),) * 3]
    largest = (tile - 2 * halo) // multiple * multiple
    if largest < 1:
        raise ValueError(
            f"tile must exceed twice the halo by at least {multiple}; tile is {tile}, halo is {halo}"
        )
    # The fewest tiles of the largest size, then the smallest size for that number.
    count = -(-(length - 2 * halo) // largest)
    step = -(-(length - 2 * halo) // (count * multiple)) * multiple
    size = step + 2 * halo
    last = -(-(length - size) // multiple) * multiple
    starts = [min(i * step, last) for i in range(count)]
    pieces, begin = [], 0
    for start in starts:
        end = length if start == starts[-1] else start + size - halo
        stop = min(start + size, length)
        pieces.append((slice(start, stop), slice(begin - start, end - start), slice(begin, end)))
        begin = end
    return pieces
