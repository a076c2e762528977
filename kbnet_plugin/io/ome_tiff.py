"""Read the metadata of TIFF stacks (OME, ImageJ, plain), and write OME-TIFF."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from numpy.typing import NDArray

from ..arrays.axes import AXES, Layout
from ..files import atomic_path
from .disk_arrays import RawArray
from .metadata import UNITS, StackMetadata
from .pyramid import TILE, half_shape, halve


def tiff_info(tiff: tifffile.TiffFile) -> StackMetadata:
    """Read the metadata of the first series of an open TIFF."""
    series = tiff.series[0]
    free = iter([a for a in "TZC" if a not in series.axes])
    # Axes that tifffile cannot name, such as I and Q, take the letters that are free.
    axes = "".join(a if a in AXES else next(free, "?") for a in series.axes)
    sizes: dict[str, tuple[float, str | None]] = {}
    channels: tuple[str, ...] = ()
    if tiff.is_ome and tiff.ome_metadata:
        sizes, channels = _ome_sizes(tiff.ome_metadata)
    elif tiff.is_imagej:
        sizes = _imagej_sizes(tiff)
    page = tiff.pages.first
    return StackMetadata(
        axes=None if "?" in axes else axes,
        sizes=sizes,
        channels=channels,
        levels=len(series.levels),
        icc=page.tags.valueof("InterColorProfile"),
    )


def _ome_sizes(xml: str) -> tuple[dict[str, tuple[float, str | None]], tuple[str, ...]]:
    pixels = ElementTree.fromstring(xml).find(".//{*}Image/{*}Pixels")
    if pixels is None:
        return {}, ()
    names = {"X": "PhysicalSizeX", "Y": "PhysicalSizeY", "Z": "PhysicalSizeZ", "T": "TimeIncrement"}
    sizes: dict[str, tuple[float, str | None]] = {
        axis: (float(pixels.attrib[name]), pixels.attrib.get(f"{name}Unit", "s" if axis == "T" else "µm"))
        for axis, name in names.items()
        if name in pixels.attrib
    }
    channels = tuple(c.attrib.get("Name", "") for c in pixels.findall("{*}Channel"))
    return sizes, channels if any(channels) else ()


def _imagej_sizes(tiff: tifffile.TiffFile) -> dict[str, tuple[float, str | None]]:
    metadata = tiff.imagej_metadata or {}
    unit = metadata.get("unit")
    unit = {"micron": "µm", "um": "µm", "\\u00B5m": "µm"}.get(str(unit), unit)
    sizes: dict[str, tuple[float, str | None]] = {}
    tags = tiff.pages.first.tags
    for axis in "XY":
        resolution = tags.valueof(f"{axis}Resolution")
        if unit and resolution and resolution[0]:
            sizes[axis] = (resolution[1] / resolution[0], unit)
    if "spacing" in metadata:
        sizes["Z"] = (float(metadata["spacing"]), unit or "µm")
    if metadata.get("finterval"):
        sizes["T"] = (float(metadata["finterval"]), "s")
    return sizes


def tiff_order(axes: str) -> str:
    """Return the order in which TIFF stores some axes: Y and X last, followed only by S."""
    return "".join(a for a in axes if a not in "YXS") + "YX" + ("S" if "S" in axes else "")


def finish_tiff(data: Path, grown: RawArray, info: StackMetadata, order: str, target: Path) -> None:
    """Write a finished result as a compressed, tiled OME-TIFF, with a pyramid if the source has one.

    Parameters
    ----------
    data : Path
        File of the values; the levels of the pyramid grow beside it.
    grown : RawArray
        The values.
    info : StackMetadata
        Metadata to write.
    order : str
        Axes of `grown`, in the order of `tiff_order`.
    target : Path
        File to write.
    """
    metadata: dict[str, Any] = {"axes": order}
    for axis, (size, unit) in info.sizes.items():
        if axis in order and axis in "XYZT":
            name = "TimeIncrement" if axis == "T" else f"PhysicalSize{axis}"
            short = {long: brief for brief, long in UNITS.items()}
            metadata |= {name: size} | ({f"{name}Unit": short.get(unit, unit)} if unit else {})
    if info.channels:
        metadata["Channel"] = {"Name": list(info.channels)}
    samples = grown.shape[-1] if order.endswith("S") else 1
    options: dict[str, Any] = {
        "tile": (TILE, TILE),
        "compression": "zlib",
        "predictor": grown.dtype.kind in "ui",
        "photometric": "rgb" if samples in (3, 4) else "minisblack",
        "planarconfig": "contig" if samples > 1 else None,
        "extrasamples": ["unassalpha"] if samples in (2, 4) else None,
        "iccprofile": info.icc,
    }
    levels = [grown]
    for number in range(1, info.levels):
        level = RawArray(data.with_name(f"level{number}"), half_shape(levels[-1].shape, order), grown.dtype)
        halve(levels[-1], level, order)
        levels.append(level)
    large = int(np.prod(grown.shape)) * grown.dtype.itemsize > 1 << 31
    with atomic_path(target) as temporary, tifffile.TiffWriter(temporary, bigtiff=large, ome=True) as writer:
        for number, level in enumerate(levels):
            extra = {"subifds": len(levels) - 1, "metadata": metadata} if number == 0 else {"subfiletype": 1}
            writer.write(_file_tiles(level, order), shape=level.shape, dtype=level.dtype, **options, **extra)


def _file_tiles(level: RawArray, order: str) -> Iterator[NDArray[Any]]:
    arranged = Layout(order, level.shape, "S" if "S" in order else "", alpha=False)
    height, width = arranged.size
    for plane in arranged.planes():
        for y in range(0, height, TILE):
            for x in range(0, width, TILE):
                part = level[arranged.key(plane, (slice(y, y + TILE), slice(x, x + TILE)))]
                missing = [(0, TILE - n) for n in part.shape[:2]] + [(0, 0)] * (part.ndim - 2)
                yield np.pad(part, missing)
