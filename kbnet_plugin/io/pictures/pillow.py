"""Read PNG, JPEG, WebP, HEIC, AVIF and JPEG XL pictures, and write PNG and JPEG, with their metadata."""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...errors import BadInput, one_line
from ..embedded import make_picture, rescale
from ..formats import FORMATS, require
from ..metadata import Image, Metadata
from ..signatures import UnsupportedError, brands, check_content, check_memory
from .jpeg import LARGEST_SIDE, read_jpeg, write_jpeg
from .jpegxl import boxes, read_jpegxl
from .png import read_png, write_png

_AVIF = {b"avif", b"avis"}
_AVIF_PIXELS = 1 << 28  # limit of libavif
_PREMULTIPLIED, _STRAIGHT = 1, 2
_UNSPECIFIED = 2  # code point of H.273
_SRGB = (1, 13)


def read_picture(path: Path, kind: str) -> Image:
    """Read one picture into memory.

    Parameters
    ----------
    path : path
        The file.
    kind : {"PNG", "JPEG", "WebP", "HEIC", "AVIF", "JPEG XL"}
        What its name says; files of HEIC and AVIF may have each other's name.

    Returns
    -------
    Image
        (H, W) or (H, W, S): gray or RGB, with opacity if the file has any; uint8, uint16 for more than 8
        bits, or float. Palettes and CMYK are converted to RGB.

    Raises
    ------
    ValueError
        If it is damaged, has another format than its name says, is an animation or several pictures, or does
        not fit in memory; one line that names it and the fix.
    """
    check_content(path, kind)
    try:
        data = path.read_bytes()
        reader = _READERS.get(kind, _read_avif)
        if reader is _read_avif and not _AVIF & set(brands(data)):
            require(next(known for known in FORMATS if known.name == "HEIC"), path)
            reader = _read_heic
        return reader(data)
    except BadInput:
        raise
    except UnsupportedError as error:
        raise BadInput(f"{path}: {error}") from None
    except MemoryError:
        raise BadInput(f"{path}: does not fit in memory; close other programs, or save it as TIFF") from None
    except Exception as error:  # decoders raise errors of all kinds
        raise ValueError(
            f"{path}: damaged or incomplete {kind} ({one_line(error)}); export it again"
        ) from error


def write_picture(path: Path, kind: str, array: NDArray[Any], metadata: Metadata) -> tuple[str, ...]:
    """Write one picture with its metadata.

    Parameters
    ----------
    path : path
        File to write or replace.
    kind : {"PNG", "JPEG"}
        JPEG is written with quality 95, without colour subsampling.
    array : ndarray
        (H, W) or (H, W, C) as `check_picture` accepts it.
    metadata : Metadata
        As read from any file.

    Returns
    -------
    tuple of str
        Which metadata were dropped, because the format cannot store them.
    """
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[..., 0]
    if array.dtype == bool:
        array = array.astype(np.uint8) * np.uint8(255)
    if kind == "PNG":
        data = write_png(array, metadata)
        losses = [f"TIFF tag {tag} dropped" for tag in metadata.tags]
    else:
        data, losses = write_jpeg(array, metadata)
    path.write_bytes(data)
    return tuple(losses)


def check_picture(kind: str, dtype: np.dtype[Any], shape: tuple[int, ...], path: Path) -> None:
    """Raise ValueError, with the fix, unless PNG or JPEG can store an array.

    Parameters
    ----------
    kind : {"PNG", "JPEG"}
    dtype : dtype
    shape : tuple of int
        (H, W) or (H, W, C).
    path : path
        For the message.
    """
    channels = shape[2] if len(shape) == 3 else 1
    if len(shape) not in (2, 3) or not 1 <= channels <= 4 or 0 in shape:
        raise BadInput(
            f"{path}: a {kind} is (H, W) or (H, W, C) with up to 4 channels, not {shape}; write .tif"
        )
    if kind == "JPEG" and channels in (2, 4):
        raise BadInput(f"{path}: JPEG has no opacity; write .png or .tif")
    dtypes = {"JPEG": ("uint8", "bool"), "PNG": ("uint8", "uint16", "bool")}[kind]
    if dtype.name not in dtypes:
        other = ".png or .tif" if dtype == np.uint16 else ".tif"
        raise BadInput(f"{path}: {kind} cannot store {dtype.name}; write {other}")
    if kind == "JPEG" and max(shape[:2]) > LARGEST_SIDE:
        raise BadInput(f"{path}: JPEG stores at most {LARGEST_SIDE} pixels on a side; write .png or .tif")


def _read_webp(data: bytes) -> Image:
    import imagecodecs

    chunks = list(_riff_chunks(data))
    frames = [content for name, content in chunks if name == b"ANMF"]
    if len(frames) > 1:
        raise UnsupportedError(f"an animation of {len(frames)} frames; save them as single pictures")
    array = imagecodecs.webp_decode(data)
    found = dict(reversed(chunks))
    canvas = (
        [1 + int.from_bytes(found[b"VP8X"][start : start + 3], "little") for start in (7, 4)]
        if frames
        else []
    )
    if frames and list(array.shape[:2]) != canvas:
        raise UnsupportedError("an animation; save its picture as a single one")
    metadata = Metadata(icc=found.get(b"ICCP"), exif=found.get(b"EXIF"), xmp=found.get(b"XMP "))
    return make_picture(array, metadata, [])


def _riff_chunks(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    place = 12
    while place + 8 <= len(data):
        size = int.from_bytes(data[place + 4 : place + 8], "little")
        yield data[place : place + 4], data[place + 8 : place + 8 + size]
        place += 8 + size + size % 2


def _read_heic(data: bytes) -> Image:
    import pillow_heif

    file = pillow_heif.open_heif(data, convert_hdr_to_8bit=False, hdr_to_16bit=False)
    if len(file) > 1:
        raise UnsupportedError(f"contains {len(file)} pictures; save them as single pictures")
    image = file[0]
    info: Any = image.info
    bits = int(info["bit_depth"])
    check_memory(*image.size, 8 if bits > 8 else 4)
    array = np.array(image)
    if array.dtype == np.uint16:
        array = rescale(array, bits)
    notes = [f"auxiliary picture dropped: {name.split(':')[-1]}" for name in info.get("aux", ())]
    notes += ["depth map dropped"] * bool(info.get("depth_images"))
    colours = info.get("nclx_profile")
    metadata = Metadata(
        icc=info.get("icc_profile"),
        exif=info.get("exif"),
        xmp=info.get("xmp"),
        alpha=_PREMULTIPLIED if image.mode.startswith("RGBa") else _STRAIGHT,
        png=_colour_chunks(
            colours and (colours["color_primaries"], colours["transfer_characteristics"]),
            info.get("icc_profile"),
        ),
    )
    return make_picture(array, metadata, notes, is_upright=True)


def _read_avif(data: bytes) -> Image:
    import imagecodecs
    from PIL import AvifImagePlugin

    properties = _properties(data)
    sizes = [int.from_bytes(p[4:8]) * int.from_bytes(p[8:12]) for name, p in properties if name == b"ispe"]
    if max(sizes, default=0) > _AVIF_PIXELS:
        raise UnsupportedError("more than the 268 megapixels that libavif reads; save it as TIFF")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of damaged EXIF, which make_picture notes
        image = AvifImagePlugin.AvifImageFile(io.BytesIO(data))
    with image:
        info, frames = image.info, int(getattr(image, "n_frames", 1))
    if frames > 1:
        raise UnsupportedError(f"an animation of {frames} frames; save them as single pictures")
    array = imagecodecs.avif_decode(data)
    if array.dtype == np.uint16:
        flags = next((p[2] for name, p in properties if name == b"av1C"), 0)
        array = rescale(array, 12 if flags & 0x20 else 10)
    colours = next((p for name, p in properties if name == b"colr" and p.startswith(b"nclx")), b"")
    codes = (int.from_bytes(colours[4:6]), int.from_bytes(colours[6:8])) if colours else None
    metadata = Metadata(
        icc=info.get("icc_profile"),
        exif=info.get("exif"),  # Pillow sets its orientation to that of the file
        xmp=info.get("xmp"),
        png=_colour_chunks(codes, info.get("icc_profile")),
    )
    return make_picture(array, metadata, [])


def _properties(data: bytes) -> list[tuple[bytes, bytes]]:
    """Return names and contents of the properties of the pictures in a HEIF file, the main one's first."""
    for name, place in ((b"meta", 0), (b"iprp", 4), (b"ipco", 0)):
        data = next((content for found, content in boxes(data, place) if found == name), b"")
    return list(boxes(data))


def _colour_chunks(codes: tuple[int, int] | None, icc: bytes | None) -> tuple[tuple[bytes, bytes], ...]:
    """Return PNG's chunk for the code points of primaries and transfer function, if they differ from sRGB."""
    if not codes or icc or codes == _SRGB or _UNSPECIFIED in codes:
        return ()
    return ((b"cICP", bytes([*codes, 0, 1])),)


_READERS = {"PNG": read_png, "JPEG": read_jpeg, "WebP": _read_webp, "JPEG XL": read_jpegxl}
