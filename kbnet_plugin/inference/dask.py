"""Compute tiles with dask: lazy arrays, and clusters that compute for a job in this process."""

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

_TIMEOUT = "10s"  # for connecting to a cluster
_LOST = ("KilledWorker", "CommClosedError", "CancelledError", "FutureCancelledError", "FuturesCancelledError")


def connect(address: str) -> Any:
    """Connect to a running dask scheduler, such as ``tcp://host:8786``.

    Raises
    ------
    ValueError
        If distributed is not installed.
    ConnectionError
        If no scheduler answers at the address.
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
    """Return a function that computes a step on a cluster, and how many steps may run at a time.

    The function takes the arguments of `Engine.solve` and returns a future.

    Raises
    ------
    ConnectionError
        If the cluster is lost, here or from a future's ``result``.
    """
    try:
        # A task, not a scattered value, so that the scheduler makes it again if its worker dies.
        shared = client.submit(_itself, engine, pure=False)
        ahead = 2 * max(1, sum(client.nthreads().values()))
    except Exception as error:
        raise _gone(client, error) from None

    def submit(*step: Any) -> _Awaited:
        return _Awaited(client, client.submit(_solve, shared, *step, pure=False, retries=2))

    return submit, ahead


class _Awaited:
    """A future that names its cluster if that is lost."""

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
        f"({type(error).__name__}); finished tiles are kept, and resuming computes the others"
    )


def restored(engine: Engine, array: Any, arranged: Layout) -> Any:
    """Return the restored `array` as a lazy dask array with one chunk per tile."""
    da = importlib.import_module("dask.array")
    delayed = importlib.import_module("dask").delayed
    # Named, or every use would hash the weights again.
    shared = delayed(engine, name=f"kbnet-engine-{engine.token}", traverse=False)
    solve = delayed(_solve_one, pure=False)
    tiles = engine.tiles(arranged)
    inner = [a for a in arranged.axes if a in arranged.picture_axes]
    same = engine.in_channels == engine.out_channels
    channels = arranged.channels if same else engine.out_channels

    contexts = _contexts(engine, shared, array, arranged)

    def restore_plane(plane: tuple[int, ...]) -> Any:
        context = contexts(arranged.channel(plane))
        rows: dict[int, list[Any]] = {}
        for tile in tiles:
            window = array[arranged.key(plane, engine.window_around(tile, arranged.size))]
            size = {a: s.stop - s.start for a, s in zip("YX", tile.target, strict=True)}
            shape = tuple(size.get(a, channels) for a in inner)
            part = solve(shared, window, context, tile, arranged)
            rows.setdefault(tile.target[0].start, []).append(da.from_delayed(part, shape, array.dtype))
        joined = [da.concatenate(row, axis=inner.index("X")) for row in rows.values()]
        return da.concatenate(joined, axis=inner.index("Y"))

    stacked = da.stack([restore_plane(plane) for plane in arranged.planes()])
    counts = tuple(arranged.shape[arranged.axes.index(a)] for a in arranged.stack_axes)
    # Planes are in the order of the stack axes, so splitting the first axis copies nothing.
    split = stacked.reshape(counts + stacked.shape[1:])
    order = [*arranged.stack_axes, *inner]
    return split.transpose([order.index(a) for a in arranged.axes])


def _contexts(engine: Engine, shared: Any, array: Any, arranged: Layout) -> Callable[[int], Any]:
    """Return a function that makes the task of finding a channel's context, equal to `Engine.context`."""
    delayed = importlib.import_module("dask").delayed
    colours = slice(arranged.colours)
    dtype = np.dtype(array.dtype)

    @functools.cache
    def context(channel: int) -> Any:
        noise = None
        if engine.needs_noise(dtype):
            pieces = [array[arranged.key(*place)] for place in sample(arranged, channel)]
            noise = delayed(_measured, pure=False)(pieces, arranged, colours)
        return delayed(_context, pure=False)(shared, dtype, noise)

    return context


def _measured(pieces: list[Any], arranged: Layout, colours: slice) -> Noise:
    return measure_noise([arranged.to_picture(np.asarray(piece))[..., colours] for piece in pieces])


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
