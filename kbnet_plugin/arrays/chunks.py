"""Read each chunk of an array once, although many windows overlap it."""

from __future__ import annotations

import itertools
import math
from bisect import bisect_left, bisect_right
from collections import OrderedDict
from threading import RLock
from typing import Any

import numpy as np
from numpy.typing import NDArray

KEPT = 1 << 28
"""Bytes of chunks that are kept in memory."""


def chunk_starts(array: Any) -> list[list[int]] | None:
    """Return where the chunks of an array begin along each axis, and its length; None if it has none."""
    chunks = getattr(array, "chunks", None)
    if not chunks or len(chunks) != len(array.shape):
        return None
    return [
        [*range(0, length, size), length] if isinstance(size, int) else [0, *itertools.accumulate(size)]
        for size, length in zip(chunks, array.shape, strict=True)
    ]


def keep_chunks(array: Any) -> Any:
    """Wrap an array in chunks so that the last ones read are kept; any other array is returned as it is."""
    starts = chunk_starts(array)
    if isinstance(array, Chunked) or starts is None:
        return array
    largest = math.prod(max(b - a for a, b in itertools.pairwise(axis)) for axis in starts if len(axis) > 1)
    return Chunked(array, starts) if largest * np.dtype(array.dtype).itemsize <= KEPT else array


class Chunked:
    """An array of which the last chunks that were read are kept, `KEPT` bytes in all; threads may share it.

    Parameters
    ----------
    array : array
        A dask, zarr or h5py array. Indices have one integer or ascending slice per axis.
    starts : list of list of int
        As `chunk_starts` returns them.
    """

    def __init__(self, array: Any, starts: list[list[int]]) -> None:
        self._array, self._starts = array, starts
        self.shape, self.dtype, self.chunks = tuple(array.shape), np.dtype(array.dtype), array.chunks
        self.ndim = len(self.shape)
        self._kept: OrderedDict[tuple[int, ...], NDArray[Any]] = OrderedDict()
        self._lock = RLock()

    def __getitem__(self, key: tuple[int | slice, ...]) -> NDArray[Any]:
        wanted = [
            range(n)[k] if isinstance(k, slice) else range(int(k), int(k) + 1)
            for k, n in zip(key, self.shape, strict=True)
        ]
        out = np.empty([len(part) for part in wanted], self.dtype)
        touched = [
            range(bisect_right(axis, part[0]) - 1, bisect_left(axis, part[-1] + 1)) if part else range(0)
            for axis, part in zip(self._starts, wanted, strict=True)
        ]
        for place in itertools.product(*touched):
            into, inside = [], []
            for number, axis, part in zip(place, self._starts, wanted, strict=True):
                first, last = (max(0, -(-(at - part.start) // part.step)) for at in axis[number : number + 2])
                into.append(slice(first, min(last, len(part))))
                inside.append(slice(part.start + first * part.step - axis[number], None, part.step))
            target = out[tuple(into)]
            if target.size:
                target[...] = self._chunk(place)[tuple(inside)][tuple(map(slice, target.shape))]
        return out[tuple(slice(None) if isinstance(k, slice) else 0 for k in key)]

    def _chunk(self, place: tuple[int, ...]) -> NDArray[Any]:
        with self._lock:
            if place in self._kept:
                self._kept.move_to_end(place)
                return self._kept[place]
            where = tuple(slice(a[n], a[n + 1]) for n, a in zip(place, self._starts, strict=True))
            room = KEPT - math.prod(s.stop - s.start for s in where) * self.dtype.itemsize
            while self._kept and sum(c.nbytes for c in self._kept.values()) > room:
                self._kept.popitem(last=False)  # before the next one takes its place
            self._kept[place] = chunk = np.asarray(self._array[where])
            return chunk
