"""Text in the widgets."""

from __future__ import annotations

from qtpy.QtGui import QResizeEvent
from qtpy.QtWidgets import QLabel, QSizePolicy


class Words(QLabel):
    """Text on as many lines as it needs: a form alone gives long texts too few.

    Parameters
    ----------
    text : str
    note : bool
        Whether it is gray, like napari's own notes.
    """

    def __init__(self, text: str = "", *, note: bool = False) -> None:
        super().__init__(text)
        self.setWordWrap(True)
        self.setEnabled(not note)
        if note:
            self.setSizePolicy(QSizePolicy.Policy.Expanding, QSizePolicy.Policy.Minimum)

    def setText(self, text: str) -> None:  # noqa: N802 (Qt's name)
        super().setText(text)
        self._fit()

    def resizeEvent(self, event: QResizeEvent) -> None:  # noqa: N802
        super().resizeEvent(event)
        self._fit()

    def _fit(self) -> None:
        self.setMinimumHeight(max(0, self.heightForWidth(self.width())))  # -1 without text
