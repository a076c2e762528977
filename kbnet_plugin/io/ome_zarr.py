"""OME-Zarr, of zarr format 2 and 3."""

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
from .pyramid import half_shape, halve, level_count

_ORDER = "TCZYX"  # that the format demands
_KINDS = {"T": "time", "C": "channel", "Z": "space", "Y": "space", "X": "space"}
_TILE = 512  # largest side of a chunk that is written


def is_zarr(path: Path) -> bool:
    """Whether a path is, or by its name will be, a zarr group or array."""
    return path.suffix == ".zarr" or any((path / n).is_file() for n in ("zarr.json", ".zgroup", ".zarray"))


def import_zarr() -> Any:
    """The package zarr, which comes with an extra."""
    try:
        return importlib.import_module("zarr")
    except ImportError:
        raise ValueError("stacks need zarr, which is not installed: pip install 'kbnet[arrays]'") from None


def open_zarr(path: Path) -> tuple[Any, StackMetadata]:
    zarr = import_zarr()
    try:
        node = zarr.open(path, mode="r")
    except Exception as error:  # each of its readers raises its own
        raise ValueError(f"{path}: damaged, or no zarr ({one_line(error)})") from error
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
            f"{path}: no OME-Zarr image in this group; name one of its arrays ({arrays})"
        ) from None
    try:
        axes, sizes, offsets = _zarr_axes(image, array.ndim)
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise ValueError(f"{path}: OME-Zarr metadata without sense ({one_line(error)})") from None
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
    """Axes, and as in `StackMetadata` sizes and offsets."""
    given = image.get("axes") or [{"name": a} for a in _ORDER.lower()[-count:]]
    entries = [{"name": e} if isinstance(e, str) else e for e in given]
    axes = "".join(str(e["name"]).upper() for e in entries)
    if len(axes) != count or any(a not in AXES for a in axes):
        raise ValueError(f"axes {axes!r} of {count} dimensions")
    scales, offsets = [1.0] * count, [0.0] * count
    for step in (  # the dataset's own come first
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
    """Open every resolution of an OME-Zarr that `grow` wrote, along the axes that it was written by."""
    zarr = import_zarr()
    order = zarr_order(axes, path)
    group = zarr.open_group(path, mode="r")
    return [Reordered(group[str(number)], order, axes) for number in range(len(list(group.array_keys())))]


def zarr_order(axes: str, target: Path) -> str:
    if "S" in axes and "C" in axes:
        raise ValueError(f"{target}: OME-Zarr has one axis for channels and colours; write .ome.tif")
    return "".join(sorted(axes, key=lambda a: _ORDER.index("C" if a == "S" else a)))


def open_group(
    path: Path, info: StackMetadata, order: str, shape: tuple[int, ...], dtype: np.dtype[Any]
) -> Any:
    """Open the group that a result grows in, or make it, with its full resolution only."""
    zarr = import_zarr()
    if (path / "0").is_dir():
        for torn in path.rglob("*.partial"):  # zarr writes a chunk under such a name first
            torn.unlink()
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
            min(n, _TILE) if a in "YX" else n if a == "S" else 1 for a, n in zip(order, shape, strict=True)
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
    """Add the pyramid and the metadata, and give the group its name."""
    level = group["0"]
    count = level_count(level.shape, order, info.levels)
    for number in range(1, count):
        shape = half_shape(level.shape, order)
        above = _create_level(group, number, info, order, shape, level.dtype)
        above = ZarrArray(above, data / str(number))
        halve(level, above, order)
        above.sync()  # before the journal, which could have them made again, goes
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
    ome.pop("labels", None)  # stay with the source
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
    """Where the pixels of a level lie, of which each is the mean of `factor` x `factor` of the source's."""
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
