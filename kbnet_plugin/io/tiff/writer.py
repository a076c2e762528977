"""Write TIFF: plain, as ImageJ hyperstack, or as OME-TIFF."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import tifffile

from ...errors import BadInput
from ..disk_arrays import RawArray
from ..embedded import find_resolution
from ..exif import Directory, pack_directory
from ..metadata import Frame, Metadata
from ..pyramid import half_shape, halve, level_count
from .ome_document import PIXEL_TYPES, import_ome_types, make_ome
from .strips import Stored, bands, has_differences, rows_per_strip, strips, tile_side, tiles
from .tags import collect_imagej, collect_tags, find_description

FORMS = ("tiff", "imagej", "ome", "pyramid")
"""Kinds of TIFF: plain, ImageJ hyperstack, OME-TIFF, and OME-TIFF in tiles with a pyramid."""

_IMAGEJ_TYPES = "uint8", "uint16", "int16", "float32"
_LONG, _POINTERS = 4, {34665: "ExifTag", 34853: "GPSTag"}
_OME_NAMES = (".ome.tif", ".ome.tiff", ".ome.tf2", ".ome.tf8", ".ome.btf")
_LARGE = 8192**2  # pixels of a plane; larger ones are stored in tiles
_PYRAMID = 2048**2  # pixels of a plane; smaller ones need no pyramid to be shown
_CLASSIC = (1 << 32) - (1 << 26)  # bytes; files that might grow larger are BigTIFF


def choose_form(frames: Sequence[Frame], target_name: str) -> str:
    """Choose the kind of TIFF for images, by what their source was.

    Parameters
    ----------
    frames : sequence of Frame
        The images.
    target_name : str
        Name of the file to write; one that ends in ``.ome.tif`` asks for OME-TIFF.

    Returns
    -------
    str
        One of `FORMS`.
    """
    forms = {frame.metadata.form for frame in frames}
    tiled = "pyramid" if any(_wants_pyramid(frame) for frame in frames) else "ome"
    if target_name.lower().endswith(_OME_NAMES):
        return tiled
    wanted = ["tiff"]
    described = any(frame.metadata.sizes or frame.metadata.channels for frame in frames)
    if tiled == "pyramid" or forms != {"picture"} or described:
        wanted.insert(0, tiled)
    if forms == {"imagej"}:
        wanted.insert(0, "imagej")
    return next((form for form in wanted if not _refusal(form, frames)), "tiff")


def check_tiff(form: str, frames: Sequence[Frame], target: str | os.PathLike[str]) -> None:
    """Check that a kind of TIFF can store some images.

    Parameters
    ----------
    form : str
        One of `FORMS`.
    frames : sequence of Frame
        The images.
    target : str or path
        File to write, for the message.

    Raises
    ------
    ValueError
        If it cannot, or a package that it needs is not installed; one line that names the file and the fix.
    """
    if form not in FORMS:
        raise BadInput(f"{target}: unknown kind of TIFF {form!r}; use {', '.join(FORMS)}")
    if refusal := _refusal(form, frames):
        raise BadInput(f"{target}: {refusal}")
    if form in ("ome", "pyramid"):
        import_ome_types()


def write_tiff(
    path: str | os.PathLike[str],
    images: Sequence[tuple[Any, Metadata]],
    form: str,
    workspace: Path | None = None,
) -> tuple[str, ...]:
    """Write a TIFF piece by piece.

    Pixels are stored in strips that libvips, Pillow and ImageJ read; planes of more than 8192 x 8192 pixels,
    and pyramids, in tiles.

    Parameters
    ----------
    path : str or path
        File to write; it is replaced if it exists.
    images : sequence of (array, Metadata)
        Anything that can be sliced, also larger than memory; the metadata name its axes, in any order.
    form : str
        One of `FORMS`.
    workspace : path, optional
        Folder for the levels of pyramids; by default that of `path`.

    Returns
    -------
    tuple of str
        What of the metadata was changed or dropped.

    Raises
    ------
    ValueError
        As `check_tiff`.
    OSError
        If the file cannot be written.

    References
    ----------
    .. [1] TIFF, revision 6.0, Adobe, 1992.
    .. [2] TiffDecoder.java and ImageReader.java of https://github.com/imagej/ImageJ: ImageJ reads strips, and
       Deflate, but differences between neighbours (Predictor) only in some versions and not in all dtypes.
    """
    path = Path(path)
    frames = [Frame(tuple(array.shape), np.dtype(array.dtype), metadata) for array, metadata in images]
    check_tiff(form, frames, path)
    stored = [
        Stored(array, str(metadata.axes), _stack(str(metadata.axes), form)) for array, metadata in images
    ]
    metadatas = [replace(m, axes=s.axes) for s, (_, m) in zip(stored, images, strict=True)]
    notes = [note for metadata in metadatas for note in _losses(metadata, form)]
    xml: bytes | None = None
    if form in ("ome", "pyramid"):
        made, changes = make_ome([Frame(s.shape, s.dtype, m) for s, m in zip(stored, metadatas, strict=True)])
        xml, notes = made.encode(), notes + list(changes)
    size = sum(math.prod(source.shape) * source.dtype.itemsize for source in stored)
    big = form != "imagej" and size * (4 / 3 if form == "pyramid" else 1) > _CLASSIC
    with ExitStack() as stack:
        writer = stack.enter_context(
            tifffile.TiffWriter(
                path, bigtiff=big, byteorder="<", imagej=form == "imagej", ome=False, shaped=False
            )
        )
        pages = []
        for source, metadata in zip(stored, metadatas, strict=True):
            tags, directories, dropped = collect_tags(metadata, *source.size)
            # Directories precede all pixels, as their places are numbers of 32 bits.
            tags |= {number: _append(writer, below, big) for number, below in directories.items()}
            pages.append(_page_options(source, metadata, form, tags))
            notes += dropped
        if xml is not None:
            pages[0]["description"] = xml
        for source, metadata, options in zip(stored, metadatas, pages, strict=True):
            levels = [source]
            if form == "pyramid":
                folder = TemporaryDirectory(dir=workspace or path.parent, prefix=".kbnet-")
                levels += _levels(source, metadata.levels, Path(stack.enter_context(folder)))
                options["subifds"] = len(levels) - 1
            for level in levels:
                writer.write(**_pixel_options(level, metadata, form), **options)
                options = {"subfiletype": 1, "software": False, "metadata": None}
    return tuple(dict.fromkeys(notes))


def _wants_pyramid(frame: Frame) -> bool:
    length = dict(zip(str(frame.metadata.axes), frame.shape, strict=True))
    pixels = length["Y"] * length["X"]
    return (pixels > _LARGE and frame.metadata.form in ("ome", "zarr")) or (
        pixels > _PYRAMID and frame.metadata.levels > 1
    )


def _refusal(form: str, frames: Sequence[Frame]) -> str:
    """Say why a kind of TIFF cannot store some images; empty if it can."""
    ome = "write OME-TIFF (--format ome)"
    for frame in frames:
        dtype = np.dtype(frame.dtype)
        samples = dict(zip(str(frame.metadata.axes), frame.shape, strict=True)).get("S", 1)
        pixels = f"colours of {dtype.name}" if samples > 1 else dtype.name
        if form == "imagej" and (dtype.name not in _IMAGEJ_TYPES or (samples > 1 and dtype.name != "uint8")):
            return f"an ImageJ hyperstack cannot store {pixels}; {ome}"
        if form == "imagej" and samples not in (1, 3, 4):
            return f"an ImageJ hyperstack cannot store pixels of {samples} values; {ome}"
        if form in ("ome", "pyramid") and dtype.name not in PIXEL_TYPES:
            return f"OME-TIFF cannot store {dtype.name}; write plain TIFF (--format tiff) or .zarr"
        if dtype.kind not in "biuf" or dtype.itemsize > 8 or (dtype.kind == "b" and samples > 1):
            return f"TIFF cannot store {pixels}; write .zarr"
    if form == "imagej" and len(frames) > 1:
        return f"an ImageJ hyperstack cannot store {len(frames)} images; {ome}"
    if form == "imagej" and math.prod(frames[0].shape) * np.dtype(frames[0].dtype).itemsize > _CLASSIC:
        return f"an ImageJ hyperstack cannot store more than 4 GB; {ome}"
    return ""


def _stack(axes: str, form: str) -> str:
    return "".join(a for a in ("TZC" if form == "imagej" else axes) if a in axes and a not in "YXS")


def _losses(metadata: Metadata, form: str) -> list[str]:
    """Say what of an image from a microscope plain TIFF and ImageJ do not store."""
    plain = form == "tiff"
    lost = {
        "OME-XML": metadata.ome and form in ("tiff", "imagej"),
        "names of channels": plain and metadata.channels,
        "steps in depth and time": plain and metadata.sizes.keys() & set("ZT"),
        "positions": plain and metadata.offsets,
        "what ImageJ stores": plain and metadata.imagej,
    }
    return [f"{what} dropped" for what, is_lost in lost.items() if is_lost]


def _append(writer: tifffile.TiffWriter, directory: Directory, big: bool) -> tuple[int, int, int]:
    """Write a directory of tags to the file, and return the value of a tag that points to it."""
    file = writer.filehandle
    file.write(b"\0" * (file.tell() % 2))
    start = file.tell()
    file.write(pack_directory(directory, start, big=big))
    return _LONG, 1, start


def _page_options(
    source: Stored, metadata: Metadata, form: str, tags: Mapping[int, tuple[int, int, Any]]
) -> dict[str, Any]:
    """Return arguments of `tifffile.TiffWriter.write` for the first page of an image, except pixels."""
    # tifffile takes pointers to directories by name only.
    extra = [(_POINTERS.get(number, number), *tag, True) for number, tag in sorted(tags.items())]
    options: dict[str, Any] = {"extratags": extra, "software": False, "metadata": None}
    resolution = find_resolution(metadata)
    if form == "imagej":
        options["metadata"], resolution = collect_imagej(metadata, source.axes, source.shape)
    elif form == "tiff":
        options["description"] = _describe(source, metadata)
    if resolution:
        options["resolution"], options["resolutionunit"] = resolution
    return options


def _describe(source: Stored, metadata: Metadata) -> bytes | None:
    """Return the caption, or else the axes of a stack in the way of tifffile."""
    caption = find_description(metadata)
    stack = [n for a, n in zip(source.axes, source.shape, strict=True) if a not in "YXS" and n > 1]
    if not stack or (caption and len(stack) == 1):
        return caption.encode() or None
    named = {"shape": source.shape, "axes": source.axes} | ({"description": caption} if caption else {})
    return json.dumps(named).encode()


def _levels(source: Stored, least: int, folder: Path) -> list[Stored]:
    """Compute the levels of the pyramid above the full resolution."""
    levels: list[Any] = [source]
    for number in range(1, level_count(source.shape, source.axes, least)):
        level = RawArray(folder / str(number), half_shape(levels[-1].shape, source.axes), source.dtype)
        halve(levels[-1], level, source.axes)
        levels.append(level)
    return [Stored(level, source.axes, _stack(source.axes, "pyramid")) for level in levels[1:]]


def _pixel_options(source: Stored, metadata: Metadata, form: str) -> dict[str, Any]:
    """Return arguments of `tifffile.TiffWriter.write` about pixels."""
    samples = source.samples
    options: dict[str, Any] = {
        "shape": source.shape,
        "dtype": source.dtype,
        "photometric": "rgb" if samples in (3, 4) else "minisblack",
        "planarconfig": "contig" if samples > 1 else None,
        "iccprofile": metadata.icc,
    }
    if samples in (2, 4):
        options["extrasamples"] = [metadata.alpha]
    elif samples > 4:
        options["extrasamples"] = [0] * (samples - 1)
    if form == "imagej":
        return options | {"data": bands(source)}
    options["compression"] = "zlib"
    if form == "pyramid" or math.prod(source.size) > _LARGE:
        side = tile_side(source)
        options |= {"data": tiles(source), "tile": (side, side), "predictor": has_differences(source.dtype)}
    else:
        options |= {"data": strips(source), "rowsperstrip": rows_per_strip(source)}
    return options
