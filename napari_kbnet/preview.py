"""A preview: the visible area before and after."""

from __future__ import annotations

from typing import Any

import numpy as np
from napari.layers import Layer
from qtpy.QtCore import Qt, QTimer, Signal
from qtpy.QtWidgets import QCheckBox, QHBoxLayout, QLabel, QPushButton, QSlider, QVBoxLayout, QWidget

from .layers import arrange, full_resolution, part
from .placing import add_on_top, our_selection
from .worker import Preview

_SIDES = 192, 1024  # pixels of a preview's side
_FIRST = 256  # pixels; until the speed of the model is known
_PATIENCE = 2.0  # seconds that a preview may take

NAME = "KBNet preview"
_BLINK = 600  # milliseconds


class PreviewPane(QWidget):
    """The controls of the preview, and its layer.

    Parameters
    ----------
    viewer : napari.Viewer
    """

    requested = Signal()
    """The user asks for a preview, or a live preview is out of date."""

    def __init__(self, viewer: Any) -> None:
        super().__init__()
        self._viewer = viewer
        self._preview: Preview | None = None
        self._axis = 0
        self.side = _FIRST
        self.layer: Any = None
        self.button = QPushButton("Preview")
        self.button.setToolTip(
            "Restore the visible area of this plane, or as much of its middle as takes two seconds"
        )
        self.live = QCheckBox("Live")
        self.live.setToolTip("Update whenever the view or an option changes")
        self.blink = QCheckBox("Blink")
        self.blink.setToolTip("Alternate between before and after")
        self.split = QSlider(Qt.Orientation.Horizontal)
        self.split.setRange(0, 100)
        self.split.setValue(50)
        self.split.setToolTip("The original is left of this position, the result right of it")
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

        self._blinking = QTimer(self)
        self._blinking.setInterval(_BLINK)
        self._blinking.timeout.connect(self._blinked)
        self._settled = QTimer(self)
        self._settled.setSingleShot(True)
        self._settled.setInterval(400)
        self._settled.timeout.connect(self.requested)
        self.button.clicked.connect(self.requested)
        self.live.toggled.connect(self.refresh)
        self.blink.toggled.connect(self._blink)
        self.split.valueChanged.connect(self._draw)
        for events in (viewer.scene.camera.events, viewer.dims.events.current_step, viewer.dims.events.order):
            events.connect(self.refresh)
        viewer.layers.events.removed.connect(self._removed)

    def refresh(self, _event: Any = None) -> None:
        """Ask for a new preview soon, if live."""
        if self.live.isChecked() and self.isVisible():  # napari keeps a widget whose dock was closed
            self._settled.start()

    def show_preview(self, layer: Any, preview: Preview, axes: str) -> None:
        """Add a preview on top of all images."""
        self._preview, self._axis = preview, axes.upper().index("X")
        self.side = int(np.clip(np.sqrt(_PATIENCE / preview.seconds) * self.side, *_SIDES)) // 16 * 16
        data, state, kind = part(layer, self._mixed(), preview.corner, NAME)
        visible = not self.live.isChecked() or self.layer is None or self.layer.visible
        self.clear()
        self._preview = preview
        self.layer = Layer.create(data, state | {"visible": visible}, kind)
        add_on_top(self._viewer, self.layer)
        self._sides.setEnabled(True)

    def clear(self) -> None:
        """Remove the preview."""
        if self.layer is not None and self.layer in self._viewer.layers:
            with our_selection():
                self._viewer.layers.remove(self.layer)
        self.layer = self._preview = None
        self._sides.setEnabled(False)

    def _removed(self, event: Any) -> None:
        if event.value is self.layer:
            self.layer = self._preview = None
            self._sides.setEnabled(False)

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


def visible(viewer: Any, layer: Any, axes: str, side: int) -> tuple[dict[str, int], tuple[slice, slice]]:
    """Find the visible area of a layer, or the middle `side` x `side` pixels of it.

    Returns
    -------
    plane : dict
        Index along every axis but Y and X.
    window : (slice, slice)
        Rows and columns.
    """
    arranged = arrange(full_resolution(layer).shape, axes)
    hidden = viewer.dims.ndim - layer.ndim
    corners = np.asarray(layer.corner_pixels, float)
    if layer.multiscale:
        corners = corners * layer.downsample_factors[layer.data_level]
    displayed = [axis - hidden for axis in viewer.dims.displayed]
    window = {}
    for i, (axis, length) in enumerate(zip(arranged.axes, arranged.shape, strict=True)):
        if axis in "YX":
            first, last = (int(corners[0, i]), int(corners[1, i]) + 1) if i in displayed else (0, length)
            first, last = max(0, first), min(length, last)
            if last <= first:
                first, last = 0, length
            middle = (first + last) // 2
            first = max(first, middle - side // 2)
            window[axis] = slice(first, min(last, first + side))
    return plane_at(viewer, layer, axes), (window["Y"], window["X"])


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
