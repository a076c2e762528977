"""Read JPEG XL, whose decoder gives pixels only: the header says what they mean.

References
----------
.. [1] ISO/IEC 18181-1:2024, Annexes B and D (codestream headers), and ISO/IEC 18181-2:2024 (file format).
.. [2] ITU-T Recommendation H.273, 2024: code points of primaries and transfer functions, as in PNG's cICP.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from ..embedded import make_picture, rescale
from ..metadata import STRAIGHT_ALPHA, Image, Metadata
from ..signatures import UnsupportedError, check_memory

_CONTAINER = b"\0\0\0\x0cJXL "
_PREMULTIPLIED = 1
_ALPHA, _SPOT, _BLACK, _CFA = 0, 2, 4, 5  # types of extra channels
_GRAY, _XYB = 1, 2  # colour spaces
_CUSTOM = 2  # white point or primaries
_SRGB_TRANSFER = 13
_WHITES = {1: (31270, 32900), 10: (33333, 33333), 11: (31400, 35100)}
_PRIMARIES = {
    1: (64000, 33000, 30000, 60000, 15000, 6000),
    9: (70800, 29200, 17000, 79700, 13100, 4600),
    11: (68000, 32000, 26500, 69000, 15000, 6000),
}
_CODE_POINTS = {(1, 1): 1, (9, 1): 9, (11, 1): 12, (11, 11): 11}  # of primaries and white point, for H.273


@dataclass(slots=True)
class _Header:
    width: int = 0
    height: int = 0
    bits: int = 8
    is_float: bool = False
    is_animation: bool = False
    extra: tuple[int, ...] = ()
    alpha: int = STRAIGHT_ALPHA
    is_xyb: bool = True
    has_profile: bool = False
    space: int = 0
    white: int = 1
    primaries: int = 1
    white_point: tuple[int, ...] = _WHITES[1]
    primary_points: tuple[int, ...] = _PRIMARIES[1]
    gamma: int = 0  # times 1e7; 0 if `transfer` names the function
    transfer: int = _SRGB_TRANSFER


def read_jpegxl(data: bytes) -> Image:
    """Decode a JPEG XL.

    Parameters
    ----------
    data : bytes
        The file.

    Returns
    -------
    Image
        uint8, uint16 or float; gray or RGB, with opacity if the file has any.

    Raises
    ------
    UnsupportedError
        If it is an animation or CMYK, does not fit in memory, or has colours that cannot be told.
    Exception
        Of any kind if it is damaged.
    """
    import imagecodecs

    codestream, exif, xmp = _unpack(data)
    header = _read_header(codestream)
    samples = (1 if header.space == _GRAY else 3) + (_ALPHA in header.extra)
    depth = 4 if header.is_float else 2 if header.bits > 8 else 1
    check_memory(header.width, header.height, (samples + len(header.extra)) * depth)
    if _BLACK in header.extra:
        raise UnsupportedError("a CMYK JPEG XL; convert it to RGB with ImageMagick")
    if header.has_profile and header.is_xyb:  # the decoder would give linear values without a word
        raise UnsupportedError(
            "its colours need its ICC profile, which is not read; convert it to PNG with djxl"
        )
    array = imagecodecs.jpegxl_decode(data)
    if header.is_animation and array.ndim == (4 if samples > 1 else 3):
        raise UnsupportedError(f"an animation of {len(array)} frames; save them as single pictures")
    notes: list[str] = []
    if header.has_profile:
        notes.append("colour profile, which cannot be read, dropped: colours may shift")
    if len(header.extra) > (_ALPHA in header.extra):
        notes.append("channels that are no colours dropped")
        array = array.reshape(*array.shape[:2], -1)[..., :samples]
        array = array[..., 0] if samples == 1 else array
    if array.dtype.kind == "u":
        array = rescale(np.ascontiguousarray(array), header.bits)
    metadata = Metadata(exif=exif, xmp=xmp, alpha=header.alpha, png=tuple(_colour_chunks(header)))
    return make_picture(array, metadata, notes, is_upright=True)


def _unpack(data: bytes) -> tuple[bytes, bytes | None, bytes | None]:
    """Return the start of the codestream, and EXIF and XMP."""
    if not data.startswith(_CONTAINER):
        return data, None, None
    codestream, exif, xmp = b"", None, None
    for name, content in boxes(data):
        if name == b"brob":
            import imagecodecs

            name, content = content[:4], bytes(imagecodecs.brotli_decode(content[4:]))
        if name == b"jxlc":
            codestream = content
        elif name == b"jxlp":
            codestream += content[4:]
        elif name == b"Exif":
            exif = content[4 + int.from_bytes(content[:4]) :]
        elif name == b"xml ":
            xmp = xmp or content
    return codestream, exif, xmp


def boxes(data: bytes, place: int = 0) -> Iterator[tuple[bytes, bytes]]:
    """Yield names and contents of the boxes of a file of the MP4 family, or inside a box, from `place` on."""
    while place + 8 <= len(data):
        size, name, start = int.from_bytes(data[place : place + 4]), data[place + 4 : place + 8], place + 8
        if size == 1:
            size, start = int.from_bytes(data[start : start + 8]), place + 16
        end = place + size if size else len(data)
        if end < start:
            return
        yield name, data[start:end]
        place = end


class _Bits:
    """Reads whole numbers as the codestream packs them: lowest bits first."""

    def __init__(self, data: bytes) -> None:
        self._bits = int.from_bytes(data, "little")
        self._left = 8 * len(data)

    def take(self, count: int) -> int:
        if count > self._left:
            raise ValueError("header is incomplete")
        value = self._bits & ((1 << count) - 1)
        self._bits >>= count
        self._left -= count
        return value

    def flag(self) -> bool:
        return bool(self.take(1))

    def choose(self, *cases: tuple[int, int]) -> int:
        """Take two bits, which choose a number to add and the count of the bits to add it to."""
        base, count = cases[self.take(2)]
        return base + self.take(count)

    def enum(self) -> int:
        return self.choose((0, 0), (1, 0), (2, 4), (18, 6))


def _read_header(data: bytes) -> _Header:
    if data[:2] != b"\xff\x0a":
        raise ValueError("no codestream in it")
    bits, header = _Bits(data[2:4096]), _Header()
    header.width, header.height = _read_size(bits)
    if bits.flag():  # all values are the defaults
        return header
    if bits.flag():
        bits.take(3)  # orientation
        if bits.flag():
            _read_size(bits)
        if bits.flag():
            _read_preview(bits)
        if bits.flag():
            header.is_animation = True
            bits.choose((100, 0), (1000, 0), (1, 10), (1, 30))
            bits.choose((1, 0), (1001, 0), (1, 8), (1, 10))
            bits.choose((0, 0), (0, 3), (0, 16), (0, 32))
            bits.flag()
    header.bits, header.is_float = _read_depth(bits)
    bits.flag()
    count = bits.choose((0, 0), (1, 0), (2, 4), (1, 12))
    header.extra = tuple(_read_extra(bits, header) for _ in range(count))
    header.is_xyb = bits.flag()
    _read_colours(bits, header)
    return header


def _read_size(bits: _Bits) -> tuple[int, int]:
    in_eights = bits.flag()

    def side() -> int:
        return 8 * (1 + bits.take(5)) if in_eights else bits.choose((1, 9), (1, 13), (1, 18), (1, 30))

    height = side()
    return _width(bits.take(3), height) or side(), height


def _read_preview(bits: _Bits) -> None:
    in_eights = bits.flag()

    def side() -> int:
        if in_eights:
            return bits.choose((16, 0), (32, 0), (1, 5), (33, 9))
        return bits.choose((1, 6), (65, 8), (321, 10), (1345, 12))

    height = side()
    if not _width(bits.take(3), height):
        side()


def _width(ratio: int, height: int) -> int:
    top, bottom = ((0, 1), (1, 1), (12, 10), (4, 3), (3, 2), (16, 9), (5, 4), (2, 1))[ratio]
    return height * top // bottom


def _read_depth(bits: _Bits) -> tuple[int, bool]:
    is_float = bits.flag()
    if not is_float:
        return bits.choose((8, 0), (10, 0), (12, 0), (1, 6)), False
    depth = bits.choose((32, 0), (16, 0), (24, 0), (1, 6))
    bits.take(4)
    return depth, True


def _read_extra(bits: _Bits, header: _Header) -> int:
    if bits.flag():
        return _ALPHA
    kind = bits.enum()
    _read_depth(bits)
    bits.choose((0, 0), (3, 0), (4, 0), (1, 3))
    bits.take(8 * bits.choose((0, 0), (0, 4), (16, 5), (48, 10)))  # its name
    if kind == _ALPHA and bits.flag():
        header.alpha = _PREMULTIPLIED
    elif kind == _SPOT:
        bits.take(64)
    elif kind == _CFA:
        bits.choose((1, 0), (0, 2), (3, 4), (19, 8))
    return kind


def _read_colours(bits: _Bits, header: _Header) -> None:
    if bits.flag():  # sRGB
        return
    header.has_profile = bits.flag()
    header.space = bits.enum()
    if header.has_profile:
        return
    if header.space != _XYB:
        header.white = bits.enum()
        header.white_point = _WHITES.get(header.white) or _read_points(bits, 1)
        if header.space != _GRAY:
            header.primaries = bits.enum()
            header.primary_points = _PRIMARIES.get(header.primaries) or _read_points(bits, 3)
    if bits.flag():
        header.gamma = bits.take(24)
    else:
        header.transfer = bits.enum()


def _read_points(bits: _Bits, count: int) -> tuple[int, ...]:
    """Read chromaticities, times 1e5."""
    packed = [bits.choose((0, 19), (1 << 19, 19), (1 << 20, 20), (1 << 21, 21)) for _ in range(2 * count)]
    return tuple(round((-(value // 2) - 1 if value % 2 else value // 2) / 10) for value in packed)


def _colour_chunks(header: _Header) -> Iterator[tuple[bytes, bytes]]:
    """Yield PNG chunks that define the colours, unless they are sRGB's."""
    primaries = _CODE_POINTS.get((header.primaries, header.white))
    if header.has_profile or (primaries, header.transfer, header.gamma) == (1, _SRGB_TRANSFER, 0):
        return
    if primaries and not header.gamma:
        yield b"cICP", bytes([primaries, header.transfer, 0, 1])
        return
    gamma = header.gamma / 100 if header.gamma else {8: 100_000}.get(header.transfer, 45_455)
    yield b"gAMA", struct.pack(">I", round(gamma))
    if header.space != _GRAY:
        yield (
            b"cHRM",
            struct.pack(">8I", *(p % (1 << 32) for p in (*header.white_point, *header.primary_points))),
        )
