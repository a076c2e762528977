"""What a run does in its thread: restore arrays tile by tile."""

from __future__ import annotations

import datetime
import errno
import hashlib
import itertools
import platform
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from threading import Event
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from kbnet_plugin import __version__
from kbnet_plugin.arrays.axes import Layout, layout
from kbnet_plugin.arrays.chunks import keep_chunks
from kbnet_plugin.errors import BadInput

from .growing import Growing
from .options import Options
from .worker import chosen_for, forget, index_of, user_errors

if TYPE_CHECKING:
    from kbnet_plugin.inference.automatic import Chosen


@dataclass(frozen=True, slots=True)
class Job:
    """An array to restore.

    Attributes
    ----------
    name : str
        Name of its layer.
    array : array
        Anything with a shape and a dtype that can be sliced.
    axes : str
    options : Options
    sizes : mapping
        As in `kbnet_plugin.io.metadata.Metadata`.
    path : str or None
        File that the array was read from.
    target : Path or None
        OME-Zarr to write; None for an array in memory.
    begun : Growing or None
        Unfinished result to continue.
    """

    name: str
    array: Any
    axes: str
    options: Options
    sizes: Mapping[str, tuple[float, str | None]]
    path: str | None = None
    target: Path | None = None
    begun: Growing | None = None


@dataclass(frozen=True, slots=True)
class Step:
    """Progress of a job.

    Attributes
    ----------
    number : int
        Index of the job.
    state : {"began", "tile", "done", "stopped"}
    done, total : int
        Numbers of tiles.
    record : dict
        Record of what is done, for the metadata of the result.
    growing : Growing
        What is written.
    data : array, list of array or None
        What to display from here on, if that changes; a list is a pyramid.
    touched : tuple of int or slice
        Index of the last tile.
    """

    number: int
    state: Literal["began", "tile", "done", "stopped"]
    done: int
    total: int
    record: dict[str, Any]
    growing: Growing
    data: Any = None
    touched: tuple[int | slice, ...] = ()


@dataclass(slots=True)
class Control:
    """What the window tells a run, from its own thread.

    Attributes
    ----------
    plane : mapping
        Index of the plane that is looked at, along every axis but Y and X; it is restored first.
    """

    plane: Mapping[str, int] = field(default_factory=dict)
    _stopped: Event = field(default_factory=Event)
    _skipped: set[int] = field(default_factory=set)

    def set(self) -> None:
        """Stop the run."""
        self._stopped.set()

    def clear(self) -> None:
        """Prepare for another run."""
        self._stopped.clear()
        self._skipped.clear()

    def skip(self, number: int) -> None:
        """Stop one of the jobs."""
        self._skipped.add(number)

    def stops(self, number: int) -> bool:
        """Tell whether a job is to stop."""
        return self._stopped.is_set() or number in self._skipped


def restore(jobs: Sequence[Job], control: Control) -> Generator[Step, None, None]:
    """Restore arrays one by one; yield a step per tile, and stop after a tile once told to."""
    with user_errors():
        for number, job in enumerate(jobs):
            if control.stops(number):
                continue
            yield from _restore(number, job, control)


def _restore(number: int, job: Job, control: Control) -> Iterator[Step]:
    forget()
    chosen = chosen_for(job.options, job.array, job.axes)
    restorer = chosen.restorer
    arranged = layout(tuple(int(n) for n in job.array.shape), job.axes, restorer.in_channels)
    kept = keep_chunks(job.array)  # what the run reads is not computed again to be displayed
    run = _Run(number, replace(job, array=kept), chosen, arranged, control, _record(job, chosen))
    shape, dtype = restorer.output_shape(job.array, job.axes), np.dtype(job.array.dtype)
    output = replace(arranged, shape=shape)
    source = kept if shape == arranged.shape else None
    if job.target is None:
        target = job.begun or Growing(np.zeros(shape, dtype), output, source)
        for step in run.steps(target):
            yield replace(step, data=target.array) if step.state == "done" else step
        return
    from kbnet_plugin.inference.history import history
    from kbnet_plugin.io.images import grow, working_folder
    from kbnet_plugin.io.metadata import Frame, Metadata

    run.record["file"] = str(working_folder(job.target))
    metadata = Metadata(job.axes, sizes=job.sizes, history=history(restorer, dtype, chosen.noises))
    try:
        with grow(job.target, [Frame(shape, dtype, metadata)], resume=True) as (growing,):
            if job.begun is not None:
                target = job.begun
                target.array = growing.array
            else:
                target = Growing(growing.array, output, source, growing.journal)
            for step in run.steps(target):
                if not target.journal.exists() and step.state != "began":
                    raise BadInput(f"{job.target}: deleted during the run; restore the layer again")
                if step.state == "done":
                    break  # reported below, once the file has its name
                yield step
                if step.state == "stopped":
                    raise _StoppedError
    except _StoppedError:
        return
    except OSError as error:
        if error.errno == errno.ENOSPC:
            message = (
                f"{job.target}: the disk is full; finished tiles are kept. Free some space, then continue"
            )
            raise OSError(message) from error
        raise
    data = open_result(job.target, job.axes)
    data = data if isinstance(target.shown, list) else data[0]
    yield replace(step, data=data, record=step.record | {"file": str(job.target)})


def open_result(path: Path, axes: str) -> list[Any]:
    """Open the levels of a result as arrays that are read as they are displayed."""
    import dask.array as da

    from kbnet_plugin.io.ome_zarr import open_levels

    return [da.from_array(level, chunks=level.chunks, name=False) for level in open_levels(path, axes)]


def matches_file(path: str, array: Any) -> bool:
    """Whether a file contains an array: a layer may be one channel of its file, or have been edited since.

    Arrays in memory are compared in full; of lazy ones, which cannot be edited, a few planes.
    """
    from kbnet_plugin.io import open_image

    try:
        with open_image(path) as image:
            found, shape = image.array, tuple(array.shape)
            if tuple(found.shape) != shape or np.dtype(found.dtype) != np.dtype(array.dtype):
                return False
            lazy = not isinstance(array, np.ndarray)
            step = max(1, shape[0] // (4 if lazy else 64))
            middle = tuple(n // 2 for n in shape[1:-2]) if lazy else ()
            blocks = ((slice(n, n + 1 if lazy else n + step), *middle) for n in range(0, shape[0], step))
            return all(np.array_equal(np.asarray(found[k]), np.asarray(array[k])) for k in blocks)
    except (ValueError, OSError):
        return False


class _StoppedError(Exception):
    """Leaves a growing file as it is, so that it can be resumed."""


@dataclass(frozen=True, slots=True)
class _Run:
    number: int
    job: Job
    chosen: Chosen
    arranged: Layout
    control: Control
    record: dict[str, Any]

    def steps(self, target: Growing) -> Iterator[Step]:
        """Restore into a target; the last step is "done" or "stopped"."""
        restorer = self.chosen.restorer
        done, total = 0, len(restorer.engine.tiles(self.arranged)) * self.arranged.count
        for plane in (next(iter(self.arranged.planes())), self._looked_at()):  # a new layer shows both
            if len(plane) == len(self.arranged.stack_axes):
                target.prepare(plane)
        yield Step(self.number, "began", done, total, self.record, target, target.shown)
        tiles = restorer.restore_into(
            self.job.array,
            target,
            self.job.axes,
            journal=target.journal,
            identity=_identity(self.job, self.arranged),
            noises=self.chosen.noises,
            first=self._looked_at,
            stopped=lambda: self.control.stops(self.number),
        )
        with closing(tiles):
            for done, total in tiles:
                yield Step(self.number, "tile", done, total, self.record, target, touched=target.touched)
                if self.control.stops(self.number):
                    break
        record = self.record | {
            "tiles": [done, total],
            "finished": datetime.datetime.now().isoformat(timespec="seconds"),
        }
        yield Step(self.number, "done" if done == total else "stopped", done, total, record, target)

    def _looked_at(self) -> tuple[int, ...]:
        try:
            return index_of(self.arranged, self.control.plane)
        except KeyError:  # not known
            return ()


def _identity(job: Job, arranged: Layout) -> str:
    """Identify an array by some of its values; its file may be older than a layer that was edited."""
    digest = hashlib.sha256()
    planes = list(itertools.islice(arranged.planes(), 0, None, max(1, arranged.count // 4)))
    for plane in planes[:4]:
        corner = arranged.key(plane, (slice(0, 256), slice(0, 256)))
        digest.update(np.ascontiguousarray(np.asarray(job.array[corner])).tobytes())
    return digest.hexdigest()[:16]


def _record(job: Job, chosen: Chosen) -> dict[str, Any]:
    restorer = chosen.restorer
    settings = dict(chosen.settings)
    settings["tile"] = restorer.engine.tile
    settings["precision"] = str(restorer.engine.dtype).removeprefix("torch.")
    return {
        "model": chosen.model or job.options.model,
        "reason": chosen.reason,
        "weights": restorer.fingerprint,
        "settings": settings,
        "device": str(restorer.engine.device),
        "axes": job.axes,
        "layer": job.name,
        "path": job.path if job.path is not None and matches_file(job.path, job.array) else None,
        "versions": {"kbnet": __version__, "python": platform.python_version()}
        | {name: version(name) for name in ("torch", "numpy", "napari")},
    }
