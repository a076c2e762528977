"""Stacks in files larger than memory: TIFF, OME-TIFF and OME-Zarr, read and written piece by piece.

A result grows in a folder beside its final name, with the journal of what is finished, and takes that name
only when it is complete.
"""

from __future__ import annotations

import importlib
import itertools
import os
import shutil
import xml.etree.ElementTree as ElementTree
from collections.abc import Generator, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from numpy.typing import NDArray

from ..arrays.axes import AXES, Layout, layout
from ..arrays.intensity import cast
from ..errors import DamagedError, one_line
from ..files import atomic_path
from ..inference.restorer import Restorer
from .pictures import open_tiff

LARGE = 1 << 26
"""Pixels from which a plain TIFF picture is treated as a stack: piece by piece."""

_TIFF = (".tif", ".tiff")
_TILE = 512  # of the files that are written
_SMALLEST_LEVEL = 256  # pixels; no level of a pyramid is made of one that is no larger
_BLOCK = 2048  # pixels; what is read at a time to build levels
_OME_ORDER = "TCZYX"  # that OME-Zarr demands
_KINDS = {"T": "time", "C": "channel", "Z": "space", "Y": "space", "X": "space"}
_UNITS = {"µm": "micrometer", "nm": "nanometer", "mm": "millimeter", "s": "second", "ms": "millisecond"}


@dataclass(frozen=True, slots=True)
class Info:
    """What a file says of its stack.

    Attributes
    ----------
    axes : str or None
        As for `Restorer`; None where the file does not say.
    sizes : mapping
        Axis to (size of a pixel or step, unit or None).
    offsets : mapping
        Axis to where its first pixel or step is, in the unit of its size; 0 where none is named.
    channels : tuple of str
        Their names.
    levels : int
        Of the multiscale pyramid; 1 where there is none.
    attributes : mapping
        What else an OME-Zarr group says.
    zarr_format : int
        Of a zarr source; 3 for others.
    chunks : tuple of int or None
        Of a zarr source.
    icc : bytes or None
        Colour profile.
    """

    axes: str | None = None
    sizes: Mapping[str, tuple[float, str | None]] = field(default_factory=dict)
    offsets: Mapping[str, float] = field(default_factory=dict)
    channels: tuple[str, ...] = ()
    levels: int = 1
    attributes: Mapping[str, Any] = field(default_factory=dict)
    zarr_format: int = 3
    chunks: tuple[int, ...] | None = None
    icc: bytes | None = None


def is_zarr(path: Path) -> bool:
    """Whether a path is, or by its name will be, a zarr group or array."""
    return path.suffix == ".zarr" or any((path / n).is_file() for n in ("zarr.json", ".zgroup", ".zarray"))


def is_stack(path: Path) -> bool:
    """Whether a file is read piece by piece: zarr, and any TIFF but a small plain picture."""
    if is_zarr(path):
        return True
    if path.suffix.lower() not in _TIFF:
        return False
    try:
        with open_tiff(path) as tiff:
            series = tiff.series[0]
            plain = series.axes in ("YX", "YXS", "SYX") and len(tiff.series) == 1 and not tiff.is_ome
            return not plain or int(np.prod(series.shape)) > LARGE
    except Exception:
        return False  # damaged: the reader of pictures says how


@contextmanager
def open_stack(path: str | PathLike[str]) -> Iterator[tuple[Any, Info]]:
    """Open a stack for reading by slices.

    Parameters
    ----------
    path : str or path
        TIFF (OME, ImageJ, plain), an OME-Zarr group of zarr format 2 or 3, or a zarr array.

    Yields
    ------
    array : zarr array
        At full resolution.
    info : Info

    Raises
    ------
    ValueError
        If it is damaged or holds no image; one line that names it.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file or folder")
    if is_zarr(path):
        yield _open_zarr(path)
        return
    zarr = _needs("zarr")
    with ExitStack() as stack:
        try:
            tiff = stack.enter_context(open_tiff(path))
            series = tiff.series[0]
            ends = (o + n for p in series.pages for o, n in zip(p.dataoffsets, p.databytecounts, strict=True))
            if max(ends) > path.stat().st_size:
                raise ValueError("its last pixels are cut off")
            array = zarr.open(series.aszarr(level=0), mode="r")
            info = _tiff_info(tiff)
        except Exception as error:  # decoders raise whatever they like
            raise ValueError(
                f"{path}: damaged or incomplete TIFF ({one_line(error)}); export it again"
            ) from error
        yield array, info


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
        TIFF or OME-Zarr, by their names.
    axes : str, optional
        Of the source, in place of what the file says.
    resume : bool
        Continue an interrupted run, whose unfinished result lies beside `target`.
    client : distributed.Client, optional
        As for `Restorer.restore_into`.

    Yields
    ------
    (int, int)
        Tiles done, and tiles in all. `target` appears with the last of them.

    Raises
    ------
    ValueError
        If a file is damaged, or its axes or dtype do not fit the network or the target's format.
    FileExistsError
        If there is an unfinished result and `resume` is not set.
    """
    with open_stack(source) as (array, info):
        try:
            arranged = layout(array.shape, axes or info.axes, restorer.channels[0])
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


@dataclass(frozen=True, slots=True)
class Growing:
    """A stack that is being written.

    Attributes
    ----------
    array : Reordered
        To write to, and of OME-Zarr to read from, along the axes that were asked for.
    journal : Path
        For `Restorer.restore_into`.
    """

    array: Reordered
    journal: Path


@contextmanager
def grow(
    target: Path,
    axes: str,
    shape: tuple[int, ...],
    dtype: np.dtype[Any],
    info: Info | None = None,
    *,
    resume: bool = False,
) -> Iterator[Growing]:
    """Write a stack piece by piece; it takes its name when the block ends well.

    Parameters
    ----------
    target : path
        TIFF or OME-Zarr, by its name.
    axes, shape, dtype
        Of what is written.
    info : Info, optional
        What the file is to say besides.
    resume : bool
        Continue what an interrupted block left, if it did.

    Raises
    ------
    ValueError
        If the axes do not fit the format.
    FileExistsError
        If there is an unfinished result and `resume` is not set.
    """
    info = info or Info()
    work = working_folder(target)
    if work.exists() and not resume:
        raise FileExistsError(
            f"{work}: an unfinished result; add --resume to go on, or --overwrite to start anew"
        )
    if not target.parent.is_dir():
        raise FileNotFoundError(f"{target.parent}: no such folder to write {target.name} to; create it first")
    to_zarr = is_zarr(target)
    if not to_zarr and target.suffix.lower() not in _TIFF:
        raise ValueError(f"{target}: a stack is written as TIFF or OME-Zarr; end the name in .tif or .zarr")
    order = _zarr_order(axes, target) if to_zarr else _tiff_order(axes)
    stored = tuple(shape[axes.index(a)] for a in order)
    work.mkdir(exist_ok=True)
    complete = False
    try:
        data = work / "data"
        grown: Any
        if to_zarr:
            group = _open_group(data, info, order, stored, dtype)
            grown = _ZarrArray(group["0"], data / "0")
        else:
            grown = RawArray(data, stored, dtype)
        yield Growing(Reordered(grown, order, axes), work / "journal")
        if to_zarr:
            _finish_zarr(data, group, info, order, target)
        else:
            _finish_tiff(data, grown, info, order, target)
        complete = True
    finally:
        if work.exists() and (complete or not _has_progress(work)):
            shutil.rmtree(work)


def open_levels(path: Path, axes: str) -> list[Reordered]:
    """Open every resolution of an OME-Zarr that `grow` wrote, along the axes that it was written by."""
    zarr = _needs("zarr")
    order = _zarr_order(axes, path)
    group = zarr.open_group(path, mode="r")
    return [Reordered(group[str(number)], order, axes) for number in range(len(list(group.array_keys())))]


def working_folder(target: Path) -> Path:
    """Where a result grows until it is complete."""
    return target.with_name(f"{target.name}.partial")


def _has_progress(work: Path) -> bool:
    journal = work / "journal"
    return journal.is_file() and journal.read_bytes().count(b"\n") > 1


def _needs(module: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError:
        raise ValueError(
            f"stacks need {module}, which is not installed: pip install 'kbnet[arrays]'"
        ) from None


class RawArray:
    """An array in a file of nothing but its values, mapped only while it is touched.

    A mapping that stays would count as this process's memory until the whole array does.
    """

    def __init__(self, path: Path, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
        self.path, self.shape, self.dtype = path, shape, np.dtype(dtype)
        if not path.exists():
            with path.open("wb") as file:
                file.truncate(int(np.prod(shape)) * self.dtype.itemsize)

    def __getitem__(self, key: Any) -> NDArray[Any]:
        return np.array(np.memmap(self.path, self.dtype, "r", shape=self.shape)[key])

    def __setitem__(self, key: Any, value: NDArray[Any]) -> None:
        # Mapped writes end the process when the disk is full; written rows raise.
        mapped = np.memmap(self.path, self.dtype, "r", shape=self.shape)
        part = mapped[key]
        start = part.__array_interface__["data"][0] - mapped.__array_interface__["data"][0]
        value = np.ascontiguousarray(value, self.dtype).reshape(part.shape)
        inner = part.ndim
        size = self.dtype.itemsize
        while inner and part.strides[inner - 1] == size:  # what lies in one piece
            inner -= 1
            size *= part.shape[inner]
        with self.path.open("rb+", buffering=0) as file:
            for index in np.ndindex(part.shape[:inner]):
                file.seek(start + sum(i * s for i, s in zip(index, part.strides, strict=False)))
                file.write(value[index].tobytes())

    def sync(self) -> None:
        """Put on disk what was written."""
        _sync(self.path)


class _ZarrArray:
    """A zarr array in a folder, which remembers the chunks that were written until they are on disk."""

    def __init__(self, array: Any, folder: Path) -> None:
        self._array, self._folder = array, folder
        self.shape, self.dtype = array.shape, array.dtype
        self._written: set[tuple[int, ...]] = set()

    def __getitem__(self, key: Any) -> Any:
        return self._array[key]

    def __setitem__(self, key: tuple[int | slice, ...], value: NDArray[Any]) -> None:
        self._array[key] = value
        touched = []
        for part, length, chunk in zip(key, self.shape, self._array.chunks, strict=True):
            start, stop = part.indices(length)[:2] if isinstance(part, slice) else (part, part + 1)
            touched.append(range(start // chunk, -(-stop // chunk)))
        self._written.update(itertools.product(*touched))

    def sync(self) -> None:
        """Put on disk what was written."""
        encode = self._array.metadata.encode_chunk_key
        chunks = {self._folder / encode(place) for place in self._written}
        for path in sorted(chunks) + sorted({chunk.parent for chunk in chunks}):
            with suppress(FileNotFoundError):  # zarr keeps no chunk of nothing but the fill value
                _sync(path)
        self._written.clear()


def _sync(path: Path) -> None:
    """Put a file, or a folder's list of names, on disk."""
    if os.name == "nt" and path.is_dir():
        return  # which Windows has no way to ask for
    handle = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


class Reordered:
    """An array that is read and written in another order of axes than its own."""

    def __init__(self, array: Any, own: str, axes: str) -> None:
        self._array, self._own, self._axes = array, own, axes
        self.shape = tuple(int(array.shape[own.index(a)]) for a in axes)
        self.dtype = np.dtype(array.dtype)
        self.ndim, self.size = len(self.shape), int(np.prod(self.shape))

    def __len__(self) -> int:
        return self.shape[0]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        return np.asarray(self[()], dtype)

    def __getitem__(self, key: Any) -> NDArray[Any]:
        key = key if isinstance(key, tuple) else (key,)
        if Ellipsis in key:
            at = key.index(Ellipsis)
            key = (*key[:at], *[slice(None)] * (self.ndim - len(key) + 1), *key[at + 1 :])
        key += (slice(None),) * (self.ndim - len(key))
        given = {a: k if isinstance(k, slice) else int(k) for a, k in zip(self._axes, key, strict=True)}
        part = np.asarray(self._array[tuple(given[a] for a in self._own)])
        kept = [a for a in self._own if isinstance(given[a], slice)]
        return part.transpose([kept.index(a) for a in self._axes if isinstance(given[a], slice)])

    def __setitem__(self, key: tuple[int | slice, ...], value: NDArray[Any]) -> None:
        given = dict(zip(self._axes, key, strict=True))
        kept = [a for a in self._axes if isinstance(given[a], slice)]
        order = [kept.index(a) for a in self._own if isinstance(given[a], slice)]
        self._array[tuple(given[a] for a in self._own)] = value.transpose(order)

    def sync(self) -> None:
        """Put on disk what was written; nothing where the array does not offer it."""
        if (sync := getattr(self._array, "sync", None)) is not None:
            sync()


def _halve(source: Any, target: Any, axes: str) -> None:
    """Fill a level with means of 2 x 2 pixels of the one below, block by block."""
    together = "S" if "S" in axes else ""
    below = Layout(axes, tuple(source.shape), together, alpha=False)
    above = Layout(axes, tuple(target.shape), together, alpha=False)
    height, width = above.size
    step = _BLOCK // 2
    for plane in above.planes():
        for y in range(0, height, step):
            for x in range(0, width, step):
                rows, columns = slice(y, min(y + step, height)), slice(x, min(x + step, width))
                doubled = slice(2 * rows.start, 2 * rows.stop), slice(2 * columns.start, 2 * columns.stop)
                part = below.to_picture(np.asarray(source[below.key(plane, doubled)])).astype(np.float64)
                missing = [(0, n % 2) for n in part.shape[:2]]
                part = np.pad(part, [*missing, (0, 0)], mode="edge")
                mean = part.reshape(part.shape[0] // 2, 2, part.shape[1] // 2, 2, -1).mean(axis=(1, 3))
                target[above.key(plane, (rows, columns))] = above.from_picture(cast(mean, target.dtype))


def _half_shape(shape: tuple[int, ...], axes: str) -> tuple[int, ...]:
    return tuple((n + 1) // 2 if a in "YX" else n for a, n in zip(axes, shape, strict=True))


def _level_count(shape: tuple[int, ...], axes: str, least: int) -> int:
    """As many levels as the source had, and for a large picture enough to end in a small one."""
    side = max(shape[axes.index("Y")], shape[axes.index("X")])
    count = 1
    while side > _SMALLEST_LEVEL:
        side, count = (side + 1) // 2, count + 1
    return max(count, least)


# OME-Zarr


def _open_zarr(path: Path) -> tuple[Any, Info]:
    zarr = _needs("zarr")
    try:
        node = zarr.open(path, mode="r")
    except Exception as error:  # each of its readers raises its own
        raise ValueError(f"{path}: damaged, or no zarr ({one_line(error)})") from error
    if isinstance(node, zarr.Array):
        return node, Info(zarr_format=node.metadata.zarr_format, chunks=node.chunks)
    attributes = dict(node.attrs)
    ome = attributes.get("ome", attributes)
    try:
        image = ome["multiscales"][0]
        array = node[image["datasets"][0]["path"]]
    except (KeyError, IndexError, TypeError):
        arrays = ", ".join(sorted(name for name, _ in node.arrays())[:5]) or "none"
        raise ValueError(
            f"{path}: no OME-Zarr image in this group; name one of its arrays ({arrays})"
        ) from None
    try:
        axes, sizes, offsets = _zarr_axes(image, array.ndim)
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise ValueError(f"{path}: OME-Zarr metadata without sense ({one_line(error)})") from None
    labels = [str(c.get("label", "")) for c in ome.get("omero", {}).get("channels", [])]
    return array, Info(
        axes=axes,
        sizes=sizes,
        offsets=offsets,
        channels=tuple(labels),
        levels=len(image["datasets"]),
        attributes=attributes,
        zarr_format=array.metadata.zarr_format,
        chunks=array.chunks,
    )


def _zarr_axes(
    image: Mapping[str, Any], count: int
) -> tuple[str, dict[str, tuple[float, str | None]], dict[str, float]]:
    """Axes, and as in `Info` sizes and offsets."""
    given = image.get("axes") or [{"name": a} for a in _OME_ORDER.lower()[-count:]]
    entries = [{"name": e} if isinstance(e, str) else e for e in given]
    axes = "".join(str(e["name"]).upper() for e in entries)
    if len(axes) != count or any(a not in AXES for a in axes):
        raise ValueError(f"axes {axes!r} of {count} dimensions")
    scales, offsets = [1.0] * count, [0.0] * count
    for step in (  # the dataset's own come first
        *image["datasets"][0].get("coordinateTransformations", ()),
        *image.get("coordinateTransformations", ()),
    ):
        if step["type"] == "scale":
            factors = [float(f) for f in step["scale"]]
            scales = [s * f for s, f in zip(scales, factors, strict=True)]
            offsets = [o * f for o, f in zip(offsets, factors, strict=True)]
        elif step["type"] == "translation":
            offsets = [o + float(t) for o, t in zip(offsets, step["translation"], strict=True)]
    sizes = {a: (s, e.get("unit")) for a, s, e in zip(axes, scales, entries, strict=True)}
    return axes, sizes, dict(zip(axes, offsets, strict=True))


def _zarr_order(axes: str, target: Path) -> str:
    if "S" in axes and "C" in axes:
        raise ValueError(f"{target}: OME-Zarr has one axis for channels and colours; write .ome.tif")
    return "".join(sorted(axes, key=lambda a: _OME_ORDER.index("C" if a == "S" else a)))


def _open_group(path: Path, info: Info, order: str, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Any:
    """Open the group that a result grows in, or make it, with its full resolution only."""
    zarr = _needs("zarr")
    if (path / "0").is_dir():
        for torn in path.rglob("*.partial"):  # zarr writes a chunk under such a name first
            torn.unlink()
        return zarr.open_group(path, mode="r+")
    if path.exists():
        shutil.rmtree(path)
    group = zarr.create_group(path, zarr_format=info.zarr_format)
    _create_level(group, 0, info, order, shape, dtype)
    return group


def _create_level(
    group: Any, level: int, info: Info, order: str, shape: tuple[int, ...], dtype: np.dtype[Any]
) -> Any:
    chunks = (
        info.chunks if info.chunks and len(info.chunks) == len(shape) and info.axes in (None, order) else None
    )
    if chunks is None:
        chunks = tuple(
            min(n, _TILE) if a in "YX" else n if a == "S" else 1 for a, n in zip(order, shape, strict=True)
        )
    options: dict[str, Any] = {"chunk_key_encoding": {"name": "v2", "separator": "/"}}
    if info.zarr_format == 3:
        options = {"dimension_names": [_zarr_name(a) for a in order]}
    return group.create_array(
        str(level),
        shape=shape,
        dtype=dtype,
        chunks=tuple(min(c, n) for c, n in zip(chunks, shape, strict=True)),
        overwrite=True,
        **options,
    )


def _zarr_name(axis: str) -> str:
    return "c" if axis == "S" else axis.lower()


def _finish_zarr(data: Path, group: Any, info: Info, order: str, target: Path) -> None:
    """Add the pyramid and the metadata, and give the group its name."""
    level = group["0"]
    count = _level_count(level.shape, order, info.levels)
    for number in range(1, count):
        shape = _half_shape(level.shape, order)
        above = _create_level(group, number, info, order, shape, level.dtype)
        above = _ZarrArray(above, data / str(number))
        _halve(level, above, order)
        above.sync()  # before the journal, which could have them made again, goes
        level = above
    image: dict[str, Any] = {
        "axes": [_zarr_axis(a, info) for a in order],
        "datasets": [
            {"path": str(n), "coordinateTransformations": _transformations(order, info, 2**n)}
            for n in range(count)
        ],
    }
    attributes = dict(info.attributes)
    ome = dict(attributes.get("ome", attributes))
    before = (ome.get("multiscales") or [{}])[0]
    image |= {n: before[n] for n in ("name",) if n in before}
    if info.channels and "omero" not in ome:
        ome["omero"] = {
            "channels": [
                {"label": name, "color": "FFFFFF", "active": True, "window": _window(group["0"].dtype)}
                for name in info.channels
            ]
        }
    ome.pop("labels", None)  # stay with the source
    if info.zarr_format == 3:
        ome |= {"version": "0.5", "multiscales": [image]}
        group.attrs.put({k: v for k, v in attributes.items() if k != "ome"} | {"ome": ome})
    else:
        group.attrs.put(ome | {"multiscales": [image | {"version": "0.4"}]})
    if target.is_dir():
        shutil.rmtree(target)
    target.unlink(missing_ok=True)
    data.rename(target)


def _zarr_axis(axis: str, info: Info) -> dict[str, str]:
    kind = _KINDS["C" if axis == "S" else axis]
    unit = info.sizes.get(axis, (1.0, None))[1]
    entry = {"name": _zarr_name(axis), "type": kind}
    return entry | {"unit": _UNITS.get(unit, unit)} if unit else entry


def _transformations(order: str, info: Info, factor: int) -> list[dict[str, Any]]:
    """Where the pixels of a level lie, of which each is the mean of `factor` x `factor` of the source's."""
    scales, offsets = [], []
    for axis in order:
        size, times = info.sizes.get(axis, (1.0, None))[0], factor if axis in "YX" else 1
        scales.append(size * times)
        offsets.append(info.offsets.get(axis, 0.0) + size * (times - 1) / 2)
    steps: list[dict[str, Any]] = [{"type": "scale", "scale": scales}]
    return [*steps, {"type": "translation", "translation": offsets}] if any(offsets) else steps


def _window(dtype: np.dtype[Any]) -> dict[str, float]:
    top = float(np.iinfo(dtype).max) if dtype.kind in "ui" else 1.0
    return {"min": 0.0, "max": top, "start": 0.0, "end": top}


# TIFF


def _tiff_info(tiff: tifffile.TiffFile) -> Info:
    series = tiff.series[0]
    free = iter([a for a in "TZC" if a not in series.axes])
    # I and Q are tifffile's for "some sequence".
    axes = "".join(a if a in AXES else next(free, "?") for a in series.axes)
    sizes: dict[str, tuple[float, str | None]] = {}
    channels: tuple[str, ...] = ()
    if tiff.is_ome and tiff.ome_metadata:
        sizes, channels = _ome_sizes(tiff.ome_metadata)
    elif tiff.is_imagej:
        sizes = _imagej_sizes(tiff)
    page = tiff.pages.first
    return Info(
        axes=None if "?" in axes else axes,
        sizes=sizes,
        channels=channels,
        levels=len(series.levels),
        icc=page.tags.valueof(34675),
    )


def _ome_sizes(xml: str) -> tuple[dict[str, tuple[float, str | None]], tuple[str, ...]]:
    pixels = ElementTree.fromstring(xml).find(".//{*}Image/{*}Pixels")
    if pixels is None:
        return {}, ()
    names = {"X": "PhysicalSizeX", "Y": "PhysicalSizeY", "Z": "PhysicalSizeZ", "T": "TimeIncrement"}
    sizes: dict[str, tuple[float, str | None]] = {
        axis: (float(pixels.attrib[name]), pixels.attrib.get(f"{name}Unit", "s" if axis == "T" else "µm"))
        for axis, name in names.items()
        if name in pixels.attrib
    }
    channels = tuple(c.attrib.get("Name", "") for c in pixels.findall("{*}Channel"))
    return sizes, channels if any(channels) else ()


def _imagej_sizes(tiff: tifffile.TiffFile) -> dict[str, tuple[float, str | None]]:
    said = tiff.imagej_metadata or {}
    unit = {"micron": "µm", "um": "µm", "\\u00B5m": "µm"}.get(str(said.get("unit")), said.get("unit"))
    sizes: dict[str, tuple[float, str | None]] = {}
    tags = tiff.pages.first.tags
    for axis, code in (("X", 282), ("Y", 283)):
        value = tags.valueof(code)
        if unit and value and value[0]:
            sizes[axis] = (value[1] / value[0], unit)
    if "spacing" in said:
        sizes["Z"] = (float(said["spacing"]), unit or "µm")
    if said.get("finterval"):
        sizes["T"] = (float(said["finterval"]), "s")
    return sizes


def _tiff_order(axes: str) -> str:
    """Planes last, their colours last of all, as pages are."""
    return "".join(a for a in axes if a not in "YXS") + "YX" + ("S" if "S" in axes else "")


def _finish_tiff(data: Path, grown: RawArray, info: Info, order: str, target: Path) -> None:
    """Write the values as tiles of a compressed OME-TIFF, with a pyramid where the source had one."""
    metadata: dict[str, Any] = {"axes": order}
    for axis, (size, unit) in info.sizes.items():
        if axis in order and axis in "XYZT":
            name = "TimeIncrement" if axis == "T" else f"PhysicalSize{axis}"
            short = {long: brief for brief, long in _UNITS.items()}
            metadata |= {name: size} | ({f"{name}Unit": short.get(unit, unit)} if unit else {})
    if info.channels:
        metadata["Channel"] = {"Name": list(info.channels)}
    samples = grown.shape[-1] if order.endswith("S") else 1
    options: dict[str, Any] = {
        "tile": (_TILE, _TILE),
        "compression": "zlib",
        "predictor": grown.dtype.kind in "ui",
        "photometric": "rgb" if samples in (3, 4) else "minisblack",
        "planarconfig": "contig" if samples > 1 else None,
        "extrasamples": ["unassalpha"] if samples in (2, 4) else None,
        "iccprofile": info.icc,
    }
    levels = [grown]
    for number in range(1, info.levels):
        level = RawArray(data.with_name(f"level{number}"), _half_shape(levels[-1].shape, order), grown.dtype)
        _halve(levels[-1], level, order)
        levels.append(level)
    large = int(np.prod(grown.shape)) * grown.dtype.itemsize > 1 << 31
    with atomic_path(target) as temporary, tifffile.TiffWriter(temporary, bigtiff=large, ome=True) as writer:
        for number, level in enumerate(levels):
            extra = {"subifds": len(levels) - 1, "metadata": metadata} if number == 0 else {"subfiletype": 1}
            writer.write(_file_tiles(level, order), shape=level.shape, dtype=level.dtype, **options, **extra)


def _file_tiles(level: RawArray, order: str) -> Iterator[NDArray[Any]]:
    arranged = Layout(order, level.shape, "S" if "S" in order else "", alpha=False)
    height, width = arranged.size
    for plane in arranged.planes():
        for y in range(0, height, _TILE):
            for x in range(0, width, _TILE):
                part = level[arranged.key(plane, (slice(y, y + _TILE), slice(x, x + _TILE)))]
                short = [(0, _TILE - n) for n in part.shape[:2]] + [(0, 0)] * (part.ndim - 2)
                yield np.pad(part, short)
