"""The widget that trains a model on a noisy layer, without clean images."""

from __future__ import annotations

import glob
import math
import re
import time
from collections.abc import Generator
from dataclasses import replace
from pathlib import Path
from threading import Event
from typing import TYPE_CHECKING, Any

import numpy as np
from qtpy.QtCore import Qt
from qtpy.QtWidgets import (
    QCheckBox,
    QComboBox,
    QFileDialog,
    QHBoxLayout,
    QLineEdit,
    QPushButton,
    QSpinBox,
    QToolButton,
    QWidget,
)

from kbnet_plugin.selfsup.config import PAIRS_FAIL, SCRATCH, WHEN_IT_FAILS, FitConfig
from kbnet_plugin.zoo import Model, locations

from .curve import LossCurve
from .growing import View
from .layer_box import LayerBox
from .layers import arrange, full_resolution, guess_axes
from .learned import Learned
from .model_box import form_layout
from .options import PLUGIN, saved
from .restoration import duration
from .restoring import matches_file
from .task import Task
from .task_widget import TaskWidget
from .training_area import AreaBox, AxesBox, ChannelBox, cropped, possible_axes, window_of
from .words import Words
from .worker import user_errors

if TYPE_CHECKING:
    from kbnet_plugin.selfsup.fit import Fit, Step

_METHODS = {
    "single planes (Recorrupted2Recorrupted)": ("r2r", WHEN_IT_FAILS),
    "masked pixels (Noise2Void)": ("n2v", WHEN_IT_FAILS),
    "pairs of planes or layers (Noise2Noise)": ("n2n", PAIRS_FAIL),
}
_MOST = 1 << 31  # bytes of a layer that are copied
_NOISE = {
    "independent from pixel to pixel": None,
    "shared along rows": "horizontal",
    "shared along columns": "vertical",
}
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

    def __init__(self, viewer: Any) -> None:
        super().__init__(viewer)
        self._first: tuple[int, float] | None = None

    def take(self, news: Step | str | Model) -> None:
        """Show a step, or what is about to be learned or saved."""
        if isinstance(news, str):
            self._first = None
            self.say(news)
        elif not isinstance(news, Model):
            self.done, self.total = news.iteration, news.total
            now = time.monotonic()
            self._first = self._first or (news.iteration, now)
            if not self.stopping and (done := news.iteration - self._first[0]):
                seconds = (now - self._first[1]) / done * (news.total - news.iteration)
                gain = f"; measured without truth: {news.gain:+.2f} dB" if news.gain is not None else ""
                self.say(f"Step {news.iteration:,} of {news.total:,}, {duration(seconds)} left{gain}")


class TrainWidget(TaskWidget):
    """Choose a noisy layer and a name, watch the loss, stop and keep the model.

    Parameters
    ----------
    napari_viewer : napari.Viewer
    """

    def __init__(self, napari_viewer: Any) -> None:
        super().__init__(napari_viewer, "Train on this layer", "Stop and keep", Training.of(napari_viewer))
        self.layer = LayerBox(napari_viewer)
        self.axes, self.axes_note = AxesBox(), Words(note=True)
        self.channel, self.area = ChannelBox(), AreaBox(napari_viewer)
        self.name = QLineEdit()
        self.name.setToolTip("Name of the new model in the list of models")
        self.overwrite = QCheckBox("Replace any model of this name")
        self.overwrite.setToolTip("Start over, even if a training or a model of this name exists")
        self.method, self.init = QComboBox(), QComboBox()
        self.method.addItems(list(_METHODS))
        self.second = LayerBox(napari_viewer, none="the next plane of the same layer")
        self.second.setToolTip("Another recording of the same scene, plane for plane; it may be a clean one")
        self.noise = QComboBox()
        self.noise.addItems(list(_NOISE))
        self.noise.setToolTip("Line scanners share noise along a line; whole lines of pixels are masked then")
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
        self.warning = Words()  # unlike a note, not grayed out
        self.curve, self.learned = LossCurve(), Learned()
        self._trained: tuple[str, Any] = "", None  # the new model, and its layer
        self.restore = QPushButton("Restore with this model")
        self.restore.setToolTip("Open the Restore widget with this layer and the new model")
        self.export = QPushButton("Export ...")
        self.export.setToolTip(
            "Save the new model and its card as a file, for other computers, programs and bioimage.io (.zip)"
        )
        self._lay_out()

        self.layer.chosen.connect(self._layer_chosen)
        for changed in (self.axes.currentIndexChanged, self.channel.currentIndexChanged, self.area.changed):
            changed.connect(self._describe)
        self.method.currentIndexChanged.connect(self._method_chosen)
        self.restore.clicked.connect(self.open_restore)
        self.export.clicked.connect(self.save_as)
        self._layer_chosen()
        self._method_chosen()
        self.attach()

    def config(self) -> FitConfig:
        """Return what to learn, as chosen.

        Raises
        ------
        ValueError
            If no layer is chosen, its axes are unknown, or the rectangle lies outside.
        """
        if not (layers := self.layer.layers()):
            raise ValueError("Choose an image layer first.")
        (layer,), second = layers, self.second.layers()
        method, _ = _METHODS[self.method.currentText()]
        init = self.init.currentText()
        source, axes = self._part(layer)
        return FitConfig(
            source=source,
            name=self.name.text().strip(),
            method=method,
            second=self._part(second[0])[0] if method == "n2n" and second else None,
            correlated=_NOISE[self.noise.currentText()] if method == "n2v" else None,
            init=_INITS.get(init, init),
            iterations=self.steps.value() or None,
            axes=axes,
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
        self.learned.clear()
        (layer,) = self.layer.layers()
        self._trained = "", layer
        size = math.prod(config.source.shape) * np.dtype(config.source.dtype).itemsize
        part = f"{_MOST / 1e9:.1f} GB of " if size > _MOST else ""
        self.task.text = f"Saving {part}the layer ({size / 1e9:.2g} GB) until the training ends ..."
        words = f"Training {config.name} on {layer.name}"
        whole = config.source is full_resolution(layer)
        path = layer.source.path if whole else None
        self.task.begin(words, Stop(), _train, config, path, self.overwrite.isChecked())

    def open_restore(self) -> None:
        """Open the Restore widget with this layer and the new model."""
        _, widget = self.viewer.window.add_plugin_dock_widget(PLUGIN, "Restore", tabify=True)
        model, layer = self._trained
        if layer in self.viewer.layers:
            widget.layer.choose(layer)
        widget.form.model.set_value(model)

    def save_as(self) -> None:
        """Ask for a file, and export the new model and its card."""
        name, _ = self._trained
        kinds = " ".join(f"*{suffix}" for suffix in locations.EXPORT_FORMATS.values() if suffix)
        path, _ = QFileDialog.getSaveFileName(self, "Export", f"{name}.safetensors", f"Models ({kinds})")
        if path:
            self.status.setText("Exporting ...")
            self.work.submit("export", self.status.setText, _export, name, Path(path))

    def _show(self, news: Step | str | Model) -> None:
        if isinstance(news, Model):
            self._trained = news.name, self._trained[1]
            self._after.show()
        elif not isinstance(news, str):
            self.curve.add(news.iteration, news.total, news.loss, news.gain)
            if news.picture is not None:
                self.learned.show_picture(news.picture)

    def _set_running(self, running: bool) -> None:
        super()._set_running(running)
        self._fields.setEnabled(not running)
        if running:
            self._after.hide()

    def _axes(self, layer: Any) -> str:
        return self.axes.value() or guess_axes(layer)

    def _part(self, layer: Any) -> tuple[Any, str]:
        """Return what is trained on of a layer, and its axes."""
        array, axes, shapes = full_resolution(layer), self._axes(layer), self.area.shapes()
        arrange(array.shape, axes)  # raises if they do not fit
        window = window_of(shapes, layer, axes) if shapes is not None else None
        return cropped(array, axes, self.channel.currentData() if "C" in axes else None, window)

    def _layer_chosen(self) -> None:
        layers = self.layer.layers()
        if layers:
            self.name.setText(re.sub(r"[^\w.-]+", "-", layers[0].name).strip("-.") or "model")
            try:
                guess = guess_axes(layers[0])
            except ValueError:
                guess = ""
            self.axes.show_axes(guess, possible_axes(full_resolution(layers[0]).shape, layers[0].rgb))
        self._describe()

    def _describe(self) -> None:
        """Say what is trained on."""
        self.axes_note.clear()
        channels = 0
        for layer in self.layer.layers():
            try:
                axes = self._axes(layer)
                channels = full_resolution(layer).shape[axes.index("C")] if "C" in axes else 0
                self.axes_note.setText(describe_array(*self._part(layer)))
            except ValueError as error:
                self.axes_note.setText(str(error))
        self.channel.show_channels(channels)
        self._more_form.setRowVisible(self.channel, channels > 1)

    def _method_chosen(self) -> None:
        method, fails = _METHODS[self.method.currentText()]
        self._form.setRowVisible(self.second, method == "n2n")
        self._form.setRowVisible(self.noise, method == "n2v")
        self.warning.setText(fails)

    def _lay_out(self) -> None:
        self._fields = QWidget()
        self._form = form = form_layout(self._fields)
        for label, field in (
            ("Layer", self.layer),
            ("", self.axes_note),
            ("Area", self.area),
            ("Method", self.method),
            ("Second layer", self.second),
            ("Noise", self.noise),
            ("", self.warning),
            ("Name", self.name),
            ("", self.overwrite),
        ):
            form.addRow(label, field)
        self._more = QWidget()
        self._more_form = more = form_layout(self._more)
        for label, field in (
            ("Axes", self.axes),
            ("Channel", self.channel),
            ("Start from", self.init),
            ("Steps", self.steps),
            ("Device", self.device),
        ):
            more.addRow(label, field)
        self.unfold = QToolButton()
        self.unfold.setText("More options")
        self.unfold.setToolTip("Axes, channel, initial model, steps and device")
        self.unfold.setCheckable(True)
        self.unfold.setAutoRaise(True)
        self.unfold.setToolButtonStyle(Qt.ToolButtonStyle.ToolButtonTextBesideIcon)
        self.unfold.toggled.connect(self._unfolded)
        self._unfolded(False)
        form.addRow(self.unfold)
        form.addRow(self._more)
        for box in (self.method, self.noise, self.area, self.init):
            box.setSizeAdjustPolicy(QComboBox.SizeAdjustPolicy.AdjustToMinimumContentsLengthWithIcon)
            box.setMinimumContentsLength(14)
        self.column.addWidget(self._fields)
        self.column.addLayout(self.buttons)
        self._after = QWidget()
        after = QHBoxLayout(self._after)
        after.setContentsMargins(0, 0, 0, 0)
        after.addWidget(self.restore, stretch=1)
        after.addWidget(self.export)
        for below in (self.bar, self.status, self._after, self.curve, self.learned):
            self.column.addWidget(below)
        self.column.addStretch()
        self._after.hide()

    def _unfolded(self, opened: bool) -> None:
        self._more.setVisible(opened)
        self.unfold.setArrowType(Qt.ArrowType.DownArrow if opened else Qt.ArrowType.RightArrow)


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
            yield from fit.run(pictures=True)
            model = fit.save()
        finally:
            for copy in _copies(config) - before:  # another training makes them again
                copy.unlink(missing_ok=True)
        yield model
        yield f"Saved as {model.name}, which is now in the list of models.\n{fit.verdict}"


def _export(name: str, path: Path) -> str:
    """Write a model, and its card beside it; return what was written."""
    with user_errors():
        from kbnet_plugin.zoo import export, get_model

        model = get_model(name)
        export.export(model, path)
        if model.card is not None:
            path.with_suffix(".md").write_bytes(model.card.read_bytes())
    return f"Exported to {path}, with its card beside it."


def describe_array(array: Any, axes: str) -> str:
    """Say in one line what is trained on."""
    arranged = arrange(array.shape, axes)
    height, width = arranged.size
    kind = {1: "gray", 3: "RGB"}.get(arranged.colours, f"{arranged.colours}-channel")
    return f"{arranged.count:,} {kind} plane{'s' if arranged.count > 1 else ''} of {height} x {width}"


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
