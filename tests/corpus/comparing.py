"""What is wrong with a result, compared with its source."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import numpy as np
from reading import Seen, see

CONVERTED = re.compile(
    "convert|scaled|palette|inver|developed|dropped|left out|stitched|expanded|restored as|taken for",
    re.IGNORECASE,
)
"""Words by which the command announces that pixels or metadata are not those of the source."""


def compare(source: Path, result: Path, said: str) -> list[str]:
    """Compare a result that nothing should have changed with its source.

    Parameters
    ----------
    source, result : path
    said : str
        What the command printed.

    Returns
    -------
    list of str
        Faults, none if it is right. One that begins with ``"unchecked"`` is no fault.
    """
    before, after = see(source), see(result)
    announced = bool(CONVERTED.search(said))
    lossy = result.suffix.lower() in (".jpg", ".jpeg", ".jpe", ".jfif")
    faults = [f"{program} cannot open it: {why}" for program, why in _unreadable(before, after, result)]
    faults += _pages(before, after, said)
    if before.bits and after.bits and after.bits < before.bits and not (announced and lossy):
        faults.append(f"{after.bits} bits, the source has {before.bits}")
    if before.floating and not after.floating:
        faults.append("whole numbers, the source has floating-point numbers")
    faults += _values(before, after, announced, lossy) + _looks(before, after, said, lossy)
    faults += _colour_profile(before, after, said)
    faults += _resolution(before, after, result) + _ome(before, after) + _scales(before, after)
    return faults


def _unreadable(before: Seen, after: Seen, result: Path) -> list[tuple[str, str]]:
    """Return the programs that fail at the result but not at the source, though they know such values."""
    errors = {name: why for name, why in after.errors.items() if why != before.errors.get(name)}
    stored = after.values[0] if after.values else None
    if result.is_dir() or (stored is not None and (stored.dtype.kind == "c" or stored.dtype.itemsize == 8)):
        errors.pop("libvips", None)
    if stored is not None and stored.dtype == np.float16:
        errors.pop("libvips", None)
    simple = stored is not None and (
        (stored.dtype == np.uint8 and stored.shape[-1] in (1, 3, 4))
        or (stored.dtype in (np.uint16, np.float32) and stored.shape[-1] == 1)
    )
    if result.suffix.lower() in (".tif", ".tiff", ".btf", ".tf8", ".lsm") and not simple:
        errors.pop("Pillow", None)  # it reads only the kinds that photographs come in
    return list(errors.items())


def _pages(before: Seen, after: Seen, said: str) -> list[str]:
    if not before.pages or before.pages == after.pages:
        return []
    if CONVERTED.search(said) and set(before.pages) >= set(after.pages) and len(after.pages) == 1:
        return []  # it says that it leaves out the others
    found = re.search(r"(\d+) channels", said)
    if found and {size: n * int(found[1]) for size, n in before.pages.items()} == dict(after.pages):
        return []
    return [f"pictures {_listed(after.pages)}, the source has {_listed(before.pages)}"]


def _listed(pages: Counter[tuple[int, int]]) -> str:
    return ", ".join(f"{n} of {long} x {short}" for (long, short), n in sorted(pages.items())[:6]) or "none"


def _values(before: Seen, after: Seen, announced: bool, lossy: bool) -> list[str]:
    if not before.values or not after.values:
        return []
    old, new = [_flat(seen.values) for seen in (before, after)]
    if old.ndim == new.ndim == 4 and (len(old), old.shape[-1]) == (1, len(new)) and new.shape[-1] == 1:
        new = np.moveaxis(new, 0, -1).reshape(old.shape)  # samples became channels
    if old.ndim == new.ndim == 4 and new.shape[-1] == old.shape[-1] + 1 and old.shape[-1] in (1, 3):
        new = new[..., :-1]  # a transparent colour became opacity
    if old.dtype == new.dtype and old.shape == new.shape:
        if np.array_equal(old, new, equal_nan=old.dtype.kind == "f"):
            return []
        if len(after.values) > len(before.values) and _planes(before) == _planes(after):
            return []  # one image of each index of an axis
        if not announced and not lossy:
            differing = int(np.count_nonzero(old != new))
            return [f"{differing} of {old.size} values differ without a word"]
    first, second = _mean(old), _mean(new)
    tolerance = 0.01 * abs(first) + (0.004 if old.dtype.kind == "u" else 0)
    if np.isfinite(first) and not abs(first - second) <= tolerance and not announced:
        return [f"the mean is {second:.4g}, that of the source {first:.4g}"]
    return []


def _flat(values: list[np.ndarray]) -> np.ndarray:
    if len({array.shape[1:] for array in values}) == 1:
        return np.concatenate(values) if len(values) > 1 else values[0]
    return np.concatenate([array.reshape(-1) for array in values])


def _planes(seen: Seen) -> Counter[bytes]:
    return Counter(plane.tobytes() for array in seen.values for plane in array)


def _mean(values: np.ndarray) -> float:
    """Mean, of whole numbers without a sign as a part of their range."""
    finite = values[np.isfinite(values)] if values.dtype.kind == "f" else values
    mean = float(np.mean(finite, dtype=np.float64)) if finite.size else float("nan")
    return mean / np.iinfo(values.dtype).max if values.dtype.kind == "u" else mean


def _looks(before: Seen, after: Seen, said: str, lossy: bool) -> list[str]:
    """Compare what programs show; one that shows the same is enough, as programs differ about some files."""
    pairs = [(name, before.looks[name], after.looks[name]) for name in before.looks if name in after.looks]
    if not pairs or before.odd or re.search(r"\d channels", said):
        same = before.values and after.values
        return [] if same else ["unchecked: no program shows both the source and the result"]
    found = [_difference(old, new) for _, old, new in pairs]
    nearest = int(np.argmin(found))
    if found[nearest] <= _limit(said, lossy):
        return []
    name, old, new = pairs[nearest]
    if old.shape != new.shape:
        return [f"{name} shows {new.shape[:2]}, of the source {old.shape[:2]}"]
    means = ", of the source ".join(str(shown.mean(axis=(0, 1)).round().astype(int)) for shown in (new, old))
    inverted = float(np.abs(255 - old.astype(np.int16) - new).mean()) < 3
    turned = np.array_equal(*(np.bincount(shown.ravel(), minlength=256) for shown in (old, new)))
    hint = " (inverted)" if inverted else " (turned)" if turned else ""
    return [f"looks different{hint}: {name} shows colours of mean {means}"]


def _limit(said: str, lossy: bool) -> float:
    if "as its only frame replaces it" in said:
        return np.inf  # an animation, of which some programs show another picture
    if "without a profile" in said:
        return 60.0  # how inks mix is anyone's guess
    return 20.0 if re.search(r"\b(CMYK|Lab|YCbCr) converted", said) else 6.0 if lossy else 3.0


def _difference(old: np.ndarray, new: np.ndarray) -> float:
    if old.shape != new.shape:
        return np.inf
    difference = np.abs(old.astype(np.int16) - new)
    return float(difference.mean()) + float(np.quantile(difference, 0.98)) / 8


def _colour_profile(before: Seen, after: Seen, said: str) -> list[str]:
    if not before.icc or before.icc == after.icc:
        return []
    if re.search("profile|iCCP|convert", said, re.IGNORECASE):
        return []
    return ["the colour profile " + ("differs" if after.icc else "is lost")]


def _resolution(before: Seen, after: Seen, result: Path) -> list[str]:
    if before.resolution is None or result.is_dir() or after.ome:  # OME has sizes of its own
        return []
    across, down, unit = before.resolution
    if unit == "" and result.suffix.lower() not in (".tif", ".tiff"):
        return []
    if after.resolution is None:
        # Without a unit, 1 to 1 says nothing.
        lost = f"the resolution {across:g} x {down:g} per {unit or 'no unit'} is lost"
        return [] if unit == "" and across == down else [lost]
    own = after.resolution
    if (own[2] == "") != (unit == "") and not (unit == "" and across == down and own[2] == ""):
        return [f"the unit of the resolution is {own[2] or 'none'}, of the source {unit or 'none'}"]
    factor = {("inch", "centimeter"): 1 / 2.54, ("centimeter", "inch"): 2.54}.get((unit, own[2]), 1.0)
    whole = result.suffix.lower() not in (".tif", ".tiff")  # JPEG and Pillow's PNG know no fractions
    for old, new in ((across, own[0]), (down, own[1])):
        if abs(new - old * factor) > max(0.01 * abs(old * factor), 0.5 if whole else 0):
            return [
                f"resolution {own[0]:g} x {own[1]:g}, of the source {across * factor:g} x {down * factor:g}"
            ]
    return []


def _ome(before: Seen, after: Seen) -> list[str]:
    faults = []
    if after.ome:
        import ome_types

        try:
            ome_types.validate_xml(after.ome)
        except Exception as error:
            faults.append(f"its OME-XML is not valid: {' '.join(str(error).split())[:200]}")
            return faults
    if before.ome and after.ome:
        for name in ("PhysicalSizeX", "PhysicalSizeZ", "TimeIncrement"):
            old, new = [re.findall(rf'\b{name}="([^"]*)"', xml)[:1] for xml in (before.ome, after.ome)]
            if old and float(old[0]) and (not new or not np.isclose(float(old[0]), float(new[0]), rtol=1e-3)):
                faults.append(f"{name} is {new[0] if new else 'lost'}, of the source {old[0]}")
    elif before.ome:
        faults.append("its OME-XML is lost")
    return faults


def _scales(before: Seen, after: Seen) -> list[str]:
    if not before.scales or before.scales == after.scales:
        return []
    return [f"scales or axes {after.scales}, of the source {before.scales}"[:300]]
