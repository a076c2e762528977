"""Arrays on disk that are written piece by piece, and can be flushed to survive a power cut."""

from __future__ import annotations

import itertools
import os
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .sliceable import Sliceable


class RawArray:
    """An array in a file without header, in C order.

    The file is mapped into memory only during each access: a lasting mapping would count as this process's
    memory, in the end with the whole array.

    Parameters
    ----------
    path : Path
        Created, filled with zeros, unless it exists.
    shape : tuple of int
    dtype : dtype
    """

    def __init__(self, path: Path, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
        self.path, self.shape, self.dtype = path, shape, np.dtype(dtype)
        if not path.exists():
            with path.open("wb") as file:
                file.truncate(int(np.prod(shape)) * self.dtype.itemsize)

    def __getitem__(self, key: Any) -> NDArray[Any]:
        return np.array(np.memmap(self.path, self.dtype, "r", shape=self.shape)[key])

    def __setitem__(self, key: Any, value: NDArray[Any]) -> None:
        # Mapped writes end the process when the disk is full; written rows raise.
        mapped = np.memmap(self.path, self.dtype, "r", shape=self.shape)
        part = mapped[key]
        start = part.__array_interface__["data"][0] - mapped.__array_interface__["data"][0]
        value = np.ascontiguousarray(value, self.dtype).reshape(part.shape)
        inner = part.ndim
        size = self.dtype.itemsize
        while inner and part.strides[inner - 1] == size:  # contiguous in the file
            inner -= 1
            size *= part.shape[inner]
        # Buffered: without, a write that a full disk cuts short would go unnoticed.
        with self.path.open("rb+") as file:
            for index in np.ndindex(part.shape[:inner]):
                file.seek(start + sum(i * s for i, s in zip(index, part.strides, strict=False)))
                file.write(value[index].tobytes())

    def sync(self) -> None:
        """Flush what was written to disk."""
        sync(self.path)


class ZarrArray:
    """A zarr array that remembers which chunks were written, so that it can flush them to disk.

    Parameters
    ----------
    array : zarr.Array
    folder : Path
        Where the array is stored.
    """

    def __init__(self, array: Any, folder: Path) -> None:
        self._array, self._folder = array, folder
        self.shape, self.dtype = array.shape, array.dtype
        self._written: set[tuple[int, ...]] = set()

    def __getitem__(self, key: Any) -> Any:
        return self._array[key]

    def __setitem__(self, key: tuple[int | slice, ...], value: NDArray[Any]) -> None:
        self._array[key] = value
        touched = []
        for part, length, chunk in zip(key, self.shape, self._array.chunks, strict=True):
            start, stop = part.indices(length)[:2] if isinstance(part, slice) else (part, part + 1)
            touched.append(range(start // chunk, -(-stop // chunk)))
        self._written.update(itertools.product(*touched))

    def sync(self) -> None:
        """Flush what was written to disk."""
        encode = self._array.metadata.encode_chunk_key
        chunks = {self._folder / encode(place) for place in self._written}
        for path in sorted(chunks) + sorted({chunk.parent for chunk in chunks}):
            with suppress(FileNotFoundError):  # zarr does not store chunks that are all fill value
                sync(path)
        self._written.clear()


class Reordered(Sliceable):
    """A view of an array with its axes in another order.

    Parameters
    ----------
    array : array
        Anything that can be sliced.
    own, axes : str
        Axes of `array`, and of the view.

    Attributes
    ----------
    chunks : tuple or None
        Of `array`, in the order of the view.
    """

    def __init__(self, array: Any, own: str, axes: str) -> None:
        self._array, self._own, self._axes = array, own, axes
        super().__init__(tuple(int(array.shape[own.index(a)]) for a in axes), np.dtype(array.dtype))
        chunks = getattr(array, "chunks", None)
        self.chunks = tuple(chunks[own.index(a)] for a in axes) if chunks else None

    def __getitem__(self, key: Any) -> NDArray[Any]:
        key = self.full_key(key)
        given = {a: k if isinstance(k, slice) else int(k) for a, k in zip(self._axes, key, strict=True)}
        part = np.asarray(self._array[tuple(given[a] for a in self._own)])
        kept = [a for a in self._own if isinstance(given[a], slice)]
        return part.transpose([kept.index(a) for a in self._axes if isinstance(given[a], slice)])

    def __setitem__(self, key: tuple[int | slice, ...], value: NDArray[Any]) -> None:
        given = dict(zip(self._axes, key, strict=True))
        kept = [a for a in self._axes if isinstance(given[a], slice)]
        order = [kept.index(a) for a in self._own if isinstance(given[a], slice)]
        self._array[tuple(given[a] for a in self._own)] = value.transpose(order)

    def sync(self) -> None:
        """Flush what was written to disk, if the array supports it."""
        if (sync := getattr(self._array, "sync", None)) is not None:
            sync()


def sync(path: Path) -> None:
    """Flush a file, or the list of names in a folder, to disk."""
    if os.name == "nt" and path.is_dir():
        return  # Windows cannot flush a folder
    handle = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
