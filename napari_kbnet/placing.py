"""Add layers where they can be seen, without changing which layer the widgets work on."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from napari.layers import Image

OPAQUE = {"blending": "translucent_no_depth", "opacity": 1.0}
"""Appearance of a layer that hides what lies below it."""

_ours = [0]  # changes of the selection that are under way


@contextmanager
def our_selection() -> Iterator[None]:
    """Mark changes of the selection as ours, so that no `LayerBox` follows them."""
    _ours[0] += 1
    try:
        yield
    finally:
        _ours[0] -= 1


def is_ours() -> bool:
    """Tell whether the selection is being changed by the plugin."""
    return _ours[0] > 0


def add_on_top(viewer: Any, new: Any, source: Any = None) -> None:
    """Add a layer above all images, and below the labels or points that lie on them; the selection stays.

    Parameters
    ----------
    viewer : napari.Viewer
    new : Layer
    source : Layer, optional
        If given, above this one and all that would hide the new one: other channels are blended with it as
        they are with the source.
    """
    layers = viewer.layers
    selected, active = set(layers.selection), layers.selection.active
    hiding = [
        i for i, layer in enumerate(layers) if isinstance(layer, Image) and (source is None or _hides(layer))
    ]
    if source in layers:
        hiding.append(layers.index(source))
    with our_selection():
        layers.insert(max(hiding, default=len(layers) - 1) + 1, new)
        layers.selection = selected
        layers.selection.active = active


def _hides(layer: Any) -> bool:
    return layer.visible and layer.blending not in ("additive", "minimum", "multiplicative")


def select(viewer: Any, chosen: list[Any]) -> None:
    """Select layers for the user, who may want to save them."""
    with our_selection():
        viewer.layers.selection = set(chosen)
