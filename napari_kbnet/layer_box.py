"""A combo box of image layers."""

from __future__ import annotations

from typing import Any

from napari.layers import Image
from qtpy.QtCore import Signal
from qtpy.QtWidgets import QComboBox

from .layers import PREVIEW
from .placing import is_ours

_SEVERAL = "several"


class LayerBox(QComboBox):
    """Choose an image layer; layers of other kinds are listed but disabled.

    The box follows the layers that the user selects in the layer list, and otherwise keeps its choice.

    Parameters
    ----------
    viewer : napari.Viewer
    several : bool
        If several image layers are selected, offer all of them.
    none : str
        Label for choosing no layer, in a box that does not follow the selection; empty if one is required.
    """

    chosen = Signal()

    def __init__(self, viewer: Any, *, several: bool = False, none: str = "") -> None:
        super().__init__()
        self._viewer, self._several, self._none = viewer, several, none
        self._listed: list[Any] = []
        self._together: list[Any] = []
        self._seen: list[Any] = []  # the images that were selected last
        self.setSizeAdjustPolicy(QComboBox.SizeAdjustPolicy.AdjustToMinimumContentsLengthWithIcon)
        self.setMinimumContentsLength(14)
        self.setPlaceholderText("choose an image layer")
        self.refresh()
        self.currentIndexChanged.connect(self._index_changed)
        events = viewer.layers.events
        for event in (events.inserted, events.removed, events.reordered):
            event.connect(self.refresh)
        events.inserted.connect(self._watch)
        for layer in viewer.layers:
            layer.events.name.connect(self.refresh)
        if not none:
            viewer.layers.selection.events.changed.connect(self._selected)
            self._selected()

    def layers(self) -> list[Any]:
        """Return the chosen layers."""
        chosen = self.currentData()
        if chosen == _SEVERAL:
            return list(self._together)
        return [layer for layer in self._listed if _key(layer) == chosen]

    def choose(self, layer: Any) -> None:
        """Choose a layer."""
        self.setCurrentIndex(self.findData(_key(layer)))

    def follow(self) -> None:
        """Choose what is selected in the layer list, even if another layer was chosen since."""
        self._seen = []
        self._selected()

    def refresh(self, _event: Any = None) -> None:
        """List the layers of the viewer."""
        before = self.currentData()
        self._listed = [layer for layer in self._viewer.layers if not layer.metadata.get(PREVIEW)]
        self._together = [layer for layer in self._together if layer in self._listed]
        self.blockSignals(True)
        self.clear()
        if self._none:
            self.addItem(self._none, "")
        if len(self._together) > 1:
            self.addItem(f"{len(self._together)} layers", _SEVERAL)
        for layer in reversed(self._listed):  # in the order of the layer list
            self.addItem(layer.name, _key(layer))
            if not isinstance(layer, Image):
                self.model().item(self.count() - 1).setEnabled(False)
        index = self.findData(before) if before is not None else -1
        self.setCurrentIndex(index if index >= 0 else self._usual())
        self.blockSignals(False)
        if self.currentData() != before:
            self.chosen.emit()

    def _usual(self) -> int:
        """Return the item for no layer, the selected image, or the only one; -1 if there is a doubt."""
        if self._none:
            return 0
        images = [layer for layer in self._listed if isinstance(layer, Image)]
        meant = self._images_selected() or images
        return self.findData(_key(meant[0])) if len(meant) == 1 else -1

    def _images_selected(self) -> list[Any]:
        """Return the selected image layers, in the order of the list, the active one first."""
        selection = self._viewer.layers.selection
        found = [layer for layer in self._listed if layer in selection and isinstance(layer, Image)]
        return found if self._several else sorted(found, key=lambda layer: layer is not selection.active)

    def _selected(self, _event: Any = None) -> None:
        images = self._images_selected()
        before, self._seen = self._seen, images
        # While labels are added, the images from before are still selected.
        if is_ours() or not self.isEnabled() or not images or images == before:
            return
        together = self._several and len(images) > 1
        self._together = images if together else []
        self.refresh()
        if together:
            self.setCurrentIndex(self.findData(_SEVERAL))
            self.chosen.emit()  # even if other layers were chosen together before
        else:
            self.choose(images[0])

    def _watch(self, event: Any) -> None:
        event.value.events.name.connect(self.refresh)

    def _index_changed(self) -> None:
        self.chosen.emit()


def _key(layer: Any) -> str:
    return f"layer {id(layer)}"
