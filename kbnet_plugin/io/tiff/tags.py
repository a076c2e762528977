"""Turn metadata into the tags of TIFF, and into what ImageJ stores in them."""

from __future__ import annotations

import re
import struct
from datetime import datetime
from email.utils import parsedate_to_datetime
from typing import Any

import numpy as np

from ..embedded import LARGEST, LEAST, TEXTS, Resolution, exif_text, find_resolution, software
from ..exif import SIZES, Directory, read_exif
from ..metadata import Metadata
from ..ome_xml import find_colors
from ..units import convert, is_length, is_time, to_name, to_symbol

_ASCII, _LONG, _BYTE, _UNDEFINED = 2, 4, 1, 7
_DESCRIPTION, _DATE, _EXIF, _GPS, _WIDTH = 270, 306, 34665, 34853, (40962, 40963)
_XMP, _IPTC = 700, 33723
_NUMBERS = {"Source": 272} | {text: number for number, text in TEXTS.items()}
# Tags about how pixels are stored, and those that are written from other fields of the metadata.
_OWN = {*range(254, 269), 270, *range(273, 285), *range(286, 302), 305, *range(317, 350), *range(512, 522)}
_OWN |= {*range(529, 533), 700, *range(32995, 32999), 33723, 34665, 34675, 34853, 40965, 50838, 50839}
_RAW = range(50706, 51200)  # tags of DNG, which would make a raw photograph of a finished one
_TABLES = "Info", "Labels", "Ranges", "LUTs", "Plot", "ROI", "Overlays", "Properties"


def collect_tags(
    metadata: Metadata, height: int, width: int
) -> tuple[dict[int, tuple[int, int, Any]], dict[int, Directory], tuple[str, ...]]:
    """Collect the tags of a picture.

    Parameters
    ----------
    metadata : Metadata
    height, width : int
        In pixels.

    Returns
    -------
    tags : dict
        From number to type, count and value as for `tifffile.TiffWriter.write`; without description.
    directories : dict
        The EXIF and GPS directories by the number of the tag that points to them.
    notes : tuple of str
        What TIFF has no place for.
    """
    found = read_exif(metadata.exif) if metadata.exif else {}
    tags: dict[int, tuple[int, int, Any]] = {}
    directories: dict[int, Directory] = {}
    for number, content in found.items():
        if isinstance(content, dict):
            if number in (_EXIF, _GPS):
                directories[number] = content
        elif number not in _OWN and number not in _RAW:
            kind, value = content
            tags[number] = kind, len(value) // SIZES[kind], value
    if below := directories.get(_EXIF):
        for number, length in zip(_WIDTH, (width, height), strict=True):
            if number in below:  # the picture may have been turned
                below[number] = _LONG, struct.pack("<I", length)
    for number, tag in metadata.tags.items():
        if number not in _OWN:
            value = _encode(tag.value) if isinstance(tag.value, str) else tag.value
            tags[number] = int(tag.dtype), tag.length, value
    lost = [f"PNG chunk {name.decode()}" for name, _ in metadata.png if not (metadata.icc or name == b"sRGB")]
    for keyword, text in metadata.text.items():
        if not text:
            continue
        number = _NUMBERS.get(keyword, 0)
        stored = _tiff_date(text) if number == _DATE else text
        if number and stored:
            tags[number] = _ASCII, 0, _encode(stored)
        elif keyword not in ("Software", "Description") and text != metadata.description:
            lost.append(f"text {keyword!r}")
    if made := software(metadata):
        tags[305] = _ASCII, 0, _encode(made)
    if metadata.xmp:
        tags[_XMP] = _BYTE, len(metadata.xmp), metadata.xmp
    if metadata.iptc:
        tags[_IPTC] = _UNDEFINED, len(metadata.iptc), metadata.iptc
    return tags, directories, tuple(f"{what} dropped" for what in lost)


def _encode(text: str) -> bytes:
    """Return a text as UTF-8, without what would end it early."""
    return text.replace("\0", "").encode(errors="replace")


def _tiff_date(text: str) -> str:
    """Return a time as TIFF writes it, from any usual form; empty if it is none of them."""
    if re.fullmatch(r"\d{4}:\d\d:\d\d \d\d:\d\d:\d\d", text):
        return text
    for parse in (datetime.fromisoformat, parsedate_to_datetime):
        try:
            return parse(text).strftime("%Y:%m:%d %H:%M:%S")
        except ValueError:
            continue
    return ""


def find_description(metadata: Metadata) -> str:
    """Return the caption, also one that only the EXIF block has; empty if there is none."""
    found = metadata.description or metadata.text.get("Description") or exif_text(metadata.exif, _DESCRIPTION)
    return _encode(found or "").decode()


def collect_imagej(
    metadata: Metadata, axes: str, shape: tuple[int, ...]
) -> tuple[dict[str, Any], Resolution | None]:
    """Collect what ImageJ stores about a hyperstack.

    Parameters
    ----------
    metadata : Metadata
        Of any form; what ImageJ stored stays as it was.
    axes : str
        Axes of the hyperstack, in the order ``"TZCYXS"``.
    shape : tuple of int

    Returns
    -------
    items : dict
        As `metadata` of `tifffile.TiffWriter.write`.
    resolution
        As `find_resolution` returns it; if it has no unit, it is pixels per the unit in `items`.
    """
    length = dict(zip(axes, shape, strict=True))
    items: dict[str, Any] = {}
    for key, value in metadata.imagej.items():
        if key in _TABLES:
            items[key] = _encode(value).decode() if isinstance(value, str) else value
        elif isinstance(value, str | int | float) and key not in ("order", "axes"):
            items[key] = _escape(value) if isinstance(value, str) else value
    resolution = _calibrate(items, metadata)
    for axis, (size, _) in metadata.sizes.items():
        if axis in "XYZ" and size and axis in metadata.offsets:
            items.setdefault(f"{axis.lower()}origin", -metadata.offsets[axis] / size)
    if length.get("C", 1) > 1:
        items.setdefault("mode", "composite")
        colors = find_colors(metadata)
        if "LUTs" not in items and len(colors) == length["C"]:
            items["LUTs"] = [_table(color or "FFFFFF") for color in colors]
        if len(metadata.channels) == length["C"]:
            count = length.get("T", 1) * length.get("Z", 1)
            items.setdefault("Labels", [_encode(name).decode() for name in metadata.channels] * count)
    if description := find_description(metadata):
        items.setdefault("Info", description)
    return items | {"axes": axes}, resolution


def _calibrate(items: dict[str, Any], metadata: Metadata) -> Resolution | None:
    """Add the sizes in ImageJ's unit, and return the resolution in it."""
    sizes = metadata.sizes
    unit = next((u for a in "XYZ" if a in sizes and (u := sizes[a][1]) is not None and is_length(u)), None)
    resolution = find_resolution(metadata)
    if unit is not None:
        if to_name(str(items.get("unit", ""))) != unit:
            symbol = _escape(to_symbol(unit) or unit)
            items["unit"] = {"micrometer": "micron", "inch": "inch"}.get(unit, symbol)
        own = {a: convert(n, u, unit) for a, (n, u) in sizes.items() if u is not None and is_length(u)}
        if len(own) == len(sizes.keys() & set("XYZ")) and {"yunit", "zunit"} & items.keys():
            for key in ("yunit", "zunit", "spacing"):  # all in one unit instead
                items.pop(key, None)
        if all(LEAST < own.get(axis, 0.0) < LARGEST for axis in "XY"):
            resolution = (1 / own["X"], 1 / own["Y"]), "NONE"
        if "Z" in own:
            items.setdefault("spacing", own["Z"])
    interval, unit = sizes.get("T", (0.0, None))
    if unit is not None and is_time(unit):
        items.setdefault("finterval", convert(interval, unit, "second"))
    return resolution


def _escape(text: str) -> str:
    """Write a value of ImageJ's description: one line of ASCII, with Java's escapes."""
    units = np.frombuffer(text.encode("utf-16-le", "replace"), "<u2").tolist()
    return "".join(chr(n) if 32 <= n < 127 else f"\\u{n:04X}" if n >= 127 else " " for n in units)


def _table(color: str) -> Any:
    """Return a look-up table from black to a colour."""
    ramp = np.arange(256, dtype=np.float64)[None] / 255
    return np.rint(np.array([list(bytes.fromhex(color))]).T * ramp).astype(np.uint8)
