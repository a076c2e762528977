"""Read and write OME-Zarr 0.4 and 0.5 (zarr formats 2 and 3), also plates and other hierarchies of images.

References
----------
J. Moore et al., "OME-Zarr: a cloud-optimized bioimaging file format with international community support",
Histochemistry and Cell Biology 160, 2023; https://ngff.openmicroscopy.org
"""

from __future__ import annotations

import importlib
import itertools
import math
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from ..errors import BadInput, one_line
from .disk_arrays import Reordered, ZarrArray
from .formats import import_optional
from .metadata import Frame, Image, Metadata
from .omero import make_omero
from .pyramid import TILE, half_shape, halve, level_count
from .zarr_axes import name_axes, other_systems, read_axes, write_axes, write_transformations
from .zarr_layout import (
    DOCUMENTS,
    Node,
    around,
    copy_surroundings,
    find_nodes,
    join,
    listed_images,
    read_node,
    split_attributes,
    sync_documents,
)

_ORDER = "TCZYX"  # required by the format
_LARGEST_CHUNK = 1 << 26  # bytes; a chunk is written anew for each tile in it


def is_zarr(path: Path) -> bool:
    """Tell whether a path is a zarr group or array, or will be one, by its name."""
    return path.suffix == ".zarr" or any((path / name).is_file() for name in DOCUMENTS[:3])


def import_zarr() -> Any:
    """Import zarr; ValueError, which names the extra, if it is not installed."""
    return import_optional("zarr", "stacks need", "arrays")


def open_zarr_images(path: Path) -> list[Image]:
    """Open every image of a zarr hierarchy.

    Parameters
    ----------
    path : Path
        A zarr array; an OME-Zarr image; a plate, well, bioformats2raw root or any other group with images in
        it, at any depth; or a group with one array of pixels. Labels are left out.

    Returns
    -------
    list of Image
        At full resolution, in the order that the plate or root lists them, the others by name.
        `Metadata.path` is the place of each in the hierarchy.

    Raises
    ------
    ValueError
        If it is damaged, or contains no image; one line that names it.
    """
    import_zarr()
    nodes = dict(find_nodes(path))
    if not nodes:
        node = read_node(path)
        if node is not None and "image-label" in node.ome:
            raise BadInput(f"{path}: labels, not an image; open the image that they belong to")
        raise BadInput(f"{path}: damaged, or not a zarr (no metadata in it); export it again")
    places = {place: node for place, node in nodes.items() if node.images}
    if not places:
        return [_open_plain(path, nodes)]
    listed = listed_images(path)
    order = dict.fromkeys([*(place for place in listed if place in places), *places])
    images = [_open_image(path, place, places[place]) for place in order]
    if missing := [place for place in listed if place not in places]:
        first = images[0]
        note = f"{len(missing)} of the {len(listed)} images that are listed are missing ({missing[0]})"
        images[0] = Image(first.array, first.metadata, (*first.notes, note))
    return images


def _open_image(root: Path, place: str, node: Node) -> Image:
    path, image = root / place, node.images[0]
    try:
        inner, array = _open_array(path / str(image["datasets"][0]["path"]))
        axes, sizes, offsets, notes = read_axes(image, inner.names, array.ndim)
        channels = (node.ome.get("omero") or {}).get("channels") or []
        labels = tuple(str(channel.get("label", "")) for channel in channels)
        levels = len(image["datasets"])
    except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
        if isinstance(error, BadInput):
            raise
        raise BadInput(f"{path}: invalid OME-Zarr metadata ({one_line(error)}); export it again") from None
    if len(node.images) > 1:
        notes = (*notes, f"only the first of {len(node.images)} multiscale images read")
    metadata = Metadata(
        axes=axes,
        form="zarr",
        path=place,
        sizes=sizes,
        offsets=offsets,
        channels=labels if any(labels) else (),
        levels=levels,
        attributes=node.attributes,
        zarr_format=node.zarr_format,
        chunks=array.chunks,
    )
    return Image(array, metadata, notes)


def _open_plain(path: Path, nodes: Mapping[str, Node]) -> Image:
    """Open the only array of pixels of a hierarchy without OME-Zarr metadata."""
    places = _pixels(nodes)
    if len(places) != 1:
        names = ", ".join(places[:5]) + (", ..." if len(places) > 5 else "")
        raise BadInput(
            f"{path}: no OME-Zarr image in this group; open one of its arrays instead ({names})"
            if places
            else f"{path}: no image in this zarr"
        )
    node, array = _open_array(path / places[0])
    axes, notes = name_axes(node.names) if node.names else (None, ())
    group = nodes[""].attributes if "" in nodes else {}
    attributes = {k: v for k, v in {**group, **node.attributes}.items() if k != "_ARRAY_DIMENSIONS"}
    metadata = Metadata(
        axes=axes, form="zarr", attributes=attributes, zarr_format=node.zarr_format, chunks=array.chunks
    )
    return Image(array, metadata, notes)


def _pixels(nodes: Mapping[str, Node]) -> list[str]:
    """Return the places of arrays that may hold pixels: not of coordinates along one axis, as xarray's."""
    arrays = [place for place, node in nodes.items() if node.is_array]
    return [place for place in arrays if place == "" or nodes[place].ndim > 1]


def _open_array(path: Path, mode: str = "r") -> tuple[Node, Any]:
    node = read_node(path)
    if node is None or not node.is_array:
        raise BadInput(f"{path}: missing, though the metadata name it; export it again")
    try:
        array = import_zarr().open_array(path, mode=mode, zarr_format=node.zarr_format)
    except Exception as error:  # each of zarr's readers raises its own
        raise BadInput(f"{path}: damaged, or not a zarr ({one_line(error)}); export it again") from error
    if array.dtype.kind not in "buif":
        raise BadInput(f"{path}: pixels must be bool, integer or float, not {array.dtype}")
    return node, array


def open_levels(path: Path, axes: str) -> list[Reordered]:
    """Open every level of an OME-Zarr image that this module wrote, largest first.

    Parameters
    ----------
    path : Path
    axes : str
        Axes that it was written with; the levels have them, too.
    """
    node, order = read_node(path), zarr_order(axes, path)
    datasets = node.images[0]["datasets"] if node is not None else ()
    return [Reordered(_open_array(path / dataset["path"])[1], order, axes) for dataset in datasets]


def zarr_order(axes: str, target: Path) -> str:
    """Return the order in which OME-Zarr stores some axes: TCZYX, with S in place of C.

    Raises
    ------
    ValueError
        If there are both channels (C) and samples (S).
    """
    if "S" in axes and "C" in axes:
        raise BadInput(
            f"{target}: OME-Zarr has only one axis for channels and colours; write an .ome.tif instead"
        )
    return "".join(sorted(axes, key=lambda a: _ORDER.index("C" if a == "S" else a)))


def create_groups(data: Path, frames: Sequence[Frame]) -> list[ZarrArray]:
    """Open or create the hierarchy that results grow in, with their full resolution only.

    The groups are those of the source if it is a zarr. Several images of another source become the series of
    a bioformats2raw root.

    Parameters
    ----------
    data : Path
        Root; what is there already is kept.
    frames : sequence of Frame

    Returns
    -------
    list of ZarrArray
        One per frame, each with axes in the order of `zarr_order`.

    Raises
    ------
    ValueError
        If the axes do not fit, or what is there already is of another shape.
    """
    places, arrays = dict.fromkeys(_places(frames)), []
    for place in places:
        for outer, inner in itertools.pairwise(reversed(around(place))):
            if outer in places and PurePosixPath(inner).name.isdigit():
                where = f"image {place!r} is where image {outer!r} keeps its levels"
                raise BadInput(f"{data}: {where}; restore each by itself")
    for partial in data.rglob("*.partial"):  # zarr's name for a chunk while it writes it
        partial.unlink()
    for place, frame in zip(places, frames, strict=True):
        shape = _stored(frame)[1]
        group = import_zarr().open_group(data / place, mode="a", zarr_format=frame.metadata.zarr_format)
        if read_node(data / place / "0") is None:
            level = _create_level(group, 0, frame, shape)
        else:
            level = _open_array(data / place / "0", "r+")[1]
        dtype = np.dtype(frame.dtype)
        if level.shape != shape or level.dtype != dtype.newbyteorder("="):
            raise BadInput(f"{data}: an unfinished result of another image; start over")
        arrays.append(ZarrArray(level, data / place / "0"))
        arrays[-1].dtype = dtype
    return arrays


def _places(frames: Sequence[Frame]) -> list[str]:
    if all(frame.metadata.form == "zarr" for frame in frames):
        return [frame.metadata.path for frame in frames]
    return [str(number) for number in range(len(frames))] if len(frames) > 1 else [""]


def _stored(frame: Frame) -> tuple[str, tuple[int, ...]]:
    axes = str(frame.metadata.axes)
    order = zarr_order(axes, Path(frame.metadata.path))
    return order, tuple(frame.shape[axes.index(a)] for a in order)


def _create_level(group: Any, level: int, frame: Frame, shape: tuple[int, ...]) -> Any:
    metadata, dtype = frame.metadata, np.dtype(frame.dtype)
    axes, (order, _) = str(metadata.axes), _stored(frame)
    known = metadata.chunks or ()
    if len(known) == len(axes) and math.prod(known) * dtype.itemsize <= _LARGEST_CHUNK:
        chunks = dict(zip(axes, known, strict=True))
    else:
        chunks = {a: TILE if a in "YX" else n if a == "S" else 1 for a, n in zip(order, shape, strict=True)}
    # Blosc, as other writers of OME-Zarr: not every reader of zarr 2 knows zarr's own default, bare zstd.
    options: dict[str, Any]
    if metadata.zarr_format == 3:
        codec = importlib.import_module("zarr.codecs").BloscCodec(cname="zstd", clevel=5, shuffle="shuffle")
        options = {"dimension_names": [entry["name"] for entry in _axis_entries(frame)]}
    else:
        codec = importlib.import_module("numcodecs").Blosc("zstd", clevel=5, shuffle=1)
        options = {"chunk_key_encoding": {"name": "v2", "separator": "/"}}
    return group.create_array(
        str(level),
        shape=shape,
        dtype=dtype.newbyteorder("="),
        chunks=tuple(max(1, min(chunks[a], n)) for a, n in zip(order, shape, strict=True)),
        compressors=codec,
        overwrite=True,
        **options,
    )


def _before(metadata: Metadata) -> Mapping[str, Any]:
    """Return the entry of ``multiscales`` of the source; empty if there is none."""
    images = split_attributes(metadata.attributes)[0].get("multiscales")
    return images[0] if images and metadata.form == "zarr" else {}


def _axis_entries(frame: Frame) -> list[dict[str, Any]]:
    return write_axes(_stored(frame)[0], frame.metadata, _before(frame.metadata))


def finish_zarr(data: Path, frames: Sequence[Frame], source: Path | None) -> None:
    """Add pyramids and metadata to finished results.

    Parameters
    ----------
    data : Path
        Root, as for `create_groups`.
    frames : sequence of Frame
        As for `create_groups`.
    source : Path or None
        What the frames were read from. If it is a zarr, what else is in it is copied, labels included.
    """
    places = _places(frames)
    node = read_node(source) if source is not None and source.is_dir() else None
    for place, frame in zip(places, frames, strict=True):
        _finish_image(data / place, frame)
    if frames[0].metadata.form != "zarr" and len(places) > 1:
        open_group = import_zarr().open_group
        open_group(data, mode="a").attrs.put({"ome": {"version": "0.5", "bioformats2raw.layout": 3}})
        open_group(data / "OME", mode="a").attrs.put({"ome": {"version": "0.5", "series": places}})
        sync_documents(data / "OME")
    elif source is not None and node is not None and not node.is_array:
        nodes = dict(find_nodes(source))
        if any(found.images for found in nodes.values()):
            levels = {place: _levels(place, nodes[place]) for place in places if place in nodes}
        else:
            levels = {"": _pixels(nodes)}
        copy_surroundings(source, data, levels)
    sync_documents(data)


def _levels(place: str, node: Node) -> list[str]:
    return [join(place, str(level["path"])) for image in node.images for level in image.get("datasets", ())]


def _finish_image(folder: Path, frame: Frame) -> None:
    metadata, (order, shape) = frame.metadata, _stored(frame)
    group = import_zarr().open_group(folder, mode="r+", zarr_format=metadata.zarr_format)
    level = group["0"]
    count = level_count(shape, order, metadata.levels)
    for number in range(1, count):
        above = ZarrArray(
            _create_level(group, number, frame, half_shape(level.shape, order)), folder / str(number)
        )
        halve(level, above, order)
        above.sync()  # before the journal is deleted, without which they could not be rebuilt
        level = above
    before = _before(metadata)
    image = {k: v for k, v in before.items() if k not in ("coordinateTransformations", "metadata", "version")}
    image |= {
        "axes": _axis_entries(frame),
        "datasets": [
            {"path": str(n), "coordinateTransformations": write_transformations(order, metadata, 2**n)}
            for n in range(count)
        ],
        "type": "mean",
    }
    if metadata.form != "zarr" and metadata.path:
        image["name"] = metadata.path
    if systems := other_systems(order, before):
        image["coordinateTransformations"] = systems
    ome, others = split_attributes(metadata.attributes) if before else ({}, dict(metadata.attributes))
    if "omero" not in ome and (
        omero := others.pop("omero", None) or make_omero(level, order, metadata.channels)
    ):
        ome["omero"] = omero
    if metadata.history:
        earlier = others.get("kbnet")
        others["kbnet"] = {**metadata.history, **({"before": earlier} if earlier else {})}
    if metadata.zarr_format == 3:
        ome |= {"version": "0.5", "multiscales": [image]}
        group.attrs.put(others | {"ome": ome})
    else:
        ome.pop("version", None)
        group.attrs.put(others | ome | {"multiscales": [image | {"version": "0.4"}]})
    for place in ("", *map(str, range(count))):
        sync_documents(folder / place)
