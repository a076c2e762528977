"""Read the planes of a noisy stack, or of a folder of noisy pictures, window by window for training."""

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
from ..io.formats import FORMATS
from ..io.images import open_image
from ..io.ome_zarr import is_zarr

KINDS = (".npy", *(suffix for known in FORMATS for suffix in known.suffixes))
"""Suffixes of the files that are used in a folder."""

KEPT = 1 << 31
"""Size of a source in bytes up to which it is kept in memory during training."""

_SAMPLED = 64  # planes that a range is found from, at most


class Planes:
    """Planes of one kind, from one stack or from all files of a folder.

    Parameters
    ----------
    path : str or path
        A .npy array, any file that `kbnet_plugin.io.open_image` reads, or a folder of them.
    axes : str, optional
        Axes of every file: one letter of `kbnet_plugin.arrays.axes.AXES` per axis. By default those that the
        file names, or that its shape implies.
    channels : {1, 3}, optional
        Channels that the network sees together; by default 3 if there are three colours (S), else 1.
    keep : bool
        Read everything into memory at once.

    Attributes
    ----------
    path : Path
    files : list of Path
        Files that were found, sorted.
    layouts : list of Layout
        One per file.
    channels : {1, 3}
    dtype : dtype
    nbytes : int
        Size of all pixels, in bytes.

    Raises
    ------
    FileNotFoundError, ValueError
        If there is nothing to read, or files cannot be read or do not match; one line that names the file.
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
                    colours = arranged.colours
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
        kinds: dict[tuple[int, int], int] = {}
        self._kinds = [
            kinds.setdefault((n, self.layouts[n].channel(plane)), len(kinds)) for n, plane in self._index
        ]

    def __len__(self) -> int:
        return len(self._index)

    def size(self, number: int) -> tuple[int, int]:
        """Return height and width of a plane, in pixels."""
        return self.layouts[self._index[number][0]].size

    def name(self, number: int) -> str:
        """Return file and index of a plane, for messages."""
        file, plane = self._index[number]
        return f"{self.files[file]}{list(plane) if plane else ''}"

    def kind(self, number: int) -> int:
        """Return which kind of noise a plane has: every file and every channel has its own, from 0."""
        return self._kinds[number]

    def read(self, number: int, window: tuple[slice, slice]) -> NDArray[Any]:
        """Read a window of a plane.

        Parameters
        ----------
        number : int
            Of the plane, from 0.
        window : (slice, slice)
            Rows and columns.

        Returns
        -------
        ndarray
            (H, W, C) without opacity, in the file's dtype.

        Raises
        ------
        ValueError
            If the file cannot be read there.
        """
        file, plane = self._index[number]
        arranged = self.layouts[file]
        array = self._kept[file] if self._kept else _reopened(self.files[file], os.getpid())[0]
        try:
            block = np.asarray(array[arranged.key(plane, window)])
        except Exception as error:  # decoders raise errors of all kinds
            raise ValueError(f"{self.name(number)}: cannot be read ({one_line(error)})") from error
        return arranged.to_picture(block)[..., : self.channels]

    def pairs(self, axis: str | None = None) -> list[tuple[int, int]]:
        """List the pairs of successive planes along an axis, as their numbers.

        Parameters
        ----------
        axis : str, optional
            Axis of a stack; by default T, or Z if there is no T. Files of a folder are paired in the order of
            their names.

        Raises
        ------
        ValueError
            If there are no pairs along the axis, or the files are not single pictures of one size.
        """
        if len(self.files) > 1:
            if any(a.count != 1 for a in self.layouts) or len({a.size for a in self.layouts}) > 1:
                raise ValueError(f"{self.path}: files can be paired only if all are pictures of one size")
            return [(n, n + 1) for n in range(len(self) - 1)]
        (arranged,) = self.layouts
        axis = axis or next((a for a in "TZ" if a in arranged.stack_axes), "")
        if not axis or axis not in arranged.stack_axes:
            raise ValueError(
                f"{self.path}: no axis {axis or 'T or Z'!r} to pair planes along in {arranged.axes!r}; "
                "set the axes, or train on single planes (n2v)"
            )
        place = arranged.stack_axes.index(axis)
        numbers = {plane: number for number, (_, plane) in enumerate(self._index)}
        following = [(p, (*p[:place], p[place] + 1, *p[place + 1 :])) for p in numbers]
        found = [(numbers[p], numbers[q]) for p, q in following if q in numbers]
        if not found:
            raise ValueError(f"{self.path}: axis {axis} has only one plane, so there are no pairs; use n2v")
        return found

    def range(self, rule: RangeRule | None = None) -> tuple[float, float]:
        """Find the two values that become 0 and 1 in all planes.

        Parameters
        ----------
        rule : "auto", "dtype", "percentile" or (float, float), optional
            As for `kbnet_plugin.arrays.intensity.find_range`, over up to 64 planes from the whole source. By
            default, and for ``"auto"``: ``"dtype"`` for 8 bits, else ``"percentile"``, because cameras
            seldom use the whole range of a larger dtype.

        Raises
        ------
        ValueError
            If this is not a range rule.
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
        # Percentiles take about as many pixels of each plane, spread over all of it.
        sampled = []
        numbers = np.unique(np.linspace(0, len(self) - 1, min(len(self), _SAMPLED)).astype(int))
        for number in numbers.tolist():
            whole = self.read(number, (slice(None), slice(None)))
            step = max(1, int((self.size(number)[0] * self.size(number)[1] / (1 << 14)) ** 0.5))
            sampled.append((whole if rule == "dtype" else whole[::step, ::step]).ravel())
        values = np.concatenate(sampled)
        if rule == "percentile":
            scale = percentile_range(values)
        else:
            finite = values[np.isfinite(values)]
            low, high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 1.0)
            scale = float_range(low, high)
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
    """Open a file as an array that can be sliced, with its axes if the file names them."""
    if path.suffix.lower() == ".npy":
        try:
            return np.load(path, mmap_mode="r", allow_pickle=False), None
        except (ValueError, OSError) as error:
            raise ValueError(
                f"{path}: damaged, or not a .npy array ({one_line(error)}); save it again"
            ) from error
    image = stack.enter_context(open_image(path))
    return image.array, image.metadata.axes


@lru_cache(maxsize=16)
def _reopened(path: Path, _process: int) -> tuple[Any, ExitStack]:
    """Open a file for good, once per process: forked processes would share its position."""
    stack = ExitStack()  # returned with the array, because it closes the file when it is deleted
    return _opened(path, stack)[0], stack
