"""Restore whole stacks from file to file."""

from __future__ import annotations

from collections.abc import Generator
from pathlib import Path
from typing import Any

from ..arrays.axes import layout
from ..errors import DamagedError
from ..io.stacks import grow, open_stack
from .restorer import Restorer


def restore_stack(
    restorer: Restorer,
    source: Path,
    target: Path,
    *,
    axes: str | None = None,
    resume: bool = False,
    client: Any = None,
) -> Generator[tuple[int, int], None, None]:
    """Restore a stack from file to file, tile by tile.

    Parameters
    ----------
    restorer : Restorer
    source, target : path
        TIFF or OME-Zarr; the suffix of `target` decides which.
    axes : str, optional
        Axes of the source, instead of those that its file defines.
    resume : bool
        Resume an interrupted run, whose unfinished result is next to `target`.
    client : distributed.Client, optional
        As for `Restorer.restore_into`.

    Yields
    ------
    done, total : int
        Number of finished tiles, and of all. `target` appears after the last.

    Raises
    ------
    ValueError
        If axes or dtype do not fit the network or the target's format.
    OSError
        If a file is damaged, or cannot be read or written.
    FileExistsError
        If there is an unfinished result and `resume` is False.
    """
    with open_stack(source) as (array, info):
        try:
            arranged = layout(array.shape, axes or info.axes, restorer.in_channels)
            shape = restorer.output_shape(array, arranged.axes)
        except ValueError as error:
            raise ValueError(f"{source}: {error}") from None
        state = (source / "zarr.json") if (source / "zarr.json").is_file() else source
        identity = f"{source.resolve()} {state.stat().st_mtime_ns if state.is_file() else 0}"
        try:
            with grow(target, arranged.axes, shape, array.dtype, info, resume=resume) as growing:
                yield from restorer.restore_into(
                    array,
                    growing.array,
                    arranged.axes,
                    journal=growing.journal,
                    identity=identity,
                    client=client,
                )
        except DamagedError as error:
            raise OSError(f"{source}: {error}") from error
