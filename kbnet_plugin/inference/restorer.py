"""Any array in, the same kind of array out; large ones tile by tile."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from functools import lru_cache
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, overload

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from .. import zoo
from ..arrays.axes import Layout, layout
from ..arrays.intensity import Range, RangeRule
from ..arrays.tiling import Tile
from ..nn import KBNet_l, KBNet_s
from .engine import Engine, read
from .journal import Journal, read_settings
from .settings import WINDOW, Pooling, Precision, Settings

if TYPE_CHECKING:
    import dask.array as da

Progress = Callable[[int, int], object]
"""Called with the tiles done, and the tiles in all."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What restoring an array will take; `str` of it is for people.

    Attributes
    ----------
    axes, shape : str, tuple of int
        Of the array.
    planes : int
        Pictures that are restored one by one.
    tiles : int
        In all planes together.
    tile : (int, int)
        Largest height and width of a tile, halos included.
    halo : int
        Pixels at inner edges that are computed only as context.
    memory : int
        Bytes that the network works in, estimated.
    seconds : float
        Estimated from one small tile that was timed.
    """

    axes: str
    shape: tuple[int, ...]
    planes: int
    tiles: int
    tile: tuple[int, int]
    halo: int
    memory: int
    seconds: float

    def __str__(self) -> str:
        minutes, seconds = divmod(round(self.seconds), 60)
        hours, minutes = divmod(minutes, 60)
        return "\n".join(
            (
                f"axes    {self.axes} {self.shape}",
                f"tiles   {self.tiles:,} of at most {self.tile[0]} x {self.tile[1]}, halo {self.halo}, "
                f"in {self.planes:,} plane{'s' if self.planes > 1 else ''}",
                f"memory  {self.memory / 1e9:.2f} GB for the network (estimate)",
                f"time    {hours}:{minutes:02}:{seconds:02} (estimate)",
            )
        )


class Restorer:
    """A network that restores arrays of any size, dtype and number of axes.

    Parameters
    ----------
    network : KBNet_s or KBNet_l
        Moved to `device`.
    device : str
        ``"auto"`` (CUDA, then MPS, then CPU) or anything that names a torch device.
    tile, halo : int
        Largest side of a tile, and the overlap's width at its inner edges, in pixels. A plane that fits in
        one tile is restored whole. By default 768 and 40 (with `decorrelate` times its stride), less where
        memory is short or the tile that was named is small; when it runs out all the same, tiles are
        halved and the work goes on.
    batch : int
        Tiles of one size that go through the network together.
    pooling : {"local", "global"}
        Whether the network's means over all pixels become means over patches on a grid, so that a tile's
        answer does not depend on the tiling, in a quarter more time; see `kbnet_plugin.nn.pooling.Grid`.
        ``"global"`` is what papers measure, and exact only where a picture is one tile.
    window : int
        Side of those patches in pixels, half of the patches in training.
    precision : {"auto", "float32", "float16", "bfloat16"}
        What the network computes in; ``"auto"`` is float16 on CUDA, else float32. A tile that overflows is
        done again in float32.
    range : "auto", "dtype", "percentile" or (float, float)
        What becomes 0 and 1 for the network, for all planes of a channel alike; see `find_range`.
    strength : float
        From 0, which gives the input, to 1, which gives what the network makes of it.
    chroma : float, optional
        Of colour pictures the same for the colours alone, when `strength` is that of the brightness.
    decorrelate : (int, float), optional
        For noise that neighbouring pixels share, as cameras leave it: the pictures of every second (or nth)
        pixel are restored, after white noise of that standard deviation (of 255, in units of the range) was
        added, which covers what is still shared. Costs no more than without.
    limit : float, optional
        For denoising: in no neighbourhood is the correction stronger than so many standard deviations of the
        noise that was measured there; areas of one value stay as they are, and single hot or dead pixels,
        of gray pictures, are replaced by the median around them.
    keep_mean : bool
        Keep the mean of every neighbourhood, for whoever measures intensities: of the correction only what
        differs from its mean over 65 x 65 pixels counts.
    self_ensemble : bool
        Mean of the results for all eight turns and flips, in eight times the time.

    Raises
    ------
    ValueError
        If the device is not there, an argument is none of these, or a tile leaves nothing between its halos.

    Examples
    --------
    >>> import numpy as np
    >>> network = KBNet_s(width=8, middle_blk_num=1, enc_blk_nums=[1], dec_blk_nums=[1])
    >>> noisy = np.full((40, 50, 3), 128, np.uint8)
    >>> clean = Restorer(network, device="cpu")(noisy)
    >>> clean.shape, clean.dtype
    ((40, 50, 3), dtype('uint8'))
    """

    def __init__(
        self,
        network: KBNet_s | KBNet_l,
        *,
        device: str = "auto",
        tile: int | None = None,
        halo: int | None = None,
        batch: int = 1,
        pooling: Pooling = "local",
        window: int = WINDOW,
        precision: Precision = "auto",
        range: RangeRule = "auto",
        strength: float = 1.0,
        chroma: float | None = None,
        decorrelate: tuple[int, float] | None = None,
        limit: float | None = None,
        keep_mean: bool = False,
        self_ensemble: bool = False,
    ) -> None:
        self.engine = Engine(
            network,
            Settings(
                device=device,
                tile=tile,
                halo=halo,
                batch=batch,
                pooling=pooling,
                window=window,
                precision=precision,
                range=range,
                strength=strength,
                chroma=chroma,
                decorrelate=decorrelate,
                limit=limit,
                keep_mean=keep_mean,
                self_ensemble=self_ensemble,
            ),
        )
        self.reason = ""  # for being chosen; nothing depends on it

    @classmethod
    def from_pretrained(cls, model: str | PathLike[str] = zoo.DEFAULT, **settings: Any) -> Restorer:
        """Build a restorer from a model's name or a checkpoint's path.

        Parameters
        ----------
        model : str or path
            A name that `kbnet_plugin.zoo.list_models` lists, or a file that `load_network` takes.
        **settings
            As for `Restorer`. `window` and `range` are the model's own where its file names them.

        Raises
        ------
        FileNotFoundError, ValueError
            As `kbnet_plugin.zoo.get_model` and `load_network`.
        """
        found = zoo.get_model(model)
        own = {"window": found.window, "range": found.range}
        return cls(found.load(), **{k: v for k, v in own.items() if v is not None} | settings)

    @classmethod
    def for_image(cls, image: Any, axes: str | None = None, **settings: Any) -> Restorer:
        """Build the restorer that an image needs, by the noise that is measured in it.

        Parameters
        ----------
        image : array
            Anything with shape and dtype that can be sliced.
        axes : str, optional
            As for `__call__`.
        **settings
            As for `Restorer`, in place of what is found.

        Returns
        -------
        Restorer
            Its `reason` says what was chosen and why.

        Examples
        --------
        >>> import numpy as np
        >>> noise = np.random.default_rng(0).normal(0, 20, (64, 64))
        >>> noisy = (128 + noise).astype(np.uint8)
        >>> Restorer.for_image(noisy, device="cpu").reason
        'denoise-gray: white noise of about 20.2 of 255'
        """
        from .batch import choice

        chosen = choice(**settings)(image, axes)
        chosen.restorer.reason = chosen.reason
        return chosen.restorer

    @property
    def settings(self) -> Settings:
        """What was asked for."""
        return self.engine.settings

    @property
    def in_channels(self) -> int:
        """Channels that the network takes."""
        return self.engine.in_channels

    @property
    def out_channels(self) -> int:
        """Channels that the network returns."""
        return self.engine.out_channels

    @property
    def fingerprint(self) -> str:
        """Hash of the weights."""
        return self.engine.fingerprint

    def with_settings(self, **settings: Any) -> Restorer:
        """Build a restorer of the same network, with these settings in place of its own."""
        return Restorer(self.engine.given, **asdict(self.settings) | settings)

    @overload
    def __call__(
        self, image: Tensor, axes: str | None = None, progress: Progress | None = None
    ) -> Tensor: ...
    @overload
    def __call__(
        self, image: da.Array, axes: str | None = None, progress: Progress | None = None
    ) -> da.Array: ...
    @overload
    def __call__(
        self, image: ArrayLike, axes: str | None = None, progress: Progress | None = None
    ) -> NDArray[Any]: ...
    def __call__(self, image: Any, axes: str | None = None, progress: Progress | None = None) -> Any:
        """Restore an array.

        Parameters
        ----------
        image : ndarray, Tensor, dask array, or what `numpy.asarray` takes
            bool, integer or float, of at least two axes. Planes that the network does not see together are
            restored one by one. Alpha is copied. A gray picture may be given to a colour network: it is
            restored as three equal channels, and their mean returned. NaN and infinity stay where they are
            and do not touch their neighbours.
        axes : str, optional
            A letter for every axis, in any order: T, Z, C (channels restored alone), S (colours restored
            together), Y, X. By default found from the shape, where that leaves no choice; of a Tensor,
            YX, SYX or TSYX.
        progress : callable, optional
            Called as ``progress(done, total)`` after every tile.

        Returns
        -------
        ndarray, Tensor or dask array
            Of the shape, axes and dtype of `image`, in its range: integers rounded and clipped to their
            dtype, floats left as they come out. Where a network gives fewer channels than it takes, that
            many. A dask array is restored when it is computed.

        Raises
        ------
        ValueError
            If shape, axes or dtype are not as above.
        """
        if isinstance(image, Tensor):
            return self._call_tensor(image, axes, progress)
        if type(image).__module__.startswith("dask."):
            return self.map(image, axes)
        if not isinstance(image, np.ndarray):
            image = np.asarray(image)
        target = np.empty(self.output_shape(image, axes), image.dtype)
        for done, total in self.restore_into(image, target, axes):
            if progress is not None:
                progress(done, total)
        return target

    def restore_into(
        self,
        source: Any,
        target: Any,
        axes: str | None = None,
        *,
        journal: str | PathLike[str] | None = None,
        identity: str = "",
        client: Any = None,
    ) -> Generator[tuple[int, int], None, None]:
        """Restore tile by tile, in memory that does not grow with the array.

        Parameters
        ----------
        source : array
            Anything with shape and dtype that can be sliced: numpy, zarr, dask, h5py, a memory map.
        target : array
            Of the same dtype and the shape that `output_shape` gives; it can be assigned to by slices.
            Nothing but `source` itself is forbidden to share memory with it.
        axes : str, optional
            As for `__call__`.
        journal : path, optional
            A file that lists the finished tiles. With a journal of an interrupted run of the same settings,
            that run continues, and what it finished is not computed again.
        identity : str
            Names the source in the journal; a journal of another one is refused.
        client : distributed.Client, optional
            Compute on its cluster; reading and writing stay here.

        Yields
        ------
        (int, int)
            Tiles done, and tiles in all. Between two of these the caller may stop for good.

        Raises
        ------
        ValueError
            If shape, axes, dtype, target or journal do not fit. Nothing is written then.
        """
        arranged = self._arrange(source, axes)
        self._check_target(source, target, arranged)
        tile = self.settings.tile
        if tile is None and journal is not None:
            tile = (read_settings(Path(journal)) or {}).get("tile")
        tile = tile or self.engine.tile
        return self._restore_into(source, target, arranged, tile, journal, identity, client)

    def restore_window(
        self, source: Any, window: tuple[slice, slice], axes: str | None = None, plane: tuple[int, ...] = ()
    ) -> Window:
        """Restore a part of one plane, as restoring the whole array would.

        Parameters
        ----------
        source, axes
            As for `restore_into`.
        window : (slice, slice)
            Rows and columns, within the plane.
        plane : tuple of int
            Index along every axis that is not restored together.

        Raises
        ------
        ValueError
            If shape, axes or dtype do not fit.
        """
        engine, arranged = self.engine, self._arrange(source, axes)
        context = engine.context(source, arranged, arranged.channel(plane))
        tile = engine.piece(arranged, window)
        block = read(source, arranged, plane, engine.around(tile, arranged.size))
        (after,) = engine.solve([block], [context], [tile], arranged.alpha)
        before = block[engine.inner(tile)][tile.crop]
        return Window(arranged.from_picture(before), arranged.from_picture(after), arranged, context.scale)

    def intensity_range(self, source: Any, axes: str | None = None, plane: tuple[int, ...] = ()) -> Range:
        """Find what the network sees as 0 and 1 in a plane; parameters as for `restore_window`."""
        return self.engine.scale(source, self._arrange(source, axes), plane)

    def output_shape(self, source: Any, axes: str | None = None) -> tuple[int, ...]:
        """Shape of what `source` becomes: its own, or with as many channels as the network gives."""
        return self._shape_of_result(self._arrange(source, axes))

    def plan(self, shape: tuple[int, ...], axes: str | None = None) -> Plan:
        """Say what restoring an array of some shape will take; one small tile is restored to time it."""
        engine, arranged = self.engine, layout(shape, axes, self.in_channels)
        tiles = engine.tiles(arranged)
        height, width = (max(t.source[i].stop - t.source[i].start for t in tiles) for i in (0, 1))
        return Plan(
            axes=arranged.axes,
            shape=arranged.shape,
            planes=arranged.count,
            tiles=len(tiles) * arranged.count,
            tile=(height, width),
            halo=engine.halo,
            memory=engine.memory(height, width),
            seconds=engine.pixels(arranged) * arranged.count * engine.seconds_per_pixel(),
        )

    def map(self, array: da.Array, axes: str | None = None) -> da.Array:
        """Restore a dask array lazily.

        Parameters
        ----------
        array : dask.array.Array
        axes : str, optional
            As for `__call__`.

        Returns
        -------
        dask.array.Array
            One chunk a tile. Any scheduler computes it; each worker builds the network once. Equal to
            what `restore_into` gives at ``batch=1`` on the same kind of machine.
        """
        from .dask import restored

        result: da.Array = restored(self.engine, array, self._arrange(array, axes))
        return result

    def _restore_into(
        self,
        source: Any,
        target: Any,
        arranged: Layout,
        tile: int,
        journal: str | PathLike[str] | None,
        identity: str,
        client: Any,
    ) -> Generator[tuple[int, int], None, None]:
        tiles = self.engine.tiles(arranged, tile)
        total = len(tiles) * arranged.count
        output = Layout(
            arranged.axes, tuple(int(n) for n in target.shape), arranged.channel_axis, alpha=arranged.alpha
        )
        contexts = lru_cache(maxsize=None)(lambda channel: self.engine.context(source, arranged, channel))
        done = 0
        waiting: deque[tuple[int, _Step, Future[list[NDArray[Any]]]]] = deque()

        with ExitStack() as stack:
            log = None
            if journal is not None:
                settings = self._journal_settings(source, arranged, tile, identity)
                sync = getattr(target, "sync", None)
                log = stack.enter_context(Journal(Path(journal), settings, sync))
            submit, ahead = self._worker(stack, client)

            def finish() -> None:
                nonlocal done
                number, step, future = waiting.popleft()
                for (plane, place), result in zip(step, future.result(), strict=True):
                    target[output.key(plane, place.target)] = output.from_picture(result)
                if log is not None:
                    log.add(number)
                done += len(step)

            for number, step in enumerate(_steps(arranged, tiles, self.settings.batch)):
                if log is not None and number in log.done:
                    done += len(step)
                    yield done, total
                    continue
                blocks = [
                    read(source, arranged, plane, self.engine.around(place, arranged.size))
                    for plane, place in step
                ]
                known = [contexts(arranged.channel(plane)) for plane, _ in step]
                places = [place for _, place in step]
                waiting.append((number, step, submit(blocks, known, places, arranged.alpha)))
                if len(waiting) > ahead:
                    finish()
                    yield done, total
            while waiting:
                finish()
                yield done, total

    def _worker(self, stack: ExitStack, client: Any) -> tuple[Callable[..., Future[list[NDArray[Any]]]], int]:
        """How to have a step computed, and how many may be waiting."""
        if client is not None:
            from .dask import remote

            return remote(self.engine, client)
        # One thread computes while this one reads and writes.
        pool = ThreadPoolExecutor(1, initializer=torch.set_num_threads, initargs=(torch.get_num_threads(),))
        stack.callback(pool.shutdown, cancel_futures=True)
        return lambda *step: pool.submit(self.engine.solve, *step), 1

    def _call_tensor(self, image: Tensor, axes: str | None, progress: Progress | None) -> Tensor:
        if axes is None and image.ndim in (2, 3, 4):
            axes = {2: "YX", 3: "SYX", 4: "TSYX"}[image.ndim]
        array = image.detach().cpu()
        if array.dtype == torch.bfloat16:  # which numpy has not
            array = array.float()
        restored = torch.from_numpy(self(array.numpy(), axes, progress))
        return restored.to(image.device, image.dtype)

    def _arrange(self, source: Any, axes: str | None) -> Layout:
        dtype = np.dtype(source.dtype)
        if dtype.kind not in "buif":
            raise ValueError(f"pixels must be bool, integer or float, not {dtype}")
        return layout(tuple(int(n) for n in source.shape), axes, self.in_channels)

    def _shape_of_result(self, arranged: Layout) -> tuple[int, ...]:
        return (
            arranged.shape
            if self.in_channels == self.out_channels
            else arranged.with_channels(self.out_channels)
        )

    def _check_target(self, source: Any, target: Any, arranged: Layout) -> None:
        shape = self._shape_of_result(arranged)
        if tuple(target.shape) != shape or target.dtype != source.dtype:
            raise ValueError(
                f"the target must be {source.dtype} {shape}, not {target.dtype} {tuple(target.shape)}"
            )
        paths = [getattr(array, "store_path", None) for array in (source, target)]  # of zarr arrays
        same = paths[0] is not None and paths[0] == paths[1]
        arrays = isinstance(source, np.ndarray) and isinstance(target, np.ndarray)
        if source is target or same or (arrays and np.may_share_memory(source, target)):
            raise ValueError("the target is the source; tiles would read what others wrote: use another")
        flags = getattr(target, "flags", None)
        if getattr(target, "read_only", False) or (flags is not None and not flags.writeable):
            raise ValueError("the target is read-only; open it for writing")

    def _journal_settings(self, source: Any, arranged: Layout, tile: int, identity: str) -> dict[str, Any]:
        settings = {n: list(v) if isinstance(v, tuple) else v for n, v in asdict(self.settings).items()}
        return settings | {
            "device": self.engine.device.type,
            "precision": str(self.engine.dtype).removeprefix("torch."),
            "halo": self.engine.halo,
            "tile": tile,
            "weights": self.fingerprint,
            "axes": arranged.axes,
            "shape": list(arranged.shape),
            "pixels": np.dtype(source.dtype).str,
            "source": identity,
        }


class Window(NamedTuple):
    """A part of a plane, before and after.

    Attributes
    ----------
    before, after : ndarray
        (H, W), or with the axis of the channels that are restored together, in its place.
    arranged : Layout
        Of the array.
    scale : Range
        What the network sees as 0 and 1.
    """

    before: NDArray[Any]
    after: NDArray[Any]
    arranged: Layout
    scale: Range


_Step = list[tuple[tuple[int, ...], Tile]]


def _steps(arranged: Layout, tiles: Sequence[Tile], batch: int) -> Iterator[_Step]:
    """Tiles of all planes in runs of one shape."""
    step: _Step = []
    shape = None
    for plane in arranged.planes():
        for tile in tiles:
            own = tuple(s.stop - s.start for s in tile.source)
            if step and (own != shape or len(step) == batch):
                yield step
                step = []
            shape = own
            step.append((plane, tile))
    yield step
