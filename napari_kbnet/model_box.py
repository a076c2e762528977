"""The field for a model, and the parts that all forms are made of."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from qtpy.QtCore import Qt, Signal
from qtpy.QtWidgets import (
    QComboBox,
    QDialog,
    QFileDialog,
    QFormLayout,
    QHBoxLayout,
    QLabel,
    QSizePolicy,
    QTextBrowser,
    QToolButton,
    QVBoxLayout,
    QWidget,
)
from safetensors import SafetensorError, safe_open

from kbnet_plugin.zoo import locations

from .boxes import ActionBox


class ModelBox(QWidget):
    """Choose a model from the list or a file, and read its card."""

    chosen = Signal()

    def __init__(self) -> None:
        super().__init__()
        self._files: list[str] = []
        self.box = _ListBox(self.refresh)
        self.box.setSizeAdjustPolicy(QComboBox.SizeAdjustPolicy.AdjustToMinimumContentsLengthWithIcon)
        self.box.setMinimumContentsLength(14)
        self.card = QToolButton()
        self.card.setText("Card")
        self.card.setToolTip("What the model is for, how it was trained and where it fails")
        self.title = note()
        layout = QVBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.setSpacing(2)
        layout.addWidget(side_by_side(self.box, self.card))
        layout.addWidget(self.title)
        self.refresh()
        self._show_title()
        self.box.currentIndexChanged.connect(self._changed)
        self.box.requested.connect(self._choose_file)
        self.card.clicked.connect(self.show_card)

    def value(self) -> str:
        """Return the model's name or file; empty for automatic."""
        return self.box.currentData() or ""

    def set_value(self, model: str) -> None:
        """Choose a name or a file."""
        if self.box.findData(model) < 0:
            self._files.append(model)
            self.refresh()
        self.box.setCurrentIndex(max(0, self.box.findData(model)))
        self._show_title()

    def refresh(self) -> None:
        """List the models again; some may be new."""
        before = self.box.currentData()
        self.box.blockSignals(True)
        self.box.clear()
        self.box.addItem("automatic", "")
        for name in (*locations.model_paths(), *self._files):
            self.box.addItem(Path(name).name, name)
        self.box.add_action("a file ...")
        self.box.setCurrentIndex(max(0, self.box.findData(before)))
        self.box.blockSignals(False)

    def show_card(self) -> None:
        """Open the model card in a window."""
        path = self._path()
        dialog = QDialog(self)
        dialog.setAttribute(Qt.WidgetAttribute.WA_DeleteOnClose)
        dialog.setWindowTitle(f"Model card: {path.stem}")
        text = QTextBrowser()
        text.setOpenExternalLinks(True)
        card = path.with_suffix(".md")
        if card.is_file():
            text.setMarkdown(card.read_text(encoding="utf-8"))
        else:
            text.setPlainText(f"{path}\n\nThis model has no card.")
        QVBoxLayout(dialog).addWidget(text)
        dialog.resize(640, 640)
        dialog.show()

    def _changed(self) -> None:
        self._show_title()
        self.chosen.emit()

    def _choose_file(self) -> None:
        kinds = " ".join(f"*{kind}" for kind in locations.KINDS)
        path, _ = QFileDialog.getOpenFileName(self, "Model file", "", f"Models ({kinds})")
        if path:
            self.set_value(path)

    def _path(self) -> Path:
        name = self.value() or locations.DEFAULT
        return locations.model_paths().get(name, Path(name))

    def _show_title(self) -> None:
        if not self.value():
            self.title.setText("The shipped model that fits the noise of the image.")
            return
        self.title.setText(_title(self._path()))


class _ListBox(ActionBox):
    """A combo box that refreshes its list whenever it opens."""

    def __init__(self, refresh: Callable[[], None]) -> None:
        super().__init__()
        self._refresh = refresh

    def showPopup(self) -> None:  # noqa: N802 (Qt's name)
        self._refresh()
        super().showPopup()


def _title(path: Path) -> str:
    if path.suffix != ".safetensors":
        return ""
    try:
        with safe_open(path, framework="np") as file:
            return (file.metadata() or {}).get("title", "")
    except (SafetensorError, OSError):
        return ""  # using it reports the error in full


def form_layout(parent: QWidget) -> QFormLayout:
    """Make a form without margins, whose fields fill its width."""
    layout = QFormLayout(parent)
    layout.setContentsMargins(0, 0, 0, 0)
    layout.setFieldGrowthPolicy(QFormLayout.FieldGrowthPolicy.AllNonFixedFieldsGrow)
    return layout


def note() -> QLabel:
    """Make a gray label for several lines, like napari's own notes."""
    label = QLabel()
    label.setWordWrap(True)
    label.setSizePolicy(QSizePolicy.Policy.Expanding, QSizePolicy.Policy.Minimum)
    label.setEnabled(False)
    return label


def side_by_side(*widgets: QWidget) -> QWidget:
    """Make a row of widgets, of which the first is the widest."""
    row = QWidget()
    layout = QHBoxLayout(row)
    layout.setContentsMargins(0, 0, 0, 0)
    for number, widget in enumerate(widgets):
        layout.addWidget(widget, stretch=1 if number == 0 else 0)
    return row
