"""Read and write stacks larger than memory piece by piece: TIFF, OME-TIFF and OME-Zarr.

An unfinished result is kept in a folder beside its final name, with a journal of the finished pieces; it
gets its final name only once it is complete.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import one_line
from ..files import check_folder
from .disk_arrays import RawArray, Reordered, ZarrArray
from .metadata import StackMetadata
from .ome_tiff import finish_tiff, tiff_info, tiff_order
from .ome_zarr import finish_zarr, import_zarr, is_zarr, open_group, open_zarr, zarr_order
from .pictures import TIFF_SUFFIXES, open_tiff, read_image

LARGE = 1 << 26
"""Number of values above which a plain TIFF picture is read piece by piece, as a stack."""


def is_stack(path: Path) -> bool:
    """Tell whether a file is read piece by piece: zarr, and any TIFF except a small plain picture."""
    if is_zarr(path):
        return True
    if path.suffix.lower() not in TIFF_SUFFIXES:
        return False
    try:
        with open_tiff(path) as tiff:
            series = tiff.series[0]
            plain = series.axes in ("YX", "YXS", "SYX") and len(tiff.series) == 1 and not tiff.is_ome
            return not plain or int(np.prod(series.shape)) > LARGE
    except Exception:
        return False  # damaged: `read_image` reports how


@contextmanager
def open_stack(path: str | PathLike[str]) -> Iterator[tuple[Any, StackMetadata]]:
    """Open a stack for reading by slices.

    Parameters
    ----------
    path : str or path
        TIFF (OME, ImageJ or plain), OME-Zarr group of zarr format 2 or 3, or zarr array.

    Yields
    ------
    array : zarr array
        Full resolution.
    info : StackMetadata

    Raises
    ------
    FileNotFoundError
        If it does not exist.
    ValueError
        If it is damaged or contains no image, or zarr is not installed; one line that names the problem.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file or folder")
    if is_zarr(path):
        yield open_zarr(path)
        return
    zarr = import_zarr()
    with ExitStack() as stack:
        try:
            tiff = stack.enter_context(open_tiff(path))
            series = tiff.series[0]
            ends = (o + n for p in series.pages for o, n in zip(p.dataoffsets, p.databytecounts, strict=True))
            if max(ends) > path.stat().st_size:
                raise ValueError("the last pixels are missing")
            array = zarr.open(series.aszarr(level=0), mode="r")
            info = tiff_info(tiff)
        except Exception as error:  # decoders raise errors of all kinds
            raise ValueError(
                f"{path}: damaged or incomplete TIFF ({one_line(error)}); export it again"
            ) from error
        yield array, info


@contextmanager
def open_array(
    path: Path, axes: str | None = None, *, stack: bool = False
) -> Iterator[tuple[Any, str | None]]:
    """Open a picture or stack for reading.

    Parameters
    ----------
    path : path
        As for `read_image` or `open_stack`.
    axes : str, optional
        Used instead of the axes in the file.
    stack : bool
        Read it piece by piece, even if it is a small picture.

    Yields
    ------
    array : ndarray or zarr array
    axes : str or None
        None if neither `axes` nor the file names them.

    Raises
    ------
    FileNotFoundError, ValueError
        As `read_image` or `open_stack`.
    """
    if stack or is_stack(path):
        with open_stack(path) as (array, info):
            yield array, axes or info.axes
    else:
        yield read_image(path)[0], axes


@dataclass(frozen=True, slots=True)
class Growing:
    """A stack that is being written.

    Attributes
    ----------
    array : Reordered
        Written with the axes passed to `grow`.
    journal : Path
        Where `Restorer.restore_into` keeps track of finished pieces.
    """

    array: Reordered
    journal: Path


@contextmanager
def grow(
    target: Path,
    axes: str,
    shape: tuple[int, ...],
    dtype: np.dtype[Any],
    info: StackMetadata | None = None,
    *,
    resume: bool = False,
) -> Iterator[Growing]:
    """Write a stack piece by piece; it gets its final name when the block succeeds.

    If the block raises, finished pieces stay in `working_folder` as long as the journal names any.

    Parameters
    ----------
    target : path
        File to write: TIFF or OME-Zarr, by its suffix.
    axes : str
        One letter of `kbnet_plugin.arrays.axes.AXES` per axis.
    shape : tuple of int
    dtype : dtype
    info : StackMetadata, optional
        Metadata to write.
    resume : bool
        Continue an unfinished result, if there is one.

    Yields
    ------
    Growing

    Raises
    ------
    ValueError
        If the format cannot store these axes, or is neither TIFF nor OME-Zarr.
    FileNotFoundError
        If the folder of `target` does not exist.
    FileExistsError
        If there is an unfinished result and `resume` is not set.
    """
    info = info or StackMetadata()
    work = working_folder(target)
    if work.exists() and not resume:
        raise FileExistsError(
            f"{work}: an unfinished result; add --resume to continue it, or --overwrite to start over"
        )
    check_folder(target)
    to_zarr = is_zarr(target)
    if not to_zarr and target.suffix.lower() not in TIFF_SUFFIXES:
        raise ValueError(f"{target}: a stack is written as TIFF or OME-Zarr; end the name in .tif or .zarr")
    order = zarr_order(axes, target) if to_zarr else tiff_order(axes)
    stored = tuple(shape[axes.index(a)] for a in order)
    work.mkdir(exist_ok=True)
    complete = False
    try:
        data = work / "data"
        grown: Any
        if to_zarr:
            group = open_group(data, info, order, stored, dtype)
            grown = ZarrArray(group["0"], data / "0")
        else:
            grown = RawArray(data, stored, dtype)
        yield Growing(Reordered(grown, order, axes), work / "journal")
        if to_zarr:
            finish_zarr(data, group, info, order, target)
        else:
            finish_tiff(data, grown, info, order, target)
        complete = True
    finally:
        if work.exists() and (complete or not _has_progress(work)):
            shutil.rmtree(work)


def working_folder(target: Path) -> Path:
    """Return the folder in which a result grows until it is complete."""
    return target.with_name(f"{target.name}.partial")


def _has_progress(work: Path) -> bool:
    journal = work / "journal"
    return journal.is_file() and journal.read_bytes().count(b"\n") > 1
