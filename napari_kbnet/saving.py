"""Write layers with everything that they say about themselves: a writer for napari."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from kbnet_plugin.arrays.axes import layout
from kbnet_plugin.errors import BadInput

from .layers import RECORD, axes_of
from .worker import WorkError

LIMITS = "contrast limits"
"""Key of the record in a file: from which to which value the channels are displayed."""

_SAID = "model", "reason", "weights", "settings", "device", "layer", "finished", "tiles"

LayerData = tuple[Any, dict[str, Any], str]


def write_layers(path: str, layers: Sequence[LayerData]) -> list[str]:
    """Write image layers as one OME-TIFF or OME-Zarr; several of one shape are its channels.

    Parameters
    ----------
    path : str
        Ends in .ome.tif or .ome.zarr. Replaced if it exists.
    layers : sequence of (array, dict, str)
        As napari hands them to writers.

    Raises
    ------
    WorkError
        If the layers do not fit together, or the format cannot store them.
    """
    try:
        _write(path, layers)
    except ValueError as error:  # which napari takes for "not this writer's file"
        raise WorkError(str(error)) from error
    return [path]


def _write(path: str, layers: Sequence[LayerData]) -> None:
    from kbnet_plugin.io import Frame, Metadata, grow

    arrays = [data[0] if state.get("multiscale") else data for data, state, _ in layers]
    states = [state for _, state, _ in layers]
    axes = _axes(arrays[0], states[0])
    several = len(layers) > 1
    if several:
        if len({(tuple(a.shape), np.dtype(a.dtype)) for a in arrays}) > 1 or set(axes) & set("CS"):
            names = ", ".join(state["name"] for state in states)
            raise BadInput(f"{path}: {names} do not fit together as channels; save each by itself")
        at = axes.index("Y")
        axes = f"{axes[:at]}C{axes[at:]}"
    shape, dtype = list(arrays[0].shape), np.dtype(arrays[0].dtype)
    if several:
        shape.insert(at, len(arrays))
    metadata = Metadata(
        axes=axes,
        sizes=dict(_sizes(states[0], axes)),
        offsets=dict(_offsets(states[0], axes)),
        channels=tuple(state["name"] for state in states) if several else (),
        attributes={} if "S" in axes else {"omero": {"channels": [_shown(s, dtype) for s in states]}},
        history=_record(states),
    )
    if "C" in axes and not several:
        metadata.attributes["omero"]["channels"] *= shape[axes.index("C")]  # type: ignore[index]
    planes = layout(tuple(shape), axes, shape[axes.index("S")] if "S" in axes else 1)
    whole = slice(None), slice(None)
    with grow(Path(path), [Frame(tuple(shape), dtype, metadata)]) as (growing,):
        for plane in planes.planes():
            key = planes.key(plane, whole)
            if several:
                array, own = arrays[key[at]], (*key[:at], *key[at + 1 :])  # type: ignore[call-overload]
            else:
                array, own = arrays[0], key
            growing.array[key] = np.asarray(array[own])


def _axes(array: Any, state: dict[str, Any]) -> str:
    known = state.get("metadata", {}).get(RECORD, {}).get("axes", "")
    if len(known) == array.ndim:
        return str(known)
    return axes_of(state.get("axis_labels", ()), array.ndim - bool(state.get("rgb")), bool(state.get("rgb")))


def _sizes(state: dict[str, Any], axes: str) -> Any:
    units = state.get("units") or itertools.repeat("pixel")
    for axis, size, unit in zip(_placed(state, axes), state.get("scale", ()), units, strict=False):
        yield axis, (abs(float(size)) or 1.0, None if str(unit) == "pixel" else str(unit))


def _offsets(state: dict[str, Any], axes: str) -> Any:
    for axis, offset in zip(_placed(state, axes), state.get("translate", ()), strict=False):
        if offset:
            yield axis, float(offset)


def _placed(state: dict[str, Any], axes: str) -> str:
    """Return the axes that the layer has a scale for."""
    count = len(state.get("scale", ()))
    letters = axes.replace("S", "") if state.get("rgb") else axes
    return letters if len(letters) == count else letters.replace("C", "")


def _shown(state: dict[str, Any], dtype: np.dtype[Any]) -> dict[str, Any]:
    """Return OMERO's entry for a channel."""
    low, high = (float(v) for v in state.get("contrast_limits") or (0, 1))
    colours = state["colormap"]["colors"] if isinstance(state.get("colormap"), dict) else None
    brightest = np.asarray(colours)[-1][:3] if colours is not None else (1, 1, 1)
    limits = np.iinfo(dtype) if dtype.kind in "ui" and dtype.itemsize <= 2 else None
    return {
        "label": state.get("name", ""),
        "color": "".join(f"{round(255 * float(v)):02X}" for v in brightest),
        "active": True,
        "window": {
            "min": float(limits.min) if limits else low,
            "max": float(limits.max) if limits else high,
            "start": low,
            "end": high,
        },
    }


def _record(states: Sequence[dict[str, Any]]) -> dict[str, str]:
    """Return what was done to the pixels, and how they are displayed, as texts."""
    shown = "; ".join(f"{s['contrast_limits'][0]:g} to {s['contrast_limits'][1]:g}" for s in states)
    records = [s.get("metadata", {}).get(RECORD) for s in states]
    found: dict[str, str] = {}
    for record in filter(None, records):
        found["software"] = f"kbnet {record.get('versions', {}).get('kbnet', '')}".strip()
        for key in _SAID:
            value = record.get(key)
            if value in (None, "", {}):
                continue
            text = str(value)
            if isinstance(value, dict):
                text = ", ".join(f"{name} {each}" for name, each in value.items())
            found[key] = f"{found[key]}; {text}" if found.get(key, text) != text else text
    return found | {LIMITS: shown}
