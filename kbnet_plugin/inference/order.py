"""In which order the tiles of an array are restored."""

from __future__ import annotations

import itertools
import math
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from ..arrays.axes import Layout
from ..arrays.chunks import KEPT, chunk_starts
from ..arrays.tiling import Tile

Step = list[tuple[tuple[int, ...], Tile]]
"""Tiles that are restored together, each with its plane."""


def steps(arranged: Layout, tiles: Sequence[Tile], batch: int) -> Iterator[Step]:
    """Group the tiles of all planes into batches of one shape."""
    step: Step = []
    shape = None
    for plane in arranged.planes():
        for tile in tiles:
            own = tuple(s.stop - s.start for s in tile.source)
            if step and (own != shape or len(step) == batch):
                yield step
                step = []
            shape = own
            step.append((plane, tile))
    yield step


def ordered(
    source: Any,
    arranged: Layout,
    tiles: Sequence[Tile],
    batch: int,
    first: Callable[[], tuple[int, ...]] | None = None,
) -> Iterator[tuple[int, Step]]:
    """Yield every step, with its number among `steps`.

    Planes follow each other. Those in chunks that are too large to be kept go together, tile by tile, so that
    each chunk is read once.

    Parameters
    ----------
    source : array
    arranged : Layout
        Of `source`.
    tiles, batch
        As for `steps`.
    first : callable, optional
        Returns the plane to go on with, as its index along `Layout.stack_axes`; asked before each step.
    """
    depths = _depths(source, arranged)
    numbered = enumerate(steps(arranged, tiles, batch))
    if first is None and max(depths, default=1) == 1:
        yield from numbered
        return

    def group(plane: tuple[int, ...]) -> tuple[int, ...]:
        return tuple(n // depth for n, depth in zip(plane, depths, strict=True))

    waiting: dict[tuple[int, ...], deque[tuple[int, Step]]] = {}
    for number, step in numbered:
        waiting.setdefault(group(step[0][0]), deque()).append((number, step))
    if max(depths, default=1) > 1:
        for key, together in waiting.items():
            waiting[key] = deque(sorted(together, key=lambda numbered: _corner(numbered[1])))
    while waiting:
        wanted = first() if first is not None else ()
        key = group(wanted) if len(wanted) == len(depths) else ()
        key = key if key in waiting else next(iter(waiting))
        yield waiting[key].popleft()
        if not waiting[key]:
            del waiting[key]


def _corner(step: Step) -> tuple[int, int]:
    return step[0][1].target[0].start, step[0][1].target[1].start


def _depths(source: Any, arranged: Layout) -> list[int]:
    """Return how many planes go together along each of the stack axes."""
    starts = chunk_starts(source)
    sizes = dict.fromkeys(arranged.axes, 1)
    if starts is not None:
        largest = (max((b - a for a, b in itertools.pairwise(axis)), default=1) for axis in starts)
        sizes = dict(zip(arranged.axes, largest, strict=True))
    depths = [sizes[a] for a in arranged.stack_axes]
    bytes_of_plane = math.prod(arranged.size) * arranged.channels * np.dtype(source.dtype).itemsize
    return depths if math.prod(depths) * bytes_of_plane > KEPT else [1] * len(depths)
