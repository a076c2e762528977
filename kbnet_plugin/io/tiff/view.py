"""An array of plain values that are read from a TIFF as it is sliced."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...errors import one_line
from ..embedded import upright
from ..sliceable import Sliceable
from .pixels import Plain
from .planes import Planes

_PROBE = 256  # rows and columns of the windows that tell whether a sample is opacity


def damaged(path: Path, error: Exception) -> ValueError:
    """Make the error that names a damaged file."""
    return ValueError(f"{path}: damaged or incomplete TIFF ({one_line(error)}); export it again")


class View(Sliceable):
    """Plain values of planes, read and converted as they are sliced.

    Parameters
    ----------
    planes : Planes
    numbers : ndarray
        Number of the plane at each index of the outer axes.
    plain : Plain
    orientation : int
        As TIFF's tag, 1 to 8.
    last : bool
        Whether there is an axis of samples, the last one.
    """

    def __init__(
        self, planes: Planes, numbers: NDArray[Any], plain: Plain, orientation: int, *, last: bool
    ) -> None:
        self._planes, self._numbers, self._plain = planes, numbers, plain
        self._orientation, self._last = orientation, last
        self._turned = orientation in (5, 6, 7, 8)
        size = (planes.width, planes.height) if self._turned else (planes.height, planes.width)
        self._full = (*size, plain.samples)
        super().__init__((*numbers.shape, *(self._full if last else size)), plain.dtype)

    def __getitem__(self, key: Any) -> NDArray[Any]:
        try:
            return self.read(key)
        except (IndexError, MemoryError):
            raise
        except Exception as error:  # decoders raise errors of all kinds
            if isinstance(error, OSError) and error.errno is not None:  # of the disk, not of the data
                raise
            raise damaged(self._planes.path, error) from error

    def read(self, key: Any) -> NDArray[Any]:
        """Return what slicing returns; errors are those of the decoders."""
        key = self.full_key(key)
        outer = self._numbers.ndim
        picked = np.asarray(self._numbers[key[:outer]])
        inner = key[outer:] if self._last else (*key[outer:], 0)
        spans = [range(n)[part] for part, n in zip(inner, self._full, strict=True)]
        ranges = [span for span in spans if isinstance(span, range)]
        out = np.empty((picked.size, *(len(span) for span in ranges)), self.dtype)
        if out.size:
            windows = [_window(span) for span in spans]
            within = tuple(slice(None, None, span.step) if isinstance(span, range) else 0 for span in spans)
            for place, number in enumerate(picked.flat):
                out[place] = self._read(int(number), windows)[within]
        return out.reshape(picked.shape + out.shape[1:])

    def _read(self, number: int, windows: list[slice]) -> NDArray[Any]:
        rows, columns, samples = windows
        height, width, _ = self._full
        if self._orientation in (3, 4, 7, 8):
            rows = slice(height - rows.stop, height - rows.start)
        if self._orientation in (2, 3, 6, 7):
            columns = slice(width - columns.stop, width - columns.start)
        if self._turned:
            rows, columns = columns, rows
        if self._plain.steps:
            block = self._planes.read(number, rows, columns)
            for step in self._plain.steps:
                block = step(block)
            block = block[..., samples]
        else:
            block = self._planes.read(number, rows, columns, samples)
        return upright(block, self._orientation)


def _window(span: range | int) -> slice:
    if isinstance(span, int):
        return slice(span, span + 1)
    return slice(min(span[0], span[-1]), max(span[0], span[-1]) + 1)


def is_opacity(view: View) -> bool:
    """Guess whether the last sample is opacity: most values are the largest or 0, and some the largest."""
    if view.dtype.kind == "i":
        return False
    largest = 1 if view.dtype.kind == "f" else np.iinfo(view.dtype).max
    first = (0,) * (view.ndim - 3)
    height, width = view.shape[-3:-1]
    y, x = max(0, (height - _PROBE) // 2), max(0, (width - _PROBE) // 2)
    corners = {(0, 0), (y, x), (2 * y, 2 * x), (0, 2 * x), (2 * y, 0)}
    probes = [
        view.read((*first, slice(top, top + _PROBE), slice(left, left + _PROBE), -1)).ravel()
        for top, left in corners
    ]
    values = np.concatenate(probes)
    opaque, clear = np.mean(values == largest), np.mean(values == 0)
    return bool(opaque >= 0.05 and opaque + clear >= 0.5)
