"""Which part of a layer to train on: one channel, a rectangle that the user drew, and what the axes are."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from napari.layers import Shapes
from qtpy.QtCore import Signal
from qtpy.QtWidgets import QComboBox

from kbnet_plugin.errors import BadInput

from .growing import View
from .layers import full_resolution

_SMALLEST = 16  # pixels per side of a rectangle
_LEADING = "TZC"


def possible_axes(shape: Sequence[int], rgb: bool) -> list[str]:
    """List what the axes of a layer may be, the usual orders first."""
    count = len(shape) - rgb - 2
    orders = ["".join(order) for order in itertools.permutations(_LEADING, count)]
    orders.sort(key=lambda order: [_LEADING.index(a) for a in order] != sorted(map(_LEADING.index, order)))
    last, colours = "S" if rgb else "", []
    if not rgb and count > 0 and shape[-1] in (3, 4):
        shorter = ("".join(order) for order in itertools.permutations(_LEADING, count - 1))
        colours = [f"{order}YXS" for order in shorter]
    behind = [f"YX{order}" for order in orders] if count > 0 and not rgb else []
    return [*(f"{order}YX{last}" for order in orders), *colours, *behind]


class AxesBox(QComboBox):
    """Choose what the axes of a layer are; by default what its labels or the number of axes suggest."""

    def __init__(self) -> None:
        super().__init__()
        self.setToolTip("Axes of the layer: time T, depth Z, channel C, rows Y, columns X, colour S")

    def value(self) -> str:
        """Return the chosen axes; empty for the default."""
        return self.currentData() or ""

    def show_axes(self, guess: str, possible: Sequence[str]) -> None:
        """List the axes that are possible, and choose the default."""
        self.blockSignals(True)
        self.clear()
        self.addItem(f"automatic: {guess}" if guess else "automatic: unknown", "")
        for axes in possible:
            self.addItem(axes, axes)
        self.blockSignals(False)


class ChannelBox(QComboBox):
    """Choose all channels of a layer, or one of them."""

    def __init__(self) -> None:
        super().__init__()
        self.setToolTip("Channels differ in their noise and structure; a model may know one or all of them")

    def show_channels(self, count: int) -> None:
        """List channels; the choice stays if it can."""
        before = self.currentIndex()
        if self.count() == count + 1:
            return
        self.blockSignals(True)
        self.clear()
        self.addItem("all", None)
        for number in range(count):
            self.addItem(str(number), number)
        self.setCurrentIndex(before if 0 <= before <= count else 0)
        self.blockSignals(False)


class AreaBox(QComboBox):
    """Choose the whole image, or the rectangle around a Shapes layer.

    Parameters
    ----------
    viewer : napari.Viewer
    """

    changed = Signal()
    """Another layer is chosen, or something else is drawn in it."""

    def __init__(self, viewer: Any) -> None:
        super().__init__()
        self._viewer = viewer
        self.setToolTip("Draw a rectangle in a Shapes layer, and choose that layer here")
        self.refresh()
        self.currentIndexChanged.connect(lambda _: self.changed.emit())
        events = viewer.layers.events
        for event in (events.inserted, events.removed, events.reordered):
            event.connect(self.refresh)

    def refresh(self, _event: Any = None) -> None:
        """List the Shapes layers."""
        before = self.currentData()
        self.blockSignals(True)
        self.clear()
        self.addItem("whole image", None)
        for layer in reversed(self._viewer.layers):
            if isinstance(layer, Shapes):
                self.addItem(layer.name, f"{id(layer)}")
                layer.events.data.connect(self._drawn)
        self.setCurrentIndex(max(0, self.findData(before)))
        self.blockSignals(False)
        if self.currentData() != before:
            self.changed.emit()

    def _drawn(self, event: Any) -> None:
        if event.source is self.shapes():
            self.changed.emit()

    def shapes(self) -> Any:
        """Return the chosen Shapes layer; None for the whole image."""
        found = (layer for layer in self._viewer.layers if f"{id(layer)}" == self.currentData())
        return next(found, None)


def window_of(shapes: Any, layer: Any, axes: str) -> tuple[slice, slice]:
    """Return the rows and columns of an image layer that the shapes of a layer cover.

    Raises
    ------
    BadInput
        If there is no shape, or hardly anything of the image within.
    """
    if not len(shapes.data):
        raise BadInput(f"{shapes.name}: draw a rectangle first")
    world = [shapes.data_to_world(vertex) for vertex in np.concatenate(shapes.data)]
    missing = layer.ndim - shapes.ndim
    at = np.array([layer.world_to_data([*[0.0] * missing, *vertex][-layer.ndim :]) for vertex in world])
    sides = []
    for axis in "YX":
        place = axes.index(axis)
        low, high = at[:, place].min(), at[:, place].max()
        length = full_resolution(layer).shape[place]
        sides.append(slice(max(0, math.floor(low + 0.5)), min(length, math.floor(high + 0.5))))
    if any(side.stop - side.start < _SMALLEST for side in sides):
        raise BadInput(f"{shapes.name}: covers less than {_SMALLEST} x {_SMALLEST} pixels of {layer.name}")
    return sides[0], sides[1]


def cropped(
    array: Any, axes: str, channel: int | None, window: tuple[slice, slice] | None
) -> tuple[Any, str]:
    """Return a part of an array, which is read when it is needed, and its axes."""
    inner = {"Y": window[0], "X": window[1]} if window is not None else {}
    key: list[Any] = [inner.get(a, slice(None)) for a in axes]
    if channel is not None and "C" in axes:
        key[axes.index("C")] = channel
        axes = axes.replace("C", "")
    if all(part == slice(None) for part in key):
        return array, axes
    return View(array)[tuple(key)], axes
