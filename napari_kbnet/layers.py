"""What a layer means to a `Restorer`, and the layer that its result becomes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from napari.utils.transforms import Affine

from kbnet_plugin.arrays.axes import AXES, Layout, layout

RECORD = "kbnet"
"""Key of a layer's metadata that holds what was done."""

PREVIEW = "kbnet preview"
"""Key of the metadata of a layer that is only there to be looked at."""

_USUAL = {2: "YX", 3: "ZYX", 4: "TZYX", 5: "TZCYX"}
_KEPT = (
    *("affine", "axis_labels", "rotate", "scale", "shear", "translate", "units"),
    *("colormap", "contrast_limits", "gamma", "opacity", "blending", "rgb", "metadata"),
    *("interpolation2d", "interpolation3d", "rendering", "depiction", "plane", "projection_mode"),
    *("iso_threshold", "attenuation"),
)


def full_resolution(layer: Any) -> Any:
    """The layer's array; of a pyramid its largest level."""
    return layer.data[0] if layer.multiscale else layer.data


def understood(layer: Any) -> str:
    """Axes of a layer's array: its axis labels where they are such, else what is usual.

    Raises
    ------
    ValueError
        If there is nothing usual for so many axes.
    """
    labels = "".join(str(label) for label in layer.axis_labels).upper()
    if len(labels) == layer.ndim and set(labels) <= set(AXES) and len(set(labels)) == len(labels):
        axes = labels
    elif layer.ndim in _USUAL:
        axes = _USUAL[layer.ndim]
    else:
        raise ValueError(f"the layer has {layer.ndim} axes; say what they are by letters of T Z C S Y X")
    return axes + "S" if layer.rgb else axes


def describe(layer: Any, axes: str) -> str:
    """Say what axes make of a layer, in a line.

    Raises
    ------
    ValueError
        If they do not fit.
    """
    arranged = arrange(full_resolution(layer).shape, axes)
    height, width = arranged.size
    colours = arranged.channels - arranged.alpha
    kind = {1: "gray", 3: "RGB"}.get(colours, f"{colours}-channel") + (" + alpha" if arranged.alpha else "")
    return f"{arranged.count:,} {kind} plane{'s' if arranged.count > 1 else ''} of {height} x {width}"


def arrange(shape: tuple[int, ...], axes: str) -> Layout:
    """Lay out an array for a network that takes what its samples are."""
    samples = shape[axes.upper().index("S")] if "S" in axes.upper() and len(axes) == len(shape) else 1
    return layout(tuple(int(n) for n in shape), axes, 3 if samples <= 4 else samples)


def sizes(layer: Any, axes: str) -> dict[str, tuple[float, str | None]]:
    """Size of a pixel or step along each axis, and its unit."""
    steps = zip(axes.replace("S", "") if layer.rgb else axes, layer.scale, layer.units, strict=True)
    return {a: (float(scale), None if str(unit) == "pixel" else str(unit)) for a, scale, unit in steps}


def result(layer: Any, data: Any, name: str, record: dict[str, Any]) -> tuple[Any, dict[str, Any], str]:
    """Layer data tuple of what an image layer became: as the layer in all but data and name."""
    _, state, _ = layer.as_layer_data_tuple()
    kept = {key: state[key] for key in _KEPT if key in state}
    kept["metadata"] = {**kept["metadata"], RECORD: record}
    return data, kept | {"name": name, "multiscale": isinstance(data, list)}, "image"


def part(layer: Any, data: Any, corner: tuple[int, ...], name: str) -> tuple[Any, dict[str, Any], str]:
    """Layer data tuple of a piece of an image layer, from some pixel on."""
    data, state, kind = result(layer, data, name, {})
    placed = Affine(
        scale=layer.scale, rotate=layer.rotate, shear=layer.shear, translate=layer.translate, ndim=layer.ndim
    )
    corner_at = placed(np.array(corner[: layer.ndim], float))
    return data, state | {"translate": corner_at, "metadata": {PREVIEW: True}}, kind


def cut(arranged: Layout, plane: Mapping[str, int], window: tuple[slice, slice]) -> tuple[int | slice, ...]:
    """What to slice an array with for a window of a plane, so that all its axes stay."""
    inner = {"Y": window[0], "X": window[1], arranged.channel_axis: slice(None)}
    return tuple(inner[a] if a in inner else slice(plane[a], plane[a] + 1) for a in arranged.axes)


def picture(arranged: Layout, block: Any) -> Any:
    """(H, W) or (H, W, C) of what `cut` gives, without opacity."""
    single = tuple(i for i, a in enumerate(arranged.axes) if a not in "YX" + arranged.channel_axis)
    whole = arranged.to_picture(np.asarray(block).squeeze(single))
    whole = whole[..., : arranged.channels - arranged.alpha]
    return whole if arranged.channel_axis else whole[..., 0]
