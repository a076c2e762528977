"""Wheel and arrow keys over the panels, with real events."""

from __future__ import annotations

import pytest
from qtpy.QtCore import QPoint, QPointF, Qt
from qtpy.QtGui import QWheelEvent
from qtpy.QtWidgets import QAbstractSlider, QAbstractSpinBox, QApplication, QComboBox, QFileDialog, QScrollBar


def turn(field, modifiers=Qt.KeyboardModifier.NoModifier, down=True):
    """Turn the wheel by one tick over a widget, as the window system does."""
    middle = QPointF(field.rect().center())
    ticks = QPoint(0, -120 if down else 120)
    event = QWheelEvent(
        middle,
        field.mapToGlobal(middle),
        QPoint(),
        ticks,
        Qt.MouseButton.NoButton,
        modifiers,
        Qt.ScrollPhase.NoScrollPhase,
        False,
    )
    QApplication.sendEvent(field, event)


def value(field):
    return field.currentIndex() if isinstance(field, QComboBox) else field.value()


@pytest.mark.parametrize("name", ["Restore", "Restore files", "Train on this layer"])
def test_the_wheel_scrolls_and_changes_a_value_only_with_focus_or_shift(qtbot, viewer, name):
    _, widget = viewer.window.add_plugin_dock_widget("kbnet", name)
    kinds = QComboBox | QAbstractSlider | QAbstractSpinBox
    fields = [f for kind in kinds.__args__ for f in widget.findChildren(kind)]
    fields = [field for field in fields if not isinstance(field, QScrollBar)]
    assert len(fields) > 3
    for field in fields:
        field.clearFocus()
        before = value(field)
        for down in (True, False, False):
            turn(field, down=down)
            assert value(field) == before, field
    if name == "Restore":
        strength = widget.form.strength
        turn(strength, Qt.KeyboardModifier.ShiftModifier)
        assert strength.value() < 100
        strength.setValue(100)
        viewer.window._qt_window.activateWindow()
        strength.setFocus()
        qtbot.waitUntil(strength.hasFocus, timeout=10_000)
        turn(strength)
        assert strength.value() < 100


def test_no_wheel_or_key_opens_a_dialog(qtbot, viewer, restore_widget, monkeypatch):
    asked = []
    for name in ("getOpenFileName", "getExistingDirectory"):
        monkeypatch.setattr(QFileDialog, name, lambda *_: asked.append(1) or ("", ""))
    monkeypatch.setattr(QFileDialog, "getExistingDirectory", lambda *_: asked.append(1) or "")
    for box in (restore_widget.form.model.box, restore_widget.where, restore_widget.form.device):
        box.setCurrentIndex(box.count() - 2)
        box.setFocus()
        for _ in range(3):
            turn(box)
            qtbot.keyClick(box, Qt.Key.Key_Down)
        qtbot.keyClick(box, Qt.Key.Key_End)
        assert box.currentIndex() == box.count() - 2
    assert not asked
    box = restore_widget.form.model.box
    box.setCurrentIndex(2)
    box.setCurrentIndex(box.count() - 1)  # as a click in the list does
    assert asked == [1]
    assert box.currentIndex() == 2  # the dialog was closed; the choice is kept
