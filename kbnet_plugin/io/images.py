"""Read the images of any file, and write results in the format that a name says, completely or not at all.

Large results grow piece by piece in a folder beside their final name, with a journal of the finished pieces;
they get that name only once they are complete.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock, Timeout
from numpy.typing import NDArray

from ..errors import BadInput, one_line
from ..files import atomic_path, check_folder
from .disk_arrays import RawArray, Reordered
from .formats import FORMATS, WRITTEN, Format, find_format, require
from .metadata import Frame, Image, Metadata
from .microscopes import open_microscope
from .ome_zarr import create_groups, finish_zarr, is_zarr, open_zarr_images, zarr_order
from .pictures.pillow import check_picture, read_picture, write_picture
from .pictures.raw import read_raw
from .tiff.reader import open_tiff
from .tiff.writer import check_tiff, choose_form, write_tiff
from .zarr_layout import check_replaceable, replace_folder

_FRAMES = "frames.json"  # in the folder of an unfinished result: which images it is of


@contextmanager
def open_images(path: str | PathLike[str]) -> Iterator[list[Image]]:
    """Open all images of a file.

    Parameters
    ----------
    path : str or path
        Of any of `kbnet_plugin.io.formats.FORMATS`.

    Yields
    ------
    list of Image
        At least one; several for scenes, series, or pages of different sizes. Large ones are read as they are
        sliced.

    Raises
    ------
    FileNotFoundError
        If it does not exist.
    ValueError
        If the format is unknown, is not what the name says, needs a package that is not installed, or the
        file is damaged or contains no image; one line that names the file.
    """
    path = Path(path)
    kind = _kind(path)
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file")
    if path.is_dir() and kind.name != "OME-Zarr":
        raise BadInput(f"{path}: a folder, not a {kind.name} file")
    require(kind, path)
    if kind.name == "OME-Zarr":
        yield open_zarr_images(path)
    elif kind.name in ("TIFF", "LSM"):
        with open_tiff(path) as images:
            yield images
    elif kind.extra == "microscopes":
        with open_microscope(path) as images:
            yield images
    elif kind.name == "raw photograph":
        yield [read_raw(path)]
    else:
        yield [read_picture(path, kind.name)]


@contextmanager
def open_image(path: str | PathLike[str]) -> Iterator[Image]:
    """Open the only image of a file.

    Raises
    ------
    FileNotFoundError, ValueError
        As `open_images`; also if there are several images.
    """
    with open_images(path) as images:
        if len(images) > 1:
            names = ", ".join(image.metadata.path for image in images[:5])
            raise BadInput(
                f"{path}: contains {len(images)} images ({names}{', ...' if len(images) > 5 else ''}); "
                "save the one you need as a file of its own"
            )
        yield images[0]


def read_image(path: str | PathLike[str]) -> tuple[NDArray[Any], Metadata]:
    """Read the only image of a file into memory.

    Parameters
    ----------
    path : str or path
        As for `open_images`.

    Returns
    -------
    array : ndarray
        (H, W) or (H, W, C) for pictures, upright; see `Image.array`.
    metadata : Metadata
        For `write_image`.

    Raises
    ------
    FileNotFoundError, ValueError
        As `open_image`.
    """
    with open_image(path) as image:
        return np.asarray(image.array[()]), image.metadata


def write_image(path: str | PathLike[str], array: NDArray[Any], metadata: Metadata | None = None) -> None:
    """Write one picture, completely or not at all, in the format that its name says.

    Parameters
    ----------
    path : str or path
        PNG, JPEG (quality 95, colours at full resolution) or TIFF.
    array : ndarray
        (H, W) or (H, W, C), with C from 1 (gray) to 4 (RGBA); any axes for TIFF, if `metadata` names them.
    metadata : Metadata, optional
        As `read_image` returns it.

    Raises
    ------
    FileNotFoundError
        If the folder does not exist.
    ValueError
        If the format cannot store this array.
    OSError
        If the file cannot be written.
    """
    if array.ndim == 3 and array.shape[2] == 1 and (metadata is None or metadata.axes in (None, "YXS")):
        array, metadata = array[..., 0], replace(metadata or Metadata(), axes="YX")
    metadata = metadata or Metadata()
    if metadata.axes is None or len(metadata.axes) != array.ndim:
        metadata = replace(metadata, axes="YXS" if array.ndim == 3 else "YX")
    write_images(path, [(array, metadata)])


def write_images(
    path: str | PathLike[str], images: Sequence[tuple[NDArray[Any], Metadata]], form: str | None = None
) -> tuple[str, ...]:
    """Write the images of a file from memory, completely or not at all.

    Parameters
    ----------
    path : str or path
        PNG or JPEG for one picture, or TIFF.
    images : sequence of (ndarray, Metadata)
        Each with its axes in the metadata.
    form : str, optional
        One of `kbnet_plugin.io.tiff.writer.FORMS` for a TIFF; by default that of the metadata.

    Returns
    -------
    tuple of str
        What the format could not keep, for people.

    Raises
    ------
    FileNotFoundError, ValueError, OSError
        As `write_image`.
    """
    path = Path(path)
    frames = [Frame(array.shape, array.dtype, metadata) for array, metadata in images]
    form = check_target(path, frames, form)
    try:
        with atomic_path(path) as temporary:
            if form:
                return write_tiff(temporary, images, form)
            return write_picture(temporary, _kind(path).name, *images[0])
    except OSError as error:
        if error.filename is not None or str(error).startswith(f"{path}"):
            raise
        raise OSError(f"{path}: cannot be written ({one_line(error)})") from error


def check_target(path: Path, frames: Sequence[Frame], form: str | None = None) -> str:
    """Check before any work that a file can store some images.

    Returns
    -------
    str
        One of `kbnet_plugin.io.tiff.writer.FORMS` for TIFF; empty for other formats.

    Raises
    ------
    ValueError
        If its format is unknown, is only read, or cannot store them; one line with the fix.
    """
    kind = _kind(path)
    if kind.name not in WRITTEN:
        raise BadInput(
            f"{path}: {kind.name} is only read; results are written as "
            f"{', '.join(WRITTEN[:-1])} or {WRITTEN[-1]}"
        )
    if kind.name == "TIFF":
        form = form or choose_form(frames, path.name)
        check_tiff(form, frames, path)
        return form
    if form is not None:
        raise BadInput(f"{path}: form {form!r} is a kind of TIFF; end the name in .tif")
    if kind.name == "OME-Zarr":
        check_replaceable(path)
        for frame in frames:
            zarr_order(str(frame.metadata.axes), path)
        return ""
    stack = [frame for frame in frames if len(str(frame.metadata.axes).replace("S", "")) > 2]
    if len(frames) > 1 or stack:
        what = f"{len(frames)} images are" if len(frames) > 1 else "a stack is"
        raise BadInput(f"{path}: {what} written as TIFF or OME-Zarr; end the name in .tif or .zarr")
    check_picture(kind.name, np.dtype(frames[0].dtype), frames[0].shape, path)
    return ""


@dataclass(frozen=True, slots=True)
class Growing:
    """An image that is being written.

    Attributes
    ----------
    array : Reordered
        Written with the axes of its frame.
    journal : Path
        Where `Restorer.restore_into` keeps track of finished pieces.
    """

    array: Reordered
    journal: Path


@contextmanager
def grow(
    target: Path,
    frames: Sequence[Frame],
    *,
    form: str | None = None,
    source: Path | None = None,
    resume: bool = False,
    report: Callable[[str], object] | None = None,
) -> Iterator[list[Growing]]:
    """Write images piece by piece; the file gets its final name when the block succeeds.

    If the block raises, finished pieces stay in `working_folder` as long as a journal names any.

    Parameters
    ----------
    target : path
        File to write: TIFF or OME-Zarr, by its suffix. One that exists is replaced at the end.
    frames : sequence of Frame
        The images.
    form : str, optional
        One of `kbnet_plugin.io.tiff.writer.FORMS` for a TIFF; by default that of the metadata.
    source : path, optional
        File that the images were read from. What an OME-Zarr contains beside its images is copied.
    resume : bool
        Continue an unfinished result, if there is one.
    report : callable, optional
        Called, once the file is written, with each thing that the format could not keep, for people.

    Yields
    ------
    list of Growing
        One per frame.

    Raises
    ------
    ValueError
        If the format cannot store such images, the unfinished result is of other ones, or another process is
        writing it.
    FileNotFoundError
        If the folder of `target` does not exist.
    FileExistsError
        If there is an unfinished result and `resume` is not set.
    """
    work = working_folder(target)
    _check_ours(work)
    if work.exists() and not resume:
        raise FileExistsError(
            f"{work}: an unfinished result; add --resume to continue it, or --overwrite to start over"
        )
    check_folder(target)
    form = check_target(target, frames, form)
    if not form and not is_zarr(target):
        raise BadInput(
            f"{target}: only TIFF and OME-Zarr are written piece by piece; end the name in .tif or .zarr"
        )
    work.mkdir(exist_ok=True)
    lock = _lock(work, target)
    complete = False
    try:
        _check_frames(work / _FRAMES, frames, target)
        data, arrays = work / "data", []
        if form:
            data.mkdir(exist_ok=True)
            for number, frame in enumerate(frames):
                axes = str(frame.metadata.axes)
                raw = RawArray(data / str(number), frame.shape, np.dtype(frame.dtype))
                arrays.append(Reordered(raw, axes, axes))
        else:
            for frame, group in zip(frames, create_groups(data, frames), strict=True):
                axes = str(frame.metadata.axes)
                arrays.append(Reordered(group, zarr_order(axes, target), axes))
        yield [Growing(array, work / f"journal{number or ''}") for number, array in enumerate(arrays)]
        if form:
            with atomic_path(target) as temporary:
                images = [(a, f.metadata) for a, f in zip(arrays, frames, strict=True)]
                for note in write_tiff(temporary, images, form, workspace=work):
                    if report is not None:
                        report(note)
        else:
            finish_zarr(data, frames, source if source is not None and is_zarr(source) else None)
            replace_folder(data, target)
        complete = True
    finally:
        remove = complete or not _has_progress(work)
        lock.release()
        if remove:
            shutil.rmtree(work, ignore_errors=True)


def working_folder(target: Path) -> Path:
    """Return the folder in which a result grows until it is complete."""
    return target.with_name(f"{target.name}.partial")


def discard_unfinished(target: Path) -> None:
    """Delete the unfinished result of a target, if there is one.

    Raises
    ------
    ValueError
        If the folder in its place is not an unfinished result, or another process is writing it.
    """
    work = working_folder(target)
    _check_ours(work)
    if work.exists():
        _lock(work, target).release()
        shutil.rmtree(work)


def _lock(work: Path, target: Path) -> FileLock:
    lock = FileLock(work / "lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise BadInput(f"{target}: another process is writing this file; wait for it, or stop it") from None
    return lock


def _check_ours(work: Path) -> None:
    """Raise BadInput if a folder is not an unfinished result: it would be deleted in the end."""
    if not os.path.lexists(work):
        return
    if work.is_dir() and not work.is_symlink():
        names = {path.name for path in work.iterdir()}
        if _FRAMES in names or names <= {"lock"}:
            return
    raise BadInput(f"{work}: in the way, and not an unfinished result; rename it")


def _check_frames(path: Path, frames: Sequence[Frame], target: Path) -> None:
    known = json.dumps(
        [[f.metadata.path, f.metadata.axes, list(f.shape), np.dtype(f.dtype).str] for f in frames]
    )
    if not path.exists():
        path.write_text(known, encoding="utf-8")
    elif path.read_text(encoding="utf-8") != known:
        raise BadInput(
            f"{target}: the unfinished result was started from another source; add --overwrite to start over"
        )


def _has_progress(work: Path) -> bool:
    return any(journal.read_bytes().count(b"\n") > 1 for journal in work.glob("journal*"))


def _kind(path: Path) -> Format:
    if is_zarr(path):
        return next(known for known in FORMATS if known.name == "OME-Zarr")
    found = find_format(path)
    if found is None:
        known = ", ".join(suffix for f in FORMATS for suffix in f.suffixes[:1])
        raise BadInput(f"{path}: unknown image type {path.suffix!r}; known are {known}")
    return found
