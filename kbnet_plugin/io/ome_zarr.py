"""Read and write OME-Zarr 0.4 and 0.5 (zarr formats 2 and 3).

References
----------
J. Moore et al., "OME-Zarr: a cloud-optimized bioimaging file format with international community support",
Histochemistry and Cell Biology 160, 2023; https://ngff.openmicroscopy.org
"""

from __future__ import annotations

import importlib
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ..arrays.axes import AXES
from ..errors import one_line
from .disk_arrays import Reordered, ZarrArray
from .metadata import UNITS, StackMetadata
from .pyramid import TILE, half_shape, halve, level_count

_ORDER = "TCZYX"  # required by the format
_KINDS = {"T": "time", "C": "channel", "Z": "space", "Y": "space", "X": "space"}


def is_zarr(path: Path) -> bool:
    """Tell whether a path is a zarr group or array, or will be one, by its name."""
    return path.suffix == ".zarr" or any((path / n).is_file() for n in ("zarr.json", ".zgroup", ".zarray"))


def import_zarr() -> Any:
    """Import zarr, which is optional.

    Raises
    ------
    ValueError
        If it is not installed; the message names the extra.
    """
    try:
        return importlib.import_module("zarr")
    except ImportError:
        raise ValueError("stacks need zarr, which is not installed: pip install 'kbnet[arrays]'") from None


def open_zarr(path: Path) -> tuple[Any, StackMetadata]:
    """Open a zarr array, or the full resolution of the first image of an OME-Zarr group.

    Raises
    ------
    ValueError
        If it is damaged or contains no image; one line that names it.
    """
    zarr = import_zarr()
    try:
        node = zarr.open(path, mode="r")
    except Exception as error:  # each of zarr's readers raises its own
        raise ValueError(f"{path}: damaged, or not a zarr ({one_line(error)}); export it again") from error
    if isinstance(node, zarr.Array):
        return node, StackMetadata(zarr_format=node.metadata.zarr_format, chunks=node.chunks)
    attributes = dict(node.attrs)
    ome = attributes.get("ome", attributes)
    try:
        image = ome["multiscales"][0]
        array = node[image["datasets"][0]["path"]]
    except (KeyError, IndexError, TypeError):
        arrays = ", ".join(sorted(name for name, _ in node.arrays())[:5]) or "none"
        raise ValueError(
            f"{path}: no OME-Zarr image in this group; open one of its arrays instead ({arrays})"
        ) from None
    try:
        axes, sizes, offsets = _zarr_axes(image, array.ndim)
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise ValueError(f"{path}: invalid OME-Zarr metadata ({one_line(error)}); export it again") from None
    labels = [str(c.get("label", "")) for c in ome.get("omero", {}).get("channels", [])]
    return array, StackMetadata(
        axes=axes,
        sizes=sizes,
        offsets=offsets,
        channels=tuple(labels),
        levels=len(image["datasets"]),
        attributes=attributes,
        zarr_format=array.metadata.zarr_format,
        chunks=array.chunks,
    )


def _zarr_axes(
    image: Mapping[str, Any], count: int
) -> tuple[str, dict[str, tuple[float, str | None]], dict[str, float]]:
    """Return axes, sizes and offsets as in `StackMetadata`."""
    named = image.get("axes") or [{"name": a} for a in _ORDER.lower()[-count:]]
    entries = [{"name": e} if isinstance(e, str) else e for e in named]
    axes = "".join(str(e["name"]).upper() for e in entries)
    if len(axes) != count or any(a not in AXES for a in axes):
        raise ValueError(f"axes {axes!r} for {count} dimensions")
    scales, offsets = [1.0] * count, [0.0] * count
    for step in (  # those of the dataset apply before those of the image
        *image["datasets"][0].get("coordinateTransformations", ()),
        *image.get("coordinateTransformations", ()),
    ):
        if step["type"] == "scale":
            factors = [float(f) for f in step["scale"]]
            scales = [s * f for s, f in zip(scales, factors, strict=True)]
            offsets = [o * f for o, f in zip(offsets, factors, strict=True)]
        elif step["type"] == "translation":
            offsets = [o + float(t) for o, t in zip(offsets, step["translation"], strict=True)]
    sizes = {a: (s, e.get("unit")) for a, s, e in zip(axes, scales, entries, strict=True)}
    return axes, sizes, dict(zip(axes, offsets, strict=True))


def open_levels(path: Path, axes: str) -> list[Reordered]:
    """Open every level of an OME-Zarr that `kbnet_plugin.io.stacks.grow` wrote, largest first.

    Parameters
    ----------
    path : Path
    axes : str
        Axes that it was written with; the levels have them, too.
    """
    zarr = import_zarr()
    order = zarr_order(axes, path)
    group = zarr.open_group(path, mode="r")
    return [Reordered(group[str(number)], order, axes) for number in range(len(list(group.array_keys())))]


def zarr_order(axes: str, target: Path) -> str:
    """Return the order in which OME-Zarr stores some axes: TCZYX, with S in place of C.

    Raises
    ------
    ValueError
        If there are both channels (C) and samples (S).
    """
    if "S" in axes and "C" in axes:
        raise ValueError(
            f"{target}: OME-Zarr has only one axis for channels and colours; write an .ome.tif instead"
        )
    return "".join(sorted(axes, key=lambda a: _ORDER.index("C" if a == "S" else a)))


def open_group(
    path: Path, info: StackMetadata, order: str, shape: tuple[int, ...], dtype: np.dtype[Any]
) -> Any:
    """Open or create the group that a result grows in, with its full resolution only."""
    zarr = import_zarr()
    if (path / "0").is_dir():
        for partial in path.rglob("*.partial"):  # zarr's name for a chunk while it writes it
            partial.unlink()
        return zarr.open_group(path, mode="r+")
    if path.exists():
        shutil.rmtree(path)
    group = zarr.create_group(path, zarr_format=info.zarr_format)
    _create_level(group, 0, info, order, shape, dtype)
    return group


def _create_level(
    group: Any, level: int, info: StackMetadata, order: str, shape: tuple[int, ...], dtype: np.dtype[Any]
) -> Any:
    chunks = (
        info.chunks if info.chunks and len(info.chunks) == len(shape) and info.axes in (None, order) else None
    )
    if chunks is None:
        chunks = tuple(
            min(n, TILE) if a in "YX" else n if a == "S" else 1 for a, n in zip(order, shape, strict=True)
        )
    options: dict[str, Any] = {"chunk_key_encoding": {"name": "v2", "separator": "/"}}
    if info.zarr_format == 3:
        options = {"dimension_names": [_zarr_name(a) for a in order]}
    return group.create_array(
        str(level),
        shape=shape,
        dtype=dtype,
        chunks=tuple(min(c, n) for c, n in zip(chunks, shape, strict=True)),
        overwrite=True,
        **options,
    )


def _zarr_name(axis: str) -> str:
    return "c" if axis == "S" else axis.lower()


def finish_zarr(data: Path, group: Any, info: StackMetadata, order: str, target: Path) -> None:
    """Add pyramid and metadata to a finished result, and move it to its final name.

    Parameters
    ----------
    data : Path
        Folder of the group.
    group : zarr.Group
        As `open_group` returns it.
    info : StackMetadata
        Metadata to write.
    order : str
        Axes of its arrays, in the order of `zarr_order`.
    target : Path
        Final name; replaced if it exists.
    """
    level = group["0"]
    count = level_count(level.shape, order, info.levels)
    for number in range(1, count):
        shape = half_shape(level.shape, order)
        above = _create_level(group, number, info, order, shape, level.dtype)
        above = ZarrArray(above, data / str(number))
        halve(level, above, order)
        above.sync()  # before the journal is deleted, without which they could not be rebuilt
        level = above
    image: dict[str, Any] = {
        "axes": [_zarr_axis(a, info) for a in order],
        "datasets": [
            {"path": str(n), "coordinateTransformations": _transformations(order, info, 2**n)}
            for n in range(count)
        ],
    }
    attributes = dict(info.attributes)
    ome = dict(attributes.get("ome", attributes))
    before = (ome.get("multiscales") or [{}])[0]
    image |= {n: before[n] for n in ("name",) if n in before}
    if info.channels and "omero" not in ome:
        ome["omero"] = {
            "channels": [
                {"label": name, "color": "FFFFFF", "active": True, "window": _window(group["0"].dtype)}
                for name in info.channels
            ]
        }
    ome.pop("labels", None)  # they are not copied
    if info.zarr_format == 3:
        ome |= {"version": "0.5", "multiscales": [image]}
        group.attrs.put({k: v for k, v in attributes.items() if k != "ome"} | {"ome": ome})
    else:
        group.attrs.put(ome | {"multiscales": [image | {"version": "0.4"}]})
    if target.is_dir():
        shutil.rmtree(target)
    target.unlink(missing_ok=True)
    data.rename(target)


def _zarr_axis(axis: str, info: StackMetadata) -> dict[str, str]:
    kind = _KINDS["C" if axis == "S" else axis]
    unit = info.sizes.get(axis, (1.0, None))[1]
    entry = {"name": _zarr_name(axis), "type": kind}
    return entry | {"unit": UNITS.get(unit, unit)} if unit else entry


def _transformations(order: str, info: StackMetadata, factor: int) -> list[dict[str, Any]]:
    """Return scale and position of a level whose pixels are means of `factor` x `factor` source pixels."""
    scales, offsets = [], []
    for axis in order:
        size, times = info.sizes.get(axis, (1.0, None))[0], factor if axis in "YX" else 1
        scales.append(size * times)
        offsets.append(info.offsets.get(axis, 0.0) + size * (times - 1) / 2)
    steps: list[dict[str, Any]] = [{"type": "scale", "scale": scales}]
    return [*steps, {"type": "translation", "translation": offsets}] if any(offsets) else steps


def _window(dtype: np.dtype[Any]) -> dict[str, float]:
    top = float(np.iinfo(dtype).max) if dtype.kind in "ui" else 1.0
    return {"min": 0.0, "max": top, "start": 0.0, "end": top}
