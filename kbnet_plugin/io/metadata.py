"""What a file stores about a stack besides its pixels."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

UNITS = {"µm": "micrometer", "nm": "nanometer", "mm": "millimeter", "s": "second", "ms": "millisecond"}
"""From OME-TIFF's abbreviation of each unit to OME-Zarr's name."""


@dataclass(frozen=True, slots=True)
class StackMetadata:
    """What a file stores about a stack.

    Attributes
    ----------
    axes : str or None
        One letter of `kbnet_plugin.arrays.axes.AXES` per axis; None if the file does not name them.
    sizes : mapping
        From axis to (size of a pixel or step, unit or None).
    offsets : mapping
        From axis to the position of its first pixel or step, in the unit of its size; 0 if missing.
    channels : tuple of str
        Names of the channels; empty if the file has none.
    levels : int
        Number of levels of the multiscale pyramid; 1 if there is none.
    attributes : mapping
        All attributes of an OME-Zarr group.
    zarr_format : {2, 3}
        Format of a zarr source; 3 for others.
    chunks : tuple of int or None
        Chunk shape of a zarr source.
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
