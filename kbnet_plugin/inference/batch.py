"""Restore many files, one after the other."""

from __future__ import annotations

import functools
import glob
import shutil
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from os import PathLike
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

import numpy as np

from ..arrays.axes import layout
from ..io.ome_zarr import is_zarr
from ..io.pictures import FORMATS, check_format, read_image, write_image
from ..io.stacks import is_stack, open_array, open_stack, working_folder
from .choose import choose_treatment, measure_channels
from .device import is_out_of_memory
from .restorer import Plan, Restorer
from .stacks import restore_stack


class Chosen(NamedTuple):
    """The restorer for an array.

    Attributes
    ----------
    restorer : Restorer
    model : str
        Name of the model that was chosen; empty if the caller named one.
    settings : mapping
        Settings of the caller, and those that were chosen.
    reason : str
        Why, in one line; empty if the caller named a model.
    """

    restorer: Restorer
    model: str = ""
    settings: Mapping[str, Any] = MappingProxyType({})
    reason: str = ""


Chooser = Callable[[Any, str | None], Chosen]
"""Function of an array and its axes, or None for axes inferred from its shape, that returns its restorer."""


@dataclass(frozen=True, slots=True)
class Job:
    """A picture or stack to restore, and the file to write."""

    source: Path
    target: Path


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
        Height and width of a picture in pixels; None for a stack.
    model, reason : str
        As in `Chosen`.
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
    seconds: float = 0.0
    error: ValueError | OSError | MemoryError | None = None


def make_chooser(model: str | PathLike[str] | None = None, **settings: Any) -> Chooser:
    """Make the function that chooses a restorer for each picture.

    Parameters
    ----------
    model : str or path, optional
        As for `Restorer.from_pretrained`. By default the noise of each picture is measured, and a shipped
        model and settings are chosen for it; see `kbnet_plugin.inference.choose`.
    **settings
        As for `Restorer`; they override those that are chosen. None means not set.

    Raises
    ------
    FileNotFoundError, ValueError
        As for `Restorer.from_pretrained`.
    """
    settings = {name: value for name, value in settings.items() if value is not None}
    build = functools.cache(lambda name: Restorer.from_pretrained(name, **settings))
    if model is not None:
        named = Chosen(Restorer.from_pretrained(model, **settings), settings=settings)
        return lambda array, axes: named

    def choose(array: Any, axes: str | None) -> Chosen:
        arranged = layout(tuple(int(n) for n in array.shape), axes, 3)
        colours = arranged.colours
        found = choose_treatment(measure_channels(array, arranged.axes), np.dtype(array.dtype), colours)
        own = {name: value for name, value in found.settings.items() if name not in settings}
        # A strength set by the caller also applies to a picture that is clean.
        adapted = build(found.model).with_settings(**own) if own else build(found.model)
        return Chosen(adapted, found.model, settings | own, str(found))

    return choose


def pair(inputs: Sequence[Path], output: Path, *, make: bool = True) -> list[Job]:
    """Pair every picture with the file to write.

    Parameters
    ----------
    inputs : sequence of path
        Pictures, stacks, folders of them, and patterns such as ``*.png``.
    output : path
        A file for one picture, otherwise a folder.
    make : bool
        Create the folder if it does not exist.

    Raises
    ------
    FileNotFoundError
        If an input, or the folder of an output file, does not exist.
    ValueError
        If a folder contains no pictures, several pictures have the same target, or one would replace its
        source.
    """
    sources: list[Path] = []
    inputs = [found for path in inputs for found in _expand(path)]
    for path in inputs:
        if path.is_dir() and not is_zarr(path):
            found = sorted(p for p in path.iterdir() if _is_picture(p) and (p.is_file() or is_zarr(p)))
            if not found:
                raise ValueError(f"{path}: no pictures in this folder ({', '.join(FORMATS)})")
            sources += found
        elif path.exists():
            sources.append(path)
        else:
            raise FileNotFoundError(f"{path}: no such file or folder")
    file_like = bool(output.suffix) and (is_zarr(output) or not output.is_dir())
    one_file = sources == inputs and len(inputs) == 1 and file_like
    if not one_file and not output.is_dir() and (output.exists() or _is_picture(output)):
        raise ValueError(f"{output}: not a folder, and several pictures need one; name a folder")
    jobs = [Job(source, output if one_file else output / source.name) for source in sources]
    targets: dict[Path, Path] = {}
    for job in jobs:
        if job.target.resolve() == job.source.resolve():
            raise ValueError(f"{job.source}: would be replaced by its own result; choose another output")
        other = targets.setdefault(job.target, job.source)
        if other != job.source:
            raise ValueError(
                f"{other} and {job.source} would both go to {job.target}; restore them into different folders"
            )
    if one_file and not output.parent.is_dir():
        raise FileNotFoundError(f"{output.parent}: no such folder to write {output.name} to; create it first")
    if not one_file and make:
        output.mkdir(parents=True, exist_ok=True)
    return jobs


def plan_files(
    choose: Chooser, jobs: Sequence[Job], axes: str | None = None
) -> Iterator[tuple[Job, Chosen, Plan]]:
    """Choose a restorer for every job, and estimate what it requires.

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
        with open_array(job.source, axes, stack=is_zarr(job.target)) as (array, known):
            chosen = _chosen(choose, job, array, known)
            yield job, chosen, chosen.restorer.plan(tuple(array.shape), known)


def restore_files(
    choose: Chooser,
    jobs: Sequence[Job],
    *,
    axes: str | None = None,
    overwrite: bool = False,
    resume: bool = False,
    client: Any = None,
) -> Generator[Step, None, None]:
    """Restore files one after the other; an error in one does not stop the others.

    Parameters
    ----------
    choose : Chooser
        As from `make_chooser`.
    jobs : sequence of Job
        As from `pair`.
    axes : str, optional
        Axes of the sources, instead of those that their files define.
    overwrite : bool
        Replace existing targets, which are otherwise kept.
    resume : bool
        Resume interrupted stacks.
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
        steps = (
            _restore_stack(choose, job, axes, overwrite, resume, client)
            if _piecewise(job)
            else _restore_picture(choose, job, axes, client)
        )
        try:
            with closing(steps):
                for found in steps:
                    step = replace(found, seconds=time.perf_counter() - began)
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


def _restore_stack(
    choose: Chooser, job: Job, axes: str | None, overwrite: bool, resume: bool, client: Any
) -> Generator[Step, None, None]:
    with open_stack(job.source) as (array, info):
        chosen = _chosen(choose, job, array, axes or info.axes)
    if overwrite and not resume:
        shutil.rmtree(working_folder(job.target), ignore_errors=True)
    steps = restore_stack(chosen.restorer, job.source, job.target, axes=axes, resume=resume, client=client)
    with closing(steps):
        for done, total in steps:
            yield Step(job, done=done, total=total, model=chosen.model, reason=chosen.reason)


def _restore_picture(choose: Chooser, job: Job, axes: str | None, client: Any) -> Generator[Step, None, None]:
    image, metadata = read_image(job.source)
    check_format(job.target, image.dtype, image.shape)  # fails before the work, not after it
    restorer, model, _, reason = _chosen(choose, job, image, axes)
    height, width = image.shape[:2]
    try:
        restored = np.empty(restorer.output_shape(image, axes), image.dtype)
        with closing(restorer.restore_into(image, restored, axes, client=client)) as tiles:
            for done, total in tiles:
                yield Step(job, done=done, total=total, size=(height, width), model=model, reason=reason)
    except ValueError as error:
        raise ValueError(f"{job.source}: {error}") from None
    write_image(job.target, restored, metadata)


def _chosen(choose: Chooser, job: Job, array: Any, axes: str | None) -> Chosen:
    try:
        return choose(array, axes)
    except ValueError as error:
        raise ValueError(f"{job.source}: {error}") from None


def _piecewise(job: Job) -> bool:
    return is_stack(job.source) or is_zarr(job.target)


def _expand(path: Path) -> list[Path]:
    """Expand a pattern that the shell has not expanded."""
    if path.exists() or not glob.has_magic(str(path)):
        return [path]
    return [Path(p) for p in sorted(glob.glob(str(path), recursive=True))] or [path]


def _is_picture(path: Path) -> bool:
    return path.suffix.lower() in (*FORMATS, ".zarr") and not path.name.startswith(".")
