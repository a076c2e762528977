"""Where results go: memory or files."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from qtpy.QtCore import Signal
from qtpy.QtWidgets import QComboBox, QFileDialog

from .layers import LARGE

_AUTOMATIC, _MEMORY, _FOLDER = "automatic", "in memory", "in a folder ..."


class Destination(QComboBox):
    """Choose where results go."""

    chosen = Signal()

    def __init__(self) -> None:
        super().__init__()
        self.folder: Path | None = None
        self.addItems([_AUTOMATIC, _MEMORY, _FOLDER])
        self.setToolTip(
            f"Where results go. Automatic: into memory, or from {LARGE >> 30} GiB into an OME-Zarr in a "
            "temporary folder, which is displayed while it grows."
        )
        self.currentIndexChanged.connect(self._index_changed)

    def describe(self, arrays: Sequence[Any]) -> str:
        """Say where the results for `arrays` go; empty for memory."""
        if self.currentText() == _FOLDER and self.folder is not None:
            return f"Saved as OME-Zarr in {self.folder}"
        largest = max(map(_bytes, arrays), default=0)
        if self.currentText() == _AUTOMATIC and largest > LARGE:
            return f"{largest / 1e9:.1f} GB, saved as OME-Zarr in {tempfile.gettempdir()}"
        return ""

    def target(self, name: str, array: Any) -> Path | None:
        """Return a new path for the result of the layer called `name`; None for memory."""
        if self.currentText() == _FOLDER:
            folder = self.folder
        elif self.currentText() == _AUTOMATIC and _bytes(array) > LARGE:
            folder = Path(tempfile.mkdtemp(prefix="kbnet-"))
        else:
            folder = None
        if folder is None:
            return None
        safe = "".join("_" if c in '\\/:*?"<>|' else c for c in name)
        number, target = 1, folder / f"{safe} restored.zarr"
        while target.exists():
            number += 1
            target = folder / f"{safe} restored {number}.zarr"
        return target

    def _index_changed(self) -> None:
        if self.currentText() == _FOLDER:
            path = QFileDialog.getExistingDirectory(self, "Folder for results")
            if path:
                self.folder = Path(path)
            else:
                self.setCurrentIndex(0)
        self.chosen.emit()


def _bytes(array: Any) -> int:
    return math.prod(array.shape) * np.dtype(array.dtype).itemsize
