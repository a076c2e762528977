"""From napari layers to arrays and axes, and from results to layers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from napari.utils.transforms import Affine

from kbnet_plugin.arrays.axes import AXES, Layout, layout

from .placing import OPAQUE

RECORD = "kbnet"
"""Key of a layer's metadata for the record of its restoration."""

PREVIEW = "kbnet preview"
"""Key of a layer's metadata that marks a preview."""

LARGE = 1 << 30
"""Size in bytes above which results are kept out of memory."""

_USUAL = {2: "YX", 3: "ZYX", 4: "TZYX", 5: "TZCYX"}
_KEPT = (
    *("affine", "axis_labels", "rotate", "scale", "shear", "translate", "units"),
    *("colormap", "contrast_limits", "gamma", "opacity", "blending", "rgb", "metadata"),
    *("interpolation2d", "interpolation3d", "rendering", "depiction", "plane", "projection_mode"),
    *("iso_threshold", "attenuation"),
)


def full_resolution(layer: Any) -> Any:
    """Return the layer's array; of a pyramid, its largest level."""
    return layer.data[0] if layer.multiscale else layer.data


def guess_axes(layer: Any) -> str:
    """Return the axes of a layer's array: its axis labels if valid, else the usual ones.

    Raises
    ------
    ValueError
        If no axes are usual for this number of dimensions.
    """
    return axes_of(layer.axis_labels, layer.ndim, layer.rgb)


def axes_of(axis_labels: Sequence[str], ndim: int, rgb: bool) -> str:
    """Return the same for a layer with these properties."""
    labels = "".join(str(label) for label in axis_labels).upper()
    if len(labels) == ndim and set(labels) <= set(AXES) and len(set(labels)) == len(labels):
        axes = labels
    elif ndim in _USUAL:
        axes = _USUAL[ndim]
    else:
        raise ValueError(f"The layer has {ndim} axes; name them with letters of T Z C S Y X.")
    return axes + "S" if rgb else axes


def describe(layer: Any, axes: str) -> str:
    """Describe in one line how a layer is divided into planes.

    Raises
    ------
    ValueError
        If the axes do not fit the layer.
    """
    arranged = arrange(full_resolution(layer).shape, axes)
    height, width = arranged.size
    colours = arranged.colours
    kind = {1: "gray", 3: "RGB"}.get(colours, f"{colours}-channel") + (" + alpha" if arranged.alpha else "")
    return f"{arranged.count:,} {kind} plane{'s' if arranged.count > 1 else ''} of {height} x {width}"


def arrange(shape: tuple[int, ...], axes: str) -> Layout:
    """Lay out an array for a network with as many channels as the array has samples."""
    samples = shape[axes.upper().index("S")] if "S" in axes.upper() and len(axes) == len(shape) else 1
    return layout(tuple(int(n) for n in shape), axes, 3 if samples <= 4 else samples)


def sizes(layer: Any, axes: str) -> dict[str, tuple[float, str | None]]:
    """Return the size of a pixel along each axis, and its unit."""
    steps = zip(axes.replace("S", "") if layer.rgb else axes, layer.scale, layer.units, strict=True)
    return {a: (float(scale), None if str(unit) == "pixel" else str(unit)) for a, scale, unit in steps}


def result(layer: Any, data: Any, name: str, record: dict[str, Any]) -> tuple[Any, dict[str, Any], str]:
    """Make the layer data tuple of a result: like the image layer in all but data and name."""
    _, state, _ = layer.as_layer_data_tuple()
    kept = {key: state[key] for key in _KEPT if key in state}
    kept["metadata"] = {**kept["metadata"], RECORD: record}
    return data, kept | {"name": name, "multiscale": isinstance(data, list)}, "image"


def part(
    layer: Any, data: Any, corner: tuple[float, ...], name: str, steps: tuple[float, ...]
) -> tuple[Any, dict[str, Any], str]:
    """Make the layer data tuple of a crop of an image layer.

    Parameters
    ----------
    layer : napari.layers.Image
    data : array
    corner : tuple of float
        Index of its first pixel in the layer's array.
    name : str
    steps : tuple of float
        Pixels of the layer per pixel of `data`, along each axis.
    """
    data, state, kind = result(layer, data, name, {})
    placed = Affine(
        scale=layer.scale, rotate=layer.rotate, shear=layer.shear, translate=layer.translate, ndim=layer.ndim
    )
    corner_at = placed(np.array(corner[: layer.ndim], float))
    placing = {"translate": corner_at, "scale": np.multiply(layer.scale, steps[: layer.ndim])}
    return data, state | OPAQUE | placing | {"metadata": {PREVIEW: True}}, kind


def residual(layer: Any, before: Any, after: Any, axes: str, name: str) -> tuple[Any, dict[str, Any], str]:
    """Make the layer data tuple of `before` minus `after`, averaged over colours; lazy if large.

    Parameters
    ----------
    layer : napari.layers.Image
        Gives the position.
    before, after : array
        Of one shape.
    axes, name : str
    """
    import dask.array as da

    chunks = tuple(n if a in "YXS" else 1 for a, n in zip(axes, before.shape, strict=True))
    parts = (da.from_array(each, chunks=chunks).astype(np.float32) for each in (before, after))
    data = next(parts) - next(parts)
    if layer.rgb:
        data = data[..., :3].mean(axis=-1)
    if data.nbytes < LARGE:
        data = data.compute()
    middle = np.asarray(data[tuple(n // 2 for n in data.shape[:-2])])
    end = 4 * float(np.nanstd(middle)) or 1.0
    _, state, kind = result(layer, data, name, {})
    del state["metadata"][RECORD]
    appearance = {"rgb": False, "colormap": "gray", "contrast_limits": (-end, end), "gamma": 1.0}
    return data, state | OPAQUE | appearance, kind


def cut(arranged: Layout, plane: Mapping[str, int], window: tuple[slice, slice]) -> tuple[int | slice, ...]:
    """Return the index of a window of a plane that keeps all axes of the array."""
    inner = {"Y": window[0], "X": window[1], arranged.channel_axis: slice(None)}
    return tuple(inner[a] if a in inner else slice(plane[a], plane[a] + 1) for a in arranged.axes)


def picture(arranged: Layout, block: Any) -> Any:
    """Turn a block indexed by `cut` into (H, W) or (H, W, C), without opacity."""
    single = tuple(i for i, a in enumerate(arranged.axes) if a not in "YX" + arranged.channel_axis)
    whole = arranged.to_picture(np.asarray(block).squeeze(single))
    whole = whole[..., : arranged.colours]
    return whole if arranged.channel_axis else whole[..., 0]
