"""What the axes of an OME-Zarr mean, and the size and position of pixels along them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from .metadata import Metadata
from .units import to_name

_NAMES = {
    "T": ("t", "time", "frame"),
    "Z": ("z", "depth", "plane", "slice"),
    "C": ("c", "channel", "ch"),
    "S": ("s", "sample", "rgb", "rgba"),
    "Y": ("y", "row", "height"),
    "X": ("x", "column", "col", "width"),
}
_LETTERS = {spelling: a for a, names in _NAMES.items() for name in names for spelling in (name, f"{name}s")}
_KIN = {"lambda": "C", "wavelength": "C", "band": "C"}
_KIN |= {"lat": "Y", "latitude": "Y", "northing": "Y", "lon": "X", "longitude": "X", "easting": "X"}
_FREE = "XYZTC"  # what the last, last but one, ... axis of unknown name is taken for
_KINDS = {"T": "time", "C": "channel", "S": "channel"}


def name_axes(
    names: Sequence[str | None], kinds: Sequence[str | None] = ()
) -> tuple[str | None, tuple[str, ...]]:
    """Find the letter for the name of each axis.

    An unknown name never becomes S: planes along it are restored one by one.

    Parameters
    ----------
    names : sequence of str or None
        Such as ``"y"``, ``"Time"``, ``"position"``.
    kinds : sequence of str or None, optional
        OME-Zarr's types of the axes: ``"space"``, ``"time"``, ``"channel"`` or others.

    Returns
    -------
    axes : str or None
        One letter of `kbnet_plugin.arrays.axes.AXES` per axis; None if no name is known, or there are more
        axes than letters.
    notes : tuple of str
        What was guessed.
    """
    kinds = kinds or [None] * len(names)
    found: list[str] = []
    for name, kind in zip(names, kinds, strict=True):
        word = str(name or "").strip().lower()
        known = _LETTERS.get(word) or _KIN.get(word) or {"time": "T", "channel": "C"}.get(str(kind), "")
        found.append(known if known not in found else "")
    unknown = (None, (f"axes {', '.join(map(str, names))} are not known",))
    if not any(found) and "space" not in kinds:
        return unknown
    for number in reversed(range(len(found))):
        if not found[number]:
            free = next((a for a in _FREE if a not in found), None)
            if free is None:
                return unknown
            found[number] = free
    notes = [
        f"axis {name} taken for {letter}"
        for name, letter in zip(names, found, strict=True)
        if _LETTERS.get(str(name or "").strip().lower()) != letter
    ]
    return "".join(found), tuple(notes)


def read_axes(
    image: Mapping[str, Any], names: Sequence[str | None] | None, count: int
) -> tuple[str | None, dict[str, tuple[float, str | None]], dict[str, float], tuple[str, ...]]:
    """Read axes, sizes and offsets of an image.

    Parameters
    ----------
    image : mapping
        Entry of OME-Zarr's ``multiscales``.
    names : sequence or None
        Names that the array gives its axes, used if `image` has none.
    count : int
        Number of axes of the array.

    Returns
    -------
    axes, sizes, offsets
        As in `Metadata`.
    notes : tuple of str
        What was guessed or dropped.

    Raises
    ------
    KeyError, TypeError, ValueError
        If the metadata are invalid.
    """
    if "coordinateSystems" in image:
        raise ValueError("coordinate systems of version 0.6 are not supported; export it as version 0.5")
    scales, offsets = _apply(
        [*image["datasets"][0].get("coordinateTransformations", ()), *_own(image)], count
    )
    entries = _entries(image) or [{"name": name} for name in names or "tczyx"[-count:]]
    if len(entries) != count:
        raise ValueError(f"{len(entries)} axes for {count} dimensions")
    axes, noted = name_axes([e["name"] for e in entries], [e.get("type") for e in entries])
    notes = list(noted)
    if axes is None:
        return None, {}, {}, (*notes, "sizes dropped")
    sizes = {}
    for letter, scale, entry in zip(axes, scales, entries, strict=True):
        unit = entry.get("unit")
        name = to_name(str(unit)) if unit else None
        if unit and name is None:
            notes.append(f"unit {unit} of {letter} is not known")
        sizes[letter] = (scale, name)
    return axes, sizes, dict(zip(axes, offsets, strict=True)), tuple(notes)


def _entries(image: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [{"name": e} if isinstance(e, str) else dict(e) for e in image.get("axes") or ()]


def _own(image: Mapping[str, Any]) -> list[Any]:
    """Return the transformations of all levels, without those into other coordinate systems."""
    return [step for step in image.get("coordinateTransformations", ()) if "output" not in step]


def _apply(steps: Iterable[Mapping[str, Any]], count: int) -> tuple[list[float], list[float]]:
    scales, offsets = [1.0] * count, [0.0] * count
    for step in steps:
        kind = step["type"]
        if kind == "identity":
            continue
        if kind not in ("scale", "translation"):
            raise ValueError(f"transformation {kind!r} is not supported")
        if "path" in step or isinstance(step[kind], str):
            raise ValueError(f"the {kind} is in an array of its own, not in the attributes")
        values = [float(v) for v in step[kind]]
        if kind == "scale":
            scales = [s * v for s, v in zip(scales, values, strict=True)]
            offsets = [o * v for o, v in zip(offsets, values, strict=True)]
        else:
            offsets = [o + v for o, v in zip(offsets, values, strict=True)]
    return scales, offsets


def write_axes(order: str, metadata: Metadata, before: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return OME-Zarr's entries for axes, with the names they had.

    Parameters
    ----------
    order : str
        Axes as they are stored.
    metadata : Metadata
    before : mapping
        Entry of ``multiscales`` of the source; may be empty.
    """
    known: dict[str, dict[str, Any]] = {}
    if entries := _entries(before):
        letters = name_axes([e["name"] for e in entries], [e.get("type") for e in entries])[0] or ""
        if sorted(letters) == sorted(order):
            known = dict(zip(letters, entries, strict=True))
    axes = []
    for axis in order:
        entry = {"name": "c" if axis == "S" else axis.lower(), "type": _KINDS.get(axis, "space")}
        if axis in known:
            if axis in "TZC" and str(known[axis]["name"]).lower() not in _LETTERS:
                del entry["type"]  # which would say too much of an axis that was only taken for it
            entry |= known[axis]
        unit = metadata.sizes.get(axis, (1.0, None))[1]
        axes.append(entry | ({"unit": unit} if unit else {}))
    return axes


def write_transformations(order: str, metadata: Metadata, factor: int) -> list[dict[str, Any]]:
    """Return scale and position of a level whose pixels are means of `factor` x `factor` source pixels."""
    scales, offsets = [], []
    for axis in order:
        size, times = metadata.sizes.get(axis, (1.0, None))[0], factor if axis in "YX" else 1
        scales.append(size * times)
        offsets.append(metadata.offsets.get(axis, 0.0) + size * (times - 1) / 2)
    steps: list[dict[str, Any]] = [{"type": "scale", "scale": scales}]
    return [*steps, {"type": "translation", "translation": offsets}] if any(offsets) else steps


def other_systems(order: str, before: Mapping[str, Any]) -> list[Any]:
    """Return the transformations into other coordinate systems, if the axes are still in their order."""
    steps = [step for step in before.get("coordinateTransformations", ()) if "output" in step]
    entries = _entries(before)
    kept = name_axes([e["name"] for e in entries], [e.get("type") for e in entries])[0] if entries else None
    return steps if kept == order else []
