"""Read TIFF: pictures, stacks and several images, plain or as ImageJ, OME, Zeiss and others arrange them."""

from __future__ import annotations

import logging
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import tifffile

from ...arrays.axes import AXES
from ..metadata import STRAIGHT_ALPHA, Image, Metadata
from ..ome_xml import read_ome
from ..signatures import UnsupportedError, check_content
from .metadata import find_orientation, read_metadata
from .pixels import Plain, check_colours, is_smooth, understand
from .planes import Planes, Store, opened
from .series import Series, find_series, name_axes
from .view import View, damaged, is_opacity

LARGE = 1 << 26
"""Number of values above which a picture is read piece by piece, as stacks are."""

_MICROSCOPES = ("fluoview", "lsm", "mmstack", "ndtiff", "stk")
_PALETTE, _RGB = 3, 2
# Tags without which pixels are not read rightly: a file where one of them is damaged is refused.
_ESSENTIAL = {*range(254, 260), 262, 266, 273, 274, *range(277, 280), 284, *range(292, 294), 317}
_ESSENTIAL |= {320, *range(322, 326), 330, 338, 339, 347, *range(512, 522), *range(529, 533)}

_ENDLESS = 20_000  # errors; damaged directories can point to each other for hours


@contextmanager
def open_tiff(path: Path) -> Iterator[list[Image]]:
    """Open all images of a TIFF.

    Parameters
    ----------
    path : path
        TIFF or BigTIFF of any kind, LSM included.

    Yields
    ------
    list of Image
        One per series: stack, OME image, or run of pages that are alike. Thumbnails, levels of pyramids and
        masks are left out. Pictures of up to `LARGE` values are in memory, all others are read as they are
        sliced, while the file is open.

    Raises
    ------
    ValueError
        If the file is damaged or incomplete, contains no image, or stores pixels in a way that is not read;
        one line that names it and the fix.
    """
    check_content(path, "TIFF")
    tiff = None
    try:
        try:
            with _listening() as listener:
                tiff = tifffile.TiffFile(path)
                images = _read_images(tiff, listener)
        except UnsupportedError as error:
            raise ValueError(f"{path}: {error}") from None
        except MemoryError as error:
            raise MemoryError(f"{path}: {error}") from None
        except Exception as error:  # decoders raise errors of all kinds
            raise damaged(path, error) from error
        yield images
    finally:
        if tiff is not None:
            tiff.close()


@contextmanager
def _listening() -> Iterator[_Listener]:
    listener = _Listener()
    _listeners.append(listener)
    try:
        yield listener
    finally:
        _listeners.remove(listener)


class _Listener:
    """Notices what tifffile only logs in the thread that opens a file: it skips what it cannot find."""

    def __init__(self) -> None:
        self.cut_short = False
        self.missing = ""  # a file that another one refers to
        self.damaged: set[int] = set()  # tags
        self.errors = 0
        self.thread = threading.get_ident()

    def hear(self, record: logging.LogRecord) -> None:
        message = record.getMessage()
        self.errors += record.levelno >= logging.ERROR
        if self.errors > _ENDLESS:
            raise ValueError("its directories are damaged")
        if found := re.search("failed to read '([^']+)'", message):
            self.missing = self.missing or found[1]
        if record.levelno >= logging.ERROR and (found := re.search(r"TiffTag (\d+) @", message)):
            self.damaged.add(int(found[1]))
        elif record.levelno >= logging.ERROR and "circular" not in message:
            self.cut_short |= "offset" in message or "ImageJ series metadata invalid" in message
        self.cut_short |= "index out of range" in message


_listeners: list[_Listener] = []


def _here() -> list[_Listener]:
    """Return the listeners of this thread."""
    return [listener for listener in _listeners.copy() if listener.thread == threading.get_ident()]


def _hear_all(logger: logging.Logger) -> None:
    """Let listeners hear a logger whatever its level, also if it is disabled; they keep what they hear."""

    class Heard(type(logger)):  # type: ignore[misc]  # the class that the application chose
        def isEnabledFor(self, level: int) -> bool:  # noqa: N802
            return bool(_here()) or super().isEnabledFor(level)

        def handle(self, record: logging.LogRecord) -> None:
            here = _here()
            for listener in here:
                listener.hear(record)
            if not here:
                super().handle(record)

    logger.__class__ = Heard


# Permanent, because files that overlap in time could not restore the logger in the right order. A level would
# hide errors, as applications set one to silence warnings, and files that are cut short would pass for whole.
_hear_all(logging.getLogger("tifffile"))


def _read_images(tiff: tifffile.TiffFile, listener: _Listener) -> list[Image]:
    found, notes = find_series(tiff)
    if listener.missing:
        raise UnsupportedError(f"parts are in {listener.missing}, which is missing; put it beside this file")
    if listener.cut_short:
        raise ValueError("pages are missing")
    if damaged := sorted(listener.damaged & _ESSENTIAL):
        raise ValueError(f"tag {damaged[0]} is damaged")
    if listener.damaged:
        notes += (f"damaged tags dropped: {', '.join(map(str, sorted(listener.damaged)))}",)
    if not found:
        raise ValueError("it contains no image")
    store = Store()
    images: list[Image] = []
    names: list[str] = []
    for number, series in enumerate(found, start=1):
        for part, image in _convert(tiff, series, store):
            name = re.sub(r"[/\\]", "_", series.name).strip() or str(number)
            names.append(f"{name} {part}".strip())
            images.append(replace(image, notes=notes + image.notes))
    if len(images) == 1:
        return images
    return [
        replace(image, metadata=replace(image.metadata, path=_unique(names, number)))
        for number, image in enumerate(images)
    ]


def _unique(names: list[str], number: int) -> str:
    name = names[number]
    return name if names.count(name) == 1 else f"{name} {names[: number + 1].count(name)}"


def _convert(tiff: tifffile.TiffFile, series: Series, store: Store) -> Iterator[tuple[str, Image]]:
    """Yield the images of a series and what tells them apart: there are several if an axis has no letter."""
    page = series.page
    with opened(page.parent.filehandle):
        check_colours(page)
        planes = Planes(page, series.pages, store, offset=series.offset, count=series.count)
        planes.check()
        measured = _is_measured(page, series.kind)
        plain = understand(page, planes, page.iccprofile, measured=measured, channels=series.samples == "C")
        metadata, notes = _describe(tiff, series, plain, measured)
    if series.transform is not None:
        dtype = np.dtype(series.transform(np.zeros(1, plain.dtype)).dtype)
        plain = replace(plain, steps=(*plain.steps, series.transform), dtype=dtype)
    axes, guessed = name_axes(series.axes)
    numbers = np.arange(planes.count).reshape(series.shape)
    orientation = find_orientation(page)
    probe = View(planes, numbers, plain, orientation, last=plain.samples > 1)
    last, alpha, said = _last_axis(series, plain, probe)
    notes += said
    if guessed:
        notes.append(f"axes not named in the file, read as {axes}YX{last}")
    split = [place for place, axis in enumerate(axes) if axis not in AXES]
    if split:
        notes.append(f"one image for each index of {' and '.join(axes[place] for place in split)}")
    named = "".join(axis for axis in axes if axis in AXES) + "YX" + last
    metadata = replace(metadata, axes=named, levels=series.levels, alpha=alpha)
    for index in product(*(range(series.shape[place]) for place in split)):
        at = dict(zip(split, index, strict=True))
        part = numbers[tuple(at.get(place, slice(None)) for place in range(len(axes)))]
        array: Any = View(planes, part, plain, orientation, last=bool(last))
        if part.ndim == 0 and array.size <= LARGE:
            array = array.read(())
        yield " ".join(f"{axes[place]}{n}" for place, n in at.items()), Image(array, metadata, tuple(notes))


def _is_measured(page: Any, kind: str) -> bool:
    """Tell whether values with a palette are measurements that it only shows, as in microscopy."""
    if int(page.photometric) != _PALETTE:
        return False
    return kind in _MICROSCOPES or (kind == "imagej" and page.colormap is not None and is_smooth(page))


def _describe(
    tiff: tifffile.TiffFile, series: Series, plain: Plain, measured: bool
) -> tuple[Metadata, list[str]]:
    page, kind = series.page, series.kind
    metadata, said = read_metadata(
        tiff,
        page,
        kind,
        same_values=not plain.steps and series.transform is None,
        rgb=int(page.photometric) == _RGB,
    )
    notes = [*series.notes, *plain.notes, *said]
    if not plain.keeps_profile:
        metadata = replace(metadata, icc=None)
    if measured and page.colormap is not None:
        notes.append("palette kept beside the values" if kind == "imagej" else "palette dropped, values kept")
        table = (page.colormap >> 8).astype(np.uint8)
        metadata = replace(metadata, imagej={"LUTs": [table], **metadata.imagej} if metadata.imagej else {})
    if series.ome_image is not None:
        xml = tiff.ome_metadata or ""
        info = read_ome(xml, series.ome_image)
        notes += info.notes
        metadata = replace(
            metadata,
            form="ome",
            ome=xml,
            ome_image=series.ome_image,
            sizes=info.sizes,
            offsets=info.offsets,
            channels=info.channels,
            description=info.description,
        )
    elif tiff.is_ome:
        # Micro-Manager arranges its planes by an index of its own, and may leave the sizes to the OME-XML.
        sizes = read_ome(tiff.ome_metadata or "", 0).sizes
        metadata = replace(metadata, sizes={**sizes, **metadata.sizes})
        notes.append("of the OME-XML only the sizes are used")
    return replace(metadata, form="ome") if kind in _MICROSCOPES else metadata, notes


def _last_axis(series: Series, plain: Plain, view: View) -> tuple[str, int, list[str]]:
    """Return the letter of the axis of samples, the kind of opacity, and notes."""
    extra = plain.samples - plain.colours
    if plain.samples == 1:
        return "", STRAIGHT_ALPHA, []
    if series.samples == "C":
        return "C", STRAIGHT_ALPHA, []
    if not extra:
        return "S", STRAIGHT_ALPHA, []
    if extra == 1 and plain.opacity:
        return "S", plain.opacity, []
    if extra == 1 and is_opacity(view):
        return "S", STRAIGHT_ALPHA, ["extra sample of unknown meaning taken for opacity"]
    if "C" in series.axes:
        raise UnsupportedError("its channels have extra samples that are not opacity; save them as channels")
    kind = "extra sample is" if extra == 1 else f"{extra} extra samples are"
    return "C", STRAIGHT_ALPHA, [f"{kind} not opacity: {plain.samples} channels"]
