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
    QPushButton,
    QTextBrowser,
    QVBoxLayout,
    QWidget,
)
from safetensors import SafetensorError, safe_open

from kbnet_plugin.zoo import locations

from .boxes import ActionBox
from .words import Words


class ModelBox(QWidget):
    """Choose a model from the list or a file, and read its card."""

    chosen = Signal()

    def __init__(self) -> None:
        super().__init__()
        self._files: list[str] = []
        self._choice = ""
        self.box = _ListBox(self.refresh)
        self.box.setSizeAdjustPolicy(QComboBox.SizeAdjustPolicy.AdjustToMinimumContentsLengthWithIcon)
        self.box.setMinimumContentsLength(14)
        self.box.setToolTip("What restores the image; point at a model in the list to see what it is for")
        self.card = QPushButton("Card")
        self.card.setToolTip("What the model is for, how it was trained and where it fails")
        self.title = Words(note=True)
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

    def show_choice(self, model: str) -> None:
        """Show which model the automatic choice takes; empty if that is not known yet."""
        self._choice = model
        self.box.setItemText(0, self._automatic())
        self._show_title()

    def refresh(self) -> None:
        """List the models again; some may be new."""
        before = self.box.currentData()
        self.box.blockSignals(True)
        self.box.clear()
        self.box.addItem(self._automatic(), "")
        self.box.setItemData(0, _AUTOMATIC, Qt.ItemDataRole.ToolTipRole)
        for name, path in (*locations.model_paths().items(), *((name, Path(name)) for name in self._files)):
            self.box.addItem(Path(name).name, name)
            tip = _title(path) or str(path)
            self.box.setItemData(self.box.count() - 1, tip, Qt.ItemDataRole.ToolTipRole)
        self.box.add_action("a file ...")
        self.box.setCurrentIndex(max(0, self.box.findData(before)))
        self.box.blockSignals(False)

    def show_card(self) -> None:
        """Open the model card in a window; without a model, what each is for."""
        path = self._path()
        dialog = QDialog(self)
        dialog.setAttribute(Qt.WidgetAttribute.WA_DeleteOnClose)
        dialog.setWindowTitle(f"Model card: {path.stem}" if path else "Models")
        text = QTextBrowser()
        text.setOpenExternalLinks(True)
        card = path.with_suffix(".md") if path else None
        if card is None:
            lines = (f"- **{name}** {_title(path)}" for name, path in locations.model_paths().items())
            text.setMarkdown("\n".join((_AUTOMATIC, "", *lines)))
        elif card.is_file():
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

    def _automatic(self) -> str:
        return f"automatic: {self._choice}" if self._choice else "automatic"

    def _path(self) -> Path | None:
        """Return the file of the model; None for an automatic choice that is not known yet."""
        name = self.value() or self._choice
        return locations.model_paths().get(name, Path(name)) if name else None

    def _show_title(self) -> None:
        path = self._path()
        self.title.setText(_title(path) if path else _AUTOMATIC)


_AUTOMATIC = "the shipped model that fits the noise of the image"


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


def side_by_side(*widgets: QWidget) -> QWidget:
    """Make a row of widgets, of which the first is the widest."""
    row = QWidget()
    layout = QHBoxLayout(row)
    layout.setContentsMargins(0, 0, 0, 0)
    for number, widget in enumerate(widgets):
        layout.addWidget(widget, stretch=1 if number == 0 else 0)
    return row
