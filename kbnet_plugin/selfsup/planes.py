"""The planes of a noisy stack, or of a folder of noisy pictures, read window by window to learn from."""

from __future__ import annotations

import os
from contextlib import ExitStack
from functools import lru_cache
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..arrays.axes import Layout, layout
from ..arrays.intensity import RangeRule, check_rule, float_range, percentile_range
from ..errors import one_line
from ..io.ome_zarr import is_zarr
from ..io.pictures import read_image
from ..io.stacks import is_stack, open_stack

KINDS = (".npy", ".png", ".jpg", ".jpeg", ".tif", ".tiff", ".zarr")
"""What a folder is searched for."""

KEPT = 1 << 31
"""Bytes up to which pixels are best kept in memory while they are learned from."""

_LOOKED_AT = 64  # planes that a fixed range is found from


class Planes:
    """Planes of the same kind, from one stack or from all the files of a folder.

    Parameters
    ----------
    path : str or path
        A stack or picture (.npy, TIFF, OME-Zarr, PNG, JPEG), or a folder of them.
    axes : str, optional
        Of every file, as for `Restorer`; by default what the file says, or the shape.
    channels : {1, 3}, optional
        That the network sees together; by default 3 where there are three colours (S), else 1.
    keep : bool
        Read everything into memory at once.

    Attributes
    ----------
    channels : int
    dtype : dtype
    layouts : list of Layout
        Of every file.
    nbytes : int
        Of all pixels.

    Raises
    ------
    FileNotFoundError, ValueError
        If there is nothing to read, files cannot be read or do not go together; one line that names it.
    """

    def __init__(
        self,
        path: str | PathLike[str],
        axes: str | None = None,
        channels: int | None = None,
        *,
        keep: bool = False,
    ) -> None:
        self.path = Path(path)
        self.files = _listed(self.path)
        self.layouts: list[Layout] = []
        self._kept: list[Any] = []
        self.nbytes = 0
        dtypes = []
        for file in self.files:
            with ExitStack() as stack:
                array, own = _opened(file, stack)
                try:
                    arranged = layout(tuple(array.shape), axes or own, channels or 3)
                    colours = arranged.channels - arranged.alpha
                    if channels is None:
                        channels = 3 if colours == 3 else 1
                    if colours != channels:
                        raise ValueError(
                            f"{colours} channel(s) instead of {channels}; all must be gray, or all in colour"
                        )
                except ValueError as error:
                    raise ValueError(f"{file}: {error}") from None
                if np.dtype(array.dtype).kind not in "buif":
                    raise ValueError(f"{file}: pixels must be bool, integer or float, not {array.dtype}")
                self.layouts.append(arranged)
                dtypes.append(np.dtype(array.dtype))
                self.nbytes += int(np.prod(array.shape)) * dtypes[-1].itemsize
                if keep:
                    self._kept.append(np.array(array[...]))
        if len(set(dtypes)) > 1:
            named = ", ".join(sorted({str(d) for d in dtypes}))
            raise ValueError(f"{self.path}: pictures of several dtypes ({named}); convert them to one")
        self.dtype = dtypes[0]
        self.channels = channels or 1
        self._index = [(n, plane) for n, arranged in enumerate(self.layouts) for plane in arranged.planes()]

    def __len__(self) -> int:
        return len(self._index)

    def size(self, number: int) -> tuple[int, int]:
        """Height and width of a plane."""
        return self.layouts[self._index[number][0]].size

    def name(self, number: int) -> str:
        """File and place of a plane, for messages."""
        file, plane = self._index[number]
        return f"{self.files[file]}{list(plane) if plane else ''}"

    def read(self, number: int, window: tuple[slice, slice]) -> NDArray[Any]:
        """(H, W, C) of a window (rows, columns), without opacity, in the file's dtype."""
        file, plane = self._index[number]
        arranged = self.layouts[file]
        array = self._kept[file] if self._kept else _reopened(self.files[file], os.getpid())[0]
        try:
            block = np.asarray(array[arranged.key(plane, window)])
        except Exception as error:  # readers raise whatever their decoders do
            raise ValueError(f"{self.name(number)}: cannot be read ({one_line(error)})") from error
        return arranged.to_picture(block)[..., : self.channels]

    def pairs(self, axis: str | None = None) -> list[tuple[int, int]]:
        """Numbers of the planes that follow each other along an axis.

        Parameters
        ----------
        axis : str, optional
            Of one stack; by default T, or else Z. The files of a folder follow each other by their names.

        Raises
        ------
        ValueError
            If nothing follows anything there.
        """
        if len(self.files) > 1:
            if any(a.count != 1 for a in self.layouts) or len({a.size for a in self.layouts}) > 1:
                raise ValueError(f"{self.path}: files that pair up must be single pictures of one size")
            return [(n, n + 1) for n in range(len(self) - 1)]
        (arranged,) = self.layouts
        stacked = [a for a in arranged.axes if a not in "YX" + arranged.channel_axis]
        axis = axis or next((a for a in "TZ" if a in stacked), "")
        if axis not in stacked:
            raise ValueError(
                f"{self.path}: no axis {axis or 'T or Z'!r} to pair planes along in {arranged.axes!r}; "
                "name the axes, or learn from single planes (n2v)"
            )
        place = stacked.index(axis)
        numbers = {plane: number for number, (_, plane) in enumerate(self._index)}
        following = [(p, (*p[:place], p[place] + 1, *p[place + 1 :])) for p in numbers]
        found = [(numbers[p], numbers[q]) for p, q in following if q in numbers]
        if not found:
            raise ValueError(f"{self.path}: axis {axis} has one plane only; nothing pairs up")
        return found

    def range(self, rule: RangeRule | None = None) -> tuple[float, float]:
        """Two fixed values that span 0..1 for all planes alike.

        Parameters
        ----------
        rule : "auto", "dtype", "percentile" or (float, float), optional
            As for `find_range`, over planes from everywhere in the stack; by default, and by ``"auto"``,
            ``"dtype"`` for 8 bits and ``"percentile"`` for others, whose dtype says little of what a camera
            fills of it.
        """
        rule = "auto" if rule is None else check_rule(rule)
        if isinstance(rule, tuple):
            return rule
        if rule == "auto":
            rule = "dtype" if self.dtype.itemsize == 1 else "percentile"
        if self.dtype.kind == "b":
            return 0.0, 1.0
        if rule == "dtype" and self.dtype.kind in "ui":
            return 0.0, float(np.iinfo(self.dtype).max)
        # Of each plane the same number of pixels, from all over it.
        values = []
        for number in np.unique(
            np.linspace(0, len(self) - 1, min(len(self), _LOOKED_AT)).astype(int)
        ).tolist():
            whole = self.read(number, (slice(None), slice(None)))
            step = max(1, int((self.size(number)[0] * self.size(number)[1] / (1 << 14)) ** 0.5))
            values.append((whole if rule == "dtype" else whole[::step, ::step]).ravel())
        every = np.concatenate(values)
        if rule == "percentile":
            scale = percentile_range(every)
        else:
            finite = every[np.isfinite(every)]
            scale = (
                float_range(*(float(v) for v in (finite.min(), finite.max())))
                if finite.size
                else float_range(0, 1)
            )
        return scale.low, scale.low + scale.span


def _listed(path: Path) -> list[Path]:
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file or folder")
    if not path.is_dir() or is_zarr(path):
        return [path]
    found = sorted(p for p in path.iterdir() if p.suffix.lower() in KINDS and not p.name.startswith("."))
    if not found:
        raise ValueError(f"{path}: no pictures or stacks in this folder ({', '.join(KINDS)})")
    return found


def _opened(path: Path, stack: ExitStack) -> tuple[Any, str | None]:
    """An array that can be sliced, and its axes where the file says them."""
    if path.suffix.lower() == ".npy":
        try:
            return np.load(path, mmap_mode="r", allow_pickle=False), None
        except (ValueError, OSError) as error:
            raise ValueError(f"{path}: damaged, or no .npy array ({one_line(error)})") from error
    if is_stack(path):
        array, info = stack.enter_context(open_stack(path))
        return array, info.axes
    picture = read_image(path)[0]
    return picture, "YX" if picture.ndim == 2 else "YXS"


@lru_cache(maxsize=16)
def _reopened(path: Path, _process: int) -> tuple[Any, ExitStack]:
    """A file opened for good; each process has its own, because forked ones would share its position."""
    stack = ExitStack()  # kept beside the array, as it closes the file when it goes
    return _opened(path, stack)[0], stack
