"""Read OME-XML."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from xml.etree import ElementTree

import numpy as np

from ..errors import one_line
from .metadata import Metadata
from .units import convert, is_time, to_name

_SIZES = {"X": "PhysicalSizeX", "Y": "PhysicalSizeY", "Z": "PhysicalSizeZ", "T": "TimeIncrement"}


@dataclass(frozen=True, slots=True)
class OmeInfo:
    """What OME-XML says about an image.

    Attributes
    ----------
    name, description : str or None
    sizes, offsets, channels
        As in `Metadata`.
    colors : tuple of (str or None)
        Red, green and blue of each channel in hexadecimal: ``"00FF00"``.
    notes : tuple of str
        What was dropped or taken for something else.
    """

    name: str | None = None
    description: str | None = None
    sizes: Mapping[str, tuple[float, str | None]] = field(default_factory=dict)
    offsets: Mapping[str, float] = field(default_factory=dict)
    channels: tuple[str, ...] = ()
    colors: tuple[str | None, ...] = ()
    notes: tuple[str, ...] = ()


def read_ome(xml: str, image: int) -> OmeInfo:
    """Read what OME-XML says about an image.

    Parameters
    ----------
    xml : str
        Of any version. If it is invalid, a note says so and the rest is empty.
    image : int
        Number of the image in the document.

    Returns
    -------
    OmeInfo
    """
    try:
        images = parse_xml(xml).findall("{*}Image")
    except ValueError as error:
        return OmeInfo(notes=(f"OME-XML ignored, as it is invalid ({one_line(error, 100)})",))
    if image >= len(images) or (pixels := images[image].find("{*}Pixels")) is None:
        return OmeInfo(notes=("OME-XML ignored, as it does not describe the image",))
    sizes, notes = _read_sizes(pixels.attrib)
    channels = pixels.findall("{*}Channel")
    names = tuple(channel.attrib.get("Name", "") for channel in channels)
    colors = tuple(_hexadecimal(channel.attrib.get("Color")) for channel in channels)
    return OmeInfo(
        name=images[image].attrib.get("Name"),
        description=images[image].findtext("{*}Description"),
        sizes=sizes,
        offsets=_read_offsets(pixels, sizes),
        channels=names if any(names) else (),
        colors=colors if any(colors) else (),
        notes=tuple(notes),
    )


def _read_sizes(attributes: Mapping[str, str]) -> tuple[dict[str, tuple[float, str | None]], list[str]]:
    sizes: dict[str, tuple[float, str | None]] = {}
    notes = []
    for axis, key in _SIZES.items():
        if key not in attributes:
            continue
        size = parse_number(attributes[key])
        unit = attributes.get(f"{key}Unit", "s" if axis == "T" else "µm")
        name = to_name(unit)
        if size is None or size <= 0:
            notes.append(f"{key} {attributes[key]!r} dropped")
        elif name is None or is_time(name) != (axis == "T"):
            notes.append(f"{key} dropped, as its unit {unit!r} is unknown")
        else:
            sizes[axis] = size, name
    return sizes, notes


def _read_offsets(
    pixels: ElementTree.Element, sizes: Mapping[str, tuple[float, str | None]]
) -> dict[str, float]:
    offsets = {}
    plane = pixels.find("{*}Plane")
    for axis, (_, own) in sizes.items():
        if plane is not None and own is not None:
            key = "DeltaT" if axis == "T" else f"Position{axis}"
            position = parse_number(plane.attrib.get(key, ""))
            # Positions without a unit are numbers of the microscope, not lengths.
            unit = to_name(plane.attrib.get(f"{key}Unit", "s" if axis == "T" else ""))
            if position is not None and unit is not None and is_time(unit) == is_time(own):
                offsets[axis] = convert(position, unit, own)
    return offsets


def parse_xml(xml: str) -> ElementTree.Element:
    """Parse XML of strangers.

    Raises
    ------
    ValueError
        If it is invalid, or as `check_xml`.
    """
    try:
        return ElementTree.fromstring(check_xml(xml))
    except ElementTree.ParseError as error:
        raise ValueError(str(error)) from error


def check_xml(xml: str) -> str:
    """Return XML without its declaration, which may name another encoding than that of the text.

    Raises
    ------
    ValueError
        If it defines entities: a few of them can expand to gigabytes.
    """
    if re.search(r"<!(DOCTYPE|ENTITY)", xml, re.IGNORECASE):
        raise ValueError("it defines entities")
    return re.sub(r"^[\s\ufeff]*(<\?xml[^>]*\?>)?", "", xml.rstrip("\0"))


def parse_number(text: str) -> float | None:
    """Return a finite number; None if a text is none."""
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def _hexadecimal(color: str | None) -> str | None:
    value = parse_number(color or "")
    return None if value is None else f"{int(value) >> 8 & 0xFFFFFF:06X}"  # red, green, blue, opacity


def find_colors(metadata: Metadata) -> tuple[str | None, ...]:
    """Return the colour of each channel as OMERO, ImageJ or OME-XML stores it; empty if there are none.

    Parameters
    ----------
    metadata : Metadata

    Returns
    -------
    tuple of (str or None)
        Red, green and blue in hexadecimal: ``"00FF00"``.
    """
    attributes = metadata.attributes.get("ome", metadata.attributes)
    omero = attributes.get("omero") if isinstance(attributes, Mapping) else None
    listed = omero.get("channels") if isinstance(omero, Mapping) else None
    if isinstance(listed, list):
        texts = [str(entry.get("color", "")) if isinstance(entry, Mapping) else "" for entry in listed]
        return tuple(t.upper() if re.fullmatch("[0-9A-Fa-f]{6}", t) else None for t in texts)
    if "LUTs" in metadata.imagej:
        tables = metadata.imagej["LUTs"]
        tables = tables if isinstance(tables, list | tuple) else [tables]
        return tuple("".join(f"{int(v):02X}" for v in np.asarray(table)[:, -1]) for table in tables)
    return read_ome(metadata.ome, metadata.ome_image).colors if metadata.ome else ()
