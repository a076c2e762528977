"""The widget that restores layers."""

from __future__ import annotations

from typing import Any

from napari.layers import Layer
from napari.utils.notifications import show_error, show_info
from qtpy.QtWidgets import (
    QApplication,
    QFormLayout,
    QFrame,
    QHBoxLayout,
    QPushButton,
    QToolButton,
)

from . import quality, worker
from .destination import Destination
from .form import OptionsForm
from .layer_box import LayerBox
from .layers import RECORD, arrange, describe, full_resolution, guess_axes, residual, sizes
from .placing import add_on_top
from .preview import PreviewPane, visible
from .restoration import Pair, Restoration, duration
from .restoring import Job
from .script import script
from .task_widget import TaskWidget, wrapped
from .worker import Preview

_MEASURED = 1024  # pixels per side; the middle of the visible area is as noisy as all of it
_NO_PLAN = "Tiles, memory and time"


class RestoreWidget(TaskWidget):
    """Choose a layer and a model, look at a preview, restore.

    Parameters
    ----------
    napari_viewer : napari.Viewer
    """

    def __init__(self, napari_viewer: Any) -> None:
        super().__init__(napari_viewer, "Restore", "Cancel", Restoration.of(napari_viewer))
        self._planned = False
        self.layer = LayerBox(napari_viewer, several=True)
        self.form = OptionsForm()
        self.where = Destination()
        self.plan = wrapped(_NO_PLAN)
        self.why = wrapped()
        self.why.setToolTip("What was chosen for this image, based on its measured noise")
        self.estimate = QToolButton()
        self.estimate.setText("Estimate")
        self.estimate.setToolTip("Load the model and time a small tile")
        self.preview = PreviewPane(napari_viewer)
        self.results: Restoration = self.task
        self.resume = QPushButton("Continue")
        self.resume.setToolTip("Restore the tiles that are left of the result that was stopped")
        self.truth = LayerBox(napari_viewer, none="none")
        self.truth.setToolTip("A noise-free version of the layer, for PSNR and SSIM")
        self.quality = wrapped()
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
        self.estimate.clicked.connect(self._plan)
        self.preview.requested.connect(self.show_preview)
        self.results.restored.connect(self._done)
        self.resume.clicked.connect(self._resume)
        napari_viewer.layers.events.removed.connect(self._offer_resume)
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
        """Restore the visible area."""
        if self.worker is not None:
            return
        if not self.layers():
            return self._reject("Choose an image layer first.")
        layer = self.layers()[0]
        if self.viewer.dims.ndisplay == 3:
            return self._reject("The preview shows a single plane; switch to the 2D view first.")
        try:
            axes = self.axes(layer)
            plane, window = visible(self.viewer, layer, axes, self.preview.side)
        except ValueError as error:
            return self._reject(str(error))

        def show(answer: tuple[Preview, str]) -> None:
            preview, measured = answer
            if layer in self.viewer.layers:
                self.preview.show_preview(layer, preview, axes)
                self.why.setText(preview.reason)
                self.quality.setText(f"{measured} (in the preview)")
                self.status.setText(
                    f"Preview of {window[0].stop - window[0].start} x "
                    f"{window[1].stop - window[1].start} pixels in {preview.seconds:.1f} s"
                )
            self._plan()

        self.status.setText("Computing the preview ...")
        self.work.submit(
            "preview",
            show,
            quality.preview_and_compare,
            self.form.options(),
            full_resolution(layer),
            axes,
            plane,
            window,
            self._truth(),
        )

    def run(self) -> None:
        """Restore the chosen layers, one after the other."""
        if self.worker is not None:
            return
        try:
            if not self.where.confirm([full_resolution(layer) for layer in self.layers()]):
                return
            jobs = self.jobs()
        except (ValueError, OSError) as error:
            return self._reject(str(error))
        if not jobs:
            return self._reject("Choose an image layer first.")
        self.results.restore(jobs)

    def add_residual(self) -> None:
        """Add a layer of what the last run removed."""
        pair = self.results.last(self.layers())
        if pair is None:
            return self._reject("Restore a layer first.")
        before, after = pair.job.array, full_resolution(pair.result)  # the layer's data may be others by now
        added = residual(pair.result, before, after, pair.job.axes, f"{pair.job.name} residual")
        add_on_top(self.viewer, Layer.create(*added))

    def copy_script(self) -> None:
        """Copy a script that repeats the last run to the clipboard."""
        record = self.record()
        if record is None:
            return self._reject("Restore a layer first, or choose a restored one.")
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
        self.resume.setVisible(self.results.unfinished is not None)

    def _begun(self) -> None:
        self.preview.live.setChecked(False)
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
        plane, window = visible(self.viewer, pair.source, pair.job.axes, _MEASURED)
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
        self._describe()
        self.plan.setText(self._destination() or _NO_PLAN)
        if self._planned:  # the model is loaded, so another estimate is quick
            self._plan()
        self.preview.refresh()

    def _plan(self) -> None:
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
        self.work.submit("plan", self._show_plan, worker.make_plan, self.form.options(), array, axes)

    def _show_plan(self, planned: Any) -> None:
        plan, reason = planned
        self._planned = True
        self.why.setText(reason)
        many = f"{len(self.layers())} layers; the first: " if len(self.layers()) > 1 else ""
        text = (
            f"{many}{plan.tiles:,} tile{'s' if plan.tiles > 1 else ''} of up to {plan.tile[0]} x "
            f"{plan.tile[1]}, {plan.memory / 1e9:.2f} GB of memory, about {duration(plan.seconds)}"
        )
        self.plan.setText("\n".join(filter(None, (text, self._destination()))))

    def _destination(self) -> str:
        return self.where.describe([full_resolution(layer) for layer in self.layers()])

    def _find_devices(self) -> None:
        self.status.setText("Looking for devices ...")

        def show(found: dict[str, str]) -> None:
            self.form.show_devices(found)
            self.status.setText("")

        self.work.submit("devices", show, worker.devices)

    def _reject(self, why: str) -> None:
        self.status.setText(why)
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
        self.buttons.setStretch(2, 1)
        column.addLayout(self.buttons)
        column.addWidget(self.bar)
        column.addWidget(self.status)
        column.addWidget(_line())
        truth = QFormLayout()
        truth.addRow("Ground truth", self.truth)
        column.addLayout(truth)
        column.addWidget(self.quality)
        after = QHBoxLayout()
        after.addWidget(self.residual)
        after.addWidget(self.copy)
        column.addLayout(after)
        column.addStretch(1)


def _line() -> QFrame:
    line = QFrame()
    line.setFrameShape(QFrame.Shape.HLine)
    line.setFrameShadow(QFrame.Shadow.Sunken)
    return line
