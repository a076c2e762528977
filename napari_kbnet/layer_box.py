"""A combo box of image layers."""

from __future__ import annotations

from typing import Any

from napari.layers import Image
from qtpy.QtCore import Signal
from qtpy.QtWidgets import QComboBox

from .layers import PREVIEW

_SEVERAL = "several"


class LayerBox(QComboBox):
    """Choose an image layer; layers of other kinds are listed but disabled.

    Parameters
    ----------
    viewer : napari.Viewer
    several : bool
        Follow the selection in the layer list; if several image layers are selected, offer all of them.
    none : str
        Label for choosing no layer; empty if a layer is required.
    """

    chosen = Signal()

    def __init__(self, viewer: Any, *, several: bool = False, none: str = "") -> None:
        super().__init__()
        self._viewer, self._several, self._none = viewer, several, none
        self._listed: list[Any] = []
        self.setSizeAdjustPolicy(QComboBox.SizeAdjustPolicy.AdjustToMinimumContentsLengthWithIcon)
        self.setMinimumContentsLength(14)
        self.refresh()
        self.currentIndexChanged.connect(self._index_changed)
        events = viewer.layers.events
        for event in (events.inserted, events.removed, events.reordered):
            event.connect(self.refresh)
        events.inserted.connect(self._watch)
        for layer in viewer.layers:
            layer.events.name.connect(self.refresh)
        if several:
            viewer.layers.selection.events.changed.connect(self._selected)
            self._selected()

    def layers(self) -> list[Any]:
        """Return the chosen layers."""
        chosen = self.currentData()
        if chosen == _SEVERAL:
            return self._images_selected()
        return [layer for layer in self._listed if _key(layer) == chosen]

    def choose(self, layer: Any) -> None:
        """Choose a layer."""
        self.setCurrentIndex(self.findData(_key(layer)))

    def refresh(self, _event: Any = None) -> None:
        """List the layers of the viewer."""
        before = self.currentData()
        self._listed = [layer for layer in self._viewer.layers if not layer.metadata.get(PREVIEW)]
        selected = self._images_selected() if self._several else []
        self.blockSignals(True)
        self.clear()
        if self._none:
            self.addItem(self._none, "")
        if len(selected) > 1:
            self.addItem(f"{len(selected)} selected layers", _SEVERAL)
        for layer in reversed(self._listed):  # in the order of the layer list
            self.addItem(layer.name, _key(layer))
            if not isinstance(layer, Image):
                self.model().item(self.count() - 1).setEnabled(False)
        index = self.findData(before) if before is not None else -1
        if index < 0:
            index = next((i for i in range(self.count()) if self.model().item(i).isEnabled()), -1)
        self.setCurrentIndex(index)
        self.blockSignals(False)
        if self.currentData() != before:
            self.chosen.emit()

    def _images_selected(self) -> list[Any]:
        selection = self._viewer.layers.selection
        return [layer for layer in self._listed if layer in selection and isinstance(layer, Image)]

    def _selected(self, _event: Any = None) -> None:
        self.refresh()
        images = self._images_selected()
        if len(images) > 1:
            self.setCurrentIndex(self.findData(_SEVERAL))
        elif images:
            self.choose(images[0])

    def _watch(self, event: Any) -> None:
        event.value.events.name.connect(self.refresh)

    def _index_changed(self) -> None:
        self.chosen.emit()


def _key(layer: Any) -> str:
    return f"layer {id(layer)}"
