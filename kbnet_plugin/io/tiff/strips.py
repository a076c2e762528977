"""Cut arrays larger than memory into the strips and tiles of TIFF."""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..disk_arrays import Reordered

_STRIP = 1 << 17  # bytes; stock ImageJ reads the lengths of two strips wrongly if they are below 64 kB
_BAND = 1 << 25  # bytes that are read at a time
_LARGE_TILE, _TILE = 512, 256
_BATCH = 16  # strips or tiles that are compressed at a time
_LEVEL = 6
_THREADS = min(8, os.cpu_count() or 1)


class Stored:
    """A view of an array with the axes that TIFF stores: planes of Y, X and perhaps S.

    Parameters
    ----------
    array : array
        Anything that can be sliced.
    axes : str
        Its axes.
    stack : str
        Those that precede Y and X, in the order in which the planes are stored.
    """

    def __init__(self, array: Any, axes: str, stack: str) -> None:
        length = dict(zip(axes, array.shape, strict=True))
        self.axes = stack + ("YXS" if length.get("S", 1) > 1 else "YX")
        self._rest = (0,) if "S" in axes and "S" not in self.axes else ()
        self._view = Reordered(array, axes, self.axes + ("S" if self._rest else ""))
        self.shape = tuple(int(length[a]) for a in self.axes)
        self.dtype = np.dtype(array.dtype)

    def __getitem__(self, key: tuple[int | slice, ...]) -> NDArray[Any]:
        return self._view[key + self._rest]

    @property
    def samples(self) -> int:
        """Number of values of a pixel."""
        return self.shape[-1] if "S" in self.axes else 1

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of a plane, in pixels."""
        at = self.axes.index("Y")
        return self.shape[at], self.shape[at + 1]

    @property
    def row_bytes(self) -> int:
        """Length of a row."""
        return self.size[1] * self.samples * self.dtype.itemsize

    def blocks(self, height: int, width: int) -> Iterator[NDArray[Any]]:
        """Yield blocks of the planes, row by row, little-endian; those at the edges are smaller."""
        rows, columns = self.size
        samples = (slice(None),) if "S" in self.axes else ()
        for place in np.ndindex(self.shape[: self.axes.index("Y")]):
            for y in range(0, rows, height):
                for x in range(0, columns, width):
                    window = slice(y, min(y + height, rows)), slice(x, min(x + width, columns))
                    block = self[(*place, *window, *samples)]
                    yield np.ascontiguousarray(block, self.dtype.newbyteorder("<"))


def rows_per_strip(stored: Stored) -> int:
    """Return the number of rows of a strip: 128 kB or more."""
    return min(stored.size[0], -(-_STRIP // stored.row_bytes))


def strips(stored: Stored) -> Iterator[bytes]:
    """Yield the strips of all planes, compressed by Deflate."""
    rows = rows_per_strip(stored)
    band = rows * max(1, _BAND // (rows * stored.row_bytes))
    blocks = stored.blocks(band, stored.size[1])
    return _compress_all(block[y : y + rows] for block in blocks for y in range(0, len(block), rows))


def bands(stored: Stored) -> Iterator[bytes]:
    """Yield the bytes of all planes in pieces of any length."""
    for block in stored.blocks(max(1, _BAND // stored.row_bytes), stored.size[1]):
        yield block.tobytes()


def tile_side(stored: Stored) -> int:
    """Return the side of tiles; libvips refuses tiles of 512 in pictures of 256 pixels or less."""
    return _LARGE_TILE if min(stored.size) > _TILE else _TILE


def has_differences(dtype: np.dtype[Any]) -> bool:
    """Tell whether tiles of a dtype hold differences between neighbours (Predictor 2), which are smaller."""
    return dtype.kind in "ui" and dtype.itemsize <= 4


def tiles(stored: Stored) -> Iterator[bytes]:
    """Yield the tiles of all planes, those at the edges filled up with zeros, compressed by Deflate."""
    return _compress_all(
        _full_tile(block, tile_side(stored)) for block in stored.blocks(*[tile_side(stored)] * 2)
    )


def _full_tile(block: NDArray[Any], side: int) -> NDArray[Any]:
    tile = np.zeros((side, side, *block.shape[2:]), block.dtype)
    tile[: block.shape[0], : block.shape[1]] = block
    if has_differences(block.dtype):
        tile[:, 1:] -= tile[:, :-1].copy()
    return tile


def _compress_all(parts: Iterator[NDArray[Any]]) -> Iterator[bytes]:
    with ThreadPoolExecutor(_THREADS) as pool:
        while batch := list(islice(parts, _BATCH)):
            yield from pool.map(_compress, batch)


def _compress(part: NDArray[Any]) -> bytes:
    import imagecodecs  # here, because importing this module must not need it

    packed = np.packbits(part, axis=1) if part.dtype.kind == "b" else part
    return bytes(imagecodecs.deflate_encode(packed.tobytes(), level=_LEVEL))
