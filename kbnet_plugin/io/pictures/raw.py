"""Read raw photographs: develop them plainly with LibRaw, through rawpy.

References
----------
.. [1] Digital Negative (DNG) Specification, version 1.7.1, Adobe, 2023.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from ...errors import BadInput, one_line
from ..embedded import make_picture
from ..exif import Directory, pack_directory, read_exif
from ..formats import FORMATS, require
from ..metadata import Image, Metadata
from ..signatures import UnsupportedError, check_content, check_memory, find_content
from .jpeg import read_jpeg

_NOTE = "raw photograph developed with LibRaw: camera white balance, sRGB, 16 bits"
_DESCRIPTION, _MAKE, _MODEL, _SOFTWARE, _DATE, _ARTIST, _COPYRIGHT = 270, 271, 272, 305, 306, 315, 33432
_KEPT = (_DESCRIPTION, _MAKE, _MODEL, _SOFTWARE, _DATE, _ARTIST, _COPYRIGHT)
_EXIF, _GPS, _MAKER_NOTE, _COLOUR_SPACE = 34665, 34853, 37500, 40961
_SUB_DIRECTORIES, _PLACES = 330, {273: 279, 324: 325}  # of strips and tiles, and the tags of their lengths
_SRGB_GAMMA = (2.4, 12.92)  # power and slope at black
_NOWHERE = 0xFFFFFFFF  # Panasonic's offset of pixels whose place is in a tag of its own
_BITS_PER_PIXEL = 0.25  # no camera compresses as much


def read_raw(path: Path) -> Image:
    """Develop a raw photograph.

    Nothing is done to the picture that could be left out: no brightening, denoising or sharpening.

    Parameters
    ----------
    path : path
        The file.

    Returns
    -------
    Image
        (H, W, 3) of uint16 in sRGB, upright; (H, W) from a camera without colours.

    Raises
    ------
    ValueError
        If it is damaged or incomplete, is no raw photograph, or its camera is unknown to LibRaw; one line
        that names it.
    """
    require(next(known for known in FORMATS if known.name == "raw photograph"), path)
    _check_content(path)
    import rawpy

    try:
        data = path.read_bytes()
        _check_length(data)
        with rawpy.imread(str(path)) as raw:
            sizes = raw.sizes
            check_memory(sizes.width, sizes.height, 12)
            if 8 * len(data) < _BITS_PER_PIXEL * sizes.raw_width * sizes.raw_height:
                raise ValueError("pixels are missing")
            if raw.num_colors >= 3 and not (raw.rgb_xyz_matrix.any() or raw.color_matrix.any()):
                raise UnsupportedError(
                    "colours unknown to LibRaw; convert it to TIFF with the maker's program"
                )
            array = raw.postprocess(
                use_camera_wb=True,
                no_auto_bright=True,
                output_color=rawpy.ColorSpace.sRGB,
                output_bps=16,
                gamma=_SRGB_GAMMA,
            )
            notes = [_NOTE]
            exif = _find_exif(data, raw, array.shape)
    except UnsupportedError as error:
        raise BadInput(f"{path}: {error}") from None
    except rawpy.LibRawFileUnsupportedError:
        raise BadInput(
            f"{path}: not a raw photograph that LibRaw knows; convert it to DNG with Adobe's DNG Converter"
        ) from None
    except MemoryError:
        raise BadInput(f"{path}: does not fit in memory; close other programs") from None
    except Exception as error:  # decoders raise errors of all kinds
        words = error.args[0] if error.args else ""
        why = words.decode() if isinstance(words, bytes) else one_line(error)
        raise ValueError(f"{path}: damaged or incomplete raw photograph ({why}); copy it again") from error
    if array.min() == array.max():
        raise ValueError(
            f"{path}: damaged or incomplete raw photograph (it contains no picture); copy it again"
        )
    if exif is None:
        notes.append("EXIF dropped, as it cannot be read")
    if array.shape[2] == 1:
        array = array[..., 0]
    icc = _srgb_profile() if array.ndim == 3 else None
    return make_picture(array, Metadata(exif=exif, icc=icc), notes, is_upright=True)


def _check_content(path: Path) -> None:
    with path.open("rb") as file:
        found, _ = find_content(file.read(64))
    if found not in ("", "TIFF"):  # many are TIFFs, and the first bytes of others are not known
        check_content(path, "raw photograph")


def _check_length(data: bytes) -> None:
    """Raise ValueError if pixels lie beyond the end, which LibRaw fills with anything."""
    ends: Iterable[int] = ()
    if data[:2] in (b"II", b"MM"):
        ends = _ends(data)
    elif data.startswith(b"FUJIFILMCCD-RAW"):
        ends = [sum(struct.unpack_from(">II", data, place)) for place in (84, 100)]  # preview, pixels
    elif data[4:8] == b"ftyp":
        ends = _box_ends(data)
    if max(ends, default=0) > len(data):
        raise ValueError("pixels are missing")


def _box_ends(data: bytes) -> Iterator[int]:
    place = 0
    while place + 16 <= len(data):
        size, _, long_size = struct.unpack_from(">I4sQ", data, place)
        place += max({0: len(data) - place, 1: long_size}.get(size, size), 8)
        yield place


def _ends(data: bytes) -> Iterator[int]:
    """Yield where the strips and tiles of all pictures in a TIFF end."""
    order = "<" if data[:2] == b"II" else ">"
    waiting, seen = [struct.unpack_from(order + "I", data, 4)[0]], set()
    while waiting:
        start = waiting.pop()
        if start in seen or not 0 < start < len(data) - 2:
            continue
        seen.add(start)
        values: dict[int, tuple[int, ...]] = {}
        (count,) = struct.unpack_from(order + "H", data, start)
        for place in range(start + 2, min(start + 2 + 12 * count, len(data) - 12), 12):
            tag, kind, number = struct.unpack_from(order + "HHI", data, place)
            code, size = {3: ("H", 2), 4: ("I", 4), 13: ("I", 4)}.get(kind, ("", 0))
            if code and tag in (_SUB_DIRECTORIES, *_PLACES, *_PLACES.values()):
                inside = size * number <= 4
                offset = place + 8 if inside else struct.unpack_from(order + "I", data, place + 8)[0]
                values[tag] = struct.unpack_from(f"{order}{number}{code}", data, offset)
        waiting += values.get(_SUB_DIRECTORIES, ())
        if start + 2 + 12 * count + 4 <= len(data):
            waiting.append(struct.unpack_from(order + "I", data, start + 2 + 12 * count)[0])
        for starts, lengths in _PLACES.items():
            pairs = zip(values.get(starts, ()), values.get(lengths, ()), strict=False)
            yield from (start + length for start, length in pairs if start != _NOWHERE)


def _find_exif(data: bytes, raw: Any, shape: tuple[int, ...]) -> bytes | None:
    """Make an EXIF block from the tags of the file, or take that of the preview in it."""
    import rawpy

    order = data[:2]
    if order in (b"II", b"MM"):
        header = b"II*\0" if order == b"II" else b"MM\0*"  # some makers have numbers of their own there
        found = read_exif(header + data[4:])
        kept: Directory = {tag: found[tag] for tag in (*_KEPT, _EXIF, _GPS) if tag in found}
        photograph = kept.get(_EXIF)
        if isinstance(photograph, dict):
            photograph.pop(_MAKER_NOTE, None)  # its offsets would be wrong
            photograph[_COLOUR_SPACE] = 3, b"\1\0"
            for tag, size in zip((40962, 40963), (shape[1], shape[0]), strict=True):
                photograph[tag] = 4, struct.pack("<I", size)
        if kept:
            return b"II*\0\x08\0\0\0" + pack_directory(kept, 8, big=False)
    try:
        preview = raw.extract_thumb()
        if preview.format == rawpy.ThumbFormat.JPEG:
            return read_jpeg(preview.data).metadata.exif
    except Exception:  # nothing is lost but the EXIF, and the caller says so
        return None
    return None


def _srgb_profile() -> bytes:
    from PIL import ImageCms

    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    return profile[:24] + struct.pack(">6H", 2000, 1, 1, 0, 0, 0) + profile[36:]  # not the time of this run
