"""Fields that change only when they are meant to."""

from __future__ import annotations

from qtpy.QtCore import QEvent, QObject, Qt, Signal
from qtpy.QtGui import QKeyEvent, QWheelEvent
from qtpy.QtWidgets import (
    QAbstractButton,
    QAbstractSlider,
    QAbstractSpinBox,
    QComboBox,
    QFormLayout,
    QLabel,
    QLineEdit,
    QScrollBar,
    QWidget,
)

_ACTION = "\x00action"

FIELDS = QComboBox, QAbstractSpinBox, QAbstractSlider, QLineEdit
"""Widgets that hold a value and show no text that says which."""


def name_fields(parent: QWidget) -> None:
    """Give fields the accessible name of their label in a form, and the label the field's tooltip."""
    for form in parent.findChildren(QFormLayout):
        for row in range(form.rowCount()):
            label, field = (form.itemAt(row, role) for role in (_LABEL, _FIELD))
            if label is None or field is None or field.widget() is None:
                continue
            text, inside = label.widget(), field.widget()
            fields = [w for w in (inside, *inside.findChildren(QWidget)) if isinstance(w, FIELDS)]
            if isinstance(text, QLabel) and text.text() and fields:
                fields[0].setAccessibleName(fields[0].accessibleName() or text.text())
                text.setToolTip(text.toolTip() or fields[0].toolTip())
    for button in parent.findChildren(QAbstractButton):
        if not button.accessibleName() and button.text():
            button.setAccessibleName(button.text())


_LABEL, _FIELD = QFormLayout.ItemRole.LabelRole, QFormLayout.ItemRole.FieldRole


class ActionBox(QComboBox):
    """A combo box whose last item does something instead of being chosen, such as opening a dialog.

    Only a choice from its open list does that, no arrow key and no wheel.
    """

    requested = Signal()
    """The last item was chosen; the box still shows what it showed before."""

    def __init__(self) -> None:
        super().__init__()
        self._stepping = False
        self._before = 0
        self.currentIndexChanged.connect(self._remember)

    def add_action(self, text: str) -> None:
        """Add the last item."""
        self.addItem(text, _ACTION)

    def showPopup(self) -> None:  # noqa: N802 (Qt's name)
        self._stepping = False
        super().showPopup()

    def keyPressEvent(self, event: QKeyEvent) -> None:  # noqa: N802
        self._stepping = True
        super().keyPressEvent(event)
        self._stepping = False

    def wheelEvent(self, event: QWheelEvent) -> None:  # noqa: N802
        self._stepping = True
        super().wheelEvent(event)
        self._stepping = False

    def _remember(self, index: int) -> None:
        if self.itemData(index) != _ACTION:
            self._before = index
            return
        self.blockSignals(True)
        self.setCurrentIndex(self._before)
        self.blockSignals(False)
        if not self._stepping:
            self.requested.emit()


class WheelGuard(QObject):
    """Let the wheel change a field only with the keyboard focus or Shift; otherwise it scrolls the panel."""

    def guard(self, parent: QWidget) -> None:
        """Watch all fields in a widget, also those that are added later."""
        for child in (parent, *parent.findChildren(QWidget)):
            child.removeEventFilter(self)
            child.installEventFilter(self)
            if isinstance(child, QComboBox | QAbstractSpinBox | QAbstractSlider):
                child.setFocusPolicy(Qt.FocusPolicy.StrongFocus)  # the wheel itself gives no focus

    def eventFilter(self, watched: QObject, event: QEvent) -> bool:  # noqa: N802
        if event.type() == QEvent.Type.ChildAdded and isinstance(event.child(), QWidget):
            self.guard(event.child())
        field = isinstance(watched, QComboBox | QAbstractSpinBox | QAbstractSlider)
        if event.type() != QEvent.Type.Wheel or not field or isinstance(watched, QScrollBar):
            return False
        if watched.hasFocus() or event.modifiers() & Qt.KeyboardModifier.ShiftModifier:
            return False
        event.ignore()  # and so it reaches the panel
        return True
