"""The widget that learns a model from a noisy layer, without truth."""

from __future__ import annotations

import re
from collections.abc import Generator
from dataclasses import replace
from threading import Event
from typing import TYPE_CHECKING, Any

from napari.qt.threading import create_worker
from qtpy.QtWidgets import (
    QCheckBox,
    QComboBox,
    QFormLayout,
    QHBoxLayout,
    QLabel,
    QLineEdit,
    QProgressBar,
    QPushButton,
    QSpinBox,
    QVBoxLayout,
    QWidget,
)

from kbnet_plugin.selfsup.config import PAIRS_FAIL, SCRATCH, WHEN_IT_FAILS, FitConfig
from kbnet_plugin.zoo import locations

from .background import tell
from .curve import LossCurve
from .layer_box import LayerBox
from .layers import describe, full_resolution, understood
from .options import PLUGIN, saved
from .scroll import Column
from .worker import WorkError, holds, plainly

if TYPE_CHECKING:
    from kbnet_plugin.selfsup.fit import Fit, Step

_METHODS = {
    "hide pixels (Noise2Void)": ("n2v", WHEN_IT_FAILS),
    "pairs of planes (Noise2Noise)": ("n2n", PAIRS_FAIL),
}
_INITS = {"automatic: the shipped model that fits": None, "from scratch": SCRATCH}


class Stop:
    """Ends a training, whether or not it has begun; from any thread."""

    def __init__(self) -> None:
        self._told = Event()
        self._fit: Fit | None = None

    def set(self) -> None:
        """Stop after the step under way."""
        self._told.set()
        if self._fit is not None:
            self._fit.stop()

    def clear(self) -> None:
        """Make ready for another training."""
        self._told.clear()
        self._fit = None

    def watch(self, fit: Fit) -> None:
        """Stop this one when told, or at once if that was before."""
        self._fit = fit
        if self._told.is_set():
            fit.stop()


class TrainWidget(QWidget):
    """Choose a noisy layer and a name, watch the loss, stop and keep.

    Parameters
    ----------
    napari_viewer : napari.Viewer
    """

    def __init__(self, napari_viewer: Any) -> None:
        super().__init__()
        self.viewer = napari_viewer
        self.worker: Any = None
        self._stop = Stop()
        self.layer = LayerBox(napari_viewer)
        self.axes, self.understood = QLineEdit(), _note()
        self.axes.setToolTip("What the axes are: letters of T Z C S Y X; S are colours, learned together")
        self.name = QLineEdit()
        self.name.setToolTip("What the model will be called in the list of models")
        self.overwrite = QCheckBox("begin anew, and replace a model of that name")
        self.method, self.start_from = QComboBox(), QComboBox()
        self.method.addItems(list(_METHODS))
        self.second = LayerBox(napari_viewer, none="the next plane of the same layer")
        self.second.setToolTip("Another recording of the same, plane for plane")
        self.start_from.setToolTip(
            "A model is quicker to learn from; nothing knows no other images than this"
        )
        self.steps = QSpinBox()
        self.steps.setRange(1, 1_000_000)
        self.steps.setSingleStep(500)
        self.steps.setValue(FitConfig.iterations)
        self.steps.setToolTip("A finished or stopped training goes on when it is started with more steps")
        self.device = QComboBox()
        self.device.addItems(list(dict.fromkeys(["auto", "cpu", "cuda", saved().device])))
        self.device.setCurrentText(saved().device)
        self.warning = QLabel()  # not grey: it is to be read
        self.warning.setWordWrap(True)
        self.start, self.stop = QPushButton("Train on this layer"), QPushButton("Stop and keep")
        self.bar, self.curve, self.said = QProgressBar(), LossCurve(), QLabel()
        self.said.setWordWrap(True)
        self.restore = QPushButton("Restore with it")
        self.restore.setToolTip("Open the widget Restore with the layer and the new model")
        self._lay_out()

        self.layer.chosen.connect(self._layer_chosen)
        self.axes.editingFinished.connect(self._describe)
        self.method.currentIndexChanged.connect(self._method_chosen)
        self.start.clicked.connect(self.run)
        self.stop.clicked.connect(self.stop_and_keep)
        self.restore.clicked.connect(self.open_restore)
        # A closed viewer takes the widget along, but not what works for it.
        stop = self._stop
        self.destroyed.connect(lambda: stop.set())
        self._layer_chosen()
        self._method_chosen()
        self._running(False)

    def config(self) -> FitConfig:
        """What to learn, as chosen.

        Raises
        ------
        ValueError
            If no layer is chosen, or its axes are not known.
        """
        if not (layers := self.layer.layers()):
            raise ValueError("Choose an image layer first.")
        (layer,), second = layers, self.second.layers()
        method, _ = _METHODS[self.method.currentText()]
        init = self.start_from.currentText()
        return FitConfig(
            source=full_resolution(layer),
            name=self.name.text().strip(),
            method=method,
            second=full_resolution(second[0]) if method == "n2n" and second else None,
            init=_INITS.get(init, init),
            iterations=self.steps.value(),
            axes=self._axes(layer),
            device=self.device.currentText(),
        )

    def run(self) -> None:
        """Train, in a process of its own."""
        try:
            config = self.config()
        except ValueError as error:
            self.said.setText(str(error))
            return
        self.curve.clear()
        self.bar.setRange(0, 0)  # busy, until the first step
        self.said.setText("Writing the layer, starting the training ...")
        self._running(True)
        self._stop.clear()
        self.worker = create_worker(
            _train,
            config,
            self.layer.layers()[0].source.path,
            self.overwrite.isChecked(),
            self._stop,
            _start_thread=False,
            _ignore_errors=True,
        )
        self.worker.yielded.connect(self._show)
        self.worker.returned.connect(self._keep)
        self.worker.errored.connect(self._failed)
        self.worker.finished.connect(self._finished)
        self.worker.start()

    def stop_and_keep(self) -> None:
        """Stop after the step under way, and keep what is learned as a model."""
        self.stop.setEnabled(False)
        self.said.setText("Stopping after this step ...")
        self._stop.set()

    def open_restore(self) -> None:
        """Open the widget Restore with the layer and the new model."""
        _, widget = self.viewer.window.add_plugin_dock_widget(PLUGIN, "Restore", tabify=True)
        for layer in self.layer.layers():
            widget.layer.choose(layer)
        widget.form.model.set_value(self.name.text().strip())

    def _failed(self, error: Exception) -> None:
        self.said.setText(tell(error))

    def _show(self, news: Step | str | WorkError) -> None:
        if isinstance(news, WorkError):
            return self._failed(news)
        if isinstance(news, str):
            return self.said.setText(news)
        self.bar.setRange(0, news.total)
        self.bar.setValue(news.iteration)
        self.curve.add(*news)

    def _keep(self, name: str) -> None:
        if not name:
            return  # an error, and it is said
        self.said.setText(f"Kept as {name}: it stands in the list of models now.")
        self.restore.show()

    def _finished(self) -> None:
        self.worker = None
        self._running(False)

    def _running(self, running: bool) -> None:
        self._fields.setEnabled(not running)
        self.start.setEnabled(not running)
        self.stop.setEnabled(running)
        self.bar.setVisible(running)
        if running:
            self.restore.hide()

    def _axes(self, layer: Any) -> str:
        return self.axes.text().strip().upper() or understood(layer)

    def _layer_chosen(self) -> None:
        layers = self.layer.layers()
        if layers:
            self.name.setText(re.sub(r"[^\w.-]+", "-", layers[0].name).strip("-.") or "model")
        self.axes.clear()
        self._describe()

    def _describe(self) -> None:
        self.axes.setPlaceholderText("")
        self.understood.clear()
        for layer in self.layer.layers():
            try:
                axes = self._axes(layer)
                self.axes.setPlaceholderText(axes)
                self.understood.setText(describe(layer, axes))
            except ValueError as error:
                self.understood.setText(str(error))

    def _method_chosen(self) -> None:
        method, fails = _METHODS[self.method.currentText()]
        self._form.setRowVisible(self.second, method == "n2n")
        self.warning.setText(fails)

    def _list_starts(self) -> None:
        self.start_from.clear()
        self.start_from.addItems([*_INITS, *locations.model_paths()])

    def _lay_out(self) -> None:
        self._list_starts()
        self._fields = QWidget()
        self._form = form = QFormLayout(self._fields)
        form.setContentsMargins(0, 0, 0, 0)
        form.setFieldGrowthPolicy(QFormLayout.FieldGrowthPolicy.AllNonFixedFieldsGrow)
        for label, field in (
            ("Layer", self.layer),
            ("Axes", self.axes),
            ("", self.understood),
            ("Learn by", self.method),
            ("Second", self.second),
            ("", self.warning),
            ("Name", self.name),
            ("", self.overwrite),
            ("Start from", self.start_from),
            ("Steps", self.steps),
            ("Device", self.device),
        ):
            form.addRow(label, field)
        for box in (self.method, self.start_from):
            box.setSizeAdjustPolicy(QComboBox.SizeAdjustPolicy.AdjustToMinimumContentsLengthWithIcon)
            box.setMinimumContentsLength(14)
        buttons = QHBoxLayout()
        buttons.addWidget(self.start)
        buttons.addWidget(self.stop)
        inside = QWidget()
        column = QVBoxLayout(inside)
        column.addWidget(self._fields)
        column.addLayout(buttons)
        for below in (self.bar, self.curve, self.said, self.restore):
            column.addWidget(below)
        column.addStretch()
        self.restore.hide()
        layout = QVBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.addWidget(Column(inside))


def _train(
    config: FitConfig, path: str | None, overwrite: bool, stop: Stop
) -> Generator[Step | str | WorkError, None, str]:
    """What is about to be learned, then every step; the name of the model at last. Runs beside the window."""
    try:
        with plainly():
            from kbnet_plugin.selfsup.fit import Fit

            if path is not None and holds(path, config.source):
                config = replace(config, source=path)  # nothing is to be written a second time
            fit = Fit(config, overwrite=overwrite)
            stop.watch(fit)
            yield f"{fit.summary}\n\n{fit.doubt}".rstrip()
            yield from fit.run()
            return fit.save().name
    except WorkError as error:
        # Not raised: what napari connects to `errored` fails under PySide6.
        yield error
        return ""


def _note() -> QLabel:
    label = QLabel()
    label.setWordWrap(True)
    label.setEnabled(False)  # grey, as napari's own notes
    return label
