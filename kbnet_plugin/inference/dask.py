"""The same tiles as dask tasks: lazy arrays, and clusters that compute for a job that runs here."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..arrays.axes import Layout
from ..arrays.noise import Noise, measure_noise, sample
from ..arrays.tiling import Tile
from ..errors import one_line

if TYPE_CHECKING:
    from .correction import Context
    from .engine import Engine

_TIMEOUT = "10s"  # for a cluster to answer
_LOST = ("KilledWorker", "CommClosedError", "CancelledError", "FutureCancelledError", "FuturesCancelledError")


def connect(address: str) -> Any:
    """Client of a running dask scheduler.

    Raises
    ------
    ValueError
        If distributed is not installed.
    ConnectionError
        If there is no scheduler at the address.
    """
    try:
        distributed = importlib.import_module("distributed")
    except ImportError:
        raise ValueError("clusters need dask: pip install 'kbnet[arrays]'") from None
    try:
        return distributed.Client(address, timeout=_TIMEOUT, set_as_default=False)
    except (OSError, ValueError, TimeoutError) as error:
        raise ConnectionError(f"{address}: no dask scheduler answers ({one_line(error)})") from None


def remote(engine: Engine, client: Any) -> tuple[Callable[..., Any], int]:
    """How a cluster computes a step, and how many steps may be under way."""
    try:
        # A task, not a scattered value: when its worker dies the scheduler makes it again.
        held = client.submit(_itself, engine, pure=False)
        ahead = 2 * max(1, sum(client.nthreads().values()))
    except Exception as error:
        raise _gone(client, error) from None

    def submit(*step: Any) -> _Awaited:
        return _Awaited(client, client.submit(_solve, held, *step, pure=False, retries=2))

    return submit, ahead


class _Awaited:
    """A future whose cluster may vanish."""

    def __init__(self, client: Any, future: Any) -> None:
        self.client, self.future = client, future

    def result(self) -> Any:
        try:
            return self.future.result()
        except Exception as error:
            if type(error).__name__ in _LOST or isinstance(error, OSError):
                raise _gone(self.client, error) from None
            raise


def _gone(client: Any, error: BaseException) -> ConnectionError:
    return ConnectionError(
        f"the cluster at {client.scheduler.address if client.scheduler else 'its address'} is gone "
        f"({type(error).__name__}); finished tiles are kept, and resuming goes on with the others"
    )


def restored(engine: Engine, array: Any, arranged: Layout) -> Any:
    """Lazy dask array of the restored `array`, one chunk a tile."""
    da = importlib.import_module("dask.array")
    delayed = importlib.import_module("dask").delayed
    # By name, or every use would hash the weights again.
    held = delayed(engine, name=f"kbnet-engine-{engine.token}", traverse=False)
    solve = delayed(_solve_one, pure=False)
    tiles = engine.tiles(arranged)
    inner = [a for a in arranged.axes if a in "YX" + arranged.channel_axis]
    same = engine.in_channels == engine.out_channels
    channels = arranged.channels if same else engine.out_channels

    contexts = _contexts(engine, held, array, arranged)

    def restore_plane(plane: tuple[int, ...]) -> Any:
        context = contexts(arranged.channel(plane))
        rows: dict[int, list[Any]] = {}
        for tile in tiles:
            window = array[arranged.key(plane, engine.around(tile, arranged.size))]
            size = {a: s.stop - s.start for a, s in zip("YX", tile.target, strict=True)}
            shape = tuple(size.get(a, channels) for a in inner)
            part = solve(held, window, context, tile, arranged)
            rows.setdefault(tile.target[0].start, []).append(da.from_delayed(part, shape, array.dtype))
        joined = [da.concatenate(row, axis=inner.index("X")) for row in rows.values()]
        return da.concatenate(joined, axis=inner.index("Y"))

    outer = [a for a in arranged.axes if a not in inner]
    stacked = da.stack([restore_plane(plane) for plane in arranged.planes()])
    counts = tuple(arranged.shape[arranged.axes.index(a)] for a in outer)
    # Planes come in the order of the outer axes; splitting the first axis copies nothing.
    split = stacked.reshape(counts + stacked.shape[1:])
    order = [*outer, *inner]
    return split.transpose([order.index(a) for a in arranged.axes])


def _contexts(engine: Engine, held: Any, array: Any, arranged: Layout) -> Callable[[int], Any]:
    """How to find what the tiles of a channel need to know: tasks, whose results equal `Engine.context`."""
    delayed = importlib.import_module("dask").delayed
    colours = slice(arranged.channels - arranged.alpha)
    dtype = np.dtype(array.dtype)

    def read(plane: tuple[int, ...], window: tuple[slice, slice]) -> Any:
        return array[arranged.key(plane, window)]

    @functools.cache
    def noise(channel: int) -> Any:
        pieces = [read(*place) for place in sample(arranged, channel)]
        return delayed(_measured, pure=False)(pieces, arranged, colours)

    @functools.cache
    def context(channel: int) -> Any:
        return delayed(_context, pure=False)(held, dtype, noise(channel) if engine.looks(dtype) else None)

    return context


def _pictures(pieces: list[Any], arranged: Layout, colours: slice) -> list[NDArray[Any]]:
    return [arranged.to_picture(np.asarray(piece))[..., colours] for piece in pieces]


def _measured(pieces: list[Any], arranged: Layout, colours: slice) -> Noise:
    return measure_noise(_pictures(pieces, arranged, colours))


def _context(engine: Engine, dtype: np.dtype[Any], noise: Noise | None) -> Context:
    return engine.context_from(dtype, noise)


def _solve_one(
    engine: Engine, window: NDArray[Any], context: Context, tile: Tile, arranged: Layout
) -> NDArray[Any]:
    picture = arranged.to_picture(np.asarray(window))
    (result,) = engine.solve([picture], [context], [tile], arranged.alpha)
    return arranged.from_picture(result)


def _solve(engine: Engine, *step: Any) -> list[NDArray[Any]]:
    return engine.solve(*step)


def _itself(engine: Engine) -> Engine:
    return engine
