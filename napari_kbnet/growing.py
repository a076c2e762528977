"""Results that are displayed while they grow: finished tiles, and the source where there are none yet."""

from __future__ import annotations

import itertools
import math
import shutil
from collections import defaultdict
from pathlib import Path
from tempfile import mkdtemp
from typing import Any
from weakref import finalize

import numpy as np
from numpy.typing import NDArray

from kbnet_plugin.arrays.axes import Layout
from kbnet_plugin.io.sliceable import Sliceable

_WIDE = 4096  # pixels; wider planes are displayed through an overview while they grow
_OVERVIEW = 2048, 1 << 28  # at most: pixels per side of the overview, and its bytes in all


class View(Sliceable):
    """A part of an array that is read when it is converted to a numpy array, not when it is sliced.

    napari first cuts a large array down to what the canvas shows, over all planes, and then takes a plane.

    Parameters
    ----------
    array : array
        Anything with shape and dtype that can be sliced.
    parts : sequence of (int or range), optional
        What is kept of each axis.
    """

    def __init__(self, array: Any, parts: tuple[Any, ...] | None = None) -> None:
        self._array = array
        self._parts = tuple(map(range, array.shape)) if parts is None else parts
        kept = tuple(len(part) for part in self._parts if isinstance(part, range))
        super().__init__(kept, np.dtype(array.dtype))

    def __getitem__(self, key: Any) -> Any:
        key = self.full_key(key)
        if not all(
            (isinstance(k, slice) and (k.step or 1) > 0) or isinstance(k, int | np.integer) for k in key
        ):
            return np.asarray(self)[key]
        given = iter(key)
        return View(self._array, tuple(p[next(given)] if isinstance(p, range) else p for p in self._parts))

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        key = tuple(slice(p.start, p.stop, p.step) if isinstance(p, range) else p for p in self._parts)
        return np.asarray(self._array[key], dtype)


class Growing:
    """A target of `Restorer.restore_into` that knows which of its tiles are finished.

    Parameters
    ----------
    array : array
        What tiles are written to.
    arranged : Layout
        Of the array.
    source : array or None
        Of the same shape, displayed where nothing is written yet.
    journal : Path, optional
        Where `restore_into` keeps track; by default a file that lives as long as this object.

    Attributes
    ----------
    shown : array or list of array
        What a layer can display while the target grows; a list is a pyramid.
    touched : tuple of int or slice
        Index of the last write.
    """

    def __init__(self, array: Any, arranged: Layout, source: Any, journal: Path | None = None) -> None:
        self.array, self._arranged = array, arranged
        self.shape, self.dtype, self.ndim = tuple(array.shape), array.dtype, len(array.shape)
        if isinstance(array, np.ndarray) and isinstance(source, np.ndarray):
            array[...] = source
            source = None
        self._source = source
        self.touched: tuple[int | slice, ...] = ()
        self._rects: dict[tuple[int, ...], list[tuple[slice, slice]]] = defaultdict(list)
        self._left: dict[tuple[int, ...], int] = {}  # pixels of planes that are begun
        self._overview: Overview | None = None
        if journal is None:
            folder = mkdtemp(prefix="kbnet-")
            finalize(self, shutil.rmtree, folder, ignore_errors=True)
            journal = Path(folder) / "journal"
        self.journal = journal
        self.shown = array if isinstance(array, np.ndarray) and source is None else View(self)
        if not isinstance(array, np.ndarray) and max(arranged.size) > _WIDE:
            self._overview = Overview(self, arranged)
            self.shown = [View(self), View(self._overview)]

    def __setitem__(self, key: tuple[int | slice, ...], value: NDArray[Any]) -> None:
        self.array[key] = value
        self.kept(key)
        if self._overview is not None:
            self._overview.update(key, value)

    def __getitem__(self, key: tuple[int | slice, ...]) -> NDArray[Any]:
        if self._source is None:
            return np.asarray(self.array[key])
        arranged = self._arranged
        full = [k if isinstance(k, slice) else slice(int(k), int(k) + 1) for k in key]
        ranges = {a: range(n)[k] for a, n, k in zip(arranged.axes, self.shape, full, strict=True)}
        out = np.empty([len(part) for part in ranges.values()], self.dtype)
        for plane in itertools.product(*(ranges[a] for a in arranged.stack_axes)):
            at = dict(zip(arranged.stack_axes, plane, strict=True))
            into = tuple(part.index(at[a]) if a in at else slice(None) for a, part in ranges.items())
            out[into] = self._plane(plane, ranges)
        return out[tuple(slice(None) if isinstance(k, slice) else 0 for k in key)]

    def kept(self, key: tuple[int | slice, ...]) -> None:
        """Note that a tile is written; `restore_into` calls this for those that an earlier run finished."""
        plane, (rows, columns) = self.place(key)
        left = self._left.get(plane, math.prod(self._arranged.size))
        self._left[plane] = left - (rows.stop - rows.start) * (columns.stop - columns.start)
        self._rects[plane].append((rows, columns))
        if self._left[plane] <= 0:
            del self._rects[plane]
        self.touched = key

    def place(self, key: tuple[Any, ...]) -> tuple[tuple[int, ...], tuple[slice, slice]]:
        """Return the plane, rows and columns of the index of a tile."""
        given = dict(zip(self._arranged.axes, key, strict=True))
        rows, columns = (slice(*given[a].indices(n)) for a, n in zip("YX", self._arranged.size, strict=True))
        return tuple(given[a] for a in self._arranged.stack_axes), (rows, columns)

    def prepare(self, plane: tuple[int, ...]) -> None:
        """Read what is displayed of a plane from afar, which would stop the window."""
        if self._overview is not None:
            self._overview.fill(plane)

    def sync(self) -> None:
        """Flush to disk, if the target is a file."""
        if (sync := getattr(self.array, "sync", None)) is not None:
            sync()

    def _plane(self, plane: tuple[int, ...], ranges: dict[str, range]) -> NDArray[Any]:
        """Read a part of a plane, with what is finished of it."""
        arranged = self._arranged

        def read(array: Any, parts: dict[str, range]) -> NDArray[Any]:
            outer = iter(plane)
            return np.asarray(
                array[
                    tuple(
                        _slice(parts[a]) if a in arranged.picture_axes else next(outer) for a in arranged.axes
                    )
                ]
            )

        if self._left.get(plane, 1) <= 0:
            return read(self.array, ranges)
        block, rects = read(self._source, ranges), list(self._rects.get(plane, ()))
        block = block.copy() if rects else block
        for rect in rects:
            inner = {a: _overlap(ranges[a], whole) for a, whole in zip("YX", rect, strict=True)}
            if all(part.stop > part.start for part in inner.values()):
                picture = [a for a in arranged.axes if a in arranged.picture_axes]
                into = tuple(inner.get(a, slice(None)) for a in picture)
                block[into] = read(self.array, ranges | {a: ranges[a][part] for a, part in inner.items()})
        return block


class Overview(Sliceable):
    """A growing result at lower resolution, in memory; a plane is filled when it is first looked at.

    Parameters
    ----------
    growing : Growing
    arranged : Layout
        Of the result.
    """

    def __init__(self, growing: Growing, arranged: Layout) -> None:
        whole = math.prod(growing.shape) * growing.dtype.itemsize
        self._step = math.ceil(max(max(arranged.size) / _OVERVIEW[0], math.sqrt(whole / _OVERVIEW[1])))
        self._growing, self._arranged = growing, arranged
        self._filled: set[tuple[int, ...]] = set()
        shape = tuple(
            -(-n // self._step) if a in "YX" else n for a, n in zip(arranged.axes, growing.shape, strict=True)
        )
        super().__init__(shape, np.dtype(growing.dtype))
        self._values = np.zeros(shape, growing.dtype)

    def __getitem__(self, key: Any) -> NDArray[Any]:
        key = self.full_key(key)
        ranges = zip(self._arranged.axes, self.shape, key, strict=True)
        planes = [
            range(n)[k] if isinstance(k, slice) else (int(k),)
            for a, n, k in ranges
            if a not in self._arranged.picture_axes
        ]
        plane = tuple(each[0] for each in planes if len(each) == 1)
        # A view of all planes at once, in 3D, would read the whole source.
        if len(plane) == len(planes):
            self.fill(plane)
        return self._values[key]

    def fill(self, plane: tuple[int, ...]) -> None:
        """Read a plane, unless that is done."""
        if plane in self._filled:
            return
        self._filled.add(plane)
        every, some = slice(None), slice(None, None, self._step)
        small = self._growing[self._arranged.key(plane, (some, some))]
        self._values[self._arranged.key(plane, (every, every))] = small

    def update(self, key: tuple[int | slice, ...], value: NDArray[Any]) -> None:
        """Take over a tile."""
        step = self._step
        plane, window = self._growing.place(key)
        small = [slice(-(-s.start // step), -(-s.stop // step)) for s in window]
        thin = {
            a: slice(part.start * step - whole.start, None, step)
            for a, part, whole in zip("YX", small, window, strict=True)
        }
        picture = [a for a in self._arranged.axes if a in self._arranged.picture_axes]
        self._values[self._arranged.key(plane, (small[0], small[1]))] = value[
            tuple(thin.get(a, slice(None)) for a in picture)
        ]


def _slice(part: range) -> slice:
    return slice(part.start, part.stop, part.step)


def _overlap(part: range, whole: slice) -> slice:
    """Return which elements of a range lie within a slice."""
    first = max(0, -(-(whole.start - part.start) // part.step))
    return slice(first, max(first, min(len(part), -(-(whole.stop - part.start) // part.step))))
