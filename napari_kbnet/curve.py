"""A plot of the loss during training."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import accumulate

from qtpy.QtCore import QPointF, QSize, Qt
from qtpy.QtGui import QPainter, QPaintEvent, QPalette, QPen, QPolygonF
from qtpy.QtWidgets import QSizePolicy, QWidget

_MARGIN = 6  # pixels
_SMOOTH = 0.1  # of the points go into each running mean
_OUTLYING = 0.02  # of the points at either end may lie outside


class LossCurve(QWidget):
    """Plot losses and their running mean on a logarithmic axis, and how good the model was when measured."""

    def __init__(self) -> None:
        super().__init__()
        self._points: list[tuple[int, float]] = []
        self._gains: list[tuple[int, float]] = []
        self._total = 1
        self.setSizePolicy(QSizePolicy.Policy.Expanding, QSizePolicy.Policy.Fixed)
        self.setAccessibleName("Loss over training steps")

    def clear(self) -> None:
        """Remove all points."""
        self._points.clear()
        self._gains.clear()
        self.update()

    def add(self, iteration: int, total: int, loss: float, gain: float | None = None) -> None:
        """Add a point; the horizontal axis ends at `total`.

        `gain` in dB is measured on crops that validate the model; its own axis is linear.
        """
        self._total = total
        if loss > 0 and math.isfinite(loss):
            self._points.append((iteration, loss))
        if gain is not None and math.isfinite(gain) and (not self._gains or self._gains[-1][1] != gain):
            self._gains.append((iteration, gain))
        self.update()

    def sizeHint(self) -> QSize:  # noqa: N802 (Qt's name)
        return QSize(240, 120)

    def paintEvent(self, _event: QPaintEvent) -> None:  # noqa: N802
        painter = QPainter(self)
        painter.setRenderHint(QPainter.RenderHint.Antialiasing)
        text = self.palette().color(QPalette.ColorRole.WindowText)
        faint = self.palette().color(QPalette.ColorRole.WindowText)
        faint.setAlpha(90)
        inner = self.rect().adjusted(_MARGIN, _MARGIN, -_MARGIN, -_MARGIN)
        painter.setPen(faint)
        painter.drawRect(inner)
        if not self._points:
            painter.drawText(inner, Qt.AlignmentFlag.AlignCenter, "loss")
            return
        low, high = bounds([loss for _, loss in self._points])

        def place(iteration: float, loss: float) -> QPointF:
            up = (math.log(loss) - math.log(low)) / (math.log(high) - math.log(low))
            across = iteration / max(self._total, 1)
            return QPointF(inner.left() + across * inner.width(), inner.bottom() - up * inner.height())

        painter.setClipRect(inner)
        painter.setPen(QPen(faint, 3, Qt.PenStyle.SolidLine, Qt.PenCapStyle.RoundCap))
        for point in self._points:
            painter.drawPoint(place(*point))
        painter.setPen(QPen(text, 2))
        painter.drawPolyline(QPolygonF([place(*point) for point in smooth(self._points)]))
        gains = [gain for _, gain in self._gains]
        if gains:
            least, most = min(0.0, *gains), max(0.1, *gains)
            coloured = self.palette().color(QPalette.ColorRole.Highlight)
            painter.setPen(QPen(coloured, 2))
            points = [
                QPointF(
                    inner.left() + i / max(self._total, 1) * inner.width(),
                    inner.bottom() - (gain - least) / (most - least) * inner.height(),
                )
                for i, gain in self._gains
            ]
            painter.drawPolyline(QPolygonF(points))
            for point in points:
                painter.drawEllipse(point, 2, 2)
        painter.setClipping(False)
        labelled = inner.adjusted(4, 2, -4, -2)
        painter.setPen(text)
        painter.drawText(
            labelled, Qt.AlignmentFlag.AlignRight | Qt.AlignmentFlag.AlignTop, f"loss {high:.3g}"
        )
        painter.drawText(labelled, Qt.AlignmentFlag.AlignLeft | Qt.AlignmentFlag.AlignBottom, f"{low:.3g}")
        if gains:
            painter.setPen(coloured)
            text = f"validation {gains[-1]:+.2f} dB"
            painter.drawText(labelled, Qt.AlignmentFlag.AlignRight | Qt.AlignmentFlag.AlignBottom, text)


def bounds(values: Sequence[float]) -> tuple[float, float]:
    """Return the limits of an axis for nearly all values; they differ even if all values are equal."""
    ordered = sorted(values)
    left_out = int(_OUTLYING * len(ordered))
    low, high = ordered[left_out], ordered[-1 - left_out]
    return low / 1.05, high * 1.05


def smooth(points: Sequence[tuple[int, float]]) -> list[tuple[int, float]]:
    """Return the running mean at each point."""
    width = max(1, round(_SMOOTH * len(points)))
    sums = [0.0, *accumulate(loss for _, loss in points)]
    starts = (max(0, n - width) for n in range(1, len(points) + 1))
    return [
        (i, (sums[n] - sums[start]) / (n - start))
        for n, ((i, _), start) in enumerate(zip(points, starts, strict=True), start=1)
    ]
