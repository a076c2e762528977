"""Restore arrays of any kind, large ones tile by tile."""

from __future__ import annotations

import zlib
from collections import deque
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, overload

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from .. import zoo
from ..arrays.axes import Layout, layout
from ..arrays.chunks import keep_chunks
from ..arrays.intensity import Range, RangeRule
from ..arrays.noise import Noise
from ..arrays.tiling import WINDOW
from ..nn import KBNet_l, KBNet_s
from .engine import Engine, StoppedError
from .journal import Journal, read_settings
from .order import Step, ordered
from .reading import measure_channel, read_window
from .settings import Pooling, Precision, Settings

if TYPE_CHECKING:
    import dask.array as da

Progress = Callable[[int, int], object]
"""Called with the number of finished tiles and the total."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What restoring an array requires; `str` formats it for people.

    Attributes
    ----------
    axes : str
        Of the array.
    shape : tuple of int
        Of the array.
    planes : int
        Number of planes, which are restored one by one.
    tiles : int
        Number of tiles in all planes.
    tile : (int, int)
        Largest height and width of a tile in pixels, halos included.
    halo : int
        Pixels at inner edges of tiles that are computed only as context.
    memory : int
        Estimated bytes of working memory for the network.
    seconds : float
        Estimated from the time that one small tile took.
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


class Window(NamedTuple):
    """A window of a plane, before and after restoring.

    Attributes
    ----------
    before, after : ndarray
        (H, W), or with the channel axis where the array has it. Their numbers of channels differ if the
        network returns fewer than it takes.
    arranged : Layout
        Of the whole array.
    scale : Range
        Values that the network sees as 0 and 1.
    """

    before: NDArray[Any]
    after: NDArray[Any]
    arranged: Layout
    scale: Range


class Restorer:
    """A network that restores arrays of any size, dtype and number of axes.

    Parameters
    ----------
    network : KBNet_s or KBNet_l
        Moved to `device`.
    device : str
        ``"auto"`` (the first available of CUDA, MPS and CPU) or a name that `torch.device` accepts.
    tile, halo : int, optional
        Largest side of a tile, and width of the overlap at its inner edges, in pixels. A plane that fits into
        one tile is restored whole. Defaults are 768 and 40, times the stride of `decorrelate`; the tile is
        smaller if memory is short, the halo if `tile` is small. If memory still runs out, tiles are halved.
    batch : int
        Number of tiles of one size that go through the network together.
    pooling : {"local", "global"}
        ``"local"`` replaces the network's means over all pixels by means over patches on a grid, so that
        results do not depend on the tiling; this takes a quarter more time. See
        `kbnet_plugin.nn.pooling.Grid`. ``"global"`` is what papers measure, and exact only for pictures that
        fit into one tile.
    window : int
        Side of these patches in pixels; about half that of the training patches is best.
    precision : {"auto", "float32", "float16", "bfloat16"}
        Precision of the network; ``"auto"`` means float16 on CUDA and float32 elsewhere. A tile that
        overflows is computed again in float32.
    range : "auto", "dtype", "percentile" or (float, float)
        Values that the network sees as 0 and 1, the same for all planes of a channel. See
        `kbnet_plugin.arrays.intensity.find_range`.
    strength : float
        From 0, which returns the input, to 1, which returns the network's result.
    chroma : float, optional
        Strength for the colours of colour pictures, from 0 to 1; `strength` then applies to brightness alone.
    decorrelate : (int, float), optional
        Stride n from 1 to 4, and a standard deviation from 0 to 100, in 1/255 of the range. For noise that is
        correlated between neighbouring pixels, as cameras produce it: images of every nth pixel are restored
        separately, after adding white noise of that strength to hide what correlation remains. Takes no extra
        time.
    limit : float, optional
        For denoising: nowhere let the correction exceed this many standard deviations of the noise measured
        there. Constant areas are then left unchanged, and single hot or dead pixels of gray pictures are
        replaced by the median of their surroundings.
    keep_mean : bool
        Keep local mean intensities, for quantitative measurements: subtract from the correction its mean over
        65 x 65 pixels.
    self_ensemble : bool
        Average the results for all eight rotations and flips, in eight times the time.

    Attributes
    ----------
    engine : Engine
        The network on its device, with these settings.
    name : str
        Name of the model; empty if the restorer was built from a network.
    reason : str
        Why `for_image` chose this model and these settings; empty otherwise.

    Raises
    ------
    ValueError
        If the device is not available, an argument is out of range, or a tile leaves nothing between its
        halos.

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
        self.name = self.reason = ""

    @classmethod
    def from_pretrained(cls, model: str | PathLike[str] = zoo.DEFAULT, **settings: Any) -> Restorer:
        """Build a restorer from the name of a model, the path of a checkpoint or an address on Hugging Face.

        Parameters
        ----------
        model : str or path
            As for `kbnet_plugin.zoo.get_model`, such as ``"denoise-gray"`` or ``"hf://USER/NAME"``.
        **settings
            As for `Restorer`. Models may define their own defaults of `window` and `range`.

        Raises
        ------
        FileNotFoundError
            If there is no such file or address.
        OSError
            If Hugging Face cannot be reached.
        ValueError
            If there is no such model, its file is not usable, or a setting is invalid.
        """
        found = zoo.get_model(model)
        own = {"window": found.window, "range": found.range}
        restorer = cls(found.load(), **{k: v for k, v in own.items() if v is not None} | settings)
        restorer.name = found.name
        return restorer

    @classmethod
    def for_image(cls, image: Any, axes: str | None = None, **settings: Any) -> Restorer:
        """Choose a shipped model and settings for an image, by the noise measured in it.

        Parameters
        ----------
        image : array
            Anything with shape and dtype that can be sliced.
        axes : str, optional
            As for `__call__`.
        **settings
            As for `Restorer`; they override those that are chosen.

        Returns
        -------
        Restorer
            Its `reason` says what was chosen and why.

        Raises
        ------
        ValueError
            If `axes` do not fit the image, or a setting is invalid.

        Examples
        --------
        >>> import numpy as np
        >>> noise = np.random.default_rng(0).normal(0, 20, (64, 64))
        >>> noisy = (128 + noise).astype(np.uint8)
        >>> Restorer.for_image(noisy, device="cpu").reason
        'denoise-gray: white noise of about 20.2 of 255'
        """
        from .automatic import make_chooser

        chosen = make_chooser(**settings)(image, axes)
        chosen.restorer.reason = chosen.reason
        return chosen.restorer

    @property
    def settings(self) -> Settings:
        """The parameters, as passed."""
        return self.engine.settings

    @property
    def in_channels(self) -> int:
        """Number of channels that the network takes."""
        return self.engine.in_channels

    @property
    def out_channels(self) -> int:
        """Number of channels that the network returns."""
        return self.engine.out_channels

    @property
    def fingerprint(self) -> str:
        """Hash of the weights, 16 hexadecimal digits."""
        return self.engine.fingerprint

    def with_settings(self, **settings: Any) -> Restorer:
        """Build a restorer with the same network, and these settings changed.

        Raises
        ------
        ValueError
            As for `Restorer`.
        """
        restorer = Restorer(self.engine.original, **asdict(self.settings) | settings)
        restorer.name = self.name
        return restorer

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
        image : ndarray, Tensor, dask array, or anything that `numpy.asarray` accepts
            bool, integer or float, with at least the axes Y and X, such as (H, W), (H, W, C) or a stack of
            them; a Tensor (H, W), (C, H, W) or (B, C, H, W). Planes are restored one by one. Opacity is
            copied. A colour network restores a gray picture as three equal channels, and returns their mean;
            a gray network restores each colour by itself. NaN and infinity are kept, and do not affect their
            neighbours.
        axes : str, optional
            One letter per axis: T, Z, C (channels, each restored by itself), S (colours, restored together),
            Y, X. By default inferred from the shape if it is unambiguous; for a Tensor YX, SYX or TSYX.
        progress : callable, optional
            Called as ``progress(done, total)`` after every tile; not for dask arrays.

        Returns
        -------
        ndarray, Tensor or dask array
            Of the shape, axes, dtype and intensity range of `image`. Integers are rounded and clipped to
            their dtype, floats are not. The number of channels differs if the network returns fewer than it
            takes. A dask array is restored when it is computed, a Tensor is returned on its own device.

        Raises
        ------
        ValueError
            If shape, axes or dtype are not as above, or the axes are ambiguous.
        MemoryError
            If even the smallest tile does not fit into memory.
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
        noises: Sequence[Noise] | None = None,
        client: Any = None,
        first: Callable[[], tuple[int, ...]] | None = None,
        stopped: Callable[[], bool] | None = None,
    ) -> Generator[tuple[int, int], None, None]:
        """Restore tile by tile, in memory that does not grow with the array.

        Parameters
        ----------
        source : array
            Anything with shape and dtype that can be sliced: numpy, zarr, dask, h5py, a memory map.
        target : array
            Of the same dtype, of shape `output_shape`, writable by slices. Must not share memory with
            `source`. When a run is resumed, its method ``kept``, if it has one, is called with the index of
            each tile that is finished already.
        axes : str, optional
            As for `__call__`.
        journal : path, optional
            File in which to record finished tiles. If an interrupted run with the same settings left it,
            that run is resumed; what its tiles read is compared with the source.
        identity : str
            Name of the source in the journal; the journal of another source is refused.
        noises : sequence of Noise, optional
            As `measure` returns it, if the noise was measured before.
        client : distributed.Client, optional
            Compute on its cluster; this process reads and writes.
        first : callable, optional
            Returns the plane to go on with, as `Layout.planes` yields it; asked before each tile.
        stopped : callable, optional
            Returns whether to end early; asked many times in each tile. One that is not finished then is
            dropped. Without effect on a cluster.

        Yields
        ------
        done, total : int
            Number of finished tiles, and of all. The caller may stop at any of them.

        Raises
        ------
        ValueError
            If shape, axes, dtype, target or journal do not fit, and nothing has been written then; or if the
            source is not what the interrupted run read.
        DamagedError
            If the source cannot be decoded.
        MemoryError
            If even the smallest tile does not fit into memory.
        ConnectionError
            If the cluster is lost.
        """
        arranged = self._arrange(source, axes)
        self._check_target(source, target, arranged)
        tile = self.settings.tile
        if tile is None and journal is not None:
            tile = (read_settings(Path(journal)) or {}).get("tile")
        tile = tile or self.engine.tile
        noises = noises if noises is not None else self.measure(source, axes)
        return self._restore_into(
            source, target, arranged, tile, journal, identity, noises, client, first, stopped
        )

    def measure(self, source: Any, axes: str | None = None) -> list[Noise] | None:
        """Measure the noise of every channel; None if neither settings nor dtype require it.

        Parameters
        ----------
        source, axes
            As for `restore_into`.

        Raises
        ------
        ValueError
            If shape, axes or dtype do not fit.
        DamagedError
            If the source cannot be decoded.
        """
        arranged = self._arrange(source, axes)
        if not self.engine.needs_noise(np.dtype(source.dtype)):
            return None
        return [measure_channel(source, arranged, channel) for channel in range(arranged.channel_count)]

    def restore_window(
        self, source: Any, window: tuple[slice, slice], axes: str | None = None, plane: tuple[int, ...] = ()
    ) -> Window:
        """Restore a window of one plane, with the result that it has in the whole array.

        Parameters
        ----------
        source, axes
            As for `restore_into`.
        window : (slice, slice)
            Rows and columns, within the plane.
        plane : tuple of int
            Index of the plane along the axes other than Y, X and the channel axis; see `Layout.planes`.

        Raises
        ------
        ValueError
            If shape, axes or dtype do not fit.
        DamagedError
            If the source cannot be decoded.
        """
        engine, arranged = self.engine, self._arrange(source, axes)
        context = engine.context(source, arranged, arranged.channel(plane))
        tile = engine.tile_of(arranged, window)
        block = read_window(source, arranged, plane, engine.window_around(tile, arranged.size))
        (after,) = engine.solve([block], [context], [tile], arranged.alpha)
        before = block[engine.source_within(tile)][tile.crop]
        return Window(arranged.from_picture(before), arranged.from_picture(after), arranged, context.scale)

    def intensity_range(self, source: Any, axes: str | None = None, plane: tuple[int, ...] = ()) -> Range:
        """Find the values of a plane that the network sees as 0 and 1; parameters as for `restore_window`."""
        return self.engine.intensity_range(source, self._arrange(source, axes), plane)

    def output_shape(self, source: Any, axes: str | None = None) -> tuple[int, ...]:
        """Return the shape of `source` with the number of channels that the network returns."""
        return self._output_shape(self._arrange(source, axes))

    def plan(self, shape: tuple[int, ...], axes: str | None = None) -> Plan:
        """Estimate what restoring an array requires; this restores one small tile to time it.

        Parameters
        ----------
        shape : tuple of int
            Of the array.
        axes : str, optional
            As for `__call__`.

        Raises
        ------
        ValueError
            If the axes do not fit the shape, or are ambiguous.
        """
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
            seconds=engine.pixels(arranged, tiles) * arranged.count * engine.seconds_per_pixel(),
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
            With one chunk per tile, for any scheduler; each worker builds the network once. Its values equal
            those of `restore_into` with ``batch=1`` on the same kind of machine with as many threads.

        Raises
        ------
        ValueError
            If shape, axes or dtype do not fit.
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
        noises: Sequence[Noise] | None,
        client: Any,
        first: Callable[[], tuple[int, ...]] | None,
        stopped: Callable[[], bool] | None,
    ) -> Generator[tuple[int, int], None, None]:
        source = keep_chunks(source)
        tiles = self.engine.tiles(arranged, tile)
        total = len(tiles) * arranged.count
        output = Layout(
            arranged.axes, tuple(int(n) for n in target.shape), arranged.channel_axis, alpha=arranged.alpha
        )
        dtype = np.dtype(source.dtype)
        contexts = [
            self.engine.context_from(dtype, noises[channel] if noises else None)
            for channel in range(arranged.channel_count)
        ]
        done, kept = 0, getattr(target, "kept", lambda key: None)
        waiting: deque[tuple[int, Step, int, Future[list[NDArray[Any]]]]] = deque()

        with ExitStack() as stack:
            log = None
            if journal is not None:
                settings = self._journal_settings(source, arranged, tile, identity)
                sync = getattr(target, "sync", None)
                log = stack.enter_context(Journal(Path(journal), settings, sync))
            if stopped is not None:
                stack.enter_context(suppress(StoppedError))
            submit, ahead = self._worker(stack, client, stopped)

            def finish() -> None:
                nonlocal done
                number, step, digest, future = waiting.popleft()
                for (plane, place), result in zip(step, future.result(), strict=True):
                    target[output.key(plane, place.target)] = output.from_picture(result)
                if log is not None:
                    log.add(number, digest)
                done += len(step)

            for number, step in ordered(source, arranged, tiles, self.settings.batch, first):
                blocks = [
                    read_window(source, arranged, plane, self.engine.window_around(place, arranged.size))
                    for plane, place in step
                ]
                digest = _digest(blocks) if log is not None else 0
                if log is not None and number in log.done:
                    # Reading is fast, and only contents show whether finished and new tiles fit together.
                    if log.done[number] != digest:
                        raise ValueError("has changed since the interruption; start over")
                    for plane, place in step:
                        kept(output.key(plane, place.target))
                    done += len(step)
                    yield done, total
                    continue
                known = [contexts[arranged.channel(plane)] for plane, _ in step]
                places = [place for _, place in step]
                waiting.append((number, step, digest, submit(blocks, known, places, arranged.alpha)))
                if len(waiting) > ahead:
                    finish()
                    yield done, total
            while waiting:
                finish()
                yield done, total

    def _worker(
        self, stack: ExitStack, client: Any, stopped: Callable[[], bool] | None
    ) -> tuple[Callable[..., Future[list[NDArray[Any]]]], int]:
        """Return a function that computes a step in the background, and how many steps may be waiting."""
        if client is not None:
            from .dask import remote

            return remote(self.engine, client)
        # One thread computes while this one reads and writes.
        pool = ThreadPoolExecutor(1, initializer=torch.set_num_threads, initargs=(torch.get_num_threads(),))
        if stopped is not None:
            pool.submit(stack.enter_context, self.engine.stopped_by(stopped)).result()
        stack.callback(pool.shutdown, cancel_futures=True)
        return lambda *step: pool.submit(self.engine.solve, *step), 1

    def _call_tensor(self, image: Tensor, axes: str | None, progress: Progress | None) -> Tensor:
        if axes is None and image.ndim in (2, 3, 4):
            axes = {2: "YX", 3: "SYX", 4: "TSYX"}[image.ndim]
        array = image.detach().cpu()
        if array.dtype == torch.bfloat16:  # unknown to numpy
            array = array.float()
        restored = torch.from_numpy(self(array.numpy(), axes, progress))
        return restored.to(image.device, image.dtype)

    def _arrange(self, source: Any, axes: str | None) -> Layout:
        dtype = np.dtype(source.dtype)
        if dtype.kind not in "buif":
            raise ValueError(f"pixels must be bool, integer or float, not {dtype}")
        return layout(tuple(int(n) for n in source.shape), axes, self.in_channels)

    def _output_shape(self, arranged: Layout) -> tuple[int, ...]:
        return (
            arranged.shape
            if self.in_channels == self.out_channels
            else arranged.with_channels(self.out_channels)
        )

    def _check_target(self, source: Any, target: Any, arranged: Layout) -> None:
        shape = self._output_shape(arranged)
        if tuple(target.shape) != shape or target.dtype != source.dtype:
            raise ValueError(
                f"the target must be {source.dtype} {shape}, not {target.dtype} {tuple(target.shape)}"
            )
        paths = [getattr(array, "store_path", None) for array in (source, target)]  # of zarr arrays
        same = paths[0] is not None and paths[0] == paths[1]
        arrays = isinstance(source, np.ndarray) and isinstance(target, np.ndarray)
        if source is target or same or (arrays and np.may_share_memory(source, target)):
            raise ValueError("the target is the source, so tiles would read what others wrote; use another")
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


def _digest(blocks: Sequence[NDArray[Any]]) -> int:
    digest = 0
    for block in blocks:
        digest = zlib.crc32(np.ascontiguousarray(block).data, digest)
    return digest
