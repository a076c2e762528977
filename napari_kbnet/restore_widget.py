"""The widget that restores layers."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import numpy as np
from napari.layers import Layer
from napari.utils.notifications import show_error, show_info
from qtpy.QtCore import QTimer, Signal
from qtpy.QtGui import QShowEvent
from qtpy.QtWidgets import QApplication, QFormLayout, QFrame, QHBoxLayout, QPushButton

from . import quality, worker
from .destination import Destination
from .form import OptionsForm
from .layer_box import LayerBox
from .layers import RECORD, arrange, describe, full_resolution, guess_axes, residual, sizes
from .loading import load_torch
from .placing import add_on_top
from .preview import PreviewPane, middle_of_view, visible
from .previewing import Preview, Previewer, Request
from .restoration import Pair, Restoration, duration
from .restoring import Job
from .script import script
from .task_widget import TaskWidget
from .words import Words

_MEASURED = 1024  # pixels per side; the middle of the visible area is as noisy as all of it
_NO_PLAN = "Tiles, memory and time"
_NO_IMAGE = "Open an image first: File > Open File(s)..., or File > Open Sample > KBNet."
_LOADING = "Loading torch ..."
_NO_LAYER = "Choose an image layer first."
_SETTLED = 300  # milliseconds after the last change, until the model is chosen for the layer


class RestoreWidget(TaskWidget):
    """Choose a layer and a model, look at a preview, restore.

    Parameters
    ----------
    napari_viewer : napari.Viewer
    """

    _previewed = Signal(object)

    def __init__(self, napari_viewer: Any) -> None:
        super().__init__(napari_viewer, "Restore", "Cancel", Restoration.of(napari_viewer))
        self._advice = ""
        self._request: Request | None = None  # the latest preview
        self._previewer = Previewer(self._previewed.emit)
        self._settled = QTimer(self)
        self._settled.setSingleShot(True)
        self._settled.setInterval(_SETTLED)
        self._settled.timeout.connect(self._choose_early)
        self.layer = LayerBox(napari_viewer, several=True)
        self.layer.setToolTip("What to restore; the box follows the images selected in the layer list")
        self.form = OptionsForm()
        self.where = Destination()
        self.plan = Words(_NO_PLAN)
        self.why = Words()
        self.why.setToolTip("What was chosen for this image, based on its measured noise")
        self.estimate = QPushButton("Estimate")
        self.estimate.setToolTip("Measure the noise, load the model and time a small tile")
        self.preview = PreviewPane(napari_viewer)
        self.results: Restoration = self.task
        self.resume = QPushButton("Continue")
        self.start.setToolTip("Restore the chosen layers, tile by tile, as new layers")
        self.cancel.setToolTip("Stop; the tiles that are finished are kept")
        self.resume.setToolTip("Restore the tiles that are left of the result that was stopped")
        self.truth = LayerBox(napari_viewer, none="none")
        self.truth.setToolTip("A noise-free version of the layer, for PSNR and SSIM")
        self.quality = Words()
        self.residual, self.copy = QPushButton("Residual layer"), QPushButton("Copy as script")
        self.residual.setToolTip(
            "Add a layer of what was removed. Structure visible here means that signal was removed."
        )
        self.copy.setToolTip("Copy a Python script that repeats this restoration")
        self._lay_out()

        self.layer.chosen.connect(self._layer_chosen)
        self.form.changed.connect(self._changed)
        self.form.devices_requested.connect(self._find_devices)
        self.where.chosen.connect(self._changed)
        self.estimate.clicked.connect(self._estimate)
        self.preview.requested.connect(self.show_preview)
        self.preview.stopped.connect(self._stop_preview)
        self._previewed.connect(self._show_preview)
        self.work.moved.connect(self._show_busy)
        self.results.restored.connect(self._done)
        self.resume.clicked.connect(self._resume)
        napari_viewer.layers.events.removed.connect(self._offer_resume)
        napari_viewer.dims.events.ndisplay.connect(self._withdraw_advice)
        self.residual.clicked.connect(self.add_residual)
        self.copy.clicked.connect(self.copy_script)
        self._layer_chosen()
        self.attach()

    def layers(self) -> list[Any]:
        """Return the layers that a run restores."""
        return self.layer.layers()

    def jobs(self) -> list[tuple[Any, Job]]:
        """Return those layers, each with its job.

        Raises
        ------
        ValueError
            If the axes do not fit a layer.
        """
        jobs = []
        for layer in self.layers():
            array = full_resolution(layer)
            axes = self.axes(layer)
            arrange(array.shape, axes)
            jobs.append(
                (
                    layer,
                    Job(
                        name=layer.name,
                        array=array,
                        axes=axes,
                        options=self.form.options(),
                        sizes=sizes(layer, axes),
                        path=layer.source.path,
                        target=self.where.target(layer.name, array),
                    ),
                )
            )
        return jobs

    def axes(self, layer: Any) -> str:
        """Return the axes of a layer: those entered, or else a guess."""
        entered = self.form.axes.text().strip().upper()
        return entered if entered else guess_axes(layer)

    def show_preview(self) -> None:
        """Restore what the canvas shows."""
        if self.worker is not None or not self._has_layers():
            return
        layer = self.layers()[0]
        if self.viewer.dims.ndisplay == 3:
            return self._advise("The preview shows a single plane; switch to the 2D view first.")
        try:
            axes = self.axes(layer)
            view = visible(self.viewer, layer, axes)
        except ValueError as error:
            return self._advise(str(error))
        self._say(f"Computing the preview{_every(view.window[0].step)} ...")
        self.preview.set_busy(True)
        self._stop_preview()  # the one under way, if there is one
        self._request = request = Request(
            self.form.options(),
            full_resolution(layer),
            axes,
            view,
            self._truth(),
            self.preview.border,
            tag=(layer, axes, self._made_of()),
        )

        def ended(preview: Preview | None) -> None:
            if request is self._request:
                self._preview_ended(preview)

        self.work.submit("preview", ended, self._previewer, request)

    def _stop_preview(self) -> None:
        if self._request is not None:
            self._request.stopped.set()

    def _show_preview(self, preview: Preview) -> None:
        layer, axes, made_of = preview.tag
        if layer in self.viewer.layers and self.worker is None:
            self.preview.show_preview(layer, preview, axes, made_of)
            self._compare()

    def _preview_ended(self, preview: Preview | None) -> None:
        self.preview.set_busy(False)
        if preview is None:
            self._say("Preview stopped")
            return
        self._show_preview(preview)
        self.why.setText(preview.reason)
        self.form.model.show_choice(preview.model)
        self.quality.setText(f"{preview.quality} (in the preview)")
        axes = preview.tag[1]
        height, width = (preview.before.shape[axes.index(a)] for a in "YX")
        step = round(preview.steps[axes.index("Y")])
        hint = "; zoom in for the exact result" if step > 1 else ""
        self._say(f"Preview of {width} x {height} pixels{_every(step)} in {preview.seconds:.1f} s{hint}")
        self._plan()

    def _made_of(self) -> Any:
        """Return what a preview depends on, besides the view."""
        return [(id(layer), id(full_resolution(layer)), self.axes(layer)) for layer in self.layers()[:1]], (
            self.form.options()
        )

    def _compare(self) -> None:
        """Say whether the preview is out of date."""
        try:
            made_of = self._made_of()
        except ValueError:  # the note on the axes says why
            return
        old, said = self.preview.compare(made_of), "The preview is out of date: press Preview again."
        if old and not self.preview.live.isChecked():
            self._advise(said)
        elif self._advice == said:
            self._withdraw_advice()

    def run(self) -> None:
        """Restore the chosen layers, one after the other."""
        if self.worker is not None or not self._has_layers():
            return
        try:
            if not self.where.confirm([full_resolution(layer) for layer in self.layers()]):
                return
            jobs = self.jobs()
        except (ValueError, OSError) as error:
            return self._reject(str(error))
        self.results.restore(jobs)

    def add_residual(self) -> None:
        """Add a layer of what the last run removed."""
        pair = self.results.last(self.layers())
        if pair is None:
            return self._advise("Restore a layer first.")
        before, after = pair.job.array, full_resolution(pair.result)  # the layer's data may be others by now
        added = residual(pair.result, before, after, pair.job.axes, f"{pair.job.name} residual")
        add_on_top(self.viewer, Layer.create(*added))

    def copy_script(self) -> None:
        """Copy a script that repeats the last run to the clipboard."""
        record = self.record()
        if record is None:
            return self._advise("Restore a layer first, or choose a restored one.")
        QApplication.clipboard().setText(script(record))
        show_info("Script copied to the clipboard.")

    def record(self) -> dict[str, Any] | None:
        """Return the record of the chosen layer, or else of the last run."""
        for layer in self.layers():
            if layer.metadata.get(RECORD):
                return layer.metadata[RECORD]
        pair = self.results.last(self.layers())
        return pair.result.metadata[RECORD] if pair else None

    def _resume(self) -> None:
        self.results.resume()

    def _offer_resume(self, _event: Any = None) -> None:
        self.resume.setEnabled(self.results.unfinished is not None)

    def _begun(self) -> None:
        self.preview.live.setChecked(False)
        self._stop_preview()
        self.preview.set_busy(False)
        self.preview.clear()
        self.work.discard()
        self.work.pause(True)
        super()._begun()

    def _ended(self) -> None:
        super()._ended()
        self.work.pause(False)

    def _set_running(self, running: bool) -> None:
        super()._set_running(running)
        self.preview.button.setEnabled(not running)
        self.preview.live.setEnabled(not running)
        self._offer_resume()

    def _done(self, pair: Pair, reason: str) -> None:
        self.why.setText(reason)
        layers = self.viewer.layers
        if pair.result not in layers or pair.source not in layers or self.viewer.dims.ndisplay == 3:
            return
        plane, window = middle_of_view(self.viewer, pair.source, pair.job.axes, _MEASURED)
        self.work.submit(
            "quality",
            lambda measured: self.quality.setText(f"{measured} (in the visible area)"),
            quality.compare_result,
            pair.job,
            full_resolution(pair.result),
            plane,
            window,
            self._truth(),
        )

    def _truth(self) -> Any:
        truth = self.truth.layers()
        return full_resolution(truth[0]) if truth else None

    def _layer_chosen(self) -> None:
        layers = self.layers()
        self.why.setText("")
        self.form.model.show_choice("")
        self.plan.setText(_NO_PLAN)
        self.start.setText(f"Restore {len(layers)} layers" if len(layers) > 1 else "Restore")
        self._changed()

    def _describe(self) -> None:
        """Show how the axes are interpreted."""
        layers = self.layers()
        if not layers:
            self.form.axes.setPlaceholderText("")
            self.form.axes_note.setText("")
            return
        layer = layers[0]
        try:
            self.form.axes.setPlaceholderText(guess_axes(layer))
        except ValueError:
            self.form.axes.setPlaceholderText("unknown")
        try:
            self.form.axes_note.setText(describe(layer, self.axes(layer)))
        except ValueError as error:
            self.form.axes_note.setText(str(error))

    def _changed(self) -> None:
        self._withdraw_advice()
        self._describe()
        if not self._is_quick():  # no new estimate will come
            self.plan.setText(self._destination() or _NO_PLAN)
        self._compare()
        self._settled.start()
        self.preview.refresh()

    def showEvent(self, event: QShowEvent) -> None:  # noqa: N802 (Qt's name)
        super().showEvent(event)
        if "torch" not in sys.modules:
            self._advise(_LOADING)
            self.work.submit("load", self._loaded, load_torch)
        self._settled.start()

    def _loaded(self, _: Any) -> None:
        if self._advice == _LOADING:
            self._withdraw_advice()

    def _is_quick(self) -> bool:
        """Tell whether a model can be chosen without reading a layer that is not in memory."""
        layers = self.layers()
        if not layers:
            return False
        return bool(self.form.model.value()) or isinstance(full_resolution(layers[0]), np.ndarray)

    def _choose_early(self) -> None:
        """Load the model before it is needed."""
        if self.isVisible() and self._is_quick():
            self._plan(worker.try_plan)

    def _estimate(self) -> None:
        if self._has_layers():
            self._plan()

    def _plan(self, plan: Callable[..., Any] = worker.make_plan) -> None:
        layers = self.layers()
        if not layers or self.worker is not None:
            return
        layer = layers[0]
        try:
            axes = self.axes(layer)
            array = full_resolution(layer)
            arrange(array.shape, axes)
        except ValueError:
            return  # the note on the axes says why
        options = self.form.options()

        def show(planned: tuple[Any, str, str] | str) -> None:
            if self.layers()[:1] != [layer] or self.form.options() != options:
                return
            if isinstance(planned, str):
                self.plan.setText(planned)
            else:
                self._show_plan(*planned)

        self.work.submit("plan", show, plan, options, array, axes)

    def _show_plan(self, plan: Any, model: str, reason: str) -> None:
        self.why.setText(reason)
        self.form.model.show_choice(model)
        many = f"{len(self.layers())} layers; the first: " if len(self.layers()) > 1 else ""
        text = (
            f"{many}{plan.tiles:,} tile{'s' if plan.tiles > 1 else ''} of up to {plan.tile[0]} x "
            f"{plan.tile[1]}, {plan.memory / 1e9:.2f} GB of memory, about {duration(plan.seconds)}"
        )
        self.plan.setText("\n".join(filter(None, (text, self._destination()))))

    def _show_busy(self) -> None:
        """Show that a model is being loaded or a preview computed."""
        if self.worker is None:
            self.bar.setRange(0, 0)
            self.bar.setVisible(self.work.busy)
        if not self.work.busy:
            self.preview.set_busy(False)

    def _has_layers(self) -> bool:
        """Return whether there are layers to work on, and say what to do if not."""
        if not self.layers():
            self._advise(_NO_LAYER if self.viewer.layers else _NO_IMAGE)
        return bool(self.layers())

    def _say(self, text: str) -> None:
        self._advice = ""
        self.status.setText(text)

    def _advise(self, text: str) -> None:
        """Say what to do; that goes once anything has changed."""
        self._advice = text
        self.status.setText(text)

    def _withdraw_advice(self, _event: Any = None) -> None:
        if self._advice and self.status.text() == self._advice:
            self.status.clear()
        self._advice = ""

    def _destination(self) -> str:
        return self.where.describe([full_resolution(layer) for layer in self.layers()])

    def _find_devices(self) -> None:
        self._say("Looking for devices ...")

        def show(found: dict[str, str]) -> None:
            self.form.show_devices(found)
            self._say("")

        self.work.submit("devices", show, worker.devices)

    def _reject(self, why: str) -> None:
        self._say(why)
        show_error(why)

    def _lay_out(self) -> None:
        column = self.column
        fields = QFormLayout()
        fields.addRow("Layer", self.layer)
        column.addLayout(fields)
        column.addWidget(self.form)
        self.form.add_more("Result", self.where)
        planned = QHBoxLayout()
        planned.addWidget(self.plan, stretch=1)
        planned.addWidget(self.estimate)
        column.addLayout(planned)
        column.addWidget(self.why)
        column.addWidget(_line())
        column.addWidget(self.preview)
        column.addWidget(_line())
        self.buttons.insertWidget(1, self.resume)
        self.buttons.setStretch(0, 2)
        self.buttons.setStretch(1, 1)
        self.buttons.setStretch(2, 1)
        for below in (self.status, self.bar):
            self.foot.addWidget(below)
        self.foot.addLayout(self.buttons)
        truth = QFormLayout()
        truth.addRow("Ground truth", self.truth)
        column.addLayout(truth)
        column.addWidget(self.quality)
        after = QHBoxLayout()
        after.addWidget(self.residual)
        after.addWidget(self.copy)
        column.addLayout(after)
        column.addStretch(1)


def _every(step: int) -> str:
    return f" (every {step}{_ORDINALS.get(step, 'th')} pixel, as shown)" if step > 1 else ""


_ORDINALS = {2: "nd", 3: "rd"}


def _line() -> QFrame:
    line = QFrame()
    line.setFrameShape(QFrame.Shape.HLine)
    line.setFrameShadow(QFrame.Shadow.Sunken)
    return line
