"""What runs in threads beside a run: choosing a model, loading it and estimates."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kbnet_plugin.arrays.axes import Layout, layout
from kbnet_plugin.errors import one_line
from kbnet_plugin.zoo import locations

from .loading import load_torch
from .options import Options

if TYPE_CHECKING:
    from kbnet_plugin.inference.automatic import Chooser, Chosen
    from kbnet_plugin.inference.restorer import Plan


class WorkError(Exception):
    """An error to show to the user, in one line."""


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


def make_plan(options: Options, array: Any, axes: str) -> tuple[Plan, str, str]:
    """Estimate what restoring an array takes; return also which model was chosen for it, and why."""
    with user_errors():
        chosen = chosen_for(options, array, axes)
        return chosen.restorer.plan(tuple(array.shape), axes), chosen.model, chosen.reason


def try_plan(options: Options, array: Any, axes: str) -> tuple[Plan, str, str] | str:
    """Return the same, or why it fails: nobody has asked for it."""
    try:
        return make_plan(options, array, axes)
    except WorkError as error:
        return str(error)


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


def layout_of(options: Options, array: Any, axes: str) -> Layout:
    """Return the layout of an array for the network that is chosen for it."""
    with user_errors():
        restorer = chosen_for(options, array, axes).restorer
        return layout(tuple(int(n) for n in array.shape), axes, restorer.in_channels)


def index_of(arranged: Layout, plane: Mapping[str, int]) -> tuple[int, ...]:
    return tuple(plane[a] for a in arranged.axes if a not in "YX" + arranged.channel_axis)


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
