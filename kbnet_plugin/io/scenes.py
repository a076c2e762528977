"""Images whose planes are read when they are sliced, as files of microscopes store them."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..arrays.axes import AXES
from ..errors import one_line
from .sliceable import Sliceable

Window = tuple[slice, slice]
"""Rows and columns, both with a start and a stop."""


def refusal(path: Path, error: Exception) -> ValueError:
    """Return the error for a file that its package cannot read."""
    return ValueError(f"{path}: cannot be read ({one_line(error, 300)}); export it as OME-TIFF")


@dataclass(frozen=True, slots=True)
class Scene:
    """Planes of one size and dtype.

    Attributes
    ----------
    name : str
        As in the file; perhaps not unique.
    lengths : mapping
        Of the axes, planes first, then Y, X and perhaps S; axes of length 1 included.
    dtype : dtype
    read : callable
        Function of indices along the first axes, and a window, that returns it: (H, W) or (H, W, 3).
    sizes, channels, ome, ome_image
        As in `kbnet_plugin.io.metadata.Metadata`.
    notes : tuple of str
        As in `kbnet_plugin.io.metadata.Image`.
    """

    name: str
    lengths: Mapping[str, int]
    dtype: np.dtype[Any]
    read: Callable[[Mapping[str, int], Window], NDArray[Any]]
    sizes: Mapping[str, tuple[float, str | None]] = field(default_factory=dict)
    channels: tuple[str, ...] = ()
    ome: str | None = None
    ome_image: int = 0
    notes: tuple[str, ...] = ()


class Pixels(Sliceable):
    """A lazy array of the planes of a scene, without axes of length 1.

    Parameters
    ----------
    path : path
        Of the file, for messages.
    scene : Scene
    place : mapping
        Index along each axis that is none of `kbnet_plugin.arrays.axes.AXES`.
    lock : Lock
        Of the file, in which all scenes share one position.
    """

    def __init__(self, path: Path, scene: Scene, place: Mapping[str, int], lock: threading.Lock) -> None:
        self._path, self._scene, self._place, self._lock = path, scene, place, lock
        kept = {axis: n for axis, n in scene.lengths.items() if axis in "YX" or (axis in AXES and n > 1)}
        self.axes = "".join(kept)
        super().__init__(tuple(kept.values()), scene.dtype)

    def __getitem__(self, key: Any) -> NDArray[Any]:
        key = self.full_key(key)
        chosen = [
            list(range(n)[part]) if isinstance(part, slice) else [range(n)[int(part)]]
            for part, n in zip(key, self.shape, strict=True)
        ]
        result = np.empty([len(indices) for indices in chosen], self.dtype)
        if result.size:
            self._fill(result, chosen)
        return result[tuple(slice(None) if isinstance(part, slice) else 0 for part in key)]

    def _fill(self, result: NDArray[Any], chosen: list[list[int]]) -> None:
        outer = self.axes.index("Y")  # planes come first
        rows, columns = chosen[outer : outer + 2]
        top, left = min(rows), min(columns)
        window = (slice(top, max(rows) + 1), slice(left, max(columns) + 1))
        pixels = np.ix_([y - top for y in rows], [x - left for x in columns], *chosen[outer + 2 :])
        for at in np.ndindex(*result.shape[:outer]):
            index = {axis: chosen[n][i] for n, (axis, i) in enumerate(zip(self.axes, at, strict=False))}
            try:
                with self._lock:
                    part = self._scene.read({**self._place, **index}, window)
            except MemoryError:
                raise
            except Exception as error:  # decoders raise errors of all kinds
                raise refusal(self._path, error) from error
            result[at] = part[pixels]
