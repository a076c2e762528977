"""Any array in, the same kind of array out; large ones tile by tile."""

from __future__ import annotations

import hashlib
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property, lru_cache
from os import PathLike
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from . import zoo
from .axes import Layout, layout
from .journal import Journal, read_settings
from .memory import bytes_per_pixel, free_memory
from .nn import KBNet_l, KBNet_s
from .nn.pooling import with_local_pooling
from .ranges import Range, RangeRule, cast, check_rule, find_range, working
from .tiling import Tile, plan
from .weights import build_network

TILE = 512
HALO = 32
WINDOW = 384  # 1.5 x the patches of 256 pixels that the paper's networks are trained on, by and large
_DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
_HOLE = 8  # pixels around a NaN whose mean stands for it


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
        one tile is restored whole. By default 512, less where memory is short; when it runs out all the
        same, tiles are halved and the work goes on.
    batch : int
        Tiles of one size that go through the network together.
    pooling : {"local", "global"}
        Whether the network's means over all pixels become means over a window, so that a tile's answer
        hardly depends on the tiling; see `with_local_pooling`. ``"global"`` is what papers measure, and
        exact only where a picture is one tile.
    window : int
        Side of that window in pixels: 1.5 x the patches that the network was trained on.
    dtype : {"auto", "float32", "float16", "bfloat16"}
        What the network computes in; ``"auto"`` is float16 on CUDA, else float32. A tile that overflows is
        done again in float32.
    range : "dtype", "percentile" or (float, float)
        What becomes 0 and 1 for the network, for each plane; see `find_range`.
    strength : float
        From 0, which gives the input, to 1, which gives what the network makes of it.
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
        halo: int = HALO,
        batch: int = 1,
        pooling: Literal["local", "global"] = "local",
        window: int = WINDOW,
        dtype: Literal["auto", "float32", "float16", "bfloat16"] = "auto",
        range: RangeRule = "dtype",
        strength: float = 1.0,
        self_ensemble: bool = False,
    ) -> None:
        if pooling not in ("local", "global"):
            raise ValueError(f"pooling must be 'local' or 'global', not {pooling!r}")
        if dtype != "auto" and dtype not in _DTYPES:
            raise ValueError(f"dtype must be auto, {', '.join(_DTYPES)}, not {dtype!r}")
        if batch < 1:
            raise ValueError(f"batch must be 1 at least, not {batch}")
        if not 0 <= strength <= 1:
            raise ValueError(f"strength must be from 0 to 1, not {strength:g}")
        self._settings: dict[str, Any] = {
            "device": device,
            "tile": tile,
            "halo": halo,
            "batch": batch,
            "pooling": pooling,
            "window": window,
            "dtype": dtype,
            "range": check_rule(range),
            "strength": strength,
            "self_ensemble": self_ensemble,
        }
        self.device = find_device(device)
        self.tile, self.halo, self.batch = tile, halo, batch
        self.range = check_rule(range)
        self.strength, self.self_ensemble = strength, self_ensemble
        if dtype == "auto":
            dtype = "float16" if self.device.type == "cuda" else "float32"
        self.dtype = _DTYPES[dtype]
        network = network.to(self.device).eval()
        self.network = with_local_pooling(network, window) if pooling == "local" else network
        # What has been found to fit in memory, learned when something does not.
        self._most, self._largest = batch, 1 << 62
        smallest = tile or self._smallest
        plan((smallest + 1, smallest + 1), smallest, halo, network.size_multiple)  # told at once

    @classmethod
    def from_pretrained(cls, model: str | PathLike[str] = zoo.DEFAULT, **settings: Any) -> Restorer:
        """Build a restorer from a model's name or a checkpoint's path.

        Parameters
        ----------
        model : str or path
            A name that `kbnet_plugin.zoo.models` lists, or a file that `load_network` takes.
        **settings
            As for `Restorer`. `window` and `range` are the model's own where its file names them.

        Raises
        ------
        FileNotFoundError, ValueError
            As `kbnet_plugin.zoo.find` and `load_network`.
        """
        found = zoo.find(model)
        own = {"window": found.window, "range": found.range}
        return cls(found.load(), **{k: v for k, v in own.items() if v is not None} | settings)

    @property
    def channels(self) -> tuple[int, int]:
        """Channels that the network takes and gives."""
        if isinstance(self.network, KBNet_s):
            return self.network.img_channel, self.network.img_channel
        return self.network.inp_channels, self.network.out_channels

    def __call__(
        self, image: Any, axes: str | None = None, progress: Callable[[int, int], object] | None = None
    ) -> Any:
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
        tile = self.tile
        if tile is None and journal is not None:
            tile = (read_settings(Path(journal)) or {}).get("tile")
        tile = tile or self.fitting_tile()
        return self._restore_into(source, target, arranged, tile, journal, identity, client)

    def output_shape(self, source: Any, axes: str | None = None) -> tuple[int, ...]:
        """Shape of what `source` becomes: its own, or with as many channels as the network gives."""
        return self._shape_of_result(self._arrange(source, axes))

    def plan(self, shape: tuple[int, ...], axes: str | None = None) -> Plan:
        """Say what restoring an array of some shape will take; one small tile is restored to time it."""
        arranged = layout(shape, axes, self.channels[0])
        tiles = self.tiles(arranged)
        height, width = (max(t.source[i].stop - t.source[i].start for t in tiles) for i in (0, 1))
        planes = arranged.count
        pixels = sum(
            (t.source[0].stop - t.source[0].start) * (t.source[1].stop - t.source[1].start) for t in tiles
        )
        return Plan(
            axes=arranged.axes,
            shape=arranged.shape,
            planes=planes,
            tiles=len(tiles) * planes,
            tile=(height, width),
            halo=self.halo,
            memory=height * width * self.batch * self._bytes_per_pixel,
            seconds=pixels * planes * self._seconds_per_pixel(),
        )

    def map(self, array: Any, axes: str | None = None) -> Any:
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
        from .lazy import restored

        return restored(self, array, self._arrange(array, axes))

    def __reduce__(self) -> tuple[Any, ...]:
        state = {name: tensor.detach().cpu() for name, tensor in self.network.state_dict().items()}
        return _rebuild, (self.fingerprint, state, self._settings)

    def tiles(self, arranged: Layout) -> list[Tile]:
        """Tiles of a plane, as `restore_into` takes them."""
        return self._tiles(arranged, self.tile or self.fitting_tile())

    @property
    def token(self) -> str:
        """Hash of the weights and of the settings."""
        return hashlib.sha256(f"{self.fingerprint}{self._settings}".encode()).hexdigest()[:16]

    @cached_property
    def fingerprint(self) -> str:
        """Hash of the weights."""
        digest = hashlib.sha256()
        for name, tensor in self.network.state_dict().items():
            digest.update(f"{name}{tuple(tensor.shape)}".encode())
            digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()[:16]

    def solve(
        self,
        blocks: Sequence[NDArray[Any]],
        ranges: Sequence[Range],
        crops: Sequence[tuple[slice, slice]],
        alpha: bool,
    ) -> list[NDArray[Any]]:
        """Restore pictures (H, W, C) of one shape, and crop the results; what a worker does."""
        takes, gives = self.channels
        count = blocks[0].shape[2] - alpha
        broadcast = count < takes
        colours = [block[..., :count] for block in blocks]
        finite = [np.isfinite(c) if c.dtype.kind == "f" else None for c in colours]
        inputs = [
            _filled(colour, scale, mask) for colour, scale, mask in zip(colours, ranges, finite, strict=True)
        ]
        x = torch.from_numpy(np.stack(inputs)).permute(0, 3, 1, 2).to(self.device)
        # The network adds its answer to its input. Only the answer goes through 32 bits: what it leaves
        # alone keeps every digit.
        delta = self._ensemble(x.expand(-1, takes, -1, -1) if broadcast else x) - x[:, :gives]
        if broadcast:
            delta = delta.mean(1, keepdim=True)
        deltas = (self.strength * delta).permute(0, 2, 3, 1).cpu().numpy()
        results = []
        for block, scale, mask, change, crop in zip(blocks, ranges, finite, deltas, crops, strict=True):
            kept = block[crop]
            colour = kept[..., : change.shape[2]]
            work = working(block.dtype)
            with np.errstate(invalid="ignore"):  # of pixels that are NaN or infinite, and stay so
                restored = cast(
                    colour.astype(work) + change[crop].astype(work) * work(scale.span), block.dtype
                )
            if mask is not None and not mask.all():
                restored = np.where(mask[crop][..., : change.shape[2]], restored, colour)
            results.append(np.concatenate([restored, kept[..., -1:]], axis=2) if alpha else restored)
        return results

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
        tiles = self._tiles(arranged, tile)
        total = len(tiles) * arranged.count
        output = Layout(
            arranged.axes, tuple(int(n) for n in target.shape), arranged.together, alpha=arranged.alpha
        )
        ranges = lru_cache(maxsize=4)(lambda plane: self._find_range(source, arranged, plane))
        done = 0
        waiting: deque[tuple[int, _Step, Future[list[NDArray[Any]]]]] = deque()

        with ExitStack() as stack:
            log = None
            if journal is not None:
                settings = self._journal_settings(source, arranged, tile, identity)
                log = stack.enter_context(Journal(Path(journal), settings))
            submit, ahead = self._worker(stack, client)

            def finish() -> None:
                nonlocal done
                number, step, future = waiting.popleft()
                for (plane, place), result in zip(step, future.result(), strict=True):
                    target[output.key(plane, place.target)] = output.from_picture(result)
                if log is not None:
                    log.add(number)
                done += len(step)

            for number, step in enumerate(_steps(arranged, tiles, self.batch)):
                if log is not None and number in log.done:
                    done += len(step)
                    yield done, total
                    continue
                blocks = [_read(source, arranged, plane, place.source) for plane, place in step]
                scales = [ranges(plane) for plane, _ in step]
                crops = [place.crop for _, place in step]
                waiting.append((number, step, submit(blocks, scales, crops, arranged.alpha)))
                if len(waiting) > ahead:
                    finish()
                    yield done, total
            while waiting:
                finish()
                yield done, total

    def _worker(self, stack: ExitStack, client: Any) -> tuple[Callable[..., Future[list[NDArray[Any]]]], int]:
        """How to have a step computed, and how many may be waiting."""
        if client is not None:
            from .lazy import remote

            return remote(self, client)
        # One thread computes while this one reads and writes.
        pool = ThreadPoolExecutor(1, initializer=torch.set_num_threads, initargs=(torch.get_num_threads(),))
        stack.callback(pool.shutdown, cancel_futures=True)
        return lambda *step: pool.submit(self.solve, *step), 1

    def _call_tensor(
        self, image: Tensor, axes: str | None, progress: Callable[[int, int], object] | None
    ) -> Tensor:
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
        return layout(tuple(int(n) for n in source.shape), axes, self.channels[0])

    def _shape_of_result(self, arranged: Layout) -> tuple[int, ...]:
        takes, gives = self.channels
        return arranged.shape if takes == gives else arranged.with_channels(gives)

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

    def _find_range(self, source: Any, arranged: Layout, plane: tuple[int, ...]) -> Range:
        colours = arranged.channels - arranged.alpha
        return find_range(
            self.range,
            np.dtype(source.dtype),
            arranged.size,
            lambda window: _read(source, arranged, plane, window)[..., :colours],
        )

    def _journal_settings(self, source: Any, arranged: Layout, tile: int, identity: str) -> dict[str, Any]:
        return self._settings | {
            "range": list(self.range) if isinstance(self.range, tuple) else self.range,
            "device": self.device.type,
            "dtype": str(self.dtype),
            "tile": tile,
            "weights": self.fingerprint,
            "axes": arranged.axes,
            "shape": list(arranged.shape),
            "pixels": np.dtype(source.dtype).str,
            "source": identity,
        }

    def _tiles(self, arranged: Layout, tile: int) -> list[Tile]:
        return plan(arranged.size, tile, self.halo, self.network.size_multiple)

    @property
    def _smallest(self) -> int:
        return 2 * self.halo + self.network.size_multiple

    @property
    def _bytes_per_pixel(self) -> int:
        return bytes_per_pixel(self.network, 4 if self.dtype == torch.float32 else 3)

    def fitting_tile(self) -> int:
        """The default size, or the largest half of it that half of the free memory holds."""
        room = free_memory(self.device) / 2 / self.batch / self._bytes_per_pixel
        tile = max(TILE, self._smallest)
        while tile**2 > room and tile // 2 >= self._smallest:
            tile //= 2
        return tile

    def _seconds_per_pixel(self, side: int = 128) -> float:
        x = torch.zeros(1, self.channels[0], side, side, device=self.device)
        self._ensemble(x[..., :32, :32])  # kernels are chosen and compiled in a first call
        began = time.perf_counter()
        self._ensemble(x).cpu()
        return (time.perf_counter() - began) / side**2

    def _ensemble(self, x: Tensor) -> Tensor:
        if not self.self_ensemble:
            return self._fit(x)
        total = torch.zeros(())
        for turn in range(4):
            for flip in (False, True):
                turned = torch.rot90(x, turn, (2, 3))
                y = self._fit(turned.flip(3) if flip else turned)
                total = total.to(y) + torch.rot90(y.flip(3) if flip else y, -turn, (2, 3))
        return total / 8

    def _fit(self, x: Tensor) -> Tensor:
        """Run the network, in smaller pieces where memory does not suffice."""
        side = max(x.shape[2:])
        if len(x) <= self._most and side <= self._largest:
            try:
                return self._run(x)
            except (MemoryError, RuntimeError) as error:
                if not _out_of_memory(error):
                    raise
            if self.device.type == "cuda":
                torch.cuda.empty_cache()
            if len(x) > 1:
                self._most = len(x) // 2
            elif side // 2 < self._smallest:
                raise MemoryError(
                    f"out of memory for a tile of {side} pixels; free some, or use --device cpu"
                )
            else:
                self._largest = side // 2
        if len(x) > self._most:
            return torch.cat([self._fit(part) for part in x.split(self._most)])
        height, width = x.shape[2:]
        out = torch.empty((len(x), self.channels[1], height, width), device=x.device)
        for part in plan((height, width), self._largest, self.halo, self.network.size_multiple):
            out[(..., *part.target)] = self._fit(x[(..., *part.source)])[(..., *part.crop)]
        return out

    def _run(self, x: Tensor) -> Tensor:
        with torch.inference_mode():
            if self.dtype != torch.float32:
                with torch.autocast(self.device.type, self.dtype):
                    y: Tensor = self.network(x).float()
                if bool(torch.isfinite(y).all()):
                    return y
            y = self.network(x)
        return y


class DamagedError(OSError):
    """A source whose data cannot be decoded."""


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


def _read(source: Any, arranged: Layout, plane: tuple[int, ...], window: tuple[slice, slice]) -> NDArray[Any]:
    """(H, W, C) of a window of a plane."""
    key = arranged.key(plane, window)
    try:
        return arranged.to_picture(np.asarray(source[key]))
    except (OSError, MemoryError):
        raise
    except Exception as error:  # readers raise whatever their decoders do
        where = ", ".join(f"{s.start}:{s.stop}" if isinstance(s, slice) else str(s) for s in key)
        raise DamagedError(
            f"cannot read [{where.replace('None:None', ':')}]: damaged data ({error})"
        ) from error


def _filled(colour: NDArray[Any], scale: Range, finite: NDArray[np.bool_] | None) -> NDArray[np.float32]:
    """Values for the network; NaN and infinity replaced by the mean around them, or nought."""
    if finite is None or finite.all():
        return scale.apply(colour)
    values = scale.apply(np.where(finite, colour, colour.dtype.type(scale.low)))
    x = torch.from_numpy(np.stack([values * finite, finite.astype(np.float32)])).permute(0, 3, 1, 2)
    sums = F.avg_pool2d(x, 2 * _HOLE + 1, stride=1, padding=_HOLE).permute(0, 2, 3, 1).numpy()
    return np.where(finite, values, sums[0] / np.maximum(sums[1], 1e-9)).astype(np.float32)


def _out_of_memory(error: BaseException) -> bool:
    # The CPU's and MPS's allocators have no exception of their own.
    said = str(error)
    return (
        isinstance(error, MemoryError | torch.OutOfMemoryError)
        or "can't allocate memory" in said
        or "out of memory" in said
    )


def find_device(name: str = "auto") -> torch.device:
    """Turn a device's name into a device that is there; ``"auto"`` is CUDA, then MPS, then the CPU.

    Raises
    ------
    ValueError
        If there is no such device.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        torch.empty(0, device=name)
        return torch.device(name)
    except (RuntimeError, AssertionError, NotImplementedError):  # one for every way of not being there
        raise ValueError(f"device {name!r} is not available on this machine; use auto or cpu") from None


_rebuilt: dict[tuple[str, str], Restorer] = {}


def _rebuild(fingerprint: str, state: dict[str, Tensor], settings: dict[str, Any]) -> Restorer:
    """Build a restorer in another process, once for each of its settings."""
    key = fingerprint, repr(settings)
    if key not in _rebuilt:
        _rebuilt[key] = Restorer(build_network(state), **settings)
    return _rebuilt[key]
