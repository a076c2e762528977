"""What a file says of its stack besides the pixels."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

UNITS = {"µm": "micrometer", "nm": "nanometer", "mm": "millimeter", "s": "second", "ms": "millisecond"}
"""Abbreviations as OME-TIFF writes them to names as OME-Zarr does."""


@dataclass(frozen=True, slots=True)
class StackMetadata:
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
