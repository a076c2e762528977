"""The widget that trains a model on a noisy layer, without clean images."""

from __future__ import annotations

import glob
import math
import re
from collections.abc import Generator
from dataclasses import replace
from pathlib import Path
from threading import Event
from typing import TYPE_CHECKING, Any

import numpy as np
from qtpy.QtWidgets import QCheckBox, QComboBox, QLineEdit, QPushButton, QSpinBox, QWidget

from kbnet_plugin.selfsup.config import PAIRS_FAIL, SCRATCH, WHEN_IT_FAILS, FitConfig
from kbnet_plugin.zoo import Model, locations

from .curve import LossCurve
from .growing import View
from .layer_box import LayerBox
from .layers import describe, full_resolution, guess_axes
from .model_box import form_layout, note
from .options import PLUGIN, saved
from .restoring import matches_file
from .task import Task
from .task_widget import TaskWidget, wrapped
from .worker import user_errors

if TYPE_CHECKING:
    from kbnet_plugin.selfsup.fit import Fit, Step

_METHODS = {
    "single planes (Recorrupted2Recorrupted)": ("r2r", WHEN_IT_FAILS),
    "masked pixels (Noise2Void)": ("n2v", WHEN_IT_FAILS),
    "pairs of planes (Noise2Noise)": ("n2n", PAIRS_FAIL),
}
_MOST = 1 << 31  # bytes of a layer that are copied
_INITS = {"shipped model that fits (default)": None, "from scratch": SCRATCH}


class Stop:
    """Stops a training, even one that has not begun yet; may be set from any thread."""

    def __init__(self) -> None:
        self._requested = Event()
        self._fit: Fit | None = None

    def set(self) -> None:
        """Stop after the current step."""
        self._requested.set()
        if self._fit is not None:
            self._fit.stop()

    def clear(self) -> None:
        """Prepare for another training."""
        self._requested.clear()
        self._fit = None

    def watch(self, fit: Fit) -> None:
        """Stop `fit` when set, or at once if it already is."""
        self._fit = fit
        if self._requested.is_set():
            fit.stop()


class Training(Task):
    """Train a model."""

    step = "step"

    def take(self, news: Step | str | Model) -> None:
        """Show a step, or what is about to be learned or saved."""
        if isinstance(news, str):
            self.say(news)
        elif not isinstance(news, Model):
            self.done, self.total = news.iteration, news.total
            if news.gain is not None:
                self.say(f"Measured without truth: {news.gain:+.2f} dB")


class TrainWidget(TaskWidget):
    """Choose a noisy layer and a name, watch the loss, stop and keep the model.

    Parameters
    ----------
    napari_viewer : napari.Viewer
    """

    def __init__(self, napari_viewer: Any) -> None:
        super().__init__(napari_viewer, "Train on this layer", "Stop and keep", Training.of(napari_viewer))
        self.layer = LayerBox(napari_viewer)
        self.axes, self.axes_note = QLineEdit(), note()
        self.axes.setToolTip("Axes of the layer: letters of T Z C S Y X. S is colour, trained together.")
        self.name = QLineEdit()
        self.name.setToolTip("Name of the new model in the list of models")
        self.overwrite = QCheckBox("Replace any model of this name")
        self.overwrite.setToolTip("Start over, even if a training or a model of this name exists")
        self.method, self.init = QComboBox(), QComboBox()
        self.method.addItems(list(_METHODS))
        self.second = LayerBox(napari_viewer, none="the next plane of the same layer")
        self.second.setToolTip("Another recording of the same scene, plane for plane")
        self.init.addItems([*_INITS, *locations.model_paths()])
        self.init.setToolTip("From a model: needs fewer steps. From scratch: learns from this image only.")
        self.steps = QSpinBox()
        self.steps.setRange(0, 1_000_000)
        self.steps.setSpecialValueText("as the image requires")  # for 0
        self.steps.setSingleStep(500)
        self.steps.setToolTip("To continue a finished or stopped training, start it again with more steps")
        self.device = QComboBox()
        self.device.addItems(list(dict.fromkeys(["auto", "cpu", "cuda", saved().device])))
        self.device.setCurrentText(saved().device)
        self.warning = wrapped()  # unlike a note, not grayed out
        self.curve = LossCurve()
        self._trained: tuple[str, Any] = "", None  # the new model, and its layer
        self.restore = QPushButton("Restore with this model")
        self.restore.setToolTip("Open the Restore widget with this layer and the new model")
        self._lay_out()

        self.layer.chosen.connect(self._layer_chosen)
        self.axes.editingFinished.connect(self._describe)
        self.method.currentIndexChanged.connect(self._method_chosen)
        self.restore.clicked.connect(self.open_restore)
        self._layer_chosen()
        self._method_chosen()
        self.attach()

    def config(self) -> FitConfig:
        """Return what to learn, as chosen.

        Raises
        ------
        ValueError
            If no layer is chosen, or its axes are unknown.
        """
        if not (layers := self.layer.layers()):
            raise ValueError("Choose an image layer first.")
        (layer,), second = layers, self.second.layers()
        method, _ = _METHODS[self.method.currentText()]
        init = self.init.currentText()
        return FitConfig(
            source=full_resolution(layer),
            name=self.name.text().strip(),
            method=method,
            second=full_resolution(second[0]) if method == "n2n" and second else None,
            init=_INITS.get(init, init),
            iterations=self.steps.value() or None,
            axes=self._axes(layer),
            device=self.device.currentText(),
        )

    def run(self) -> None:
        """Train, in a separate process."""
        try:
            config = self.config()
        except ValueError as error:
            self.status.setText(str(error))
            return
        self.curve.clear()
        (layer,) = self.layer.layers()
        self._trained = "", layer
        size = math.prod(config.source.shape) * np.dtype(config.source.dtype).itemsize
        part = f"{_MOST / 1e9:.1f} GB of " if size > _MOST else ""
        self.task.text = f"Saving {part}the layer ({size / 1e9:.2g} GB) until the training ends ..."
        words = f"Training {config.name} on {layer.name}"
        self.task.begin(words, Stop(), _train, config, layer.source.path, self.overwrite.isChecked())

    def open_restore(self) -> None:
        """Open the Restore widget with this layer and the new model."""
        _, widget = self.viewer.window.add_plugin_dock_widget(PLUGIN, "Restore", tabify=True)
        model, layer = self._trained
        if layer in self.viewer.layers:
            widget.layer.choose(layer)
        widget.form.model.set_value(model)

    def _show(self, news: Step | str | Model) -> None:
        if isinstance(news, Model):
            self._trained = news.name, self._trained[1]
            self.restore.show()
        elif not isinstance(news, str):
            self.curve.add(news.iteration, news.total, news.loss)

    def _set_running(self, running: bool) -> None:
        super()._set_running(running)
        self._fields.setEnabled(not running)
        if running:
            self.restore.hide()

    def _axes(self, layer: Any) -> str:
        return self.axes.text().strip().upper() or guess_axes(layer)

    def _layer_chosen(self) -> None:
        layers = self.layer.layers()
        if layers:
            self.name.setText(re.sub(r"[^\w.-]+", "-", layers[0].name).strip("-.") or "model")
        self.axes.clear()
        self._describe()

    def _describe(self) -> None:
        self.axes.setPlaceholderText("")
        self.axes_note.clear()
        for layer in self.layer.layers():
            try:
                axes = self._axes(layer)
                self.axes.setPlaceholderText(axes)
                self.axes_note.setText(describe(layer, axes))
            except ValueError as error:
                self.axes_note.setText(str(error))

    def _method_chosen(self) -> None:
        method, fails = _METHODS[self.method.currentText()]
        self._form.setRowVisible(self.second, method == "n2n")
        self.warning.setText(fails)

    def _lay_out(self) -> None:
        self._fields = QWidget()
        self._form = form = form_layout(self._fields)
        for label, field in (
            ("Layer", self.layer),
            ("Axes", self.axes),
            ("", self.axes_note),
            ("Method", self.method),
            ("Second recording", self.second),
            ("", self.warning),
            ("Name", self.name),
            ("", self.overwrite),
            ("Start from", self.init),
            ("Steps", self.steps),
            ("Device", self.device),
        ):
            form.addRow(label, field)
        for box in (self.method, self.init):
            box.setSizeAdjustPolicy(QComboBox.SizeAdjustPolicy.AdjustToMinimumContentsLengthWithIcon)
            box.setMinimumContentsLength(14)
        self.column.addWidget(self._fields)
        self.column.addLayout(self.buttons)
        for below in (self.bar, self.curve, self.status, self.restore):
            self.column.addWidget(below)
        self.column.addStretch()
        self.restore.hide()


def _train(
    config: FitConfig, path: str | None, overwrite: bool, stop: Stop
) -> Generator[Step | str | Model, None, None]:
    """Yield what is about to be learned, then every step, then the model."""
    with user_errors():
        from kbnet_plugin.selfsup.fit import Fit

        if path is not None and matches_file(path, config.source):
            config = replace(config, source=path)
        else:
            config = replace(config, source=bounded(config.source))
        before = _copies(config)
        try:
            fit = Fit(config, overwrite=overwrite)
            stop.watch(fit)
            yield fit.summary
            yield from fit.run()
            model = fit.save()
        finally:
            for copy in _copies(config) - before:  # another training makes them again
                copy.unlink(missing_ok=True)
        yield model
        yield f"Saved as {model.name}, which is now in the list of models.\n{fit.verdict}"


def bounded(array: Any) -> Any:
    """Return the middle planes of an array, of which a copy is saved, up to `_MOST` bytes."""
    size = math.prod(array.shape) * np.dtype(array.dtype).itemsize
    if size <= _MOST or len(array.shape) < 3:
        return array
    count = max(2, _MOST * array.shape[0] // size)
    first = (array.shape[0] - count) // 2
    return View(array)[first : first + count]


def _copies(config: FitConfig) -> set[Path]:
    """Return the copies of layers that a training of this name has made."""
    return set((locations.folder() / "fits").glob(f"{glob.escape(config.name)}*-{'[0-9a-f]' * 12}.npy"))
