"""Read and write JPEG.

References
----------
.. [1] ITU-T Recommendation T.81, 1992.
"""

from __future__ import annotations

import io
import struct
from dataclasses import replace
from typing import Any

import numpy as np
import PIL.Image
from numpy.typing import NDArray
from PIL import ImageCms, JpegImagePlugin

from ..embedded import make_picture, rescale
from ..metadata import Image, Metadata
from ..signatures import UnsupportedError, check_memory
from .jpeg_metadata import APP0, APP14, METADATA, Segment, read_metadata, write_metadata

LARGEST_SIDE = 65500
"""Pixels that libjpeg accepts on a side."""

_QUALITY = 95
_SOS, _EOI = 0xDA, 0xD9
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_LOSSLESS = (0xC3, 0xCB)
_HIERARCHICAL = (0xC5, 0xC6, 0xC7, 0xCD, 0xCE, 0xCF)


def read_jpeg(data: bytes) -> Image:
    """Decode a JPEG.

    Parameters
    ----------
    data : bytes
        The file.

    Returns
    -------
    Image
        uint8, or uint16 for 9 to 16 bits; gray or RGB. The first picture of several.

    Raises
    ------
    UnsupportedError
        If no library decodes it, or it does not fit in memory.
    Exception
        Of any kind if it is damaged.
    """
    segments, scan = _segments(data)
    marker, frame = next((s for s in segments if s.marker in _FRAMES), (0, b""))
    if not frame:
        raise ValueError("no picture in it")
    bits, height, width, components = struct.unpack_from(">BHHB", frame)
    check_memory(width, height, components * (2 if bits > 8 else 1))
    if marker in _HIERARCHICAL or components not in (1, 3, 4):
        what = "hierarchical" if marker in _HIERARCHICAL else f"of {components} colours"
        raise UnsupportedError(f"a JPEG {what}, which no library here decodes; convert it to PNG or TIFF")
    notes: list[str] = []
    metadata = read_metadata(segments, notes)
    # Metadata are left out for decoders, which would warn of damaged ones.
    kept = [s for s in segments if s.marker in (APP0, APP14) or s.marker not in METADATA]
    bare = b"\xff\xd8" + b"".join(_pack(*s) for s in kept) + data[scan:]
    if bits == 8 and marker not in _LOSSLESS:
        with JpegImagePlugin.JpegImageFile(io.BytesIO(bare)) as image:
            image.load()
            if image.mode == "CMYK":
                adobe = any(s.marker == APP14 and s.content.startswith(b"Adobe") for s in segments)
                array = _rgb(image, adobe, metadata.icc, notes)
                metadata = replace(metadata, icc=None)
            else:
                array = np.array(image)
    else:
        if marker in _LOSSLESS and components == 3:
            notes.append("colours of a lossless JPEG taken for RGB")
        array = _decode_rare(bare, bits, components, lossless=marker in _LOSSLESS)
    return make_picture(array, metadata, notes)


def write_jpeg(array: NDArray[Any], metadata: Metadata) -> tuple[bytes, list[str]]:
    """Encode a JPEG with quality 95, without colour subsampling.

    Parameters
    ----------
    array : ndarray
        (H, W) or (H, W, 3) of uint8.
    metadata : Metadata
        As read from any file.

    Returns
    -------
    data : bytes
        The file.
    losses : list of str
        Which metadata were dropped, because JPEG cannot store them.
    """
    buffer = io.BytesIO()
    PIL.Image.fromarray(array).save(buffer, "JPEG", quality=_QUALITY, subsampling=0)
    segments, losses = write_metadata(metadata)
    encoded = buffer.getvalue()
    (length,) = struct.unpack_from(">H", encoded, 4)  # of the JFIF segment that libjpeg writes first
    return b"\xff\xd8" + b"".join(_pack(*s) for s in segments) + encoded[4 + length :], losses


def _segments(data: bytes) -> tuple[list[Segment], int]:
    """Return the segments before the first scan, and where that starts; junk between them is skipped."""
    found: list[Segment] = []
    place = 2
    while place + 4 <= len(data):
        start = data.find(b"\xff", place)
        if start < 0:
            break
        marker = data[start + 1] if start + 1 < len(data) else 0
        if marker == _SOS:
            return found, start
        if marker in (0, 0xFF, 1) or 0xD0 <= marker <= _EOI:
            place = start + (1 if marker == 0xFF else 2)
            continue
        (length,) = struct.unpack(">H", data[start + 2 : start + 4])
        found.append(Segment(marker, data[start + 4 : start + 2 + length]))
        place = start + 2 + length
    raise ValueError("no picture in it")


def _pack(marker: int, content: bytes) -> bytes:
    return struct.pack(">BBH", 0xFF, marker, len(content) + 2) + content


def _decode_rare(data: bytes, bits: int, components: int, *, lossless: bool) -> NDArray[Any]:
    """Decode what Pillow cannot: more than 8 bits, and lossless JPEG."""
    import imagecodecs

    if b"\xff\xd9" not in data:  # not noticed by the decoder
        raise ValueError("its end is missing")
    try:
        # The decoder would convert colours, which is never lossless, and refuses to.
        colours = "RGB" if lossless and components == 3 else None
        array = imagecodecs.jpeg8_decode(data, colorspace=colours, outcolorspace=colours)
    except RuntimeError as error:
        if "nsupported" not in str(error):
            raise
        raise UnsupportedError(
            f"a lossless or {bits}-bit JPEG that libjpeg does not decode ({error}); convert it to PNG or "
            "TIFF with ImageMagick or dcmdjpeg"
        ) from None
    if components == 4:
        raise UnsupportedError(f"a {bits}-bit CMYK JPEG; convert it to RGB with ImageMagick")
    return rescale(array, bits)


def _rgb(image: PIL.Image.Image, adobe: bool, icc: bytes | None, notes: list[str]) -> NDArray[Any]:
    """Convert CMYK to sRGB."""
    if not adobe:  # Pillow inverts all, but only Adobe's programs store paper white as 255
        image = PIL.Image.eval(image, lambda value: 255 - value)
    converted = to_srgb(image, icc) if icc else None
    how = "by its profile, which is dropped" if converted else "without a profile"
    notes.append(f"CMYK converted to RGB {how}")
    return np.array(converted or image.convert("RGB"))


def to_srgb(image: PIL.Image.Image, icc: bytes) -> PIL.Image.Image | None:
    """Convert a picture of Pillow to sRGB by an ICC profile; None if that is damaged or of other colours."""
    try:
        return ImageCms.profileToProfile(
            image,
            ImageCms.ImageCmsProfile(io.BytesIO(icc)),
            ImageCms.createProfile("sRGB"),
            ImageCms.Intent.RELATIVE_COLORIMETRIC,
            "RGB",
            flags=ImageCms.Flags.BLACKPOINTCOMPENSATION,
        )
    except (ImageCms.PyCMSError, OSError):
        return None
