"""Read what a TIFF stores about an image besides its pixels."""

from __future__ import annotations

import json
import math
import re
import struct
from collections.abc import Mapping
from typing import Any

import numpy as np
import tifffile

from ..embedded import TEXTS, UNITS, X_RESOLUTION, Y_RESOLUTION, find_iptc
from ..exif import SUB_DIRECTORIES, WORDS, Directory, pack_directory
from ..metadata import Metadata, Tag
from ..units import to_name

_IN_EXIF = (271, 272, 305, 306, 315, 33432)
_EXIF, _GPS, _INTEROPERABILITY = SUB_DIRECTORIES
_ICC, _XMP, _IPTC, _PHOTOSHOP, _LAYERS = 34675, 700, 33723, 34377, 37724
_NO_DATA = 42113
_GEOGRAPHIC = (33550, 33922, 34264, 34735, 34736, 34737, 50844)
_COLOURS = (318, 319)  # white point and primaries, of RGB
_COPIED = (*_GEOGRAPHIC, *_COLOURS, _PHOTOSHOP, 42112, 51123)  # the last ones: GDAL, Micro-Manager
_EXIF_TYPES = range(1, 14)
_FORMATS = {3: "u2", 4: "u4", 5: "u4", 8: "i2", 9: "i4", 10: "i4", 11: "f4", 12: "f8", 16: "u8", 17: "i8"}
_PIXEL_UNITS = ("", "pixel", "pixels", "px")
_METERS_TO_MICROMETERS = 1e6


def read_metadata(
    tiff: tifffile.TiffFile, page: Any, kind: str, *, same_values: bool, rgb: bool
) -> tuple[Metadata, tuple[str, ...]]:
    """Read the metadata of an image.

    Parameters
    ----------
    tiff : TiffFile
    page : TiffPage
        First of the image.
    kind : str
        Of the series, as tifffile names it: ``"ome"``, ``"imagej"``, ``"lsm"``, ``"stk"``, ...
    same_values : bool
        Whether the values stay as they are stored, so that what is said about them stays true.
    rgb : bool
        Whether the file stores RGB.

    Returns
    -------
    metadata : Metadata
        Without axes, path, levels, opacity and what OME-XML says.
    notes : tuple of str
    """
    notes: list[str] = []
    orientation = find_orientation(page)
    resolution, unit = _read_resolution(page)
    tags = {code: tag for code in _COPIED if (tag := _copy(page, code)) is not None}
    if same_values and (no_data := _copy(page, _NO_DATA)) is not None:
        tags[_NO_DATA] = no_data
    if not rgb:
        tags = {code: tag for code, tag in tags.items() if code not in _COLOURS}
    if orientation != 1 and any(code in tags for code in _GEOGRAPHIC):
        tags = {code: tag for code, tag in tags.items() if code not in _GEOGRAPHIC}
        notes.append("place on earth dropped, as the image was turned upright")
    if _LAYERS in page.tags:
        notes.append("Photoshop's layers dropped")
    photoshop = _bytes(page, _PHOTOSHOP)
    imagej = dict(tiff.imagej_metadata or {}) if kind == "imagej" else {}
    sizes, offsets, channels = _read_sizes(tiff, page, kind, imagej, notes)
    metadata = Metadata(
        form="imagej" if kind == "imagej" else "picture",
        sizes=sizes,
        offsets=offsets,
        channels=channels,
        icc=_bytes(page, _ICC),
        exif=_read_exif(tiff, page, notes),
        xmp=_upright_xmp(_bytes(page, _XMP)),
        iptc=_read_iptc(page) or (find_iptc(photoshop) if photoshop else None),
        resolution=resolution[::-1] if resolution and orientation >= 5 else resolution,
        resolution_unit=unit if resolution else None,
        description=_read_description(page, kind),
        text={name: text for code, name in TEXTS.items() if (text := _text(page, code))},
        tags=tags,
        imagej=imagej,
    )
    return metadata, tuple(notes)


def find_orientation(page: Any) -> int:
    """Return TIFF's orientation, 1 to 8; 1 if it is missing or invalid."""
    value = page.tags.valueof(274)
    value = value[0] if isinstance(value, bytes) and value else value
    return int(value) if isinstance(value, int) and 1 <= value <= 8 else 1


def _read_resolution(page: Any) -> tuple[tuple[float, float] | None, Any]:
    x, y = (_fraction(page.tags.valueof(code)) for code in (X_RESOLUTION, Y_RESOLUTION))
    if x is None or y is None:
        return None, None
    code = page.tags.valueof(296)
    unit = "inch" if code is None else UNITS.get(int(code)) if isinstance(code, int) else None
    if unit is None and x == y == 1:  # what programs write that know nothing
        return None, None
    return (x, y), unit


def _fraction(value: Any) -> float | None:
    if isinstance(value, tuple) and len(value) == 2:
        value = value[0] / value[1] if value[1] else 0
    return float(value) if isinstance(value, int | float) and math.isfinite(value) and value > 0 else None


def _text(page: Any, code: int) -> str | None:
    value = page.tags.valueof(code)
    if isinstance(value, bytes):  # tifffile reads UTF-8 and Windows' Latin-1
        value = value.decode("latin-1")
    return value.strip(" \t\r\n\0") or None if isinstance(value, str) else None


def _read_description(page: Any, kind: str) -> str | None:
    """Return the caption, unless it is what a program stores for itself."""
    text = _text(page, 270)
    named = re.search(r'"description": *("(?:[^"\\]|\\.)*")', page.shaped_description or "")
    if named and kind == "shaped":
        return str(json.loads(named[1]))  # as `kbnet_plugin.io.tiff.writer` stores it
    structured = [page.shaped_description, page.imagej_description]
    if text is None or kind == "ome" or page.is_ome or any(s and s.strip() == text for s in structured):
        return None
    return text


def _raw(page: Any, tag: Any) -> bytes:
    file = page.parent.filehandle
    file.seek(tag.valueoffset)
    return bytes(file.read(tag.valuebytecount))


def _bytes(page: Any, code: int) -> bytes | None:
    tag = page.tags.get(code)
    return (_raw(page, tag) or None) if tag is not None else None


def _copy(page: Any, code: int) -> Tag | None:
    tag = page.tags.get(code)
    if tag is None or not tag.count:
        return None
    dtype, content = int(tag.dtype), _raw(page, tag)
    if dtype in _FORMATS:
        values = np.frombuffer(content, page.parent.byteorder + _FORMATS[dtype]).tolist()
        return Tag(dtype, int(tag.count), tuple(values) if len(values) > 1 else values[0])
    return Tag(dtype, int(tag.count), content)


def _read_iptc(page: Any) -> bytes | None:
    """Return the record; some programs store it as whole numbers in the byte order of the file."""
    data = _bytes(page, _IPTC)
    if data and data[:1] != b"\x1c" and data[3:4] == b"\x1c" and len(data) % 4 == 0:
        data = np.frombuffer(data, ">u4").byteswap().tobytes()
    return data.rstrip(b"\0") or None if data else None


def _upright_xmp(packet: bytes | None) -> bytes | None:
    """Set the orientation in an XMP packet to 1, as the array is upright."""
    pattern = rb"(tiff:Orientation\s*(?:=\s*[\"']|>))\s*[2-8]"
    return re.sub(pattern, rb"\g<1>1", packet.rstrip(b"\0")) if packet else None


def _read_exif(tiff: tifffile.TiffFile, page: Any, notes: list[str]) -> bytes | None:
    """Build an EXIF block of the directories that a TIFF stores in its own way."""
    directory: Directory = {}
    for code in (_EXIF, _GPS):
        if code in page.tags and not (below := _read_directory(tiff, page, code)):
            notes.append("damaged EXIF dropped")
        elif code in page.tags:
            directory[code] = below
    if not directory:
        return None
    for code in _IN_EXIF:
        if text := _text(page, code):
            directory[code] = 2, text.encode() + b"\0"
    return b"II*\0" + struct.pack("<I", 8) + pack_directory(directory, 8, big=False)


def _read_directory(tiff: tifffile.TiffFile, page: Any, code: int) -> Directory:
    found: Directory = {}
    try:
        page.parent.filehandle.seek(page.tags[code].valueoffset)  # where the directory is
        below = tifffile.TiffPage(tiff, (page.index, code))
        for tag in below.tags:
            if tag.code == _INTEROPERABILITY:
                if inner := _read_directory(tiff, below, tag.code):
                    found[tag.code] = inner
            elif int(tag.dtype) in _EXIF_TYPES and tag.valuebytecount:
                content = _raw(below, tag)
                if len(content) == tag.valuebytecount:
                    found[tag.code] = int(tag.dtype), _little(content, int(tag.dtype), page.parent.byteorder)
    except Exception:  # tifffile raises errors of all kinds
        return {}
    return found


def _little(content: bytes, dtype: int, order: str) -> bytes:
    if order == "<" or dtype not in WORDS:
        return content
    return np.frombuffer(content, f">u{WORDS[dtype]}").byteswap().tobytes()


_Sizes = dict[str, tuple[float, str | None]]


def _read_sizes(
    tiff: tifffile.TiffFile, page: Any, kind: str, imagej: Mapping[str, Any], notes: list[str]
) -> tuple[_Sizes, dict[str, float], tuple[str, ...]]:
    """Return sizes, offsets and names of channels as ImageJ, Zeiss' LSM and MetaMorph store them."""
    if kind == "imagej":
        sizes = _imagej_sizes(page, imagej, notes)
        offsets = {
            axis: -float(imagej[key]) * sizes[axis][0]
            for axis, key in (("X", "xorigin"), ("Y", "yorigin"), ("Z", "zorigin"))
            if axis in sizes and isinstance(imagej.get(key), int | float) and imagej[key]
        }
        return sizes, offsets, ()
    if kind == "lsm":
        found = tiff.lsm_metadata or {}
        sizes = {
            axis: (size * _METERS_TO_MICROMETERS, "micrometer")
            for axis in "XYZ"
            if found.get(f"Dimension{axis}", 0) > 1 and (size := _fraction(found.get(f"VoxelSize{axis}")))
        }
        if interval := _fraction(found.get("TimeIntervall")):
            sizes["T"] = interval, "second"
        names = found.get("ChannelColors", {}).get("ColorNames", ())
        return sizes, {}, tuple(str(name) for name in names)
    if kind == "stk":
        found = tiff.stk_metadata or {}
        unit = to_name(str(found.get("CalibrationUnits", "")))
        sizes = {
            axis: (size, unit)
            for axis in "XY"
            if unit and (size := _fraction(_number(found.get(f"{axis}Calibration"))))
        }
        steps = np.unique(found.get("ZDistance", ()))
        if unit and steps.size == 1 and steps[0] > 0:
            sizes["Z"] = float(steps[0]), unit
        return sizes, {}, ()
    if kind == "mmstack":
        found = (tiff.micromanager_metadata or {}).get("Summary", {})
        keys = {"X": "PixelSize_um", "Y": "PixelSize_um", "Z": "z-step_um"}
        sizes = {a: (size, "micrometer") for a, key in keys.items() if (size := _fraction(found.get(key)))}
        return sizes, {}, tuple(str(name) for name in found.get("ChNames", ()))
    return {}, {}, ()


def _number(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else value


def _imagej_sizes(page: Any, imagej: Mapping[str, Any], notes: list[str]) -> _Sizes:
    sizes: _Sizes = {}
    resolution = {"X": _fraction(page.tags.valueof(282)), "Y": _fraction(page.tags.valueof(283))}
    common = str(imagej.get("unit", "")).strip()
    lengths = {axis: 1 / n if (n := resolution[axis]) else None for axis in "XY"}
    spacing = imagej.get("spacing")
    lengths["Z"] = abs(spacing) if isinstance(spacing, int | float) and spacing else None
    for axis, length in lengths.items():
        unit = str(imagej.get(f"{axis.lower()}unit", common)).strip()
        if length is None or unit.lower() in _PIXEL_UNITS:
            continue
        if (name := to_name(unit)) is None and (note := f"unit {unit!r} is unknown and dropped") not in notes:
            notes.append(note)
        sizes[axis] = length, name
    interval = imagej.get("finterval")
    if isinstance(interval, int | float) and interval > 0:
        sizes["T"] = float(interval), to_name(str(imagej.get("tunit", "s"))) or "second"
    return sizes
