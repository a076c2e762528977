"""The restoration of a viewer's layers, and the layers that fill tile by tile while it runs."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from napari.layers import Layer
from napari.utils.notifications import show_error
from qtpy.QtCore import QFileSystemWatcher, QTimer, Signal

from kbnet_plugin.zoo import locations

from . import cache
from .layers import RECORD, result
from .placing import add_on_top, select
from .preview import plane_at
from .restoring import Control, Job, Step, restore
from .task import Task

_REFRESH = 100  # milliseconds between two updates of a growing layer
_PARTS = 1000  # of the progress bar, for several layers


@dataclass(eq=False)
class Pair:
    """A layer and its result.

    Attributes
    ----------
    source, result : napari.layers.Image
    job : Job
        With the values that were restored; the layer's own may have been replaced since.
    growing : Growing
        What the result is made of.
    hidden : list of Layer
        What was hidden so that the result is seen.
    finished : bool
    """

    source: Any
    result: Any
    job: Job
    growing: Any
    hidden: list[Any] = field(default_factory=list)
    finished: bool = False


class Restoration(Task):
    """Restore layers, one after the other, and show their results."""

    restored = Signal(object, str)
    """A layer is restored: its `Pair`, and the reason for what was done."""

    def __init__(self, viewer: Any) -> None:
        super().__init__(viewer)
        self._pairs: list[Pair] = []
        self._sources: list[Any] = []
        self._jobs: list[Job] = []
        self._control = Control()
        self._step: Step | None = None
        self._pair: Pair | None = None
        self._began = self._all_began = 0.0
        self._ended_well = 0
        self._drawn = QTimer(self)
        self._drawn.setSingleShot(True)
        self._drawn.setInterval(_REFRESH)
        self._drawn.timeout.connect(self._draw)
        self._watched = QFileSystemWatcher(self)
        self._watched.directoryChanged.connect(self._changed_on_disk)
        viewer.layers.events.removed.connect(self._removed)
        viewer.dims.events.current_step.connect(self._look)

    def restore(self, jobs: Sequence[tuple[Any, Job]]) -> None:
        """Begin to restore layers by their jobs."""
        self._sources, self._jobs = [layer for layer, _ in jobs], [job for _, job in jobs]
        self._step = self._pair = None
        self._all_began, self._ended_well = time.monotonic(), 0
        self.text = "Loading the model ..."
        names = ", ".join(layer.name for layer in self._sources)
        self._look()
        self.begin(f"Restoring {names}", self._control, restore, self._jobs)

    @property
    def unfinished(self) -> Pair | None:
        """The result that was stopped last, if it is still there."""
        pair = self._pair
        there = pair is not None and not pair.finished and pair.result in self.viewer.layers
        return pair if there and not self.running else None

    def resume(self) -> None:
        """Continue with the result that was stopped."""
        pair = self.unfinished
        if pair is not None:
            at = self._sources.index(pair.source)
            jobs = [replace(pair.job, begun=pair.growing), *self._jobs[at + 1 :]]
            self.restore(list(zip(self._sources[at:], jobs, strict=True)))

    def last(self, layers: Sequence[Any]) -> Pair | None:
        """Return the latest pair that includes one of `layers`, or else the latest of all."""
        self._pairs = [pair for pair in self._pairs if pair.result in self.viewer.layers]
        own = [pair for pair in self._pairs if pair.source in layers or pair.result in layers]
        return next(reversed(own or self._pairs), None)

    def take(self, news: Step) -> None:
        """Show a step of the run."""
        self._step = news
        self.done, self.total = self._overall(news)
        if news.state == "began":
            self._begin(news)
        elif news.state != "tile":
            self._end(news)
        elif not self._drawn.isActive():
            self._drawn.start()  # later tiles are drawn with this one

    def fail(self, error: Exception) -> None:
        """Show an error, and mark the current result as partial."""
        super().fail(error)
        if self._step is not None and self._step.state in ("began", "tile"):
            self._mark_partial(self._step)

    def finish(self) -> None:
        """Select the results, which the user may want to save."""
        self._drawn.stop()
        newest = {id(p.source): p.result for p in self._pairs if p.result in self.viewer.layers}
        if ours := [newest[id(source)] for source in self._sources if id(source) in newest]:
            select(self.viewer, ours)

    def _overall(self, step: Step) -> tuple[int, int]:
        """Return the progress of all jobs together."""
        if len(self._jobs) == 1:
            return step.done, step.total
        sizes = [math.prod(job.array.shape) for job in self._jobs]
        done = sum(sizes[: step.number]) + sizes[step.number] * step.done / step.total
        return round(_PARTS * done / sum(sizes)), _PARTS

    def _begin(self, step: Step) -> None:
        source, job = self._sources[step.number], self._jobs[step.number]
        self._began = time.monotonic()
        self._look()
        self.say(f"{source.name}: {step.total:,} tiles")
        name = f"{source.name}, {_model(step.record)}"
        if job.begun is not None and self._pair_of(job.begun) is not None:
            self._pair = self._pair_of(job.begun)
            self._pair.result.name = name
            self._pair.job = replace(job, begun=None)
            return
        layer = Layer.create(*result(source, step.data, name, step.record))
        earlier = [pair.result for pair in self._pairs if pair.source is source]
        there = [each for each in (source, *earlier) if each in self.viewer.layers]
        add_on_top(self.viewer, layer, max(there, key=self.viewer.layers.index, default=source))
        self._pair = Pair(source, layer, job, step.growing)
        for other in (source, *earlier):
            if other.visible:
                other.visible = False
                self._pair.hidden.append(other)
        self._pairs.append(self._pair)

    def _pair_of(self, growing: Any) -> Pair | None:
        found = (pair for pair in self._pairs if pair.growing is growing)
        return next((pair for pair in found if pair.result in self.viewer.layers), None)

    def _draw(self) -> None:
        step = self._step
        if step is None or step.state != "tile" or self._pair is None:
            return
        source, layer = self._pair.source, self._pair.result
        seconds = (time.monotonic() - self._began) / step.done * (step.total - step.done)
        left = f"{duration(seconds)} left" if step.done < step.total else "finishing ..."
        if not self.stopping:
            many = len(self._jobs) > 1
            which = f"{step.number + 1} of {len(self._jobs)}, {source.name}" if many else source.name
            self.say(f"{which}: {_tiles(step)}, {left}")
        if self._is_visible(layer, step.touched):
            layer.refresh(extent=False, thumbnail=False, highlight=False)

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
            pair.finished = True
            if "file" in step.record:
                self._watched.addPath(step.record["file"])
            seconds = duration(time.monotonic() - self._began)
            reason = step.record.get("reason", "")
            alone = reason.startswith("left alone")
            self.say(f"{pair.source.name}: {reason if alone else f'done in {seconds}'}")
            self._ended_well += 1
            if self._ended_well == len(self._jobs) > 1:
                seconds = duration(time.monotonic() - self._all_began)
                self.say(f"{len(self._jobs)} layers: done in {seconds}")
            self.restored.emit(pair, reason)
        elif pair.result not in self.viewer.layers:
            self.say(f"{pair.source.name}: stopped, as its result was removed")
        else:
            self._mark_partial(step)
            self.say(f"{pair.source.name}: stopped; {_tiles(step)} kept")

    def _mark_partial(self, step: Step) -> None:
        """Say in the name and record of a result that it is partial; remove it if it is empty."""
        if self._pair is None:
            return
        layer = self._pair.result
        if step.done:
            layer.name = f"{layer.name} ({_tiles(step)})"
            record = layer.metadata[RECORD] | {"tiles": [step.done, step.total], "partial": True}
            layer.metadata = {**layer.metadata, RECORD: record}
        elif layer in self.viewer.layers:
            self.viewer.layers.remove(layer)

    def _removed(self, event: Any) -> None:
        """Show again what a result has hidden; a run whose result is gone stops."""
        for pair in self._pairs:
            if pair.result is event.value:
                for layer in pair.hidden:
                    layer.visible = True
                pair.hidden.clear()
        if self.running and self._pair is not None and self._pair.result is event.value and self._step:
            self._control.skip(self._step.number)

    def _changed_on_disk(self, folder: str) -> None:
        """Say so if the file of a result is gone: it would just turn black."""
        for pair in self._pairs:
            lost = pair.result in self.viewer.layers and pair.result.metadata[RECORD].get("file") == folder
            if lost and not Path(folder).exists():
                show_error(f"{folder}: the file of {pair.result.name!r} was deleted; restore the layer again")
                pair.result.name = f"{pair.result.name} (file deleted)"

    def _abandon(self) -> None:
        self._watched.directoryChanged.disconnect(self._changed_on_disk)
        super()._abandon()

    def leave(self) -> None:
        """Remove the results that were kept for this viewer alone."""
        for job in [*(pair.job for pair in self._pairs), *self._jobs]:
            if job.target is not None:
                cache.remove(job.target.parent)

    def _look(self, _event: Any = None) -> None:
        """Tell the run which plane is looked at."""
        number = self._step.number if self._step is not None else 0
        if number < len(self._jobs):
            self._control.plane = plane_at(self.viewer, self._sources[number], self._jobs[number].axes)

    def _is_visible(self, layer: Any, touched: tuple[int | slice, ...]) -> bool:
        """Whether the canvas shows the plane of the last tile."""
        if layer not in self.viewer.layers or not layer.visible:
            return False
        hidden = self.viewer.dims.ndim - layer.ndim
        at = layer.world_to_data(np.asarray(self.viewer.dims.point)[hidden:])
        shown = {axis - hidden for axis in self.viewer.dims.displayed}
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


def _model(record: dict[str, Any]) -> str:
    if record.get("reason", "").startswith("left alone"):
        return "left alone"
    path = Path(record["model"])
    return path.stem if path.suffix in locations.KINDS else path.name


def _tiles(step: Step) -> str:
    return f"{step.done:,} of {step.total:,} tiles"
