"""Names and symbols of the units of length and time."""

from __future__ import annotations

import re

_PREFIXES = {
    "yotta": ("Y", 24),
    "zetta": ("Z", 21),
    "exa": ("E", 18),
    "peta": ("P", 15),
    "tera": ("T", 12),
    "giga": ("G", 9),
    "mega": ("M", 6),
    "kilo": ("k", 3),
    "hecto": ("h", 2),
    "": ("", 0),
    "deci": ("d", -1),
    "centi": ("c", -2),
    "milli": ("m", -3),
    "micro": ("µ", -6),
    "nano": ("n", -9),
    "pico": ("p", -12),
    "femto": ("f", -15),
    "atto": ("a", -18),
    "zepto": ("z", -21),
    "yocto": ("y", -24),
}
# From each name to its symbol in OME-XML, and its size in meters or seconds.
_LENGTHS = {f"{prefix}meter": (f"{short}m", 10.0**power) for prefix, (short, power) in _PREFIXES.items()}
_LENGTHS |= {
    "angstrom": ("Å", 1e-10),
    "inch": ("in", 0.0254),
    "foot": ("ft", 0.3048),
    "yard": ("yd", 0.9144),
    "mile": ("mi", 1609.344),
    "parsec": ("pc", 3.0856775814913673e16),
}
_TIMES = {f"{prefix}second": (f"{short}s", 10.0**power) for prefix, (short, power) in _PREFIXES.items()}
_TIMES |= {"minute": ("min", 60.0), "hour": ("h", 3600.0), "day": ("d", 86400.0)}
_UNITS = _LENGTHS | _TIMES

_SPELLINGS = {symbol: name for name, (symbol, _) in _UNITS.items()}
_SPELLINGS |= {
    "A": "angstrom",
    "\N{ANGSTROM SIGN}": "angstrom",
    "ångström": "angstrom",
    "ångstrom": "angstrom",
}
_SPELLINGS |= {"micron": "micrometer", "feet": "foot", '"': "inch", "hr": "hour"}
_SPELLINGS |= {"sec": "second", "msec": "millisecond", "µsec": "microsecond", "nsec": "nanosecond"}


def to_name(unit: str) -> str | None:
    """Return the name of a unit of length or time in any spelling.

    Parameters
    ----------
    unit : str
        Symbol (``"µm"``, ``"um"``, ImageJ's ``"\\\\u00B5m"``) or name (``"microns"``, ``"Micrometre"``).

    Returns
    -------
    str or None
        Singular name, such as ``"micrometer"``; None if it is none of the units of OME-Zarr, as ``"pixel"``.

    References
    ----------
    .. [1] https://ngff.openmicroscopy.org/0.5/#axes-md, the names that OME-Zarr allows.
    """
    unit = re.sub(r"\\u([0-9a-fA-F]{4})", lambda found: chr(int(found[1], 16)), unit).strip()
    unit = unit.replace("\N{GREEK SMALL LETTER MU}", "µ")
    unit = re.sub(r"^u(?=(m|s|sec|meters?|metres?|seconds?)$)", "µ", unit)
    if unit in _SPELLINGS:  # symbols differ in case: Mm is not mm
        return _SPELLINGS[unit]
    word = unit.lower()
    word = re.sub(r"^µ(?=(meter|metre|second))", "micro", word).replace("metre", "meter")
    for name in (word, word.removesuffix("s"), word.removesuffix("es")):
        if name in _UNITS:
            return name
        if name in _SPELLINGS and len(name) > 2:
            return _SPELLINGS[name]
    return None


def to_symbol(name: str) -> str | None:
    """Return the symbol of a unit in OME-XML.

    Parameters
    ----------
    name : str
        As `to_name` returns it.

    Returns
    -------
    str or None
        Such as ``"µm"``; None if OME-XML has none.
    """
    return _UNITS[name][0] if name in _UNITS else None


def is_length(name: str | None) -> bool:
    """Tell whether a name is that of a unit of length."""
    return name in _LENGTHS


def is_time(name: str | None) -> bool:
    """Tell whether a name is that of a unit of time."""
    return name in _TIMES


def convert(value: float, unit: str, other: str) -> float:
    """Express a length or time in another unit; both units as `to_name` returns them."""
    return value if unit == other else value * (_UNITS[unit][1] / _UNITS[other][1])
