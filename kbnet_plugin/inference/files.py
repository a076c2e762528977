"""Restore files: pictures in memory, stacks and large pictures piece by piece."""

from __future__ import annotations

import time
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ..arrays.axes import Layout, layout
from ..errors import DamagedError
from ..io.formats import find_format
from ..io.images import check_target, discard_unfinished, grow, open_images, write_images
from ..io.metadata import Frame, Image
from ..io.tiff.reader import LARGE
from .automatic import Chooser, Chosen
from .device import is_out_of_memory
from .history import history
from .pairing import Job
from .restorer import Plan, Restorer


@dataclass(frozen=True, slots=True)
class Step:
    """Progress of a job.

    Attributes
    ----------
    job : Job
    state : {"running", "restored", "kept", "failed"}
        The last three end a job: its target has been written, existed already, or could not be written.
    done, total : int
        Number of finished tiles, and of all; both 0 before the first is finished.
    size : (int, int) or None
        Height and width of a picture in pixels; None for a stack, and for several images.
    model, reason : str
        As in `Chosen`.
    notes : tuple of str
        What reading the file converted, dropped or guessed; see `kbnet_plugin.io.metadata.Image`.
    seconds : float
        Time since the job started.
    error : ValueError, OSError, MemoryError or None
        Why the job failed.
    """

    job: Job
    state: Literal["running", "restored", "kept", "failed"] = "running"
    done: int = 0
    total: int = 0
    size: tuple[int, int] | None = None
    model: str = ""
    reason: str = ""
    notes: tuple[str, ...] = ()
    seconds: float = 0.0
    error: ValueError | OSError | MemoryError | None = None


def plan_files(
    choose: Chooser, jobs: Sequence[Job], axes: str | None = None
) -> Iterator[tuple[Job, Chosen, Plan]]:
    """Choose a restorer for every image of every job, and estimate what it requires.

    Parameters
    ----------
    choose, jobs, axes
        As for `restore_files`.

    Yields
    ------
    job : Job
    chosen : Chosen
    plan : Plan

    Raises
    ------
    ValueError, OSError
        Those that `restore_files` yields as `Step.error`.
    """
    for job in jobs:
        with open_images(job.source) as images:
            for image in images:
                work = _Work(choose, job.source, image, axes)
                yield job, work.chosen, work.chosen.restorer.plan(work.arranged.shape, work.arranged.axes)


def restore_files(
    choose: Chooser | Restorer,
    jobs: Sequence[Job],
    *,
    axes: str | None = None,
    overwrite: bool = False,
    resume: bool = False,
    form: str | None = None,
    client: Any = None,
) -> Generator[Step, None, None]:
    """Restore files one after the other; an error in one does not stop the others.

    Parameters
    ----------
    choose : Chooser or Restorer
        As from `kbnet_plugin.inference.automatic.make_chooser`; or one restorer for all.
    jobs : sequence of Job
        As from `kbnet_plugin.inference.pairing.pair`.
    axes : str, optional
        Axes of the sources, instead of those that their files define.
    overwrite : bool
        Replace existing targets, which are otherwise kept.
    resume : bool
        Resume interrupted stacks.
    form : str, optional
        One of `kbnet_plugin.io.tiff.writer.FORMS` for TIFF results; by default that of the source.
    client : distributed.Client, optional
        As for `Restorer.restore_into`.

    Yields
    ------
    Step
        For each job, one at its start, one after every tile, and one at its end. The caller may stop at any
        of them: finished files remain, an unfinished picture is dropped, an unfinished stack can be resumed.
    """
    for job in jobs:
        began = time.perf_counter()
        step = Step(job)
        if job.target.exists() and not overwrite:
            yield replace(step, state="kept")
            continue
        yield step
        steps = restore_file(
            choose,
            job.source,
            job.target,
            axes=axes,
            overwrite=overwrite,
            resume=resume,
            form=form,
            client=client,
        )
        try:
            with closing(steps):
                for found in steps:
                    step = replace(found, job=job, seconds=time.perf_counter() - began)
                    yield step
            step = replace(step, state="restored", seconds=time.perf_counter() - began)
        except (ValueError, OSError) as error:
            step = replace(step, state="failed", error=error)
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            # Not the error itself, whose traceback would keep alive what filled the memory.
            message = f"{job.source}: out of memory; free some, or choose a smaller tile or another device"
            step = replace(step, state="failed", error=MemoryError(message))
        yield step


def restore_file(
    choose: Chooser | Restorer,
    source: Path,
    target: Path,
    *,
    axes: str | None = None,
    overwrite: bool = False,
    resume: bool = False,
    form: str | None = None,
    client: Any = None,
) -> Generator[Step, None, None]:
    """Restore all images of one file; parameters as for `restore_files`.

    Parameters
    ----------
    choose, axes, overwrite, resume, form, client
        As for `restore_files`; but a target that exists is always replaced, and `overwrite` discards an
        unfinished result.
    source, target : path

    Yields
    ------
    Step
        After every tile. `target` appears after the last.

    Raises
    ------
    ValueError
        If axes or dtype do not fit the network or the target's format; or a resumed source has changed.
    OSError
        If a file is damaged, or cannot be read or written.
    FileExistsError
        If there is an unfinished result, and neither `resume` nor `overwrite` is set.
    """
    with open_images(source) as images:
        works: list[_Work] = []
        for image in images:
            if works:
                yield Step(Job(source, target))  # measuring many images takes a while
            works.append(_Work(choose, source, image, axes))
        frames = [work.frame for work in works]
        check_target(target, frames, form)  # fails before the work, not after it
        start = Step(
            Job(source, target),
            total=sum(work.tiles for work in works),
            size=works[0].size if len(works) == 1 else None,
            model=works[0].chosen.model,
            reason=_joined(works),
            notes=tuple(dict.fromkeys(note for image in images for note in image.notes)),
        )
        if not _grows(target, frames):
            results = []
            for work in works:
                result = np.empty(work.frame.shape, work.frame.dtype)
                results.append((result, work.frame.metadata))
                yield from work.run(result, start, client)
                start = replace(start, done=start.done + work.tiles)
            lost = list(write_images(target, results, form))
            if lost:
                yield replace(start, notes=(*start.notes, *lost))
            return
        lost = []
        if overwrite and not resume:
            discard_unfinished(target)
        with (
            _naming(target),
            grow(target, frames, form=form, source=source, resume=resume, report=lost.append) as growing,
        ):
            for work, grown in zip(works, growing, strict=True):
                yield from work.run(grown.array, start, client, journal=grown.journal)
                start = replace(start, done=start.done + work.tiles)
        if lost:
            yield replace(start, notes=(*start.notes, *lost))


class _Work:
    """One image of a file, its restorer, and the frame of its result."""

    def __init__(self, choose: Chooser | Restorer, source: Path, image: Image, axes: str | None) -> None:
        self.source, self.image = source, image
        where = f"{source}: {image.metadata.path}" if image.metadata.path else f"{source}"
        try:
            known = axes or image.metadata.axes
            self.chosen = Chosen(choose) if isinstance(choose, Restorer) else choose(image.array, known)
            restorer = self.chosen.restorer
            self.arranged: Layout = layout(tuple(image.array.shape), known, restorer.in_channels)
            shape = restorer.output_shape(image.array, self.arranged.axes)
            noises = self.chosen.noises
            self.noises = restorer.measure(image.array, self.arranged.axes) if noises is None else noises
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from None
        except DamagedError as error:
            raise OSError(f"{where}: {error}") from error
        dtype = np.dtype(image.array.dtype)
        said = history(restorer, dtype, self.noises)
        self.frame = Frame(shape, dtype, replace(image.metadata, axes=self.arranged.axes, history=said))
        self.tiles = len(restorer.engine.tiles(self.arranged)) * self.arranged.count

    @property
    def size(self) -> tuple[int, int] | None:
        """Height and width, if it is a picture."""
        return None if self.arranged.stack_axes else self.arranged.size

    def run(self, target: Any, start: Step, client: Any, journal: Path | None = None) -> Iterator[Step]:
        """Restore it into an array, counting from the tiles that `start` says are done."""
        steps = self.chosen.restorer.restore_into(
            self.image.array,
            target,
            self.arranged.axes,
            journal=journal,
            noises=self.noises,
            client=client,
        )
        try:
            with closing(steps):
                for done, total in steps:
                    yield replace(start, done=start.done + done, total=start.total + total - self.tiles)
        except ValueError as error:
            raise ValueError(f"{self.source}: {error}") from None
        except DamagedError as error:
            raise OSError(f"{self.source}: {error}") from error


@contextmanager
def _naming(target: Path) -> Iterator[None]:
    """Let errors of the system that name no file, such as a full disk, name the target."""
    try:
        yield
    except OSError as error:
        if error.strerror and error.filename is None:
            raise OSError(error.errno, error.strerror, str(target)) from error
        raise


def _grows(target: Path, frames: Sequence[Frame]) -> bool:
    """Tell whether a result is written piece by piece."""
    known = find_format(target)
    if known is None or known.name == "OME-Zarr":
        return True
    if known.name != "TIFF":
        return False
    stack = any(len(str(frame.metadata.axes).replace("S", "")) > 2 for frame in frames)
    return stack or sum(int(np.prod(frame.shape)) for frame in frames) > LARGE


def _joined(works: Sequence[_Work]) -> str:
    """Join the reasons of several images in one line."""
    reasons = list(dict.fromkeys(work.chosen.reason for work in works))
    more = f"; and {len(reasons) - 2} other choices" if len(reasons) > 2 else ""
    return "; ".join(reasons[:2]) + more
