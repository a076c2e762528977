"""What runs in threads: loading models and computing tiles. Only this module imports torch."""

from __future__ import annotations

import datetime
import hashlib
import itertools
import math
import platform
import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from threading import Event
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from kbnet_plugin import __version__
from kbnet_plugin.arrays.axes import Layout, layout
from kbnet_plugin.arrays.intensity import Range
from kbnet_plugin.errors import one_line
from kbnet_plugin.zoo import locations

from .loading import load_torch
from .options import Options

if TYPE_CHECKING:
    from kbnet_plugin import Restorer
    from kbnet_plugin.inference.automatic import Chooser, Chosen
    from kbnet_plugin.inference.restorer import Plan

_WIDE = 4096  # pixels; wider planes are displayed through an overview while they grow
_OVERVIEW = 2048, 1 << 28  # at most: pixels per side of the overview, and its bytes in all


class WorkError(Exception):
    """An error to show to the user, in one line."""


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
    """

    name: str
    array: Any
    axes: str
    options: Options
    sizes: Mapping[str, tuple[float, str | None]]
    path: str | None = None
    target: Path | None = None


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
    data: Any = None
    touched: tuple[int | slice, ...] = ()


@dataclass(frozen=True, slots=True)
class Preview:
    """A window of a plane before and after.

    Attributes
    ----------
    before, after : ndarray
        With all axes of the array.
    corner : tuple of int
        Index of the first pixel.
    arranged : Layout
        Layout of the whole array.
    scale : Range
        Intensities that the model saw as 0 and 1.
    seconds : float
        Time the restoration took.
    reason : str
        What was chosen and why; empty if the user named a model.
    """

    before: NDArray[Any]
    after: NDArray[Any]
    corner: tuple[int, ...]
    arranged: Layout
    scale: Range
    seconds: float
    reason: str = ""


def chosen_for(options: Options, array: Any, axes: str) -> Chosen:
    """Choose how to restore an array; unless a model is named, its noise is measured, once per array."""
    path = locations.model_paths().get(options.model, Path(options.model))
    stamp = path.stat().st_mtime_ns if options.model and path.is_file() else 0
    key = (options, stamp, axes)
    if _last and _last[0] == key and _last[1] is array:
        found: Chosen = _last[2]
        return found
    chosen = _chooser(options, stamp)(array, axes)
    _last[:] = [key, array, chosen]
    return chosen


_last: list[Any] = []  # the last request and its answer


def forget() -> None:
    """Measure the next array even if it was the last one: its values may have changed."""
    _last.clear()


@lru_cache(maxsize=1)
def _chooser(options: Options, _stamp: int) -> Chooser:
    return options.chooser()


def make_plan(options: Options, array: Any, axes: str) -> tuple[Plan, str]:
    """Estimate what restoring an array takes, and say what was chosen for it and why."""
    with user_errors():
        chosen = chosen_for(options, array, axes)
        return chosen.restorer.plan(tuple(array.shape), axes), chosen.reason


def devices() -> dict[str, str]:
    """Return name and label of every available device."""
    load_torch()
    import torch

    from kbnet_plugin.inference.device import free_memory

    found = {"auto": "automatic", "cpu": f"CPU, {_gigabytes(free_memory(torch.device('cpu')))} free"}
    for number in range(torch.cuda.device_count()):
        free = _gigabytes(free_memory(torch.device("cuda", number)))
        found[f"cuda:{number}"] = f"{torch.cuda.get_device_name(number)}, {free} free"
    if torch.backends.mps.is_available():
        found["mps"] = f"Apple GPU, {_gigabytes(free_memory(torch.device('mps')))} free"
    return found


def preview(
    options: Options, array: Any, axes: str, plane: Mapping[str, int], window: tuple[slice, slice]
) -> Preview:
    """Restore a window of a plane, exactly as a run would.

    Parameters
    ----------
    options : Options
    array, axes
        As in `Job`.
    plane : mapping
        Index along every axis but Y and X.
    window : (slice, slice)
        Rows and columns.
    """
    with user_errors():
        chosen = chosen_for(options, array, axes)
        restorer = chosen.restorer
        at = _index(layout(tuple(int(n) for n in array.shape), axes, restorer.in_channels), plane)
        began = time.perf_counter()
        found = restorer.restore_window(array, window, axes, at)
        seconds = max(time.perf_counter() - began, 1e-3)
        arranged, key = found.arranged, found.arranged.key(at, window)
        single = tuple(i for i, k in enumerate(key) if not isinstance(k, slice))
        return Preview(
            before=np.expand_dims(found.before, single),
            after=np.expand_dims(found.after, single),
            corner=tuple((k.start or 0) if isinstance(k, slice) else k for k in key),
            arranged=arranged,
            scale=found.scale,
            seconds=seconds,
            reason=chosen.reason,
        )


def layout_and_range(
    options: Options, array: Any, axes: str, plane: Mapping[str, int]
) -> tuple[Layout, Range]:
    """Return the layout of an array, and the intensities that the model sees as 0 and 1 in a plane."""
    with user_errors():
        restorer = chosen_for(options, array, axes).restorer
        arranged = layout(tuple(int(n) for n in array.shape), axes, restorer.in_channels)
        return arranged, restorer.intensity_range(array, axes, _index(arranged, plane))


def _index(arranged: Layout, plane: Mapping[str, int]) -> tuple[int, ...]:
    return tuple(plane[a] for a in arranged.axes if a not in "YX" + arranged.channel_axis)


def restore(jobs: Sequence[Job], cancelled: Event) -> Generator[Step, None, None]:
    """Restore arrays one by one; yield a step per tile, and stop after a tile once `cancelled` is set."""
    with user_errors():
        for number, job in enumerate(jobs):
            if cancelled.is_set():
                return
            yield from _restore(number, job, cancelled)


def _restore(number: int, job: Job, cancelled: Event) -> Iterator[Step]:
    forget()
    chosen = chosen_for(job.options, job.array, job.axes)
    restorer = chosen.restorer
    arranged = layout(tuple(int(n) for n in job.array.shape), job.axes, restorer.in_channels)
    run = _Run(number, job, restorer, len(restorer.engine.tiles(arranged)) * arranged.count, cancelled)
    record = _record(job, chosen)
    shape, dtype = restorer.output_shape(job.array, job.axes), np.dtype(job.array.dtype)
    if job.target is None:
        yield from run.steps(Watched(np.zeros(shape, dtype), job.axes), record)
        return
    from kbnet_plugin.inference.history import history
    from kbnet_plugin.io.images import grow, working_folder
    from kbnet_plugin.io.metadata import Frame, Metadata
    from kbnet_plugin.io.ome_zarr import open_levels

    record["file"] = str(working_folder(job.target))
    metadata = Metadata(job.axes, sizes=job.sizes, history=history(restorer, dtype, chosen.noises))
    try:
        with grow(job.target, [Frame(shape, dtype, metadata)], resume=True) as (growing,):
            target = Watched(growing.array, job.axes)
            for step in run.steps(target, record, journal=growing.journal, identity=_identity(job, arranged)):
                if step.state == "done":
                    break  # reported below, once the file has its name
                yield step
                if step.state == "stopped":
                    raise _StoppedError
    except _StoppedError:
        return
    levels: list[Any] = list(open_levels(job.target, job.axes))
    data = levels if isinstance(target.shown, list) else levels[0]
    yield replace(step, data=data, record=step.record | {"file": str(job.target)})


def matches_file(path: str, array: Any) -> bool:
    """Whether a file has the shape of an array; a layer may be just one channel of its file."""
    from kbnet_plugin.io import open_image

    try:
        with open_image(path) as image:
            return tuple(image.array.shape) == tuple(array.shape)
    except (ValueError, OSError):
        return False


class _StoppedError(Exception):
    """Leaves a growing file as it is, so that it can be resumed."""


@dataclass(frozen=True, slots=True)
class _Run:
    number: int
    job: Job
    restorer: Restorer
    total: int
    cancelled: Event

    def steps(self, target: Watched, record: dict[str, Any], **journal: Any) -> Iterator[Step]:
        """Restore into a target; the last step is "done" or "stopped"."""
        done = 0
        yield Step(self.number, "began", done, self.total, record, target.shown)
        with closing(self.restorer.restore_into(self.job.array, target, self.job.axes, **journal)) as tiles:
            for done, _ in tiles:
                yield Step(self.number, "tile", done, self.total, record, touched=target.touched)
                if self.cancelled.is_set():
                    break
        record = record | {
            "tiles": [done, self.total],
            "finished": datetime.datetime.now().isoformat(timespec="seconds"),
        }
        yield Step(self.number, "done" if done == self.total else "stopped", done, self.total, record)


def _identity(job: Job, arranged: Layout) -> str:
    """Identify an array by its file, or else by some of its values."""
    if job.path is not None:
        path = Path(job.path)
        return f"{job.path} {path.stat().st_mtime_ns if path.is_file() else 0}"
    digest = hashlib.sha256()
    planes = list(itertools.islice(arranged.planes(), 0, None, max(1, arranged.count // 4)))
    for plane in planes[:4]:
        corner = arranged.key(plane, (slice(0, 256), slice(0, 256)))
        digest.update(np.ascontiguousarray(np.asarray(job.array[corner])).tobytes())
    return digest.hexdigest()[:16]


class Watched:
    """A target that records the last write, and keeps an overview of wide planes.

    Attributes
    ----------
    shown : array or list of array
        What a layer can display while the target grows.
    touched : tuple of int or slice
        Index of the last write.
    """

    def __init__(self, array: Any, axes: str) -> None:
        self._array = array
        self.shape, self.dtype = array.shape, array.dtype
        self.touched: tuple[int | slice, ...] = ()
        sides = [n for a, n in zip(axes.upper(), array.shape, strict=True) if a in "YX"]
        self._step = 1
        if not isinstance(array, np.ndarray) and max(sides) > _WIDE:
            whole = math.prod(array.shape) * array.dtype.itemsize
            self._step = math.ceil(max(max(sides) / _OVERVIEW[0], math.sqrt(whole / _OVERVIEW[1])))
        self._steps = tuple(self._step if a in "YX" else 1 for a in axes.upper())
        self.shown = array
        if self._step > 1:
            small = tuple(-(-n // k) for n, k in zip(array.shape, self._steps, strict=True))
            self._overview = np.zeros(small, array.dtype)
            self.shown = [array, self._overview]

    def __setitem__(self, key: tuple[int | slice, ...], value: NDArray[Any]) -> None:
        self._array[key] = value
        if self._step > 1:
            thin, into = [], []
            for part, step, length in zip(key, self._steps, self.shape, strict=True):
                if not isinstance(part, slice):
                    into.append(part)
                    continue
                start, stop, _ = part.indices(length)
                first = -(-start // step)
                into.append(slice(first, -(-stop // step)))
                thin.append(slice(first * step - start, None, step))
            self._overview[tuple(into)] = value[tuple(thin)]
        self.touched = key

    def sync(self) -> None:
        """Flush to disk, if the target is a file."""
        if (sync := getattr(self._array, "sync", None)) is not None:
            sync()


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


@contextmanager
def user_errors() -> Iterator[None]:
    """Turn expected errors into a `WorkError`."""
    load_torch()
    try:
        yield
    except (ValueError, OSError, MemoryError, RuntimeError) as error:
        message = one_line(error)
        if isinstance(error, MemoryError) or "out of memory" in message:
            message = "out of memory; choose a smaller tile, or the CPU as the device"
        first = message.split(maxsplit=1)[0]
        if not any(sign in first for sign in "./\\"):  # the name of a file keeps its case
            message = f"{message[0].upper()}{message[1:]}"
        raise WorkError(message) from error


def _gigabytes(count: int) -> str:
    return f"{count / 1e9:.1f} GB"
