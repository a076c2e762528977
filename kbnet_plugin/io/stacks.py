"""Stacks in files larger than memory: TIFF, OME-TIFF and OME-Zarr, read and written piece by piece.

A result grows in a folder beside its final name, with the journal of what is finished, and takes that name
only when it is complete.
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
from .disk_arrays import RawArray, Reordered, ZarrArray
from .metadata import StackMetadata
from .ome_tiff import SUFFIXES, finish_tiff, tiff_info, tiff_order
from .ome_zarr import finish_zarr, import_zarr, is_zarr, open_group, open_zarr, zarr_order
from .pictures import open_tiff, read_image

LARGE = 1 << 26
"""Pixels from which a plain TIFF picture is treated as a stack: piece by piece."""


def is_stack(path: Path) -> bool:
    """Whether a file is read piece by piece: zarr, and any TIFF but a small plain picture."""
    if is_zarr(path):
        return True
    if path.suffix.lower() not in SUFFIXES:
        return False
    try:
        with open_tiff(path) as tiff:
            series = tiff.series[0]
            plain = series.axes in ("YX", "YXS", "SYX") and len(tiff.series) == 1 and not tiff.is_ome
            return not plain or int(np.prod(series.shape)) > LARGE
    except Exception:
        return False  # damaged: the reader of pictures says how


@contextmanager
def open_stack(path: str | PathLike[str]) -> Iterator[tuple[Any, StackMetadata]]:
    """Open a stack for reading by slices.

    Parameters
    ----------
    path : str or path
        TIFF (OME, ImageJ, plain), an OME-Zarr group of zarr format 2 or 3, or a zarr array.

    Yields
    ------
    array : zarr array
        At full resolution.
    info : StackMetadata

    Raises
    ------
    ValueError
        If it is damaged or holds no image; one line that names it.
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
                raise ValueError("its last pixels are cut off")
            array = zarr.open(series.aszarr(level=0), mode="r")
            info = tiff_info(tiff)
        except Exception as error:  # decoders raise whatever they like
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
    axes : str, optional
        In place of what the file says.
    stack : bool
        Read pictures piece by piece too.

    Yields
    ------
    array : ndarray or zarr array
    axes : str or None
        None where neither says.
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
        To write to, and of OME-Zarr to read from, along the axes that were asked for.
    journal : Path
        For `Restorer.restore_into`.
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
    """Write a stack piece by piece; it takes its name when the block ends well.

    Parameters
    ----------
    target : path
        TIFF or OME-Zarr, by its name.
    axes, shape, dtype
        Of what is written.
    info : StackMetadata, optional
        What the file is to say besides.
    resume : bool
        Continue what an interrupted block left, if it did.

    Raises
    ------
    ValueError
        If the axes do not fit the format.
    FileExistsError
        If there is an unfinished result and `resume` is not set.
    """
    info = info or StackMetadata()
    work = working_folder(target)
    if work.exists() and not resume:
        raise FileExistsError(
            f"{work}: an unfinished result; add --resume to go on, or --overwrite to start anew"
        )
    if not target.parent.is_dir():
        raise FileNotFoundError(f"{target.parent}: no such folder to write {target.name} to; create it first")
    to_zarr = is_zarr(target)
    if not to_zarr and target.suffix.lower() not in SUFFIXES:
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
    """Where a result grows until it is complete."""
    return target.with_name(f"{target.name}.partial")


def _has_progress(work: Path) -> bool:
    journal = work / "journal"
    return journal.is_file() and journal.read_bytes().count(b"\n") > 1
