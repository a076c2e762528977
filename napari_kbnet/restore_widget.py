"""The widget that restores layers."""

from __future__ import annotations

from typing import Any

from qtpy.QtWidgets import QVBoxLayout, QWidget

from .form import OptionsForm


class RestoreWidget(QWidget):
    """Choose a layer and a model, look at a preview, restore."""

    def __init__(self, napari_viewer: Any) -> None:
        super().__init__()
        self.viewer = napari_viewer
        self.form = OptionsForm()
        QVBoxLayout(self).addWidget(self.form)
