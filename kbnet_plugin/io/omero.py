"""How viewers show an OME-Zarr image: the names, colours and ranges of its channels."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from ..arrays.axes import Layout

_COLOURS = {
    2: (("Gray", "FFFFFF"), ("Alpha", "FFFFFF")),
    3: (("Red", "FF0000"), ("Green", "00FF00"), ("Blue", "0000FF")),
}
_COLOURS[4] = (*_COLOURS[3], ("Alpha", "FFFFFF"))


def make_omero(level: Any, axes: str, names: Sequence[str]) -> dict[str, Any] | None:
    """Make OME-Zarr's ``omero`` for an image that has none.

    Parameters
    ----------
    level : array
        Its smallest level. Each channel is shown from its least to its largest value; colours share one
        range, which for whole numbers is that of the dtype, so that they look as they are.
    axes : str
        Axes of `level`.
    names : sequence of str
        Names of the channels; empty if there are none.

    Returns
    -------
    dict or None
        None if there are neither names nor colours.

    References
    ----------
    .. [1] https://ngff.openmicroscopy.org/0.5/#omero-md
    """
    dtype = np.dtype(level.dtype)
    axis = next((a for a in axes if a in "SC"), "")
    count = int(level.shape[axes.index(axis)]) if axis else 1
    channels = list(_COLOURS.get(count, ())) if axis == "S" else [(name, "FFFFFF") for name in names[:count]]
    if not channels:
        return None
    channels += [("", "FFFFFF")] * (count - len(channels))
    if axis == "S" and dtype.kind in "ui":
        limits = [(float(np.iinfo(dtype).min), float(np.iinfo(dtype).max))] * count
    else:
        limits = _limits(level, axes, count if axis == "C" else 1) * (count if axis == "S" else 1)
    return {
        "channels": [
            {"label": name, "color": colour, "active": name != "Alpha", "window": _window(*found, dtype)}
            for (name, colour), found in zip(channels, limits, strict=True)
        ]
    }


def _limits(level: Any, axes: str, channels: int) -> list[tuple[float, float]]:
    """Return the least and largest finite value of each channel, read plane by plane."""
    planes = Layout(axes, tuple(level.shape), "", alpha=False)
    found = [(math.inf, -math.inf)] * channels
    everything = slice(None), slice(None)
    for plane in planes.planes():
        values = np.asarray(level[planes.key(plane, everything)]).astype(np.float64)
        values = values[np.isfinite(values)]
        if values.size:
            low, high = found[planes.channel(plane)]
            found[planes.channel(plane)] = min(low, float(values.min())), max(high, float(values.max()))
    return found


def _window(low: float, high: float, dtype: np.dtype[Any]) -> dict[str, float]:
    if low > high:  # no finite value
        low, high = 0.0, 1.0
    if low == high:
        high = low + 1.0
    least, most = low, high
    if dtype.kind in "ui" and dtype.itemsize <= 2:  # small enough for the slider that these limit
        least, most = float(np.iinfo(dtype).min), float(np.iinfo(dtype).max)
    return {"min": least, "max": max(most, high), "start": low, "end": high}
