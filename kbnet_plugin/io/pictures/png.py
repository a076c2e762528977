"""Read and write PNG with its chunks.

References
----------
.. [1] Portable Network Graphics (PNG) Specification, third edition, W3C, 2025.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import replace
from fractions import Fraction
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .. import embedded
from ..embedded import find_iptc, find_resolution, make_picture, photoshop_resource, software
from ..metadata import Image, Metadata
from ..signatures import UnsupportedError, check_memory

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_AFTER_HEADER = len(_SIGNATURE) + 25
_LEVEL, _PAETH = 3, 128  # take a third of the time of the defaults; files are a tenth larger
_SAMPLES = {0: 1, 2: 3, 3: 3, 4: 2, 6: 4}
_PALETTE = 3
_PREMULTIPLIED = 1
_COPIED = {b"gAMA": 4, b"cHRM": 32, b"sRGB": 1, b"cICP": 4, b"mDCV": 24, b"mDCv": 24, b"cLLI": 8, b"cLLi": 8}
_COPIED |= {b"oFFs": 9, b"sCAL": 0, b"sBIT": 0, b"pCAL": 0}
"""Chunks that are copied as they are, and their lengths; 0 if it varies."""

_OF_SAMPLES = (b"sBIT", b"pCAL")  # true only as long as the samples have the same bits
_OF_PIXELS = (b"IHDR", b"PLTE", b"tRNS", b"IDAT")
_PASSES = (0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2)
"""First column and row, and steps, of Adam7's passes."""

_XMP = "XML:com.adobe.xmp"
_RAW_PROFILE = "Raw profile type "
_PROFILES = ("exif", "APP1", "iptc", "8bim", "xmp", "icc", "icm")
_LONGEST_OF_PILLOW = 1 << 20  # it does not open files with longer compressed texts
_Chunk = tuple[bytes, bytes]
_LONGEST = 1 << 28  # of a decompressed chunk; a longer one is a bomb


def read_png(data: bytes) -> Image:
    """Decode a PNG.

    Parameters
    ----------
    data : bytes
        The file.

    Returns
    -------
    Image
        uint8, or uint16 for 16 bits; gray or RGB, with opacity if the file has any.

    Raises
    ------
    UnsupportedError
        If it is an animation, or does not fit in memory.
    Exception
        Of any kind if it is damaged.
    """
    chunks = list(_chunks(data))
    if not chunks or chunks[0][0] not in (b"IHDR", b"CgBI"):
        raise ValueError("no header")
    if chunks[0][0] == b"CgBI":
        raise UnsupportedError("optimized for iPhones; convert it with pngcrush -revert-iphone-optimizations")
    width, height, bits, colour = struct.unpack_from(">IIBB", chunks[0][1])
    if colour not in _SAMPLES:
        raise ValueError(f"colour type {colour} in its header")
    if not width or not height:
        raise ValueError("no pixels")
    transparent = any(name == b"tRNS" for name, _ in chunks)
    check_memory(width, height, (_SAMPLES[colour] + transparent) * (2 if bits == 16 else 1))
    notes: list[str] = []
    array = _decode(_still(chunks, notes))
    if colour == _PALETTE:
        notes.append("palette converted to RGB")
    metadata = _read_metadata(chunks, notes)
    if colour == _PALETTE or bits < 8 or transparent:
        metadata = replace(metadata, png=tuple(c for c in metadata.png if c[0] not in _OF_SAMPLES))
    return make_picture(array, metadata, notes)


def write_png(array: NDArray[Any], metadata: Metadata) -> bytes:
    """Encode a PNG.

    Parameters
    ----------
    array : ndarray
        (H, W) or (H, W, C) of uint8 or uint16, with C from 2 (gray and opacity) to 4 (RGB and opacity).
    metadata : Metadata
        As read from any file. Premultiplied colours are divided by their opacity, as PNG wants them.
    """
    import imagecodecs

    if metadata.alpha == _PREMULTIPLIED and array.ndim == 3 and array.shape[2] in (2, 4):
        array = _unmultiplied(array)
    data = bytes(imagecodecs.png_encode(np.ascontiguousarray(array), level=_LEVEL, filter=_PAETH))
    chunks = b"".join(_pack(name, content) for name, content in _write_metadata(metadata))
    return data[:_AFTER_HEADER] + chunks + data[_AFTER_HEADER:]


def _chunks(data: bytes) -> Iterator[_Chunk]:
    """Yield chunks up to the last, but no optional ones with a wrong check sum."""
    place, name = len(_SIGNATURE), b""
    while place + 8 <= len(data) and name != b"IEND":
        (size,) = struct.unpack_from(">I", data, place)
        name, content = data[place + 4 : place + 8], data[place + 8 : place + 8 + size]
        place += 12 + size
        if zlib.crc32(content, zlib.crc32(name)).to_bytes(4) == data[place - 4 : place] or name == b"IEND":
            yield name, content
        elif name[:1].isupper() or not name.isalpha():
            what = name.decode("ascii") if name.isalpha() else "a chunk"
            raise ValueError(f"{what} is incomplete or changed")


def _pack(name: bytes, content: bytes) -> bytes:
    return (
        struct.pack(">I", len(content)) + name + content + zlib.crc32(content, zlib.crc32(name)).to_bytes(4)
    )


def _still(chunks: Sequence[_Chunk], notes: list[str]) -> list[_Chunk]:
    """Return the chunks that matter for the pixels of the picture that viewers of animations show."""
    kept = [chunk for chunk in chunks if chunk[0] in _OF_PIXELS]
    names = [name for name, _ in chunks]
    frames = [content for name, content in chunks if name == b"fcTL"]
    before = chunks[: names.index(b"IDAT")] if b"IDAT" in names else chunks
    claimed = next((int.from_bytes(content[:4]) for name, content in before if name == b"acTL"), 0)
    if not frames or not 0 < claimed < 1 << 31:
        return kept
    if len(frames) > 1:
        raise UnsupportedError(f"an animation of {len(frames)} frames; save them as single pictures")
    if frames[0] in dict(before).values():
        return kept
    header = chunks[0][1]
    _, width, height, x, y = struct.unpack_from(">5I", frames[0])
    if (width, height, x, y) != (*struct.unpack_from(">II", header), 0, 0):
        raise UnsupportedError("an animation; save its pictures as single ones")
    notes.append("default picture of an animation dropped, as its only frame replaces it")
    pixels = b"".join(content[4:] for name, content in chunks if name == b"fdAT")
    return [*(chunk for chunk in kept if chunk[0] != b"IDAT"), (b"IDAT", pixels)]


def _decode(chunks: Sequence[_Chunk]) -> NDArray[Any]:
    """Decode the chunks of the pixels alone, because the decoder prints what it thinks of others."""
    import imagecodecs  # here, because importing this module must not need it

    header = chunks[0][1]
    if header[12:] == b"\1":
        return _decode_passes(chunks)
    data = _SIGNATURE + b"".join(_pack(*chunk) for chunk in [*chunks, (b"IEND", b"")])
    try:
        return imagecodecs.png_decode(data)
    except UnicodeDecodeError:  # in its message
        raise ValueError("pixels cannot be decoded") from None


def _decode_passes(chunks: Sequence[_Chunk]) -> NDArray[Any]:
    """Decode the passes of an interlaced picture one by one, because the decoder prints a warning."""
    width, height, bits, colour = struct.unpack_from(">IIBB", chunks[0][1])
    passes = [
        (x, y, dx, dy, -((x - width) // dx), -((y - height) // dy))
        for x, y, dx, dy in _PASSES
        if x < width and y < height
    ]
    row = _SAMPLES[colour] * bits if colour != _PALETTE else bits
    sizes = [h * (1 + (w * row + 7) // 8) for *_, w, h in passes]
    rows = zlib.decompressobj().decompress(b"".join(c for name, c in chunks if name == b"IDAT"), sum(sizes))
    if len(rows) < sum(sizes):
        raise ValueError("pixels are missing")
    result, place = None, 0
    others = [chunk for chunk in chunks[1:] if chunk[0] != b"IDAT"]
    for (x, y, dx, dy, w, h), size in zip(passes, sizes, strict=True):
        header = struct.pack(">II", w, h) + chunks[0][1][8:12] + b"\0"
        pixels = zlib.compress(rows[place : place + size], 0)
        part = _decode([(b"IHDR", header), *others, (b"IDAT", pixels)])
        place += size
        if result is None:
            result = np.empty((height, width, *part.shape[2:]), part.dtype)
        result[y::dy, x::dx] = part
    assert result is not None
    return result


def _unmultiplied(array: NDArray[Any]) -> NDArray[Any]:
    full = np.iinfo(array.dtype).max
    result = array.copy()
    for row in result:  # by rows, because floats take much memory
        alpha = row[:, -1:].astype(np.float32)
        colour = row[:, :-1] * np.divide(full, alpha, where=alpha > 0, out=np.zeros_like(alpha))
        row[:, :-1] = np.minimum(np.rint(colour), full)
    return result


# Metadata of a PNG.


def _read_metadata(chunks: Sequence[_Chunk], notes: list[str]) -> Metadata:
    icc = exif = xmp = iptc = None
    resolution, centimeters = None, False
    text: dict[str, str] = {}
    copied: list[_Chunk] = []
    for name, content in chunks:
        try:
            if name in _COPIED:
                if _COPIED[name] not in (0, len(content)):
                    raise ValueError("wrong length")
                copied.append((name, content))
            if name == b"iCCP":
                icc = _inflate(content.split(b"\0", 1)[1][1:])
            elif name == b"eXIf":
                exif = content
            elif name == b"pHYs":
                x, y, unit = struct.unpack(">IIB", content)
                centimeters = unit == 1
                divisor = 100 if centimeters else 1
                resolution = (x / divisor, y / divisor) if x and y else None
            elif name in (b"tEXt", b"zTXt", b"iTXt"):
                key, value = _read_text(name, content)
                kind = key.removeprefix(_RAW_PROFILE)
                if key == _XMP:
                    xmp = value
                elif key == "exif" and value.startswith(b"Exif\0\0"):  # of old versions of Pillow
                    exif = exif or value
                elif kind != key and kind in _PROFILES:
                    profile = _read_raw_profile(value)
                    if profile.startswith(b"Exif\0\0"):
                        exif = exif or profile
                    elif kind in ("iptc", "8bim"):
                        iptc = iptc or (find_iptc(profile) if profile.startswith(b"8BIM") else profile)
                    elif kind == "xmp":
                        xmp = xmp or profile
                    elif kind in ("icc", "icm"):
                        icc = icc or profile
                else:
                    decoded = value.decode("utf-8" if name == b"iTXt" else "latin-1").rstrip("\0")
                    text[key] = f"{text[key]}\n{decoded}" if key in text else decoded
        except (ValueError, IndexError, zlib.error, struct.error):
            notes.append(f"damaged {name.decode()} dropped")
    return Metadata(
        icc=icc,
        exif=exif,
        xmp=xmp,
        iptc=iptc,
        resolution=resolution,
        resolution_unit="centimeter" if centimeters else None,
        description=text.pop("Description", None) or text.get("Comment"),
        text=text,
        png=tuple(copied),
    )


def _write_metadata(metadata: Metadata) -> Iterator[_Chunk]:
    yield from metadata.png
    if metadata.icc:
        yield b"iCCP", b"ICC profile\0\0" + zlib.compress(metadata.icc)
    if found := find_resolution(metadata):
        yield b"pHYs", _resolution(*found)
    if metadata.exif:
        yield b"eXIf", metadata.exif
    if metadata.xmp:
        yield b"iTXt", _XMP.encode() + bytes(5) + metadata.xmp
    if metadata.iptc:
        yield _raw_profile("iptc", photoshop_resource(embedded.IPTC, metadata.iptc))
    text = dict(metadata.text)
    if metadata.description and metadata.description != text.get("Comment"):
        text["Description"] = metadata.description
    if metadata.history:
        text["Software"] = str(software(metadata))
    for key, value in text.items():
        if key:
            yield _text(key, value)


def _resolution(resolution: tuple[float, float], unit: str) -> bytes:
    largest = (1 << 31) - 1
    factor = {"INCH": 1 / 0.0254, "CENTIMETER": 100}.get(unit)
    values = [round(value * factor) for value in resolution] if factor else ratio(resolution, largest)
    return struct.pack(">IIB", *(min(max(value, 1), largest) for value in values), bool(factor))


def ratio(values: tuple[float, float], largest: int) -> list[int]:
    """Return two whole numbers up to `largest` in the ratio of two numbers, themselves if possible."""
    if all(value == round(value) <= largest for value in values):
        return [round(value) for value in values]
    found = Fraction(values[0] / values[1]).limit_denominator(10_000)
    return [min(found.numerator, largest), found.denominator] if found else [1, largest]


def _inflate(content: bytes) -> bytes:
    inflater = zlib.decompressobj()
    result = inflater.decompress(content, _LONGEST)
    if not inflater.eof:
        raise ValueError("incomplete, or too long")
    return result


def _read_text(name: bytes, content: bytes) -> tuple[str, bytes]:
    """Return the keyword and the text, encoded as the specification says, of a text chunk."""
    key, value = content.split(b"\0", 1)
    if name == b"zTXt":
        value = _inflate(value[1:])
    elif name == b"iTXt":
        compressed, (_, _, value) = value[0], value[2:].split(b"\0", 2)
        value = _inflate(value) if compressed else value
    return key.decode("latin-1"), value


def _text(key: str, value: str) -> _Chunk:
    keyword = key.encode("latin-1", "replace")[:79]
    value = value.replace("\0", "")
    try:
        content = value.encode("latin-1")
    except UnicodeEncodeError:
        return b"iTXt", keyword + bytes(5) + value.encode("utf-8", "replace")
    return b"tEXt", keyword + b"\0" + content


def _read_raw_profile(text: bytes) -> bytes:
    """Decode ImageMagick's hexadecimal form of a profile: name, length and digits on lines of their own."""
    _, _, digits = text.strip().split(None, 2)
    return bytes.fromhex(digits.decode("ascii"))


def _raw_profile(kind: str, content: bytes) -> _Chunk:
    digits = content.hex()
    lines = [digits[place : place + 72] for place in range(0, len(digits), 72)]
    text = "\n".join([f"\n{kind}", f"{len(content):8d}", *lines, ""])
    keyword = f"{_RAW_PROFILE}{kind}".encode()
    if len(text) > _LONGEST_OF_PILLOW:
        return b"tEXt", keyword + b"\0" + text.encode()
    return b"zTXt", keyword + b"\0\0" + zlib.compress(text.encode())
