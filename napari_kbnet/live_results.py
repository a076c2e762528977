"""Layers that fill tile by tile while a run computes them."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from napari.layers import Layer
from napari.utils import progress
from qtpy.QtCore import QObject, QTimer, Signal
from qtpy.QtWidgets import QLabel, QProgressBar

from .layers import RECORD, result
from .preview import add_above
from .worker import Job, Step

_REFRESH = 100  # milliseconds between two updates of a growing layer


@dataclass
class Pair:
    """A layer and its result."""

    source: Any
    result: Any
    job: Job


class LiveResults(QObject):
    """Show the steps of a run: result layers, progress bars and status.

    Parameters
    ----------
    viewer : napari.Viewer
    bar : QProgressBar
    status : QLabel
    parent : QObject
    """

    done = Signal(object, str)
    """A layer is restored: its `Pair`, and the reason for what was done."""

    def __init__(self, viewer: Any, bar: QProgressBar, status: QLabel, parent: QObject) -> None:
        super().__init__(parent)
        self._viewer, self._bar, self._status = viewer, bar, status
        self._pairs: list[Pair] = []
        self._jobs: Sequence[tuple[Any, Job]] = []
        self._napari_bar: Any = None
        self._step: Step | None = None
        self._pair: Pair | None = None
        self._began = 0.0
        self._timer = QTimer(self)
        self._timer.setSingleShot(True)
        self._timer.setInterval(_REFRESH)
        self._timer.timeout.connect(self._draw)

    def open(self, jobs: Sequence[tuple[Any, Job]]) -> None:
        """Prepare for a run over layers and their jobs."""
        self._jobs, self._step = jobs, None
        # Creating the bar in the worker's thread would crash the program.
        self._napari_bar = progress(total=1, desc="Restoring")

    def show(self, step: Step) -> None:
        """Show a step of the run."""
        self._step = step
        if step.state == "began":
            self._begin(step)
        elif step.state != "tile":
            self._end(step)
        elif not self._timer.isActive():
            self._timer.start()  # later tiles are drawn with this one

    def fail(self) -> None:
        """Mark the current result as partial, after an error."""
        if self._step is not None and self._step.state in ("began", "tile"):
            self._mark_partial(self._step)

    def close(self) -> None:
        """End the run."""
        self._timer.stop()
        if self._napari_bar is not None:
            self._napari_bar.close()
            self._napari_bar = None
        self._jobs = []

    def last(self, layers: Sequence[Any]) -> Pair | None:
        """Return the latest pair that includes one of `layers`, or else the latest of all."""
        self._pairs = [pair for pair in self._pairs if pair.result in self._viewer.layers]
        own = [pair for pair in self._pairs if pair.source in layers or pair.result in layers]
        return next(reversed(own or self._pairs), None)

    def _begin(self, step: Step) -> None:
        source, job = self._jobs[step.number]
        self._began = time.monotonic()
        layer = Layer.create(*result(source, step.data, f"{source.name} restored", step.record))
        add_above(self._viewer, source, layer)
        self._pair = Pair(source, layer, job)
        self._pairs.append(self._pair)
        self._bar.setRange(0, step.total)
        self._bar.setValue(0)
        self._status.setText(f"{source.name}: {step.total:,} tiles")
        self._napari_bar.reset(step.total)

    def _draw(self) -> None:
        step = self._step
        if step is None or step.state != "tile" or self._pair is None:
            return
        source, layer = self._pair.source, self._pair.result
        seconds = (time.monotonic() - self._began) / step.done * (step.total - step.done)
        left = f"{duration(seconds)} left" if step.done < step.total else "finishing ..."
        self._bar.setValue(step.done)
        self._status.setText(f"{source.name}: {_tiles(step)}, {left}")
        if self._is_visible(layer, step.touched):
            layer.refresh(extent=False, thumbnail=False, highlight=False)
        self._napari_bar.update(step.done - self._napari_bar.n)  # last: it processes other events

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
            seconds = duration(time.monotonic() - self._began)
            reason = step.record.get("reason", "")
            alone = reason.startswith("left alone")
            self._status.setText(f"{pair.source.name}: {reason if alone else f'done in {seconds}'}")
            self.done.emit(pair, reason)
        else:
            self._mark_partial(step)
            self._status.setText(f"{pair.source.name}: stopped; {_tiles(step)} kept")

    def _mark_partial(self, step: Step) -> None:
        """Say in the name of a result that it is partial; remove it if it is empty."""
        if self._pair is None:
            return
        layer = self._pair.result
        if step.done:
            layer.name = f"{layer.name} ({_tiles(step)})"
        elif layer in self._viewer.layers:
            self._viewer.layers.remove(layer)

    def _is_visible(self, layer: Any, touched: tuple[int | slice, ...]) -> bool:
        """Whether the canvas shows the plane of the last tile."""
        if layer not in self._viewer.layers or not layer.visible:
            return False
        hidden = self._viewer.dims.ndim - layer.ndim
        at = layer.world_to_data(np.asarray(self._viewer.dims.point)[hidden:])
        shown = {axis - hidden for axis in self._viewer.dims.displayed}
        return all(
            isinstance(part, slice) or i in shown or round(float(at[i])) == part
            for i, part in enumerate(touched[: layer.ndim])
        )


def duration(seconds: float) -> str:
    """Write a time span in hours, minutes and seconds."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return (
        f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{seconds:.1f} s"
    )


def _tiles(step: Step) -> str:
    return f"{step.done:,} of {step.total:,} tiles"
