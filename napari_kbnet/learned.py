"""A picture of what a training has learned so far."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from qtpy.QtCore import QRect, QSize, Qt
from qtpy.QtGui import QImage, QPainter, QPaintEvent, QPalette
from qtpy.QtWidgets import QSizePolicy, QWidget

_HEIGHT = 150  # pixels
_GAP = 4


class Learned(QWidget):
    """Show a crop before and after, side by side, in one contrast."""

    def __init__(self) -> None:
        super().__init__()
        self._images: list[QImage] = []
        self.setSizePolicy(QSizePolicy.Policy.Expanding, QSizePolicy.Policy.Fixed)
        self.setToolTip("The middle of the image, before and after, with what has been learned so far")
        self.setAccessibleName("Crop of the image before and after")

    def clear(self) -> None:
        """Show nothing."""
        self._images = []
        self.update()

    def show_picture(self, pair: NDArray[Any]) -> None:
        """Show a crop before and after, (2, H, W, C)."""
        low, high = np.percentile(pair[0], (0.5, 99.5))
        scaled = (pair - low) / max(high - low, 1e-6) * 255
        rgb = np.repeat(scaled, 3, axis=-1) if pair.shape[-1] == 1 else scaled[..., :3]
        self._images = [_image(picture) for picture in rgb.clip(0, 255).astype(np.uint8)]
        self.update()

    def sizeHint(self) -> QSize:  # noqa: N802 (Qt's name)
        return QSize(2 * _HEIGHT + _GAP, _HEIGHT)

    def paintEvent(self, _event: QPaintEvent) -> None:  # noqa: N802
        painter = QPainter(self)
        width = (self.width() - _GAP) // 2
        places = [QRect(n * (width + _GAP), 0, width, self.height()) for n in (0, 1)]
        if not self._images:
            faint = self.palette().color(QPalette.ColorRole.WindowText)
            faint.setAlpha(90)
            painter.setPen(faint)
            for place, text in zip(places, ("before", "after"), strict=True):
                painter.drawRect(place.adjusted(0, 0, -1, -1))
                painter.drawText(place, Qt.AlignmentFlag.AlignCenter, text)
            return
        for place, image in zip(places, self._images, strict=True):
            size = image.size().scaled(place.size(), Qt.AspectRatioMode.KeepAspectRatio)
            inside = QRect(place.topLeft(), size)
            inside.moveCenter(place.center())
            painter.drawImage(inside, image)


def _image(picture: NDArray[np.uint8]) -> QImage:
    height, width = picture.shape[:2]
    image = QImage(
        np.ascontiguousarray(picture).tobytes(), width, height, 3 * width, QImage.Format.Format_RGB888
    )
    return image.copy()  # the bytes are gone soon
