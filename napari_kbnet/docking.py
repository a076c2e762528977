"""Docks that share their place in the window."""

from __future__ import annotations

from qtpy.QtWidgets import QDockWidget, QMainWindow, QWidget


def join(widget: QWidget, kind: type[QWidget]) -> None:
    """Move the dock of a widget into the tabs of another dock that holds a widget of this kind.

    napari would put it below, and neither would be tall enough. A dock that the user moved stays.
    """
    dock = _dock(widget)
    if dock is None or dock.property(_JOINED):
        return
    dock.setProperty(_JOINED, True)
    window = dock.parent()
    if not isinstance(window, QMainWindow) or dock.isFloating():
        return
    area = window.dockWidgetArea(dock)
    for other in window.findChildren(QDockWidget):
        beside = other is not dock and other.isVisible() and not other.isFloating()
        if beside and window.dockWidgetArea(other) == area and other.findChild(kind) is not None:
            window.tabifyDockWidget(other, dock)
            dock.raise_()
            return


_JOINED = "kbnet joined"


def _dock(widget: QWidget | None) -> QDockWidget | None:
    while widget is not None and not isinstance(widget, QDockWidget):
        widget = widget.parentWidget()
    return widget
