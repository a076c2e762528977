"""Open OME-TIFF and OME-Zarr with pixel sizes, units, names and colours: a reader for napari."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from weakref import finalize

import numpy as np

from .layers import LARGE, RECORD
from .saving import LIMITS, LayerData

_RGB = "Red", "Green", "Blue"


def get_reader(path: str | Sequence[str]) -> Callable[[Any], list[LayerData]] | None:
    """Return the function that reads a path, or None if it is not of these formats."""
    first = path if isinstance(path, str) else path[0]
    return read_layers if first.lower().endswith((".ome.tif", ".ome.tiff", ".zarr")) else None


def read_layers(paths: str | Sequence[str]) -> list[LayerData]:
    """Read the images of files; those above 1 GiB are read as they are displayed.

    Raises
    ------
    ValueError
        If a file is damaged; one line that names it.
    """
    return [layer for path in ([paths] if isinstance(paths, str) else paths) for layer in _read(Path(path))]


def _read(path: Path) -> list[LayerData]:
    from kbnet_plugin.io import open_images

    found = []
    with ExitStack() as stack:
        for image in stack.enter_context(open_images(path)):
            levels, lazy = _levels(path, image)
            found.extend(_layers(path, image, levels))
            if lazy:  # the file stays open as long as the array
                finalize(levels[0], stack.pop_all().close)
    return found


def _levels(path: Path, image: Any) -> tuple[list[Any], bool]:
    """Return the resolutions of an image, and whether its file must stay open."""
    import dask.array as da

    array, chunks = image.array, image.metadata.chunks
    if chunks:
        attributes = image.metadata.attributes
        images = attributes.get("ome", attributes).get("multiscales") or [{}]
        names = [str(dataset["path"]) for dataset in images[0].get("datasets", ())]
        folder = path / image.metadata.path
        return [da.from_zarr(folder / name) for name in names] or [
            da.from_array(array, chunks, name=False)
        ], False
    size = math.prod(array.shape) * np.dtype(array.dtype).itemsize
    if size <= LARGE:
        return [np.asarray(array[()])], False
    axes = image.metadata.axes or ""
    planes = tuple(n if a in "YXS" else 1 for a, n in zip(axes, array.shape, strict=True))
    return [da.from_array(array, planes, name=False)], True


def _layers(path: Path, image: Any, levels: list[Any]) -> list[LayerData]:
    from kbnet_plugin.io.ome_xml import find_colors

    info = image.metadata
    axes = info.axes or ""
    if info.channels[:3] == _RGB and len(info.channels) in (3, 4):  # OME-Zarr has no other way to say so
        axes = axes.replace("C", "S")
    name = path.name.split(".")[0] + (f" {info.path}" if info.path else "")
    state: dict[str, Any] = {"name": name}
    if len(axes) == levels[0].ndim:
        if "S" in axes:
            levels = [np.moveaxis(level, axes.index("S"), -1) for level in levels]
            state["rgb"] = True
        placed = axes.replace("S", "").replace("C", "") if "C" in axes else axes.replace("S", "")
        sizes = {a: info.sizes.get(a, (1.0, None)) for a in placed}
        state |= {
            "scale": [sizes[a][0] for a in placed],
            "units": [sizes[a][1] or "pixel" for a in placed],
            "translate": [info.offsets.get(a, 0.0) for a in placed],
            "axis_labels": [a.lower() for a in placed],
        }
    record = _record(info)
    if record:
        state["metadata"] = {RECORD: record | {"axes": axes.replace("C", "")}}
    limits = [
        tuple(float(v) for v in pair.split(" to ")) for pair in record.pop(LIMITS, "").split("; ") if pair
    ]
    windows = limits or [(w["start"], w["end"]) for w in _windows(info)]
    colours = [f"#{colour}" if colour else None for colour in find_colors(info)]
    if "C" not in axes:
        if windows and not state.get("rgb"):
            state["contrast_limits"] = windows[0]
        if colours and colours[0] and not state.get("rgb"):
            state["colormap"] = _colormap(colours[0])
        return [(levels if len(levels) > 1 else levels[0], state | {"multiscale": len(levels) > 1}, "image")]
    at = axes.index("C")
    count = levels[0].shape[at]
    layers = []
    for number in range(count):
        parts = [level[(*[slice(None)] * at, number)] for level in levels]
        own = state | {"multiscale": len(parts) > 1}
        own["name"] = info.channels[number] if len(info.channels) == count else f"{name} {number}"
        own["blending"] = "additive" if number else "translucent_no_depth"
        if len(windows) == count:
            own["contrast_limits"] = windows[number]
        if len(colours) == count and colours[number]:
            own["colormap"] = _colormap(str(colours[number]))
        layers.append((parts if len(parts) > 1 else parts[0], own, "image"))
    return layers


def _colormap(colour: str) -> Any:
    from napari.utils import Colormap

    return "gray" if colour.upper() == "#FFFFFF" else Colormap([[0, 0, 0, 1], colour], name=colour)


def _windows(info: Any) -> list[dict[str, float]]:
    attributes = info.attributes.get("ome", info.attributes)
    channels = (attributes.get("omero") or {}).get("channels") or []
    windows = [channel.get("window") or {} for channel in channels]
    return windows if all({"start", "end"} <= window.keys() for window in windows) else []


def _record(info: Any) -> dict[str, Any]:
    """Return what kbnet noted in the file."""
    if isinstance(known := info.attributes.get("kbnet"), dict):
        return dict(known)
    if not info.ome:
        return {}
    from kbnet_plugin.io.ome_xml import parse_xml

    annotations = parse_xml(info.ome).findall(".//{*}MapAnnotation")
    ours = [a for a in annotations if a.attrib.get("ID", "").startswith("Annotation:kbnet:")]
    return {m.attrib["K"]: m.text or "" for a in ours for m in a.findall(".//{*}M")}
