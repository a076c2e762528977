"""What TIFF and the formats of photographs share: orientation, resolution, texts, EXIF, XMP and IPTC."""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator, Mapping
from dataclasses import replace
from fractions import Fraction
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .metadata import Image, Metadata
from .units import convert, is_length

ORIENTATION, SOFTWARE = 0x0112, 0x0131
X_RESOLUTION, Y_RESOLUTION, RESOLUTION_UNIT = 0x011A, 0x011B, 0x0128
IPTC = 0x0404
"""Number of the Photoshop resource that contains an IPTC record."""

UNITS: Mapping[int, Literal["inch", "centimeter"] | None] = {1: None, 2: "inch", 3: "centimeter"}
"""Values of EXIF's and TIFF's ResolutionUnit."""

TEXTS = {
    269: "Title",
    271: "Make",
    272: "Model",
    285: "Page Name",
    305: "Software",
    306: "Creation Time",
    315: "Author",
    316: "Host Computer",
    33432: "Copyright",
}
"""From TIFF tags to the keywords of their texts, which are PNG's where it has one."""

LEAST, LARGEST = 1e-9, 4e9
"""Limits of a resolution, which is stored as a fraction of two numbers of 32 bits."""

Resolution = tuple[tuple[float, float], str]
"""Horizontal and vertical pixels per unit, and the unit as TIFF names it."""

_OF_SIDES = (b"oFFs", b"sCAL")  # PNG chunks that name the sides of the picture as stored
_ASCII, _SHORT, _LONG, _RATIONAL = 2, 3, 4, 5


class _Entry(NamedTuple):
    tag: int
    dtype: int
    number: int
    place: int  # of the value, or of its offset if it is longer than 4 bytes


def _directory(block: bytes | bytearray) -> tuple[Literal["<", ">"], list[_Entry], int]:
    """Return the byte order of an EXIF block, its first directory, and where the next one's offset is."""
    order: Literal["<", ">"] = "<" if block[:2] == b"II" else ">"
    if block[:4] not in (b"II*\0", b"MM\0*"):
        raise ValueError("no TIFF header")
    (start,) = struct.unpack_from(order + "I", block, 4)
    (count,) = struct.unpack_from(order + "H", block, start)
    places = range(start + 2, start + 2 + 12 * count, 12)
    entries = [
        _Entry._make((*struct.unpack_from(order + "HHI", block, place), place + 8)) for place in places
    ]
    end = start + 2 + 12 * count
    if len(block) < end:
        raise ValueError("directory beyond the end")
    return order, entries, end


def read_tag(block: bytes, tag: int) -> Any:
    """Return a text, whole number or Fraction of the first directory of an EXIF block; None if missing."""
    order, entries, _ = _directory(block)
    for found, dtype, count, place in entries:
        if found != tag:
            continue
        size = {_ASCII: 1, _SHORT: 2, _LONG: 4, _RATIONAL: 8}.get(dtype, 0) * count
        if size > 4:
            (place,) = struct.unpack_from(order + "I", block, place)
        if dtype == _ASCII:
            return block[place : place + count].split(b"\0")[0].decode("utf-8", "replace")
        if dtype in (_SHORT, _LONG):
            return int(struct.unpack_from(order + ("H" if dtype == _SHORT else "I"), block, place)[0])
        if dtype == _RATIONAL:
            top, bottom = struct.unpack_from(order + "II", block, place)
            return Fraction(top, bottom) if bottom else None
    return None


def with_tags(block: bytes | None, values: Mapping[int, str | int | Fraction]) -> bytes:
    """Set tags of the first directory of an EXIF block.

    The directory is copied to the end, and everything else stays where it is, because the notes of camera
    makers contain offsets that nobody else knows.

    Parameters
    ----------
    block : bytes or None
        EXIF without its prefix; None to make a new one.
    values : mapping
        From tag to text, short whole number or positive fraction.
    """
    data = bytearray(block or b"II*\0\x08\0\0\0" + bytes(6))
    order, entries, _ = _directory(data)
    raw = {entry.tag: bytes(data[entry.place - 8 : entry.place + 4]) for entry in entries}
    for tag, value in values.items():
        if isinstance(value, str):
            dtype, content = _ASCII, value.encode() + b"\0"
            count = len(content)
        elif isinstance(value, int):
            dtype, count, content = _SHORT, 1, struct.pack(order + "H", value)
        else:
            value = value.limit_denominator(10**6 if value < 4000 else 1)
            dtype, count, content = (
                _RATIONAL,
                1,
                struct.pack(order + "II", value.numerator, value.denominator),
            )
        if len(content) > 4:
            data += bytes(len(data) % 2)
            place = struct.pack(order + "I", len(data))
            data += content
            content = place
        raw[tag] = struct.pack(order + "HHI", tag, dtype, count) + content.ljust(4, b"\0")
    data += bytes(len(data) % 2)
    struct.pack_into(order + "I", data, 4, len(data))
    data += struct.pack(order + "H", len(raw)) + b"".join(raw[tag] for tag in sorted(raw)) + bytes(4)
    return bytes(data)


def _upright_exif(block: bytes) -> tuple[bytes, int]:
    """Return an EXIF block with orientation 1 and without its thumbnail, and the orientation that it had.

    A block that says nothing else becomes empty.
    """
    data = bytearray(block)
    order, entries, following = _directory(block)
    orientation = 1
    for tag, _, _, place in entries:
        if tag == ORIENTATION:
            (orientation,) = struct.unpack_from(order + "H", data, place)
            struct.pack_into(order + "H", data, place, 1)
    if all(entry.tag == ORIENTATION for entry in entries):
        return b"", orientation
    thumbnail = _thumbnail(block, order, following)
    data[following : following + 4] = bytes(min(4, len(data) - following))
    return bytes(data[:thumbnail]), orientation


def _thumbnail(block: bytes, order: str, following: int) -> int | None:
    """Return where the thumbnail, which would show the input, starts if it is the last part of a block."""
    try:
        (start,) = struct.unpack_from(order + "I", block, following)
        (count,) = struct.unpack_from(order + "H", block, start) if start else (0,)
        places = range(start + 2, start + 2 + 12 * count, 12)
        found = {t: v for t, _, v in (struct.unpack_from(order + "HxxII", block, place) for place in places)}
    except struct.error:
        return None
    first, length = found.get(0x0201, 0), found.get(0x0202, 0)
    return first if start < first and first + length >= len(block) - 16 else None


def upright(array: NDArray[Any], orientation: int) -> NDArray[Any]:
    """Turn a picture upright by its orientation as in EXIF and TIFF, 1 to 8; others mean 1."""
    if orientation in (5, 6, 7, 8):
        array = array.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        array = array[::-1]
    if orientation in (2, 3, 6, 7):
        array = array[:, ::-1]
    return np.ascontiguousarray(array)


def make_picture(
    array: NDArray[Any],
    metadata: Metadata,
    notes: list[str],
    *,
    is_upright: bool = False,
) -> Image:
    """Finish a picture that was read: turn it upright, and fill in what its EXIF block says.

    Parameters
    ----------
    array : ndarray
        (H, W) or (H, W, S) as stored.
    metadata : Metadata
        As stored; EXIF with or without its prefix.
    notes : list of str
        Notes so far.
    is_upright : bool
        Whether the decoder turned the array already; EXIF's orientation means nothing then.
    """
    orientation, exif = 1, metadata.exif
    if exif:
        try:
            exif, orientation = _upright_exif(exif.removeprefix(b"Exif\0\0"))
        except (ValueError, struct.error):
            exif = None
            notes = [*notes, "damaged EXIF dropped"]
    if is_upright or not 1 <= orientation <= 8:
        orientation = 1
    resolution, unit = metadata.resolution, metadata.resolution_unit
    if exif and unit is None:
        found, found_unit = _exif_resolution(exif)
        if found and (found_unit or resolution is None):
            resolution, unit = found, found_unit
    if resolution and orientation >= 5:
        resolution = resolution[::-1]
    xmp = metadata.xmp or None
    if xmp and (is_upright or orientation != 1):
        xmp = re.sub(rb"(tiff:Orientation\s*(?:=\s*[\"']|>))\s*[2-8]", rb"\g<1>1", xmp)
    metadata = replace(
        metadata,
        axes="YX" if array.ndim == 2 else "YXS",
        exif=exif or None,
        icc=metadata.icc or None,
        xmp=xmp,
        resolution=resolution,
        resolution_unit=unit if resolution else None,
        png=tuple(c for c in metadata.png if orientation == 1 or c[0] not in _OF_SIDES),
    )
    return Image(upright(array, orientation), metadata, tuple(notes))


def _exif_resolution(
    block: bytes,
) -> tuple[tuple[float, float] | None, Literal["inch", "centimeter"] | None]:
    try:
        x, y, unit = (read_tag(block, tag) for tag in (X_RESOLUTION, Y_RESOLUTION, RESOLUTION_UNIT))
    except (ValueError, struct.error):
        return None, None
    if not isinstance(x, Fraction) or not isinstance(y, Fraction) or not x or not y:
        return None, None
    return (float(x), float(y)), UNITS.get(unit)


def find_resolution(metadata: Metadata) -> Resolution | None:
    """Return horizontal and vertical pixels per unit, and the unit as TIFF names it; None if not known.

    Sizes of pixels become pixels per centimeter, unless the metadata say another real resolution.
    """
    found = metadata.resolution
    unit = metadata.resolution_unit
    if found is None or unit is None:
        sizes = [metadata.sizes.get(axis, (0.0, None)) for axis in "XY"]
        lengths = [convert(n, u, "centimeter") for n, u in sizes if u is not None and is_length(u)]
        if len(lengths) == 2 and all(lengths):
            found, unit = (1 / lengths[0], 1 / lengths[1]), "centimeter"
    if found is None or not all(LEAST < n < LARGEST for n in found):
        return None
    return found, {"inch": "INCH", "centimeter": "CENTIMETER"}.get(unit or "", "NONE")


def rescale(array: NDArray[Any], bits: int) -> NDArray[Any]:
    """Scale whole numbers of some bits to the full range of their dtype."""
    full = int(np.iinfo(array.dtype).max)
    largest = (1 << bits) - 1
    if largest == full:
        return array
    table = np.arange(1 << (8 * array.itemsize), dtype=np.uint32)
    table = (np.minimum(table, largest) * full + largest // 2) // largest
    return table.astype(array.dtype)[array]


def software(metadata: Metadata) -> str | None:
    """Say what made a picture: kbnet with its model, and what made the input; None if nothing is known.

    The first is `metadata.history`, as in ``"kbnet 0.9; model photo; input by Camera 1.0"``.
    """
    earlier = metadata.text.get("Software") or exif_text(metadata.exif, SOFTWARE)
    history = dict(metadata.history)
    if not history:
        return earlier
    parts = [str(history.pop("software", "kbnet")), *(f"{key} {value}" for key, value in history.items())]
    return "; ".join([*parts, *([f"input by {earlier}"] if earlier else [])])


def exif_text(block: bytes | None, tag: int) -> str | None:
    """Return a text in the first directory of an EXIF block; None if there is none."""
    try:
        found = read_tag(block, tag) if block else None
    except (ValueError, struct.error):
        return None
    return found.strip() or None if isinstance(found, str) else None


def photoshop_resources(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield the numbers and contents of Photoshop's image resources.

    References
    ----------
    .. [1] Adobe Photoshop File Formats Specification, "Image Resource Blocks", 2019.
    """
    place = 0
    while data[place : place + 4] == b"8BIM" and place + 12 <= len(data):
        (number,) = struct.unpack_from(">H", data, place + 4)
        start = place + 7 + data[place + 6]
        start += start % 2 != place % 2
        if start + 4 > len(data):
            return
        (size,) = struct.unpack_from(">I", data, start)
        yield number, data[start + 4 : start + 4 + size]
        place = start + 4 + size + size % 2


def photoshop_resource(number: int, content: bytes) -> bytes:
    """Pack one image resource of Photoshop."""
    return b"8BIM" + struct.pack(">HHI", number, 0, len(content)) + content + bytes(len(content) % 2)


def find_iptc(resources: bytes) -> bytes | None:
    """Return the IPTC record among Photoshop's image resources; None if there is none."""
    return next(
        (content for number, content in photoshop_resources(resources) if number == IPTC and content), None
    )
