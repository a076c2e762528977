"""A preview: what the canvas shows, before and after."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from napari.layers import Layer
from qtpy.QtCore import Qt, QTimer, Signal
from qtpy.QtWidgets import QCheckBox, QHBoxLayout, QLabel, QPushButton, QSlider, QVBoxLayout, QWidget

from .layers import arrange, full_resolution, part
from .placing import add_on_top, our_selection
from .previewing import Preview, View

NAME = "KBNet preview"
_BLINK = 600  # milliseconds
_INSET = 0.02  # of the view, at each edge, so that its border is seen


class PreviewPane(QWidget):
    """The controls of the preview, and its layer.

    Parameters
    ----------
    viewer : napari.Viewer
    """

    requested = Signal()
    """The user asks for a preview, or a live preview is out of date."""

    stopped = Signal()
    """The user stops the preview."""

    def __init__(self, viewer: Any) -> None:
        super().__init__()
        self._viewer = viewer
        self._preview: Preview | None = None
        self._axis = 0
        self._made_of: Any = None
        self._busy = False
        self.layer: Any = None
        self.button = QPushButton("Preview")
        self.live = QCheckBox("Live")
        self.live.setToolTip("Update whenever the view or an option changes")
        self.blink = QCheckBox("Blink")
        self.blink.setToolTip("Alternate between before and after")
        self.split = QSlider(Qt.Orientation.Horizontal)
        self.split.setRange(0, 100)
        self.split.setValue(50)
        self.split.setToolTip("The original is left of this position, the result right of it")
        self.split.setAccessibleName("Border between before and after")
        self._sides = QWidget()
        sides = QHBoxLayout(self._sides)
        sides.setContentsMargins(0, 0, 0, 0)
        sides.addWidget(QLabel("before"))
        sides.addWidget(self.split, stretch=1)
        sides.addWidget(QLabel("after"))
        top = QHBoxLayout()
        top.addWidget(self.button, stretch=1)
        top.addWidget(self.live)
        top.addWidget(self.blink)
        layout = QVBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.addLayout(top)
        layout.addWidget(self._sides)
        self._sides.setEnabled(False)
        self.set_busy(False)

        self._blinking = QTimer(self)
        self._blinking.setInterval(_BLINK)
        self._blinking.timeout.connect(self._blinked)
        self._settled = QTimer(self)
        self._settled.setSingleShot(True)
        self._settled.setInterval(400)
        self._settled.timeout.connect(self.requested)
        self.button.clicked.connect(self._clicked)
        self.live.toggled.connect(self.refresh)
        self.blink.toggled.connect(self._blink)
        self.split.valueChanged.connect(self._draw)
        for events in (viewer.scene.camera.events, viewer.dims.events.current_step, viewer.dims.events.order):
            events.connect(self.refresh)
        viewer.layers.events.removed.connect(self._removed)

    @property
    def border(self) -> float:
        """Fraction of the width that shows the original."""
        return 0.0 if self.blink.isChecked() else self.split.value() / 100

    def set_busy(self, busy: bool) -> None:
        """Let the button stop the preview that is being computed, or ask for one."""
        self._busy = busy
        self.button.setText("Stop" if busy else "Preview")
        tip = "Restore what the canvas shows, in the resolution shown"
        self.button.setToolTip("Stop; what is restored stays" if busy else tip)

    def refresh(self, _event: Any = None) -> None:
        """Ask for a new preview soon, if live."""
        if self.live.isChecked() and self.isVisible():  # napari keeps a widget whose dock was closed
            self._settled.start()

    def show_preview(self, layer: Any, preview: Preview, axes: str, made_of: Any) -> None:
        """Show a preview, or more of it.

        Parameters
        ----------
        layer : napari.layers.Image
            Of which it is.
        preview : Preview
        axes : str
            Of the layer.
        made_of : object
            What it depends on; see `compare`.
        """
        if preview is self._preview:
            self._draw()
            return
        visible = not self.live.isChecked() or self.layer is None or self.layer.visible
        self.clear()
        self._preview, self._axis, self._made_of = preview, axes.upper().index("X"), made_of
        data, state, kind = part(layer, self._mixed(), preview.corner, NAME, preview.steps)
        self.layer = Layer.create(data, state | {"visible": visible}, kind)
        add_on_top(self._viewer, self.layer)
        self._sides.setEnabled(True)

    def compare(self, made_of: Any) -> bool:
        """Mark the preview if it depends on anything else than `made_of`; return whether that is so."""
        if self.layer is None:
            return False
        old = self._made_of != made_of
        self.layer.name = f"{NAME} (out of date)" if old else NAME
        return old

    def clear(self) -> None:
        """Remove the preview."""
        if self.layer is not None and self.layer in self._viewer.layers:
            with our_selection():
                self._viewer.layers.remove(self.layer)
        self._forget()

    def _forget(self) -> None:
        self.layer = self._preview = self._made_of = None
        self._sides.setEnabled(False)

    def _clicked(self) -> None:
        if self._busy:
            self.stopped.emit()
        else:
            self.requested.emit()

    def _removed(self, event: Any) -> None:
        if event.value is self.layer:
            self._forget()

    def _blink(self, on: bool) -> None:
        self.split.setEnabled(not on)
        if on:
            self._blinking.start()
        else:
            self._blinking.stop()
            self._draw()

    def _blinked(self) -> None:
        if self.layer is not None and self._preview is not None:
            before, after = self._preview.before, self._preview.after
            self.layer.data = before if self.layer.data is after else after

    def _draw(self) -> None:
        if self.layer is not None:
            self.layer.data = self._mixed()

    def _mixed(self) -> Any:
        """Combine before, left of the border, and after, right of it."""
        if self._preview is None or self.blink.isChecked():
            return None if self._preview is None else self._preview.after
        before, after = self._preview.before, self._preview.after
        if before.shape != after.shape:  # the network has fewer output than input channels
            return after
        width = after.shape[self._axis]
        border = round(width * self.split.value() / 100)
        mixed = after.copy()
        left = (*[slice(None)] * self._axis, slice(0, border))
        mixed[left] = before[left]
        return mixed


def visible(viewer: Any, layer: Any, axes: str) -> View:
    """Find what the canvas shows of a layer, in the resolution shown."""
    array, factors = full_resolution(layer), (1.0,) * len(axes)
    if layer.multiscale:
        array = layer.data[layer.data_level]
        spatial = tuple(float(factor) for factor in layer.downsample_factors[layer.data_level])
        factors = (*spatial, *factors[len(spatial) :])
    arranged = arrange(array.shape, axes)
    hidden = viewer.dims.ndim - layer.ndim
    corners = np.asarray(layer.corner_pixels, float)
    displayed = [axis - hidden for axis in viewer.dims.displayed]
    window, sizes = {}, []
    for i, (axis, length) in enumerate(zip(arranged.axes, arranged.shape, strict=True)):
        if axis in "YX":
            first, last = (corners[0, i], corners[1, i] + 1) if i in displayed else (0, length)
            inset = _INSET * (last - first)
            first = math.ceil(first + inset) if first > 0 else 0
            last = math.floor(last - inset) if last < length else length
            window[axis] = (first, last) if last > first else (0, length)
            if i in displayed:
                sizes.append(abs(viewer.scene.camera.zoom * layer.scale[i] * factors[i]))
    step = max(1, int(1 / max(sizes))) if sizes and max(sizes) > 0 else 1
    plane = {
        axis: int(n // factors[arranged.axes.index(axis)])
        for axis, n in plane_at(viewer, layer, axes).items()
    }
    return View(array, plane, (slice(*window["Y"], step), slice(*window["X"], step)), factors)


def middle_of_view(
    viewer: Any, layer: Any, axes: str, side: int
) -> tuple[dict[str, int], tuple[slice, slice]]:
    """Find the middle of what the canvas shows of a layer.

    Parameters
    ----------
    viewer : napari.Viewer
    layer : napari.layers.Image
    axes : str
    side : int
        At most so many rows and columns.

    Returns
    -------
    plane : dict
        Index along every axis but Y and X.
    window : (slice, slice)
        Rows and columns of the layer's array, at its full resolution.
    """
    view = visible(viewer, layer, axes)
    arranged = arrange(full_resolution(layer).shape, axes)
    window = []
    for axis, shown, length in zip("YX", view.window, arranged.size, strict=True):
        factor = view.factors[arranged.axes.index(axis)]
        first, last = int(shown.start * factor), min(length, math.ceil(shown.stop * factor))
        first = max(first, (first + last) // 2 - side // 2)
        window.append(slice(first, min(last, first + side)))
    return plane_at(viewer, layer, axes), (window[0], window[1])


def plane_at(viewer: Any, layer: Any, axes: str) -> dict[str, int]:
    """Find the plane of a layer that is looked at, as its index along every axis but Y and X."""
    hidden = viewer.dims.ndim - layer.ndim
    at = layer.world_to_data(np.asarray(viewer.dims.point)[hidden:])
    shape = full_resolution(layer).shape
    return {
        axis: int(np.clip(np.rint(at[i]), 0, shape[i] - 1))
        for i, axis in enumerate(axes.upper()[: layer.ndim])
        if axis not in "YX"
    }
