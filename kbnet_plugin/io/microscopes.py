"""Read files of microscopes: CZI (Zeiss), ND2 (Nikon) and LIF (Leica)."""

from __future__ import annotations

import math
import re
import threading
import warnings
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..arrays.axes import AXES
from .formats import find_format, require
from .metadata import Image, Metadata
from .scenes import Pixels, Scene, Window, refusal

_DROPPED = "metadata dropped, except sizes and names of channels"
_CZI_TYPES = {
    "Gray8": "uint8",
    "Gray16": "uint16",
    "Gray32Float": "float32",
    "Bgr24": "uint8",
    "Bgr48": "uint16",
    "Bgr96Float": "float32",
}
_LIF_UNITS = {"m": (1e-6, "micrometer"), "s": (1.0, "second")}
_LIF_AXES = {"1": "X", "2": "Y", "3": "Z", "4": "T"}


@contextmanager
def open_microscope(path: Path) -> Iterator[list[Image]]:
    """Open a file of a microscope; pixels are read from it when an array is sliced.

    Parameters
    ----------
    path : path
        CZI, ND2 or LIF.

    Yields
    ------
    list of Image
        One per scene, position or series. Counts stay as the file stores them. The tiles of a CZI are
        stitched; tiles of a LIF, and planes along axes that are not in `kbnet_plugin.arrays.axes.AXES`
        (views, phases, wavelengths), are images of their own.

    Raises
    ------
    BadInput
        If the package that reads it is not installed.
    FileNotFoundError
        If there is no such file.
    ValueError
        If it is damaged, or contains something that the package cannot read; slicing raises it too.
    """
    found = find_format(path)
    readers = {"CZI": _read_czi, "ND2": _read_nd2, "LIF": _read_lif}
    if found is None or found.name not in readers:
        raise ValueError(f"{path}: not a file of a microscope by its name; end it in .czi, .nd2 or .lif")
    require(found, path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    with ExitStack() as stack:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # the packages warn of what is missing in a file's metadata
                images = _images(path, readers[found.name](path, stack))
        except MemoryError:
            raise
        except Exception as error:  # the packages raise errors of all kinds
            raise refusal(path, error) from error
        yield images


def _images(path: Path, scenes: Iterator[Scene]) -> list[Image]:
    images: list[Image] = []
    named = list(scenes)
    names: set[str] = set()
    lock = threading.Lock()
    for number, scene in enumerate(named):
        name = _safe(scene.name, f"scene{number}", names)
        others = [axis for axis, n in scene.lengths.items() if axis not in AXES and n > 1]
        notes = scene.notes
        if others:
            notes += (f"one image for each index of {' and '.join(others)}",)
        for index in product(*(range(scene.lengths[axis]) for axis in others)):
            place = dict(zip(others, index, strict=True))
            pixels = Pixels(path, scene, place, lock)
            part = "_".join([name, *(f"{axis}{n}" for axis, n in place.items())])
            metadata = Metadata(
                axes=pixels.axes,
                form="ome",
                path=part if len(named) > 1 or others else "",
                sizes={axis: size for axis, size in scene.sizes.items() if axis in pixels.axes},
                channels=scene.channels if len(scene.channels) == scene.lengths.get("C", 1) else (),
                ome=None if others else scene.ome,
                ome_image=0 if others else scene.ome_image,
            )
            images.append(Image(pixels, metadata, notes if metadata.ome else (*notes, _DROPPED)))
    if not images:
        raise ValueError("it contains no image")
    return images


def _safe(name: str, default: str, taken: set[str]) -> str:
    """Make a name that can be part of a path, and that no other scene has."""
    plain = re.sub(r"[^\w.-]+", "_", name).strip("._") or default
    unique, number = plain, 2
    while unique.lower() in taken:
        unique, number = f"{plain}_{number}", number + 1
    taken.add(unique.lower())
    return unique


def _missing(planes: int) -> tuple[str, ...]:
    return (f"planes never recorded, which are black: {planes}",) if planes > 0 else ()


def _rounded(size: float) -> float:
    """Undo what converting units adds in the last digits."""
    return float(f"{size:.12g}")


def _read_czi(path: Path, stack: ExitStack) -> Iterator[Scene]:
    from pylibCZIrw import czi

    file = stack.enter_context(czi.open_czi(str(path)))
    blocks: dict[int, list[_Block]] = {}

    def visit(_: int, found: Any) -> bool:
        place = found.coordinate.to_dict()
        block = _Block(place, found.logicalRect, found.pixelType.name)
        blocks.setdefault(place.get("S", -1), []).append(block)
        return True

    file.enumerate_subblocks_subset(visit, only_layer0=True)
    root = ElementTree.fromstring(file.raw_metadata)
    names = {s.get("Index"): s.get("Name") for s in root.iterfind(".//Dimensions/S/Scenes/Scene")}
    channels = [c.get("Name") or "" for c in root.iterfind(".//Image/Dimensions/Channels/Channel")]
    sizes: dict[str, tuple[float, str | None]] = {}
    for axis in "ZYX":
        meters = root.findtext(f"./Metadata/Scaling/Items/Distance[@Id='{axis}']/Value")
        if meters and float(meters) > 0:
            sizes[axis] = (_rounded(float(meters) / 1e-6), "micrometer")
    seconds = root.findtext(".//Image/Dimensions/T/Positions/Interval/Increment")
    if seconds and float(seconds) > 0:
        sizes["T"] = (float(seconds), "second")
    for number, found in sorted(blocks.items()):
        name = names.get(str(number)) or f"scene{max(number, 0)}"
        kinds = {block.place.get("C", 0): block.kind for block in found}
        # Channels of several types, such as gray and colour, fit in no array.
        alike = len(set(kinds.values())) == 1
        for chosen in [sorted(kinds)] if alike else [[channel] for channel in sorted(kinds)]:
            own = [block for block in found if block.place.get("C", 0) in chosen]
            labels = tuple(channels[c] if c < len(channels) else "" for c in chosen)
            part = name if alike else f"{name}_{labels[0] or f'C{chosen[0]}'}"
            notes = () if alike else ("channels of different types, each an image of its own",)
            yield _czi_scene(file, None if number < 0 else number, own, part, sizes, labels, notes)


class _Block(NamedTuple):
    """A tile of a CZI: its indices, rectangle and pixel type."""

    place: Mapping[str, int]
    area: Any
    kind: str


def _czi_scene(
    file: Any,
    number: int | None,
    blocks: list[_Block],
    name: str,
    sizes: Mapping[str, tuple[float, str | None]],
    channels: tuple[str, ...],
    notes: tuple[str, ...],
) -> Scene:
    kind = blocks[0].kind
    if kind not in _CZI_TYPES:
        raise ValueError(f"scene {name!r} has pixels of type {kind}")
    areas = [block.area for block in blocks]
    left, top = min(a.x for a in areas), min(a.y for a in areas)
    right, bottom = max(a.x + a.w for a in areas), max(a.y + a.h for a in areas)
    indices = {
        axis: sorted({block.place.get(axis, 0) for block in blocks})
        for axis in (*(a for a in blocks[0].place if a not in "TZCS"), *"TCZ")
    }
    colour = kind.startswith("Bgr")

    def read(place: Mapping[str, int], window: Window) -> NDArray[Any]:
        x, y = (window[1].start, window[1].stop), (window[0].start, window[0].stop)
        part = file.read(
            roi=(left + x[0], top + y[0], x[1] - x[0], y[1] - y[0]),
            plane={axis: values[place.get(axis, 0)] for axis, values in indices.items()},
            scene=number,
            pixel_type=kind,
        )
        return np.asarray(part[..., ::-1] if colour else part[..., 0])

    lengths = {axis: len(values) for axis, values in indices.items()}
    planes = {tuple(block.place.get(axis, 0) for axis in indices) for block in blocks}
    if len(blocks) > len(planes):
        notes += ("tiles stitched",)
    return Scene(
        name,
        lengths | {"Y": bottom - top, "X": right - left} | ({"S": 3} if colour else {}),
        np.dtype(_CZI_TYPES[kind]),
        read,
        sizes,
        channels if any(channels) else (),
        notes=notes + _missing(math.prod(lengths.values()) - len(planes)),
    )


def _read_nd2(path: Path, stack: ExitStack) -> Iterator[Scene]:
    import nd2

    file = stack.enter_context(nd2.ND2File(path))
    lengths = dict(file.sizes)
    count = lengths.pop("P", 1)
    if file.components_per_channel not in (1, 3):
        raise ValueError(f"its pixels have {file.components_per_channel} values per channel")
    frames = {frozenset(place.items()): number for number, place in enumerate(file.loop_indices)}
    channels, height, width = lengths.get("C", 1), lengths["Y"], lengths["X"]
    known = file.metadata.channels or []
    sizes: dict[str, tuple[float, str | None]] = {}
    if known:
        volume = known[0].volume
        steps = zip("XYZ", volume.axesCalibrated, volume.axesCalibration, strict=True)
        sizes = {axis: (float(size), "micrometer") for axis, right, size in steps if right and size > 0}
    points: list[Any] = []
    for loop in file.experiment:
        period = getattr(loop.parameters, "periodMs", 0)
        if loop.type == "TimeLoop" and period > 0:
            sizes["T"] = (period / 1000, "second")
        if loop.type == "XYPosLoop":
            points = list(loop.parameters.points)
    missing = _missing(len(frames) - (file.attributes.sequenceCount or len(frames)))
    xml = _nd2_ome(file, sizes)

    def scene(position: int) -> Scene:
        def read(place: Mapping[str, int], window: Window) -> NDArray[Any]:
            loops = {axis: place.get(axis, 0) for axis in lengths if axis not in "CYXS"}
            if count > 1:
                loops["P"] = position
            frame = np.asarray(file.read_frame(frames[frozenset(loops.items())]))
            shape = (channels, height, width, 3) if "S" in lengths else (channels, height, width)
            return np.asarray(frame.reshape(shape)[(place.get("C", 0), *window)])

        return Scene(
            (points[position].name if position < len(points) else None) or f"position{position}",
            lengths,
            np.dtype(file.dtype),
            read,
            sizes,
            tuple(channel.channel.name for channel in known),
            xml,
            position,
            missing,
        )

    return iter([scene(position) for position in range(count)])


def _nd2_ome(file: Any, sizes: Mapping[str, Any]) -> str | None:
    try:
        ome = file.ome_metadata()
        for image in ome.images:
            for axis in {"X", "Y", "Z"} - set(sizes):  # written as 1 micrometer if they are not known
                setattr(image.pixels, f"physical_size_{axis.lower()}", None)
        return str(ome.to_xml())
    except Exception:  # files of before 2008 and unusual ones have none
        return None


def _read_lif(path: Path, stack: ExitStack) -> Iterator[Scene]:
    import liffile

    file = stack.enter_context(liffile.LifFile(path))
    end = path.stat().st_size
    skipped = tuple(f"{image.path!r} left out, as it is FLIM" for image in file.images if image.is_flim)
    for image in file.images:
        if not image.is_flim:
            block = image.memory_block
            if block.offset + block.size > end:
                raise ValueError(f"the pixels of {image.path!r} are missing at the end")
            yield _lif_scene(image, skipped)


def _lif_scene(image: Any, notes: tuple[str, ...]) -> Scene:
    lengths = dict(image.sizes)
    if not {"Y", "X"} <= set(lengths):
        raise ValueError(f"{image.path!r} has axes {', '.join(lengths)}, not rows and columns")
    description = image.xml_element.find("./Data/Image/ImageDescription")
    sizes: dict[str, tuple[float, str | None]] = {}
    for axis in description.iterfind("./Dimensions/DimensionDescription"):
        name, steps = _LIF_AXES.get(axis.get("DimID")), int(axis.get("NumberOfElements")) - 1
        length = abs(float(axis.get("Length")))
        if name and steps > 0 and length > 0 and axis.get("Unit") in _LIF_UNITS:
            scale, unit = _LIF_UNITS[axis.get("Unit")]
            sizes[name] = (_rounded(length / scale / steps), unit)
    channels = [
        channel.findtext("./ChannelProperty[Key='DyeName']/Value") or channel.get("LUTName") or ""
        for channel in sorted(
            description.iterfind("./Channels/ChannelDescription"), key=lambda c: int(c.get("BytesInc"))
        )
    ]
    whole = [axis for axis in image.frames.frame_dims if axis in "YXS"]
    by_frame = set(whole) == set(lengths) & set("YXS") == set(image.frames.frame_dims)
    inner = [axis for axis in "YXS" if axis in lengths]

    def read(place: Mapping[str, int], window: Window) -> NDArray[Any]:
        if by_frame:
            axes = list(whole)
            plane = image.frame(**{axis: n for axis, n in place.items() if axis in lengths})
        else:  # rows are not adjacent in the file
            axes = list(image.dims)
            plane = image.asarray()[tuple(place.get(a, slice(None) if a in inner else 0) for a in axes)]
            axes = [axis for axis in axes if axis in inner]
        return np.asarray(np.transpose(plane, [axes.index(axis) for axis in inner])[window])

    outer = {axis: n for axis, n in lengths.items() if axis not in "YXS"}
    return Scene(
        image.path,
        outer | {axis: lengths[axis] for axis in inner},
        np.dtype(image.dtype),
        read,
        sizes,
        tuple(channels) if "S" not in lengths else (),
        notes=notes,
    )
