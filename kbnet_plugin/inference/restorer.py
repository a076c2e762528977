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
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor

from ..arrays.axes import Layout, layout
from ..arrays.intensity import Range, RangeRule, cast, check_rule, find_range, needs_values, working
from ..arrays.noise import Noise, isolated, measure_noise, sample, spike
from ..arrays.tiling import Tile, plan
from ..nn import KBNet_l, KBNet_s
from ..nn.pooling import Grid, given_means, recorded_means, with_open_pools
from ..zoo import registry as zoo
from ..zoo.weights import build_network
from .device import bytes_per_pixel, free_memory
from .journal import Journal, read_settings

TILE = 768
HALO = 40  # what lies further away changes no pixel of the shipped models by 1 of 255
WINDOW = 128  # half of the patches that the paper's networks are trained on, by and large
_DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
_HOLE = 8  # pixels around a NaN whose mean stands for it
_CLIP = -1.0, 2.0  # of the range: what lies beyond is of no use to a network, and may spoil its surroundings
_PATTERN = 512  # pixels after which the noise that is added repeats
_LIMIT = 17  # pixels of the square in which a correction is compared with the noise
_LEVEL = 65  # pixels of the square whose mean is kept
_FLAT = 7  # pixels of a square of one value that is left as it is
_LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601


class Context(NamedTuple):
    """What a tile needs to know of its channel.

    Attributes
    ----------
    scale : Range
    noise : Noise or None
        As measured, where it limits the correction.
    """

    scale: Range
    noise: Noise | None = None


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
    dtype : {"auto", "float32", "float16", "bfloat16"}
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
        pooling: Literal["local", "global"] = "local",
        window: int = WINDOW,
        dtype: Literal["auto", "float32", "float16", "bfloat16"] = "auto",
        range: RangeRule = "auto",
        strength: float = 1.0,
        chroma: float | None = None,
        decorrelate: tuple[int, float] | None = None,
        limit: float | None = None,
        keep_mean: bool = False,
        self_ensemble: bool = False,
    ) -> None:
        if pooling not in ("local", "global"):
            raise ValueError(f"pooling must be 'local' or 'global', not {pooling!r}")
        if dtype != "auto" and dtype not in _DTYPES:
            raise ValueError(f"dtype must be auto, {', '.join(_DTYPES)}, not {dtype!r}")
        if batch < 1:
            raise ValueError(f"batch must be 1 at least, not {batch}")
        for name, share in (("strength", strength), ("chroma", chroma)):
            if share is not None and not 0 <= share <= 1:
                raise ValueError(f"{name} must be from 0 to 1, not {share:g}")
        if limit is not None and not limit > 0:
            raise ValueError(f"limit must be above 0, not {limit:g}")
        self.stride, self.cover = check_decorrelate(decorrelate)
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
            "chroma": chroma,
            "decorrelate": None if decorrelate is None else [self.stride, self.cover],
            "limit": limit,
            "keep_mean": keep_mean,
            "self_ensemble": self_ensemble,
        }
        self.reason = ""  # for being chosen; nothing depends on it
        self.device = find_device(device)
        self.tile, self.batch = tile, batch
        self.halo = HALO * self.stride if halo is None else halo
        if halo is None and tile is not None:
            self.halo = min(self.halo, max(16, 5 * tile // 16 // 8 * 8))
        self.range = check_rule(range)
        self.strength, self.chroma, self.limit = strength, chroma, limit
        self.keep_mean, self.self_ensemble = keep_mean, self_ensemble
        if dtype == "auto":
            dtype = "float16" if self.device.type == "cuda" else "float32"
        self.dtype = _DTYPES[dtype]
        network = self._given = network.to(self.device).eval()
        if pooling == "local" and window < network.size_multiple:
            raise ValueError(
                f"window must be at least {network.size_multiple} pixels for this network, not {window}"
            )
        self.grid = Grid(window) if pooling == "local" else None
        self.network = with_open_pools(network) if pooling == "local" else network
        # What has been found to fit in memory, learned when something does not.
        self._most, self._largest, self._together = batch, 1 << 62, 1 << 62
        smallest = tile or self._smallest
        plan((smallest + 1, smallest + 1), smallest, self.halo, self._multiple)  # told at once

    @classmethod
    def from_pretrained(cls, model: str | PathLike[str] = zoo.DEFAULT, **settings: Any) -> Restorer:
        """Build a restorer from a model's name or a checkpoint's path.

        Parameters
        ----------
        model : str or path
            A name that `kbnet_plugin.zoo.registry.models` lists, or a file that `load_network` takes.
        **settings
            As for `Restorer`. `window` and `range` are the model's own where its file names them.

        Raises
        ------
        FileNotFoundError, ValueError
            As `kbnet_plugin.zoo.registry.find` and `load_network`.
        """
        found = zoo.find(model)
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
        if self.grid is not None:
            pixels += sum(self._pixels_of_patches(t, arranged.size) for t in tiles)
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
        from .dask import restored

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

    def adapted(self, **settings: Any) -> Restorer:
        """Build a restorer of the same network with other settings."""
        return Restorer(self._given, **self._settings | settings)

    @property
    def idle(self) -> bool:
        """Whether everything comes back as it is."""
        return self.strength == 0 and not self.chroma

    def measure(self, source: Any, arranged: Layout, channel: int = 0) -> Noise:
        """Measure the noise of the planes of a channel, from pieces of some of them."""
        colours = arranged.channels - arranged.alpha
        return measure_noise(
            [
                _read(source, arranged, plane, window)[..., :colours]
                for plane, window in sample(arranged, channel)
            ]
        )

    def context(self, source: Any, arranged: Layout, channel: int = 0) -> Context:
        """Find what the tiles of a channel need to know of it."""
        dtype = np.dtype(source.dtype)
        return self.context_of(dtype, self.measure(source, arranged, channel) if self.looks(dtype) else None)

    def context_of(self, dtype: np.dtype[Any], noise: Noise | None) -> Context:
        """The same from the noise that was measured, where `looks` asks for it."""
        scale = find_range(self.range, dtype, noise or Noise())
        return Context(scale, noise if self.limit is not None else None)

    def scale(self, source: Any, arranged: Layout, plane: tuple[int, ...]) -> Range:
        """What the network sees as 0 and 1 in a plane, also where it changes nothing."""
        dtype = np.dtype(source.dtype)
        known = needs_values(self.range, dtype)
        noise = self.measure(source, arranged, arranged.channel(plane)) if known else Noise()
        return find_range(self.range, dtype, noise)

    def piece(self, arranged: Layout, window: tuple[slice, slice]) -> Tile:
        """A tile for some window of a plane alone, with what a run's tiles have around it."""
        step, parts = self._multiple, []
        for inner, length in zip(window, arranged.size, strict=True):
            start = max(0, inner.start - self.halo) // step * step
            stop = min(length, inner.stop + self.halo)
            parts.append((slice(start, stop), slice(inner.start - start, inner.stop - start), inner))
        (y, x) = parts
        return Tile((y[0], x[0]), (y[1], x[1]), (y[2], x[2]))

    def looks(self, dtype: np.dtype[Any]) -> bool:
        """Whether the noise of an array is to be measured, or its values looked at."""
        return not self.idle and (self.limit is not None or needs_values(self.range, dtype))

    def around(self, tile: Tile, size: tuple[int, int]) -> tuple[slice, slice]:
        """What to read for a tile of a plane (height, width): more than its source where pooling is local."""
        margin = self._margin
        rows, columns = (
            slice(max(0, s.start - margin), min(n, s.stop + margin))
            for s, n in zip(tile.source, size, strict=True)
        )
        return rows, columns

    def solve(
        self,
        blocks: Sequence[NDArray[Any]],
        contexts: Sequence[Context],
        tiles: Sequence[Tile],
        alpha: bool,
    ) -> list[NDArray[Any]]:
        """Restore tiles of one shape from what lies `around` them (H, W, C); what a worker does.

        Returns
        -------
        list of ndarray
            Their crops.
        """
        takes, gives = self.channels
        count = blocks[0].shape[2] - alpha
        inner = [self.inner(tile) for tile in tiles]
        if self.idle and takes == gives:
            pairs = zip(blocks, tiles, inner, strict=True)
            return [block[source][tile.crop].copy() for block, tile, source in pairs]
        prepared, parts, means = [], [], []
        for block, context, tile, source in zip(blocks, contexts, tiles, inner, strict=True):
            values, replaced = self._prepare(block[..., :count], context)
            part, mean = self._parts(self._input([values]), tile)
            parts.append(part)
            means.append(mean)
            prepared.append((block[source], values[source], None if replaced is None else replaced[source]))
        x = self._input([values for _, values, _ in prepared])
        # The network adds its answer to its input. Only the answer goes through 32 bits: what it leaves
        # alone keeps every digit.
        answer = self._answer(x, torch.cat(parts), _joint(means))
        delta = answer - x[:, : answer.shape[1]]
        deltas = self._weighed(delta).permute(0, 2, 3, 1).cpu().numpy()
        results = []
        for (block, values, replaced), context, change, tile in zip(
            prepared, contexts, deltas, tiles, strict=True
        ):
            if context.noise is not None:
                change = self._limited(change, values, context)
            if self.keep_mean:
                change = change - ndimage.uniform_filter(change, (_LEVEL, _LEVEL, 1))
            if context.noise is not None:
                change = np.where(_flat(block[..., :count]), np.float32(0), change)
            if replaced is not None:
                change = change + self.strength * replaced
            kept = block[tile.crop]
            colour = kept[..., : change.shape[2]]
            work = working(block.dtype)
            with np.errstate(invalid="ignore"):  # of pixels that are NaN or infinite, and stay so
                restored = cast(
                    colour.astype(work) + change[tile.crop].astype(work) * work(context.scale.span),
                    block.dtype,
                )
            finite = np.isfinite(colour) if colour.dtype.kind == "f" else None
            if finite is not None and not finite.all():
                restored = np.where(finite, restored, colour)
            results.append(np.concatenate([restored, kept[..., -1:]], axis=2) if alpha else restored)
        return results

    @property
    def _margin(self) -> int:
        return self.grid.margin * self.stride if self.grid is not None else 0

    def inner(self, tile: Tile) -> tuple[slice, slice]:
        """Where a tile's source lies in what is read around it."""
        rows, columns = (
            slice(min(self._margin, s.start), min(self._margin, s.start) + s.stop - s.start)
            for s in tile.source
        )
        return rows, columns

    def _prepare(
        self, colour: NDArray[Any], context: Context
    ) -> tuple[NDArray[np.float32], NDArray[np.float32] | None]:
        """Values for the network, and what replacing hot pixels has changed, both in units of the range."""
        finite = np.isfinite(colour) if colour.dtype.kind == "f" else None
        values = _filled(colour, context.scale, finite)
        change = None
        if context.noise is not None and colour.shape[2] == 1:
            found, median = isolated(values[..., 0], spike(context.noise) / context.scale.span)
            if found.any():
                change = np.where(found, median - values[..., 0], np.float32(0))[..., None]
                values = values + change
        return values.clip(*_CLIP), change

    def _limited(
        self, change: NDArray[np.float32], values: NDArray[np.float32], context: Context
    ) -> NDArray[np.float32]:
        """A correction that is nowhere stronger than the noise."""
        noise, scale = context.noise, context.scale
        assert noise is not None
        assert self.limit is not None
        if not noise.known:
            return change
        bright = values @ np.asarray(_LUMA, np.float32) if values.shape[2] == 3 else values[..., 0]
        level = ndimage.uniform_filter(bright, _LIMIT) * scale.span + scale.low
        power = ndimage.uniform_filter(np.square(change).mean(axis=2), _LIMIT)
        allowed = self.limit * noise.deviation_at(level) / scale.span
        share = np.minimum(1, allowed / np.sqrt(np.maximum(power, 1e-20)))
        return change * share[..., None].astype(np.float32)

    def _input(self, pictures: Sequence[NDArray[np.float32]]) -> Tensor:
        return torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).to(self.device)

    def _weighed(self, delta: Tensor) -> Tensor:
        """The correction, by the strength of brightness and colours."""
        if self.chroma is None or delta.shape[1] != 3:
            return self.strength * delta
        bright = (delta * delta.new_tensor(_LUMA).view(3, 1, 1)).sum(1, keepdim=True)
        return self.strength * bright + self.chroma * (delta - bright)

    def _answer(self, x: Tensor, parts: Tensor, means: Sequence[Tensor] | None) -> Tensor:
        """What the network makes of pictures (B, C, H, W), in parts."""
        takes, gives = self.channels
        count, (height, width) = x.shape[1], x.shape[2:]
        y = self._joined(self._ensemble(parts, means), height, width)
        if count > takes:
            y = y.view(len(x), count * gives, height, width)
        return y.mean(1, keepdim=True) if count < takes else y

    def _parts(self, x: Tensor, tile: Tile) -> tuple[Tensor, list[Tensor] | None]:
        """What the network is given of the source of a tile, (N, C, h, w), and its means.

        Parameters
        ----------
        x : Tensor
            (1, C, H, W), what lies around the tile. Colours or every nth pixel may go by themselves.
        tile : Tile
        """
        takes, count, n = self.channels[0], x.shape[1], self.stride
        rows, columns = self.inner(tile)
        top, left = tile.source[0].start - rows.start, tile.source[1].start - columns.start
        y = self._covered(x, top, left)
        y = y.transpose(0, 1) if count > takes else y.expand(-1, takes, -1, -1) if count < takes else y
        y = self._split(y)
        means = self._means(y, tile, (top // n, left // n)) if self.grid is not None else None
        return y[..., rows.start // n : -(-rows.stop // n), columns.start // n : -(-columns.stop // n)], means

    def _means(self, parts: Tensor, tile: Tile, origin: tuple[int, int]) -> list[Tensor] | None:
        """Means for every pool over the source of a tile, (N, C, h, w); None where the pools need no help.

        Parameters
        ----------
        parts : Tensor
            (N, C, H, W), what lies around the tile.
        tile : Tile
        origin : (int, int)
            Where the parts begin, in pixels of theirs.
        """
        assert self.grid is not None
        axes = self._patches(tile, origin, (parts.shape[2], parts.shape[3]))
        if all(patches == [(0, n)] for patches, n in zip(axes, parts.shape[2:], strict=True)):
            return None
        cut = [
            parts[..., y - origin[0] : end - origin[0], x - origin[1] : stop - origin[1]]
            for y, end in axes[0]
            for x, stop in axes[1]
        ]
        found = self._record(torch.cat(cut), max(1, parts[0, 0].numel() // cut[0][0, 0].numel()))
        cell = self.network.size_multiple
        across = [
            self.grid.weights(
                patches, s.start // self.stride, -(-(s.stop - s.start) // self.stride // cell), cell
            )
            for patches, s in zip(axes, tile.source, strict=True)
        ]
        fields = []
        for number in sorted(found[0]):
            mean = torch.cat([means[number] for means in found]).cpu()
            mean = mean.view(len(axes[0]), len(axes[1]), -1, self.stride**2, mean.shape[1]).mean(3)
            field = torch.einsum("yxgc,hy,wx->gchw", mean, *across)
            fields.append(field.repeat_interleave(self.stride**2, 0).to(self.device))
        return fields

    def _patches(
        self, tile: Tile, origin: tuple[int, int], size: tuple[int, int]
    ) -> list[list[tuple[int, int]]]:
        """Along rows and columns, in pixels of the parts."""
        assert self.grid is not None
        return [
            self.grid.patches(start, start + n, (s.start // self.stride, -(-s.stop // self.stride)))
            for start, n, s in zip(origin, size, tile.source, strict=True)
        ]

    def _pixels_of_patches(self, tile: Tile, size: tuple[int, int]) -> int:
        window = self.around(tile, size)
        origin = (window[0].start // self.stride, window[1].start // self.stride)
        known = (window[0].stop // self.stride - origin[0], window[1].stop // self.stride - origin[1])
        rows, columns = (sum(b - a for a, b in axis) for axis in self._patches(tile, origin, known))
        return rows * columns * self.stride**2

    def _record(self, pictures: Tensor, most: int) -> list[dict[int, Tensor]]:
        """The means of every pool over pictures (N, C, h, w), at most so many in a call: (n, C, 1, 1)."""
        found: list[dict[int, Tensor]] = []
        done = 0
        while done < len(pictures):
            batch = pictures[done : done + min(most, self._together)]
            try:
                with recorded_means() as means:
                    self._run(batch)
            except (MemoryError, RuntimeError) as error:
                if not _out_of_memory(error) or len(batch) == 1:
                    raise
                self._together = len(batch) // 2
                continue
            found.append(means)
            done += len(batch)
        return found

    def _covered(self, x: Tensor, top: int, left: int) -> Tensor:
        """A picture with white noise added, which depends on nothing but the place in the plane."""
        if not self.cover:
            return x
        rows, columns = (
            np.arange(start, start + n) % _PATTERN for start, n in zip((top, left), x.shape[2:], strict=True)
        )
        added = _pattern()[: x.shape[1], rows[:, None], columns]
        return x + torch.from_numpy(added).to(x) * (self.cover / 255)

    def _split(self, x: Tensor) -> Tensor:
        """The pictures of every nth pixel, as many more."""
        n = self.stride
        if n == 1:
            return x
        height, width = x.shape[2:]
        x = F.pad(x, (0, -width % n, 0, -height % n), mode="replicate")
        b, c, h, w = x.shape
        return x.view(b, c, h // n, n, w // n, n).permute(0, 3, 5, 1, 2, 4).reshape(-1, c, h // n, w // n)

    def _joined(self, x: Tensor, height: int, width: int) -> Tensor:
        n = self.stride
        if n == 1:
            return x
        _, c, h, w = x.shape
        x = x.view(-1, n, n, c, h, w).permute(0, 3, 4, 1, 5, 2).reshape(-1, c, h * n, w * n)
        return x[..., :height, :width]

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
        contexts = lru_cache(maxsize=None)(lambda channel: self.context(source, arranged, channel))
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

            for number, step in enumerate(_steps(arranged, tiles, self.batch)):
                if log is not None and number in log.done:
                    done += len(step)
                    yield done, total
                    continue
                blocks = [
                    _read(source, arranged, plane, self.around(place, arranged.size)) for plane, place in step
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
        return plan(arranged.size, tile, self.halo, self._multiple)

    @property
    def _multiple(self) -> int:
        return self.network.size_multiple * self.stride

    @property
    def _smallest(self) -> int:
        return 2 * self.halo + self._multiple

    @property
    def _bytes_per_pixel(self) -> int:
        return bytes_per_pixel(self.network, 4 if self.dtype == torch.float32 else 3)

    def fitting_tile(self) -> int:
        """The default size, or the largest half of it that half of the free memory holds."""
        room = free_memory(self.device) / 2 / self.batch / self._bytes_per_pixel
        room *= self.stride**2  # whose parts go through the network one by one
        tile = max(TILE * self.stride, self._smallest)
        while tile**2 > room and tile // 2 >= self._smallest:
            tile //= 2
        return tile

    def _seconds_per_pixel(self, side: int = 128) -> float:
        x = torch.zeros(1, self.channels[0], side, side, device=self.device)
        self._ensemble(x[..., :32, :32])  # kernels are chosen and compiled in a first call
        began = time.perf_counter()
        self._ensemble(x).cpu()
        return (time.perf_counter() - began) / side**2

    def _ensemble(self, x: Tensor, means: Sequence[Tensor] | None = None) -> Tensor:
        if not self.self_ensemble:
            return self._fit(x, means)
        total = torch.zeros(())
        for turn in range(4):
            for flip in (False, True):
                turned = [torch.rot90(t, turn, (2, 3)) for t in (x, *(means or ()))]
                turned = [t.flip(3) for t in turned] if flip else turned
                y = self._fit(turned[0], turned[1:] or None)
                total = total.to(y) + torch.rot90(y.flip(3) if flip else y, -turn, (2, 3))
        return total / 8

    def _fit(self, x: Tensor, means: Sequence[Tensor] | None = None) -> Tensor:
        """Run the network, in smaller pieces where memory does not suffice."""
        side, halo = max(x.shape[2:]), self.halo // self.stride
        if len(x) <= self._most and side <= self._largest:
            try:
                with given_means(means):
                    return self._run(x)
            except (MemoryError, RuntimeError) as error:
                if not _out_of_memory(error):
                    raise
            if self.device.type == "cuda":
                torch.cuda.empty_cache()
            if len(x) > 1:
                self._most = len(x) // 2
            elif side // 2 < 2 * halo + self.network.size_multiple:
                raise MemoryError(
                    f"out of memory for a tile of {side} pixels; free some, or use --device cpu"
                )
            else:
                self._largest = side // 2
        if len(x) > self._most:
            parts = zip(*(t.split(self._most) for t in (x, *(means or ()))), strict=True)
            return torch.cat([self._fit(part[0], part[1:] or None) for part in parts])
        height, width = x.shape[2:]
        out = torch.empty((len(x), self.channels[1], height, width), device=x.device)
        cell = self.network.size_multiple
        for part in plan((height, width), self._largest, halo, cell):
            rows, columns = (slice(s.start // cell, -(-s.stop // cell)) for s in part.source)
            own = [t[..., rows, columns] for t in means] if means else None
            out[(..., *part.target)] = self._fit(x[(..., *part.source)], own)[(..., *part.crop)]
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


def check_decorrelate(setting: Any) -> tuple[int, float]:
    """Stride and added noise of a setting; 1 and 0 for None. Raises ValueError saying what one is."""
    if setting is None:
        return 1, 0.0
    try:
        stride, cover = setting
        stride, cover = int(stride), float(cover)
        good = float(setting[0]) == stride and 1 <= stride <= 4 and 0 <= cover <= 100
    except (TypeError, ValueError):
        good = False
    if not good:
        raise ValueError(
            f"decorrelate must be a stride of 1 to 4 and a standard deviation of 0 to 100, not {setting!r}"
        )
    return stride, cover


@lru_cache(maxsize=1)
def _pattern() -> NDArray[np.float32]:
    """White noise (3, H, W) of variance 1, always the same."""
    return np.random.default_rng(0).standard_normal((3, _PATTERN, _PATTERN), dtype=np.float32)


class DamagedError(OSError):
    """A source whose data cannot be decoded."""


def _flat(picture: NDArray[Any]) -> NDArray[np.bool_]:
    """Where nothing varies around a pixel, (H, W, 1)."""
    size = (_FLAT, _FLAT, 1)
    same = ndimage.maximum_filter(picture, size) == ndimage.minimum_filter(picture, size)
    flat: NDArray[np.bool_] = same.all(axis=2, keepdims=True)
    return flat


def _joint(means: Sequence[list[Tensor] | None]) -> list[Tensor] | None:
    """The means of several tiles together."""
    known = [m for m in means if m is not None]
    return [torch.cat(pool) for pool in zip(*known, strict=True)] if known else None


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
