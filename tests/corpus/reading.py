"""What independent programs see in a file: tifffile, Pillow, libvips, and ome-zarr-models."""

from __future__ import annotations

import logging
import math
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

MOST = 1 << 25
"""Number of values above which pixels are not compared, only sizes and metadata."""

SIDE = 1500
"""Rows and columns that looks are compared on; larger pictures are thinned out."""

_TIFF = (".tif", ".tiff", ".btf", ".tf8", ".lsm")
_HEIF = (".heic", ".heif", ".hif", ".avif")


@dataclass
class Seen:
    """What a file contains, as far as any program can read it.

    Attributes
    ----------
    pages : Counter
        From (longer side, shorter side) to number of planes; empty if unknown.
    bits, floating :
        Most bits per sample, 0 if unknown; whether they are floating-point numbers.
    odd :
        Whether pixels are of a kind that the programs do not read, or each shows in a way of its own.
    looks : dict
        From the name of a program to the first picture as it shows it: upright, 8-bit sRGB, (H, W, 3).
    values : list of array
        Values of every image, (planes, H, W, samples), upright; empty if they would have to be converted.
    resolution : (float, float, str) or None
        Horizontal, vertical, and unit ("inch", "centimeter", or "" if there is none).
    icc, ome, scales :
        Colour profile; OME-XML; scale and translation of each OME-Zarr image.
    errors : dict
        From the name of a program to why it cannot read the file.
    """

    pages: Counter[tuple[int, int]] = field(default_factory=Counter)
    bits: int = 0
    floating: bool = False
    odd: bool = False
    looks: dict[str, np.ndarray] = field(default_factory=dict)
    values: list[np.ndarray] = field(default_factory=list)
    resolution: tuple[float, float, str] | None = None
    icc: bytes | None = None
    ome: str | None = None
    scales: list[Any] = field(default_factory=list)
    errors: dict[str, str] = field(default_factory=dict)


def see(path: Path) -> Seen:
    """Read a file by every program that knows its format."""
    seen = Seen()
    kind = path.suffix.lower()
    if path.is_dir():
        _try(seen, "ome-zarr-models", _zarr, path)
        return seen
    with _quiet():
        if kind in _TIFF:
            _try(seen, "tifffile", _tiff, path)
        if kind in _HEIF:
            import pillow_heif

            pillow_heif.register_heif_opener()
        _try(seen, "Pillow", _pillow, path)
        _try(seen, "libvips", _vips, path)
    return seen


def _try(seen: Seen, program: str, read: Callable[[Seen, Path], None], path: Path) -> None:
    try:
        read(seen, path)
    except Exception as error:  # decoders raise errors of all kinds
        why = " ".join(str(error).replace(str(path), path.name).split())[:200]
        seen.errors[program] = why or type(error).__name__


@contextmanager
def _quiet() -> Iterator[None]:
    logging.getLogger("tifffile").setLevel(logging.CRITICAL)
    logging.getLogger("pyvips").setLevel(logging.CRITICAL)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def upright(array: np.ndarray, orientation: int, rows: int) -> np.ndarray:
    """Turn an array upright by its EXIF orientation; `rows` is the axis of its rows."""
    if orientation in (5, 6, 7, 8):
        array = array.swapaxes(rows, rows + 1)
    if orientation in (3, 4, 7, 8):
        array = np.flip(array, rows)
    if orientation in (2, 3, 6, 7):
        array = np.flip(array, rows + 1)
    return array


def _tiff(seen: Seen, path: Path) -> None:
    import tifffile

    with tifffile.TiffFile(path) as file:
        first = file.pages.first
        tag = first.tags.valueof
        orientation = tag("Orientation") or 1
        seen.icc = tag("InterColorProfile")
        seen.ome = file.ome_metadata if file.is_ome else None
        seen.resolution = _tiff_resolution(tag, swapped=orientation >= 5)
        plain = True
        for series in file.series:
            page = series.keyframe
            if _is_aside(page, first):
                continue
            # Only samples of a pixel are one plane; more than 4 are channels.
            axes, shape = series.axes, series.shape
            samples = shape[axes.index("S")] if "S" in axes and shape[axes.index("S")] <= 4 else 1
            height, width = page.imagelength, page.imagewidth
            seen.pages[_sides(height, width)] += math.prod(shape) // (height * width * samples)
            seen.bits = max(seen.bits, _bits(page))
            seen.floating |= page.sampleformat == 3
            seen.odd |= _is_odd(page)
            plain &= _is_plain(page)
        kept = [series for series in file.series if not _is_aside(series.keyframe, first)]
        if plain and sum(math.prod(series.shape) for series in kept) <= MOST:
            for series in kept:
                seen.values.append(upright(_as_planes(series.asarray(), series.axes), orientation, 1))
            page = file.series[0].keyframe
            if seen.values and not seen.floating and seen.values[0].dtype.kind == "u":
                seen.looks["tifffile"] = _small(_as_colours(seen.values[0][0], _name(page.photometric)))


def _is_aside(page: Any, first: Any) -> bool:
    """Whether a page is a mask, thumbnail or level of a pyramid."""
    smaller = page.is_subifd and 1.5 * page.imagewidth < first.imagewidth
    return bool(page.is_reduced or page.is_mask or smaller)


def _bits(page: Any) -> int:
    bits = page.bitspersample
    return max(bits) if isinstance(bits, tuple) else int(bits)


def _is_plain(page: Any) -> bool:
    """Whether the stored values are what they mean: nothing to invert, look up, scale or transform."""
    if page.dtype is None or page.dtype.kind not in "uif":
        return False
    whole = page.dtype.itemsize * 8 == _bits(page)
    kinds = ("MINISBLACK", "RGB", "YCBCR" if "JPEG" in _name(page.compression) else "RGB")
    return whole and _name(page.photometric) in kinds


def _is_odd(page: Any) -> bool:
    separate = page.planarconfig == 2
    luminance = _name(page.photometric) == "YCBCR" and separate
    inks = _name(page.photometric) == "SEPARATED" and (separate or page.sampleformat == 3) and _bits(page) > 8
    signed = page.sampleformat == 2
    differences = page.predictor != 1 and _bits(page) % 8 != 0
    return page.samplesperpixel > 4 or luminance or inks or signed or differences or page.dtype == np.float16


def _name(value: Any) -> str:
    return str(getattr(value, "name", value))  # numbers that tifffile does not know have none


def _as_planes(array: np.ndarray, axes: str) -> np.ndarray:
    if "Y" not in axes or "X" not in axes:
        axes = axes[: array.ndim - 2] + "YX"
    if "S" in axes and array.shape[axes.index("S")] <= 4:
        array = np.moveaxis(array, axes.index("S"), -1)
    else:
        array = array[..., None]
        axes = axes.replace("S", "") if "S" in axes[-1:] else axes
    return array.reshape((-1, *array.shape[-3:]))


def _tiff_resolution(tag: Callable[[str], Any], *, swapped: bool) -> tuple[float, float, str] | None:
    across, down = tag("XResolution"), tag("YResolution")
    if not across or not down or 0 in (*across, *down):
        return None
    stored = tag("ResolutionUnit")
    unit = {1: "", 2: "inch", 3: "centimeter"}.get(2 if stored is None else int(stored), "")  # NONE is falsy
    values = across[0] / across[1], down[0] / down[1]
    return (*(values[::-1] if swapped else values), unit)


def _pillow(seen: Seen, path: Path) -> None:
    from PIL import Image, ImageOps

    Image.MAX_IMAGE_PIXELS = None
    with Image.open(path) as image:
        frames = getattr(image, "n_frames", 1)
        if not seen.pages:
            seen.pages[_sides(image.height, image.width)] += frames
        if not seen.bits:
            seen.bits = _png_bits(path) if image.format == "PNG" else 8
        if image.format != "TIFF":
            seen.icc = image.info.get("icc_profile")
            seen.resolution = _pillow_resolution(image)
        if image.width * image.height > MOST:
            return
        image.load()
        image = ImageOps.exif_transpose(image)
        if image.mode.startswith("I;16"):
            # It does not scale values of fewer bits.
            shown = (np.asarray(image).astype(np.uint16) >> max(0, min(seen.bits, 16) - 8)).astype(np.uint8)
        elif image.mode in ("I", "F"):
            return
        else:
            shown = np.asarray(image.convert("RGBA"))[..., :3]
        seen.looks["Pillow"] = _small(shown)
        if not seen.values and image.mode in ("L", "LA", "RGB", "RGBA") and seen.bits == 8:
            array = np.asarray(image)
            seen.values.append(array.reshape((1, *array.shape[:2], -1)))


def _png_bits(path: Path) -> int:
    with path.open("rb") as file:
        head = file.read(26)
    return head[24] if head[25] != 3 else 8  # a palette's colours have 8


def _pillow_resolution(image: Any) -> tuple[float, float, str] | None:
    if "dpi" in image.info and all(float(d) > 0 for d in image.info["dpi"]):
        return (*(float(d) for d in image.info["dpi"]), "inch")
    return None


def _vips(seen: Seen, path: Path) -> None:
    import pyvips

    image = pyvips.Image.new_from_file(str(path), fail_on="error")  # otherwise it shows black
    if image.width * image.height > MOST:
        return
    image = image.autorot()
    if path.suffix.lower() == ".png" and image.format == "ushort":  # Pillow reduces 16-bit colour
        seen.values.append(np.asarray(image.numpy()).reshape((1, image.height, image.width, -1)))
    if "icc-profile-data" in image.get_fields():
        try:
            image = image.icc_transform("srgb", embedded=True, intent="relative", depth=8).copy_memory()
        except pyvips.Error:  # a broken profile
            image = image.colourspace("srgb")
    else:
        image = image.colourspace("srgb")
    seen.looks["libvips"] = _small(np.asarray(image.cast("uchar").numpy()))
    if not seen.pages:
        seen.pages[_sides(image.height, image.width)] += 1


def _zarr(seen: Seen, path: Path) -> None:
    import zarr
    from ome_zarr_models import open_ome_zarr

    root = zarr.open(path, mode="r")
    arrays = [root] if isinstance(root, zarr.Array) else []
    inside = [] if arrays else [root, *(member for _, member in sorted(root.members(max_depth=None)))]
    groups = [member for member in inside if isinstance(member, zarr.Group)]
    for group in groups:
        attributes = group.attrs.get("ome", dict(group.attrs))
        if {"multiscales", "plate", "well"} & set(attributes):
            open_ome_zarr(group)  # raises if it is not valid
        for image in attributes.get("multiscales", []) if "image-label" not in attributes else []:
            level = image["datasets"][0]
            seen.scales.append([level["coordinateTransformations"], image["axes"]])
            arrays.append(group[level["path"]])
    for array in arrays or [member for member in inside if member not in groups and member.ndim > 1]:
        seen.pages[_sides(*array.shape[-2:])] += math.prod(array.shape[:-2])
        seen.bits = max(seen.bits, 8 * array.dtype.itemsize)
        seen.floating |= array.dtype.kind == "f"
        if array.size <= MOST:
            seen.values.append(np.asarray(array[...]).reshape((-1, *array.shape[-2:], 1)))


def _sides(height: int, width: int) -> tuple[int, int]:
    return max(height, width), min(height, width)


def _as_colours(array: np.ndarray, photometric: str) -> np.ndarray:
    shift = 8 * (array.dtype.itemsize - 1)
    array = (array >> shift).astype(np.uint8) if shift else array
    return array[..., :3] if array.shape[-1] >= 3 and photometric != "MINISBLACK" else array[..., :1]


def _small(shown: np.ndarray) -> np.ndarray:
    """Thin out, and repeat gray, so that every view has the shape (H, W, 3)."""
    shown = shown[..., None] if shown.ndim == 2 else shown
    colours = shown[..., :3] if shown.shape[-1] >= 3 else np.repeat(shown[..., :1], 3, -1)
    return colours[:: 1 + colours.shape[0] // SIDE, :: 1 + colours.shape[1] // SIDE]
