"""Where results go: memory or files."""

from __future__ import annotations

import math
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from qtpy.QtCore import Qt, Signal
from qtpy.QtWidgets import QFileDialog, QMessageBox

from kbnet_plugin.errors import BadInput

from . import cache
from .boxes import ActionBox
from .layers import LARGE

_AUTOMATIC, _MEMORY = "automatic", "in memory"
_LONGEST = 150  # bytes of a layer's name in the name of its file


class Destination(ActionBox):
    """Choose where results go."""

    chosen = Signal()
    asked = False
    """Whether the user agreed that large results go to the cache."""

    def __init__(self) -> None:
        super().__init__()
        self.folder: Path | None = None
        self.addItems([_AUTOMATIC, _MEMORY])
        self.add_action("in a folder ...")
        self.setToolTip(
            f"Where results go. Automatic: into memory, or from {LARGE >> 30} GiB into an OME-Zarr in "
            f"{cache.folder()}, which is displayed while it grows and removed when napari closes."
        )
        self.requested.connect(self._ask)
        self.currentIndexChanged.connect(self.chosen)

    def set_folder(self, folder: Path) -> None:
        """Write results to a folder."""
        self.folder = folder
        if self.count() > 3:
            self.removeItem(2)
        self.insertItem(2, f"in {folder.name}")
        self.setItemData(2, str(folder), Qt.ItemDataRole.ToolTipRole)
        self.setCurrentIndex(2)

    @property
    def _in_folder(self) -> bool:
        return self.currentIndex() == 2 and self.folder is not None

    def describe(self, arrays: Sequence[Any]) -> str:
        """Say where the results for `arrays` go; empty for memory."""
        if self._in_folder:
            return f"Saved as OME-Zarr in {self.folder}"
        largest = max(map(_bytes, arrays), default=0)
        if self.currentText() == _AUTOMATIC and largest > LARGE:
            where = f"in {cache.folder()} until napari closes"
            return f"{largest / 1e9:.1f} GB, saved as OME-Zarr {where}"
        return ""

    def confirm(self, arrays: Sequence[Any]) -> bool:
        """Ask once whether large results may go to the cache; return whether to begin.

        Raises
        ------
        ValueError
            If they do not fit on the disk.
        """
        cached = self.currentText() == _AUTOMATIC
        large = [array for array in arrays if self._in_folder or (cached and _bytes(array) > LARGE)]
        if not large:
            return True
        folder = self.folder if self._in_folder else cache.folder()
        there = next(each for each in (folder, *folder.parents) if each.exists())
        size, free = sum(map(_bytes, large)), shutil.disk_usage(there).free
        if size > free:
            raise BadInput(
                f"{folder}: {free / 1e9:.1f} GB are free, and the result takes up to {size / 1e9:.1f} GB; "
                "choose another folder under More options > Result"
            )
        if not cached or Destination.asked:
            return True
        yes, no = QMessageBox.StandardButton.Yes, QMessageBox.StandardButton.No
        text = (
            f"The result takes up to {size / 1e9:.1f} GB. Keep it in {folder} until napari closes?\n\n"
            "No lets you choose a folder where it stays."
        )
        if QMessageBox.question(self, "Large result", text, yes | no) == yes:
            Destination.asked = True
            return True
        self._ask()
        return self._in_folder

    def target(self, name: str, array: Any) -> Path | None:
        """Return a new path for the result of the layer called `name`; None for memory."""
        if self._in_folder:
            folder = self.folder
        elif self.currentText() == _AUTOMATIC and _bytes(array) > LARGE:
            folder = cache.new_folder()
        else:
            folder = None
        if folder is None:
            return None
        safe = "".join("_" if c in '\\/:*?"<>|' else c for c in name)
        safe = safe.encode()[:_LONGEST].decode(errors="ignore")
        number, target = 1, folder / f"{safe} restored.zarr"
        while target.exists():
            number += 1
            target = folder / f"{safe} restored {number}.zarr"
        return target

    def _ask(self) -> None:
        if path := QFileDialog.getExistingDirectory(self, "Folder for results"):
            self.set_folder(Path(path))


def _bytes(array: Any) -> int:
    return math.prod(array.shape) * np.dtype(array.dtype).itemsize
