"""The fields of a widget that say how to restore; imports no torch."""

from __future__ import annotations

from qtpy.QtCore import Qt, Signal
from qtpy.QtWidgets import (
    QCheckBox,
    QComboBox,
    QDoubleSpinBox,
    QLabel,
    QLineEdit,
    QSlider,
    QSpinBox,
    QToolButton,
    QWidget,
)

from kbnet_plugin.arrays.intensity import RangeRule

from .boxes import ActionBox
from .model_box import ModelBox, form_layout, side_by_side
from .options import PRECISIONS, Options, saved
from .words import Words

_RANGES = {
    "automatic": None,
    "data type": "dtype",
    "percentiles": "percentile",
    "from ... to": (),
}


class OptionsForm(QWidget):
    """Fields for `Options` and for the axes.

    Parameters
    ----------
    options : Options, optional
        Initial values; by default those of the settings page.
    """

    changed = Signal()
    devices_requested = Signal()
    """The user wants to see the available devices; call `show_devices` with them."""

    def __init__(self, options: Options | None = None) -> None:
        super().__init__()
        self.model = ModelBox()
        self.device = ActionBox()
        self.strength = QSlider(Qt.Orientation.Horizontal)
        self.strength.setRange(0, 100)
        self.strength.setToolTip("How much of the correction is applied: 0 % leaves the image as it is")
        self.device.setToolTip("Where the model runs; automatic takes a GPU if there is one")
        self._percent = QLabel()
        self._percent.setMinimumWidth(40)
        self.axes = QLineEdit()
        self.axes.setToolTip(
            "Axes of the image: letters of T Z C S Y X. T, Z and C are restored plane by plane; S is colour."
        )
        self.axes_note = Words(note=True)
        self.tile = _spin_box(0, 16384, "automatic", "Largest side of a tile in pixels, including the halo")
        self.halo = _spin_box(
            -1, 1024, "automatic", "Pixels at the edges of each tile that serve as context only"
        )
        self.precision = QComboBox()
        self.precision.addItems(PRECISIONS)
        self.precision.setToolTip(
            "Number format of the computation; auto is float16 on CUDA and float32 elsewhere"
        )
        self.range = QComboBox()
        self.range.addItems(list(_RANGES))
        self.range.setToolTip("Intensities that the model sees as black (0) and white (1)")
        self.low = _value_box(0, "Lowest intensity", "Intensity that the model sees as black")
        self.high = _value_box(1, "Highest intensity", "Intensity that the model sees as white")
        self.self_ensemble = QCheckBox("Average over 8 flips and rotations")
        self.self_ensemble.setToolTip("Slightly better, but eight times slower")
        layout = form_layout(self)
        layout.addRow("Model", self.model)
        layout.addRow("Device", self.device)
        layout.addRow("Strength", side_by_side(self.strength, self._percent))
        layout.addRow("Axes", self.axes)
        layout.addRow("", self.axes_note)
        self._more = QWidget()
        more = form_layout(self._more)
        more.addRow("Range", self.range)
        self._ends = side_by_side(self.low, QLabel("to"), self.high)
        more.addRow("", self._ends)
        more.addRow("Tile", self.tile)
        more.addRow("Halo", self.halo)
        more.addRow("Precision", self.precision)
        more.addRow("", self.self_ensemble)
        self.unfold = QToolButton()
        self.unfold.setText("More options")
        self.unfold.setToolTip("Range, tiles, precision and where the result goes")
        self.unfold.setCheckable(True)
        self.unfold.setAutoRaise(True)
        self.unfold.setToolButtonStyle(Qt.ToolButtonStyle.ToolButtonTextBesideIcon)
        self.unfold.toggled.connect(self._fold)
        self._fold(False)
        layout.addRow(self.unfold)
        layout.addRow(self._more)

        self.show_devices({"auto": "automatic", "cpu": "CPU"}, more=True)
        self.set_options(saved() if options is None else options)
        self.model.chosen.connect(self.changed)
        self.device.currentIndexChanged.connect(self.changed)
        self.device.requested.connect(self.devices_requested)
        self.strength.valueChanged.connect(self._strength_moved)
        self.axes.editingFinished.connect(self.changed)
        for box in (self.tile, self.halo, self.low, self.high):
            box.valueChanged.connect(self.changed)
        self.precision.currentIndexChanged.connect(self.changed)
        self.range.currentIndexChanged.connect(self._range_chosen)
        self.self_ensemble.toggled.connect(self.changed)

    def options(self) -> Options:
        """Return the options as chosen."""
        tile, halo = self.tile.value(), self.halo.value()
        return Options(
            model=self.model.value(),
            device=self.device.currentData(),
            precision=self.precision.currentText(),
            strength=self.strength.value() / 100,
            tile=tile or None,
            halo=None if halo < 0 else halo,
            range=self._rule(),
            self_ensemble=self.self_ensemble.isChecked(),
        )

    def set_options(self, options: Options) -> None:
        """Show options in the fields."""
        self.model.set_value(options.model)
        if self.device.findData(options.device) < 0:
            self.device.insertItem(2, options.device, options.device)
        self.device.setCurrentIndex(self.device.findData(options.device))
        self.precision.setCurrentText(options.precision)
        self.strength.setValue(round(100 * options.strength))
        self._strength_moved()
        self.tile.setValue(options.tile or 0)
        self.halo.setValue(-1 if options.halo is None else options.halo)
        fixed = isinstance(options.range, tuple)
        if fixed:
            self.low.setValue(options.range[0])
            self.high.setValue(options.range[1])
        self.range.setCurrentIndex(3 if fixed else list(_RANGES.values()).index(options.range))
        self._ends.setVisible(fixed)
        self.self_ensemble.setChecked(options.self_ensemble)

    def add_more(self, label: str, widget: QWidget) -> None:
        """Add a field under "More options"."""
        self._more.layout().insertRow(0, label, widget)

    def show_devices(self, devices: dict[str, str], *, more: bool = False) -> None:
        """List devices, name to label; `more` offers to find others."""
        chosen = self.device.currentData()
        self.device.blockSignals(True)
        self.device.clear()
        for name, label in devices.items():
            self.device.addItem(label, name)
        if chosen and chosen not in devices:
            self.device.addItem(chosen, chosen)
        if more:
            self.device.add_action("find GPUs ...")
        self.device.setCurrentIndex(max(0, self.device.findData(chosen)))
        self.device.blockSignals(False)

    def _strength_moved(self) -> None:
        self._percent.setText(f"{self.strength.value()} %")
        self.changed.emit()

    def _range_chosen(self) -> None:
        self._ends.setVisible(self.range.currentIndex() == 3)
        self.changed.emit()

    def _rule(self) -> RangeRule | None:
        rule = _RANGES[self.range.currentText()]
        return (self.low.value(), self.high.value()) if rule == () else rule

    def _fold(self, opened: bool) -> None:
        self._more.setVisible(opened)
        self.unfold.setArrowType(Qt.ArrowType.DownArrow if opened else Qt.ArrowType.RightArrow)


def _spin_box(low: int, high: int, special: str, tip: str) -> QSpinBox:
    box = QSpinBox()
    box.setRange(low, high)
    box.setSpecialValueText(special)
    box.setToolTip(tip)
    box.setKeyboardTracking(False)
    return box


def _value_box(value: float, name: str, tip: str) -> QDoubleSpinBox:
    box = QDoubleSpinBox()
    box.setAccessibleName(name)
    box.setToolTip(tip)
    box.setRange(-1e12, 1e12)
    box.setDecimals(3)
    box.setValue(value)
    box.setKeyboardTracking(False)
    return box
