"""Find the images in a zarr hierarchy, copy what surrounds them, and put a finished one in its place.

Groups are read as files, without zarr: consolidated metadata, which may be out of date, play no role, and
large plates open fast.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from ..errors import BadInput, one_line
from .disk_arrays import sync

DOCUMENTS = ("zarr.json", ".zgroup", ".zarray", ".zattrs", ".zmetadata")
"""Files in which zarr keeps metadata; one of the first three makes a folder a zarr."""

_OME_KEYS = (
    "multiscales",
    "omero",
    "labels",
    "image-label",
    "plate",
    "well",
    "bioformats2raw.layout",
    "series",
)


@dataclass(frozen=True, slots=True)
class Node:
    """An array or group.

    Attributes
    ----------
    is_array : bool
    zarr_format : {2, 3}
    attributes : dict
    names : tuple or None
        Names that an array gives its axes.
    ndim : int
        Number of axes of an array.
    """

    is_array: bool
    zarr_format: int
    attributes: dict[str, Any]
    names: tuple[str | None, ...] | None = None
    ndim: int = 0

    @property
    def ome(self) -> dict[str, Any]:
        """Those of the attributes that OME-Zarr defines."""
        return split_attributes(self.attributes)[0]

    @property
    def images(self) -> list[Any]:
        """Entries of ``multiscales``; empty for arrays, and for labels, which are no images."""
        found = self.ome.get("multiscales")
        if self.is_array or "image-label" in self.ome or not isinstance(found, list):
            return []
        return found


def split_attributes(attributes: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the attributes that OME-Zarr defines, which version 0.5 keeps apart, and all others."""
    if isinstance(ome := attributes.get("ome"), dict):
        return dict(ome), {k: v for k, v in attributes.items() if k != "ome"}
    ome = {k: v for k, v in attributes.items() if k in _OME_KEYS}
    return ome, {k: v for k, v in attributes.items() if k not in _OME_KEYS}


def read_node(folder: Path) -> Node | None:
    """Read the metadata of an array or group; None if a folder is neither.

    Raises
    ------
    ValueError
        If they are damaged.
    """
    try:
        if (document := _read(folder / "zarr.json")) is not None:
            names = document.get("dimension_names")
            is_array = document["node_type"] == "array"
            attributes, shape = dict(document.get("attributes") or {}), document.get("shape", ())
            return Node(is_array, 3, attributes, tuple(names) if names else None, len(shape))
        for name, is_array in ((".zarray", True), (".zgroup", False)):
            if (document := _read(folder / name)) is not None:
                attributes = _read(folder / ".zattrs") or {}
                names = attributes.get("_ARRAY_DIMENSIONS")  # of xarray
                shape = document.get("shape", ())
                return Node(is_array, 2, attributes, tuple(names) if names else None, len(shape))
    except (ValueError, TypeError, AttributeError, KeyError) as error:
        raise BadInput(f"{folder}: damaged, or not a zarr ({one_line(error)}); export it again") from None
    return None


def _read(path: Path) -> dict[str, Any] | None:
    return dict(json.loads(path.read_bytes())) if path.is_file() else None


def find_nodes(root: Path, place: str = "") -> Iterator[tuple[str, Node]]:
    """Iterate over arrays and groups with their places in `root`, except labels and hidden folders."""
    folder = root / place
    node = read_node(folder)
    if node is not None and "image-label" not in node.ome:
        yield place, node
    if node is None or not (node.is_array or "image-label" in node.ome):
        for name in sorted((p.name for p in folder.iterdir() if p.is_dir()), key=_natural):
            if name != "labels" and not name.startswith("."):
                yield from find_nodes(root, join(place, name))


def _natural(name: str) -> list[Any]:
    return [int(part) if number % 2 else part for number, part in enumerate(re.split(r"([0-9]+)", name))]


def join(place: str, name: str) -> str:
    """Return the place of something in the group at a place."""
    path = PurePosixPath(place, name.strip("/")).as_posix()
    return "" if path == "." else path


def around(place: str) -> list[str]:
    """Return a place and those of the groups around it, from the inside out."""
    return [join("", str(path)) for path in (PurePosixPath(place), *PurePosixPath(place).parents)]


def listed_images(root: Path) -> list[str]:
    """Return the places of the images that a plate, well or bioformats2raw root lists; often none."""
    try:
        node = read_node(root)
        ome = node.ome if node is not None else {}
        if "well" in ome:
            return [join("", str(image["path"])) for image in ome["well"]["images"]]
        if "plate" in ome:
            wells = [join("", str(well["path"])) for well in ome["plate"]["wells"]]
            return [join(well, image) for well in wells for image in listed_images(root / well)]
        series = read_node(root / "OME")
        return [join("", str(path)) for path in series.ome.get("series", ())] if series is not None else []
    except (KeyError, TypeError, AttributeError):
        return []


def copy_surroundings(source: Path, target: Path, images: Mapping[str, Collection[str]]) -> None:
    """Copy what is in a zarr hierarchy beside its images: other groups, attributes, labels, tables, OME-XML.

    Parameters
    ----------
    source : Path
        Root of the hierarchy.
    target : Path
        Root of another, in which the images are already.
    images : mapping
        From the place of each image to the places of its arrays in `source`, which are not copied.
    """
    arrays = {array for found in images.values() for array in found}
    groups = {group for image in images for group in around(image)}

    def copy(place: str) -> None:
        written = place in images
        for path in sorted((source / place).iterdir()):
            inner = join(place, path.name)
            if not path.is_dir():
                if not (written and path.name in DOCUMENTS):
                    _copy_file(path, target / inner)
            elif inner in arrays or (written and path.name.isdigit() and inner not in groups):
                continue  # levels: of the source, or in place of those of the result
            elif path.name == "labels" or ((node := read_node(path)) is not None and node.is_array):
                shutil.copytree(path, target / inner, dirs_exist_ok=True, copy_function=_copy_file)
            elif inner in groups or node is None or not node.images:
                (target / inner).mkdir(exist_ok=True)
                copy(inner)
        sync(target / place)

    copy("")


def _copy_file(path: str | Path, target: str | Path) -> None:
    path, target = Path(path), Path(target)
    if path.name == ".zmetadata":  # consolidated, and out of date in the copy
        return
    shutil.copyfile(path, target)
    if path.name == "zarr.json":
        document = json.loads(path.read_bytes())
        if document.pop("consolidated_metadata", None) is not None:
            target.write_text(json.dumps(document, indent=2))
    sync(target)


def sync_documents(folder: Path) -> None:
    """Flush the metadata of an array or group, and its list of names, to disk."""
    for name in DOCUMENTS:
        if (folder / name).is_file():
            sync(folder / name)
    sync(folder)


def check_replaceable(target: Path) -> None:
    """Raise ValueError if a path is a folder, but neither empty nor a zarr."""
    if not target.is_dir() or target.is_symlink():
        return
    if not any((target / name).is_file() for name in DOCUMENTS) and any(target.iterdir()):
        raise BadInput(
            f"{target}: a folder of other things, not a zarr, so it is not replaced; use another name"
        )


def replace_folder(data: Path, target: Path) -> None:
    """Move a finished zarr to its final name, and delete what had that name once the new one is there.

    What is replaced waits beside the target, as ``<name>.kbnet-old``, and gets its name back if anything
    fails. Of a symbolic link only the link is replaced.

    Parameters
    ----------
    data : Path
        Folder on the same disk as the target.
    target : Path

    Raises
    ------
    ValueError
        If the target is a folder that is not a zarr.
    OSError
        If a folder cannot be moved.
    """
    check_replaceable(target)
    old = target.with_name(f"{target.name}.kbnet-old")
    try:
        if os.path.lexists(target):
            _delete(old)  # from a run that was killed when the target was whole
            target.rename(old)
        data.rename(target)
    except BaseException:
        if os.path.lexists(old) and not os.path.lexists(target):
            old.rename(target)
        raise
    sync(target.parent)
    _delete(old)


def _delete(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)  # what cannot be deleted is of no use, and does no harm
    else:
        path.unlink(missing_ok=True)
