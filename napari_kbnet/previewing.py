"""What a preview does in its thread: restore what the canvas shows, coarse first."""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Hashable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from threading import Event
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import NDArray

from kbnet_plugin.arrays.axes import Layout, layout
from kbnet_plugin.arrays.chunks import keep_chunks
from kbnet_plugin.arrays.tiling import plan

from .options import Options
from .worker import chosen_for, index_of, user_errors

if TYPE_CHECKING:
    from kbnet_plugin.inference.engine import Engine

_COARSE = 4  # of the pixels that are shown, every how many come first
_AT_ONCE = 0.4  # seconds; what is faster needs no coarse preview
_PIECE = 1.5  # seconds that a piece takes
_SIDES = 128, 1024  # of a piece, in pixels
_KEPT = 4  # previews


@dataclass(frozen=True, slots=True)
class View:
    """What the canvas shows of a layer.

    Attributes
    ----------
    array : array
        The layer's, or that of the level of a pyramid that is displayed.
    plane : mapping
        Index along every axis but Y and X.
    window : (slice, slice)
        Rows and columns of the array, with the step at which the canvas shows them.
    factors : tuple of float
        Pixels of the layer per pixel of the array, along each axis.
    """

    array: Any
    plane: Mapping[str, int]
    window: tuple[slice, slice]
    factors: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Request:
    """What to preview.

    Attributes
    ----------
    options, array, axes
        As in `Job`.
    view : View
    truth : array or None
        As for `quality.compare`.
    border : float
        Fraction of the width that shows the layer, not the result; it is restored last.
    tag : object
        Passed on to the preview.
    stopped : Event
        Set to stop.
    """

    options: Options
    array: Any
    axes: str
    view: View
    truth: Any = None
    border: float = 0.0
    tag: Any = None
    stopped: Event = field(default_factory=Event)


@dataclass(eq=False, slots=True)
class Preview:
    """What the canvas shows, before and after.

    Attributes
    ----------
    before, after : ndarray
        With all axes of the array. A thread may still be filling `after`.
    corner : tuple of float
        Index of the first pixel in the layer's array.
    steps : tuple of float
        Pixels of the layer per pixel of the preview, along each axis.
    tag : object
        Of the request.
    reason : str
        What was chosen and why; empty if the user named a model.
    model : str
        Name of the model that was chosen; empty if the user named one.
    finished : bool
    seconds : float
        Time the restoration took.
    quality : str
        See `quality.compare`; empty until it is finished.
    """

    before: NDArray[Any]
    after: NDArray[Any]
    corner: tuple[float, ...]
    steps: tuple[float, ...]
    tag: Any
    reason: str = ""
    model: str = ""
    finished: bool = False
    seconds: float = 0.0
    quality: str = ""


@dataclass(slots=True)
class Previewer:
    """Makes previews and keeps the latest.

    Attributes
    ----------
    show : callable
        Called with a `Preview` whenever more of it is restored, from the thread.
    """

    show: Callable[[Preview], object]
    _kept: dict[Hashable, Preview] = field(default_factory=dict)

    def __call__(self, request: Request) -> Preview | None:
        """Preview what was asked for; return None if stopped."""
        from kbnet_plugin.inference.engine import StoppedError
        from kbnet_plugin.inference.reading import measure_channel, read_window

        with user_errors(), suppress(StoppedError):
            chosen = chosen_for(request.options, request.array, request.axes)
            engine, view = chosen.restorer.engine, request.view
            whole, arranged = (
                layout(tuple(int(n) for n in array.shape), request.axes, engine.in_channels)
                for array in (request.array, view.array)
            )
            at, dtype = index_of(arranged, view.plane), np.dtype(view.array.dtype)
            noise = chosen.noises[arranged.channel(at)] if chosen.noises else None
            if noise is None and engine.needs_noise(dtype):
                noise = measure_channel(request.array, whole, arranged.channel(at))
            context = engine.context_from(dtype, noise)
            source = keep_chunks(view.array)
            picture = read_window(source, arranged, at, view.window)
            key = engine.token, context, at, _place(view), id(request.truth), _digest(picture)
            if key in self._kept:
                self._kept[key].tag = request.tag
                return self._kept[key]

            began = time.perf_counter()
            rows, columns = view.window
            if rows.step == columns.step == 1:  # exactly as in a run: with what is around
                tiles = _Tiles(engine, context, source, arranged, at, (rows.start, columns.start))
            else:
                tiles = _Tiles.of(engine, context, picture, arranged)
            colours = arranged.colours if engine.in_channels == engine.out_channels else engine.out_channels
            after = np.empty((*picture.shape[:2], colours + arranged.alpha), dtype)
            single = tuple(i for i, a in enumerate(arranged.axes) if a in arranged.stack_axes)
            made = Preview(
                np.expand_dims(arranged.from_picture(picture), single),
                np.expand_dims(arranged.from_picture(after), single),  # a view
                *_placement(view, arranged, at),
                request.tag,
                chosen.reason,
                chosen.model,
            )
            pieces = _pieces(after.shape[:2], _rate(engine), request.border)
            with engine.stopped_by(request.stopped.is_set):
                if after[..., 0].size * _rate(engine) > _AT_ONCE:
                    small = picture[::_COARSE, ::_COARSE]
                    coarse = _Tiles.of(engine, context, small, arranged)
                    low = coarse.solve(slice(0, small.shape[0]), slice(0, small.shape[1]))
                    low = low.repeat(_COARSE, axis=0).repeat(_COARSE, axis=1)
                    after[:] = low[: after.shape[0], : after.shape[1]]
                    self.show(made)
                for number, piece in enumerate(pieces, 1):
                    after[piece] = tiles.solve(*piece)
                    if number < len(pieces):
                        self.show(made)
            made.seconds, made.finished = time.perf_counter() - began, True
            made.quality = _quality(request, made, whole)
            self._kept[key] = made
            while len(self._kept) > _KEPT:
                del self._kept[next(iter(self._kept))]
            return made
        return None


@dataclass(frozen=True, slots=True)
class _Tiles:
    """Restores windows of a plane of an array; they count from an origin."""

    engine: Engine
    context: Any
    source: Any
    arranged: Layout
    plane: tuple[int, ...]
    origin: tuple[int, int] = (0, 0)

    @classmethod
    def of(cls, engine: Engine, context: Any, picture: NDArray[Any], arranged: Layout) -> _Tiles:
        """Restore a picture (H, W, C) by itself."""
        axes = "YXS" if arranged.channel_axis else "YX"
        picture = picture if arranged.channel_axis else picture[..., 0]
        alone = replace(arranged, axes=axes, shape=picture.shape, channel_axis=axes[2:])
        return cls(engine, context, picture, alone, ())

    def solve(self, rows: slice, columns: slice) -> NDArray[Any]:
        """Return a restored window, (H, W, C)."""
        from kbnet_plugin.inference.reading import read_window

        y, x = self.origin
        window = slice(rows.start + y, rows.stop + y), slice(columns.start + x, columns.stop + x)
        tile = self.engine.tile_of(self.arranged, window)
        around = self.engine.window_around(tile, self.arranged.size)
        block = read_window(self.source, self.arranged, self.plane, around)
        return self.engine.solve([block], [self.context], [tile], self.arranged.alpha)[0]


def _pieces(size: tuple[int, int], rate: float, border: float) -> list[tuple[slice, slice]]:
    """Cut a preview into pieces, those right of the border first, from the middle to the edges."""
    side = int(np.clip(math.sqrt(_PIECE / rate), *_SIDES))
    middle = size[0] / 2, size[1] * (1 + border) / 2

    def order(piece: tuple[slice, slice]) -> tuple[bool, float]:
        away = ((s.start + s.stop) / 2 - m for s, m in zip(piece, middle, strict=True))
        return piece[1].stop <= size[1] * border, math.hypot(*away)

    return sorted((tile.target for tile in plan(size, side, 0, 1)), key=order)


_rates: WeakKeyDictionary[Engine, float] = WeakKeyDictionary()


def _rate(engine: Engine) -> float:
    """Return the measured seconds per pixel."""
    if engine not in _rates:
        _rates[engine] = engine.seconds_per_pixel()
    return _rates[engine]


def _placement(
    view: View, arranged: Layout, plane: tuple[int, ...]
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return corner and steps of a preview."""
    first, each = dict(zip(arranged.stack_axes, plane, strict=True)), {}
    for axis, part in zip("YX", view.window, strict=True):
        first[axis], each[axis] = part.start, part.step
    corner, steps = [], []
    for axis, factor in zip(arranged.axes, view.factors, strict=True):
        # Pixels of a pyramid's level lie in the middle of those that they stand for.
        corner.append(factor * first.get(axis, 0) + (factor - 1) / 2)
        steps.append(factor * each.get(axis, 1))
    return tuple(corner), tuple(steps)


def _quality(request: Request, made: Preview, whole: Layout) -> str:
    from .quality import compare

    view = request.view
    truth = request.truth if view.array is request.array else None
    return compare(made.before, made.after, truth, whole, view.plane, view.window)


def _place(view: View) -> Hashable:
    return tuple((s.start, s.stop, s.step) for s in view.window), view.factors


def _digest(picture: NDArray[Any]) -> bytes:
    return hashlib.blake2b(np.ascontiguousarray(picture).data, digest_size=16).digest()
