"""What a file stores besides its pixels."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

STRAIGHT_ALPHA = 2
"""Value of TIFF's ExtraSamples for opacity that the colours are not multiplied by."""


class Tag(NamedTuple):
    """A TIFF tag that is copied as it is; fields as for `tifffile.TiffWriter.write`'s `extratags`."""

    dtype: int
    length: int
    value: Any


@dataclass(frozen=True, slots=True)
class Metadata:
    """What a file stores about an image, copied from input to output as far as the formats allow.

    Attributes
    ----------
    axes : str or None
        One letter of `kbnet_plugin.arrays.axes.AXES` per axis of the array; None if they are not known.
    form : {"picture", "imagej", "ome", "zarr"}
        Which conventions the file follows: those of photographs, ImageJ's, OME-TIFF's or OME-Zarr's.
    path : str
        Place of the image in a file of several, such as ``"A/1/0"``; empty if there is only one.
    sizes : mapping
        From axis to (size of a pixel or step, unit or None). Units are singular names such as
        ``"micrometer"`` and ``"second"``, as in OME-Zarr.
    offsets : mapping
        From axis to the position of its first pixel or step, in the unit of its size; 0 if missing.
    channels : tuple of str
        Names of the channels; empty if there are none.
    levels : int
        Number of levels of the multiscale pyramid; 1 if there is none.
    icc, exif, xmp, iptc : bytes or None
        Colour profile; EXIF block without its orientation, as the array is upright, and without the prefix
        ``Exif\\0\\0``; XMP packet; IPTC-IIM record.
    resolution : (float, float) or None
        Horizontal and vertical pixels per `resolution_unit`.
    resolution_unit : {"inch", "centimeter", None}
        None if only the ratio of the two has a meaning.
    description : str or None
        Caption.
    text : mapping
        Other texts, by the keywords of PNG: Title, Author, Copyright, Creation Time, Software, ...
    alpha : int
        Kind of the last sample of 2 or 4, as TIFF's ExtraSamples: premultiplied opacity (1), straight opacity
        (2), or unspecified (0).
    tags : mapping
        From number to `Tag`: TIFF tags that have no meaning for other formats.
    png : tuple of (bytes, bytes)
        Names and contents of PNG chunks that say how values become colours: gAMA, cHRM, sRGB, cICP, ...
    imagej : mapping
        ImageJ's metadata, as `tifffile.TiffFile.imagej_metadata`.
    ome : str or None
        OME-XML of the file.
    ome_image : int
        Number of this image in `ome`.
    attributes : mapping
        All attributes of an OME-Zarr group.
    zarr_format : {2, 3}
        Format of a zarr source; 3 for others.
    chunks : tuple of int or None
        Chunk shape of a zarr source.
    history : mapping
        What was done to the pixels; see `kbnet_plugin.inference.history`. Empty for an image as read.
    """

    axes: str | None = None
    form: Literal["picture", "imagej", "ome", "zarr"] = "picture"
    path: str = ""
    sizes: Mapping[str, tuple[float, str | None]] = field(default_factory=dict)
    offsets: Mapping[str, float] = field(default_factory=dict)
    channels: tuple[str, ...] = ()
    levels: int = 1
    icc: bytes | None = None
    exif: bytes | None = None
    xmp: bytes | None = None
    iptc: bytes | None = None
    resolution: tuple[float, float] | None = None
    resolution_unit: Literal["inch", "centimeter"] | None = None
    description: str | None = None
    text: Mapping[str, str] = field(default_factory=dict)
    alpha: int = STRAIGHT_ALPHA
    tags: Mapping[int, Tag] = field(default_factory=dict)
    png: tuple[tuple[bytes, bytes], ...] = ()
    imagej: Mapping[str, Any] = field(default_factory=dict)
    ome: str | None = None
    ome_image: int = 0
    attributes: Mapping[str, Any] = field(default_factory=dict)
    zarr_format: int = 3
    chunks: tuple[int, ...] | None = None
    history: Mapping[str, Any] = field(default_factory=dict)

    @property
    def dpi(self) -> tuple[float, float] | None:
        """Horizontal and vertical pixels per inch; None if not known."""
        if self.resolution is None or self.resolution_unit is None:
            return None
        factor = 2.54 if self.resolution_unit == "centimeter" else 1.0
        return self.resolution[0] * factor, self.resolution[1] * factor


@dataclass(frozen=True, slots=True)
class Image:
    """One image of a file.

    Attributes
    ----------
    array : array
        Anything with shape and dtype that can be sliced. Upright; gray, RGB, or channels, perhaps with
        opacity; values of whole-numbered dtypes fill their range as the file means it: 12 bits are scaled to
        16, and white is the largest value.
    metadata : Metadata
    notes : tuple of str
        What reading converted, dropped or guessed, for people: ``"palette converted to RGB"``.
    """

    array: Any
    metadata: Metadata
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Frame:
    """An image to write.

    Attributes
    ----------
    shape : tuple of int
    dtype : dtype
    metadata : Metadata
        Its axes are those of the shape, and are not None.
    """

    shape: tuple[int, ...]
    dtype: Any
    metadata: Metadata
