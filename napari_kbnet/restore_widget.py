"""The widget that restores layers."""

from __future__ import annotations

import math
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from threading import Event
from typing import Any

import numpy as np
from napari.layers import Layer
from napari.qt.threading import GeneratorWorker
from napari.utils import progress
from napari.utils.notifications import show_error, show_info
from qtpy.QtCore import QTimer
from qtpy.QtWidgets import (
    QApplication,
    QComboBox,
    QFileDialog,
    QFormLayout,
    QFrame,
    QHBoxLayout,
    QLabel,
    QProgressBar,
    QPushButton,
    QToolButton,
    QVBoxLayout,
    QWidget,
)

from . import quality, worker
from .background import Background, tell
from .form import OptionsForm
from .layer_box import LayerBox
from .layers import RECORD, arrange, cut, describe, full_resolution, result, sizes, understood
from .options import Options
from .preview import PreviewPane, add_above, visible
from .script import script
from .scroll import Column
from .worker import Job, Preview, Step

LARGE = 1 << 30
"""Bytes of a result from which it is written to a file, unless the user says otherwise."""

_REFRESH = 100  # milliseconds between two drawings of a growing layer
_MEASURED = 1024  # pixels of a side; the middle of what is shown is as noisy as all of it
_AUTOMATIC, _MEMORY, _FOLDER = "automatic", "in memory", "in a folder ..."


@dataclass
class _Pair:
    """A layer and what it became."""

    source: Any
    result: Any
    job: Job


class RestoreWidget(QWidget):
    """Choose a layer and a model, look at a preview, restore.

    Parameters
    ----------
    napari_viewer : napari.Viewer
    """

    def __init__(self, napari_viewer: Any) -> None:
        super().__init__()
        self.viewer = napari_viewer
        self.worker: Any = None
        self._cancelled = Event()
        self._pairs: list[_Pair] = []
        self._running: list[tuple[Any, Job]] = []
        self._folder: Path | None = None
        self._bar: Any = None
        self._step: Step | None = None
        self._pair: _Pair | None = None
        self._began = 0.0
        self._known: Any = None

        self.layer = LayerBox(napari_viewer, several=True)
        self.form = OptionsForm()
        self.where = QComboBox()
        self.where.addItems([_AUTOMATIC, _MEMORY, _FOLDER])
        self.where.setToolTip(
            f"Where the result goes. Automatic: into memory, and from {LARGE >> 30} GiB on into an OME-Zarr "
            "in a temporary folder, which is shown while it grows."
        )
        self.plan = QLabel("Tiles, memory and time")
        self.plan.setWordWrap(True)
        self.why = QLabel()
        self.why.setWordWrap(True)
        self.why.setToolTip("What was chosen for this image, by the noise that was measured in it")
        self.estimate = QToolButton()
        self.estimate.setText("Estimate")
        self.estimate.setToolTip("Load the model and time a small tile")
        self.preview = PreviewPane(napari_viewer)
        self.start, self.cancel = QPushButton("Restore"), QPushButton("Cancel")
        self.bar = QProgressBar()
        self.said = QLabel()
        self.said.setWordWrap(True)
        self.truth = LayerBox(napari_viewer, none="unknown")
        self.truth.setToolTip("A layer without noise, for PSNR and SSIM")
        self.quality = QLabel()
        self.quality.setWordWrap(True)
        self.residual, self.copy = QPushButton("Residual layer"), QPushButton("Copy as script")
        self.residual.setToolTip("What was taken away. Structure of the picture in there was no noise.")
        self.copy.setToolTip("A Python program that does the same")
        self._lay_out()

        self._drawing = QTimer(self)
        self._drawing.setSingleShot(True)
        self._drawing.setInterval(_REFRESH)
        self._drawing.timeout.connect(self._draw)
        self.work = Background(self)
        self.work.failed.connect(self.said.setText)
        self.layer.chosen.connect(self._layer_chosen)
        self.form.changed.connect(self._changed)
        self.form.devices_wanted.connect(self._look_for_devices)
        self.where.currentIndexChanged.connect(self._where_chosen)
        self.estimate.clicked.connect(self._plan)
        self.preview.wanted.connect(self.show_preview)
        self.start.clicked.connect(self.run)
        self.cancel.clicked.connect(self.stop)
        self.residual.clicked.connect(self.add_residual)
        self.copy.clicked.connect(self.copy_script)
        self.destroyed.connect(self._cancelled.set)
        self._layer_chosen()
        self._ready(True)

    def layers(self) -> list[Any]:
        """The layers that a run restores."""
        return self.layer.layers()

    def jobs(self) -> list[tuple[Any, Job]]:
        """Those layers, and what is to be done to each.

        Raises
        ------
        ValueError
            If axes do not fit a layer.
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
                        target=self._target(layer.name, array),
                    ),
                )
            )
        return jobs

    def axes(self, layer: Any) -> str:
        """Axes of a layer, as corrected where they are."""
        corrected = self.form.axes.text().strip().upper()
        return corrected if corrected else understood(layer)

    def show_preview(self) -> None:
        """Restore what is visible."""
        if self.worker is not None:
            return
        if not self.layers():
            return self._mend("Choose an image layer first.")
        layer = self.layers()[0]
        if self.viewer.dims.ndisplay == 3:
            return self._mend("The preview shows a plane; leave the 3D view first.")
        try:
            axes = self.axes(layer)
            plane, window = visible(self.viewer, layer, axes, self.preview.side)
        except ValueError as error:
            return self._mend(str(error))
        truth = self.truth.layers()

        def show(answer: tuple[Preview, str]) -> None:
            preview, measured = answer
            if layer in self.viewer.layers:
                self.preview.show_preview(layer, preview, axes)
                self.why.setText(preview.reason)
                self.quality.setText(f"{measured} (of the preview)")
                self.said.setText(
                    f"Preview of {window[0].stop - window[0].start} x "
                    f"{window[1].stop - window[1].start} pixels in {preview.seconds:.1f} s"
                )
            self._plan()

        self.said.setText("Working on the preview ...")
        self.work.ask(
            "preview",
            show,
            _previewed,
            self.form.options(),
            full_resolution(layer),
            axes,
            plane,
            window,
            full_resolution(truth[0]) if truth else None,
        )

    def run(self) -> None:
        """Restore the chosen layers, one after the other."""
        if self.worker is not None:
            return
        try:
            self._running = self.jobs()
        except ValueError as error:
            return self._mend(str(error))
        if not self._running:
            return self._mend("Choose an image layer first.")
        self.preview.live.setChecked(False)
        self.preview.clear()
        self.work.forget()
        self.work.hold(True)
        self._cancelled.clear()
        self._step = None
        # The bar is made here: made in the worker's thread, it ends the program.
        self._bar = progress(total=1, desc="Restoring")
        self._ready(False)
        self.said.setText("Loading the model ...")
        # Not by create_worker: what that connects to errors fails under PySide.
        self.worker = GeneratorWorker(worker.restore, [job for _, job in self._running], self._cancelled)
        self.worker.yielded.connect(self._stepped)
        self.worker.errored.connect(self._failed)
        self.worker.finished.connect(self._finished)
        self.worker.start()

    def stop(self) -> None:
        """Stop after the tile that is being computed; what is done is kept."""
        self._cancelled.set()
        self.said.setText("Stopping ...")

    def add_residual(self) -> None:
        """Add what the last result took away from its source."""
        pair = self._last_pair()
        if pair is None:
            return self._mend("Restore a layer first.")
        add_above(self.viewer, pair.result, Layer.create(*_residual(pair)))

    def copy_script(self) -> None:
        """Put a program that repeats the last result into the clipboard."""
        record = self.record()
        if record is None:
            return self._mend("Restore a layer first, or choose a restored one.")
        QApplication.clipboard().setText(script(record))
        show_info("The script is in the clipboard.")

    def record(self) -> dict[str, Any] | None:
        """What was done to the chosen layer, or last of all."""
        for layer in self.layers():
            if layer.metadata.get(RECORD):
                return layer.metadata[RECORD]
        pair = self._last_pair()
        return pair.result.metadata[RECORD] if pair else None

    def _last_pair(self) -> _Pair | None:
        """The last result, of the chosen layer if there is one."""
        self._pairs = [pair for pair in self._pairs if pair.result in self.viewer.layers]
        chosen = self.layers()
        own = [pair for pair in self._pairs if pair.source in chosen or pair.result in chosen]
        return next(reversed(own or self._pairs), None)

    def _stepped(self, step: Step) -> None:
        self._step = step
        if step.state == "began":
            self._begin(step)
        elif step.state != "tile":
            self._end(step)
        elif not self._drawing.isActive():
            self._drawing.start()  # and what comes meanwhile is drawn with it

    def _begin(self, step: Step) -> None:
        source, job = self._running[step.number]
        self._began = time.monotonic()
        layer = Layer.create(*result(source, step.data, f"{source.name} restored", step.record))
        add_above(self.viewer, source, layer)
        self._pair = _Pair(source, layer, job)
        self._pairs.append(self._pair)
        self.bar.setRange(0, step.total)
        self.bar.setValue(0)
        self.said.setText(f"{source.name}: {step.total:,} tiles")
        self._bar.reset(step.total)

    def _draw(self) -> None:
        """Show how far it has come."""
        step = self._step
        if step is None or step.state != "tile" or self._pair is None:
            return
        source, layer = self._pair.source, self._pair.result
        seconds = (time.monotonic() - self._began) / step.done * (step.total - step.done)
        left = f"{_duration(seconds)} left" if step.done < step.total else "finishing ..."
        self.bar.setValue(step.done)
        self.said.setText(f"{source.name}: {_tiles(step)}, {left}")
        if self._is_visible(layer, step.touched):
            layer.refresh(extent=False, thumbnail=False, highlight=False)
        self._bar.update(step.done - self._bar.n)  # last, since it lets other events in

    def _end(self, step: Step) -> None:
        pair = self._pair
        if pair is None:
            return
        if step.data is not None:
            pair.result.data = step.data
        else:
            pair.result.refresh()
        pair.result.metadata = {**pair.result.metadata, RECORD: step.record}
        if step.state == "done":
            seconds = _duration(time.monotonic() - self._began)
            reason = step.record.get("reason", "")
            self.why.setText(reason)
            alone = reason.startswith("left alone")
            self.said.setText(f"{pair.source.name}: {reason if alone else f'done in {seconds}'}")
            if self._is_there(pair.result) and self._is_there(pair.source):
                self._measure(pair)
        else:
            self._part(step)
            self.said.setText(f"{pair.source.name}: stopped, {_tiles(step)} are done and kept")

    def _part(self, step: Step) -> None:
        """Say in a result's name that it is not whole; take away what is nothing yet."""
        if self._pair is None:
            return
        layer = self._pair.result
        if step.done:
            layer.name = f"{layer.name} ({_tiles(step)})"
        elif self._is_there(layer):
            self.viewer.layers.remove(layer)

    def _is_there(self, layer: Any) -> bool:
        return layer in self.viewer.layers

    def _is_visible(self, layer: Any, touched: tuple[int | slice, ...]) -> bool:
        """Whether the canvas shows the plane that was written to."""
        if not self._is_there(layer) or not layer.visible:
            return False
        hidden = self.viewer.dims.ndim - layer.ndim
        at = layer.world_to_data(np.asarray(self.viewer.dims.point)[hidden:])
        shown = {axis - hidden for axis in self.viewer.dims.displayed}
        return all(
            isinstance(part, slice) or i in shown or round(float(at[i])) == part
            for i, part in enumerate(touched[: layer.ndim])
        )

    def _failed(self, error: Exception) -> None:
        if self._step is not None and self._step.state in ("began", "tile"):
            self._part(self._step)
        self.said.setText(tell(error))

    def _finished(self) -> None:
        self.worker = None
        if self._bar is not None:
            self._bar.close()
            self._bar = None
        self._running = []
        self._ready(True)
        self.work.hold(False)

    def _measure(self, pair: _Pair) -> None:
        if self.viewer.dims.ndisplay == 3:
            return
        plane, window = visible(self.viewer, pair.source, pair.job.axes, _MEASURED)
        truth = self.truth.layers()
        self.work.ask(
            "quality",
            lambda measured: self.quality.setText(f"{measured} (of what is shown)"),
            _measured,
            pair.job,
            full_resolution(pair.result),
            plane,
            window,
            full_resolution(truth[0]) if truth else None,
        )

    def _layer_chosen(self) -> None:
        layers = self.layers()
        self._described()
        self.why.setText("")
        self.start.setText(f"Restore {len(layers)} layers" if len(layers) > 1 else "Restore")
        self._changed()

    def _described(self) -> None:
        """Say how the axes are understood."""
        layers = self.layers()
        if not layers:
            self.form.axes.setPlaceholderText("")
            self.form.understood.setText("")
            return
        layer = layers[0]
        try:
            self.form.axes.setPlaceholderText(understood(layer))
        except ValueError:
            self.form.axes.setPlaceholderText("not known")
        try:
            self.form.understood.setText(describe(layer, self.axes(layer)))
        except ValueError as error:
            self.form.understood.setText(str(error))

    def _changed(self) -> None:
        self._described()
        self.plan.setText(self._destination() or "Tiles, memory and time")
        if self._known is not None:  # the model is loaded: say anew what it will take
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
            return  # which is said beside the axes
        self.work.ask("plan", self._planned, worker.make_plan, self.form.options(), array, axes)

    def _planned(self, planned: Any) -> None:
        self._known, reason = planned
        plan = self._known
        self.why.setText(reason)
        many = f"{len(self.layers())} layers, the first: " if len(self.layers()) > 1 else ""
        text = (
            f"{many}{plan.tiles:,} tile{'s' if plan.tiles > 1 else ''} of at most "
            f"{plan.tile[0]} x {plan.tile[1]}, {plan.memory / 1e9:.2f} GB, about {_duration(plan.seconds)}"
        )
        self.plan.setText("\n".join(filter(None, (text, self._destination()))))

    def _look_for_devices(self) -> None:
        self.said.setText("Looking for devices ...")

        def show(found: dict[str, str]) -> None:
            self.form.show_devices(found)
            self.said.setText("")

        self.work.ask("devices", show, worker.devices)

    def _where_chosen(self) -> None:
        if self.where.currentText() == _FOLDER:
            path = QFileDialog.getExistingDirectory(self, "A folder for results")
            if path:
                self._folder = Path(path)
            else:
                self.where.setCurrentIndex(0)
        self._changed()

    def _destination(self) -> str:
        if self.where.currentText() == _FOLDER and self._folder is not None:
            return f"Written as OME-Zarr to {self._folder}"
        sizes = [_bytes(full_resolution(layer)) for layer in self.layers()]
        if self.where.currentText() == _AUTOMATIC and sizes and max(sizes) > LARGE:
            return f"{max(sizes) / 1e9:.1f} GB, written as OME-Zarr below {tempfile.gettempdir()}"
        return ""

    def _target(self, name: str, array: Any) -> Path | None:
        if self.where.currentText() == _FOLDER:
            folder = self._folder
        elif self.where.currentText() == _AUTOMATIC and _bytes(array) > LARGE:
            folder = Path(tempfile.mkdtemp(prefix="kbnet-"))
        else:
            folder = None
        if folder is None:
            return None
        safe = "".join("_" if c in '\\/:*?"<>|' else c for c in name)
        number, target = 1, folder / f"{safe} restored.zarr"
        while target.exists():
            number += 1
            target = folder / f"{safe} restored {number}.zarr"
        return target

    def _mend(self, what: str) -> None:
        self.said.setText(what)
        show_error(what)

    def _ready(self, ready: bool) -> None:
        self.start.setEnabled(ready)
        self.cancel.setEnabled(not ready)
        self.preview.button.setEnabled(ready)
        self.preview.live.setEnabled(ready)
        self.bar.setVisible(not ready)
        if not ready:
            self.bar.setRange(0, 0)

    def _lay_out(self) -> None:
        inside = QWidget()
        column = QVBoxLayout(inside)
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
        buttons = QHBoxLayout()
        buttons.addWidget(self.start, stretch=2)
        buttons.addWidget(self.cancel, stretch=1)
        column.addLayout(buttons)
        column.addWidget(self.bar)
        column.addWidget(self.said)
        column.addWidget(_line())
        truth = QFormLayout()
        truth.addRow("Truth", self.truth)
        column.addLayout(truth)
        column.addWidget(self.quality)
        after = QHBoxLayout()
        after.addWidget(self.residual)
        after.addWidget(self.copy)
        column.addLayout(after)
        column.addStretch(1)
        layout = QVBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.addWidget(Column(inside))


def _previewed(
    options: Options, array: Any, axes: str, plane: dict[str, int], window: tuple[slice, slice], truth: Any
) -> tuple[Preview, str]:
    """Restore a piece of a plane, and measure it."""
    preview = worker.preview(options, array, axes, plane, window)
    compared = quality.compare(
        preview.before, preview.after, truth, preview.arranged, plane, window, preview.scale
    )
    return preview, compared


def _measured(job: Job, after: Any, plane: dict[str, int], window: tuple[slice, slice], truth: Any) -> str:
    """Measure a window of a plane before and after."""
    arranged, scale = worker.look(job.options, job.array, job.axes, plane)
    blocks = [np.asarray(array[cut(arranged, plane, window)]) for array in (job.array, after)]
    return quality.compare(*blocks, truth, arranged, plane, window, scale)


def _residual(pair: _Pair) -> tuple[Any, dict[str, Any], str]:
    """Layer data tuple of source less result, of colours their mean; computed where it is looked at."""
    import dask.array as da

    chunks = tuple(n if a in "YXS" else 1 for a, n in zip(pair.job.axes, pair.job.array.shape, strict=True))
    before, after = (
        da.from_array(full_resolution(layer), chunks=chunks).astype(np.float32)
        for layer in (pair.source, pair.result)
    )
    data = before - after
    if pair.source.rgb:
        data = data[..., :3].mean(axis=-1)
    if data.nbytes < LARGE:
        data = data.compute()
    middle = np.asarray(data[tuple(n // 2 for n in data.shape[:-2])])
    end = 4 * float(np.nanstd(middle)) or 1.0
    _, state, kind = result(pair.source, data, f"{pair.source.name} residual", {})
    del state["metadata"][RECORD]
    looks = {"rgb": False, "colormap": "gray", "contrast_limits": (-end, end), "gamma": 1.0}
    return data, state | looks, kind


def _tiles(step: Step) -> str:
    return f"{step.done:,} of {step.total:,} tiles"


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return (
        f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{seconds:.1f} s"
    )


def _bytes(array: Any) -> int:
    return math.prod(array.shape) * np.dtype(array.dtype).itemsize


def _line() -> QFrame:
    line = QFrame()
    line.setFrameShape(QFrame.Shape.HLine)
    line.setFrameShadow(QFrame.Shadow.Sunken)
    return line
