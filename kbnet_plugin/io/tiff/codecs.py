"""Decode the strips and tiles of TIFF that tifffile does not decode, or not as libtiff does."""

from __future__ import annotations

import struct
import warnings
import zlib
from collections.abc import Sequence
from io import BytesIO
from typing import Any

import numpy as np
import tifffile
from numpy.typing import NDArray

from ..signatures import UnsupportedError, check_memory

_FILL_ORDER_REVERSED = 2


def decode_old_jpeg(page: Any) -> NDArray[Any]:
    """Decode a page of TIFF 6.0's JPEG, with headers scattered over the file, by libtiff in Pillow."""
    from PIL import Image

    if page.aspage().tags.valueof(274, 1) != 1:  # Pillow would turn it
        raise UnsupportedError("turned JPEG of TIFF 6.0; convert it with: tiff2rgba in.tif out.tif")
    shape = (page.keyframe.imagelength, page.keyframe.imagewidth, page.keyframe.samplesperpixel)
    check_memory(shape[1], shape[0], shape[2])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with Image.open(page.parent.filehandle.path, formats=["TIFF"]) as image:
            image.seek(page.index)
            image.load()
            array = np.asarray(image if image.mode == "L" else image.convert("RGB"))
    array = array.reshape(array.shape[0], array.shape[1], -1)
    if array.shape != shape:
        raise ValueError("JPEG of another size than the page")
    return array


def decode_units(page: Any, data: bytes, index: int, subsampling: tuple[int, int]) -> NDArray[Any]:
    """Expand YCbCr in units of several luma values that share two of chroma (TIFF 6.0, section 21)."""
    across, down = subsampling
    rows, width = _segment_size(page, index)
    high, wide, lumas = -(-rows // down), -(-width // across), across * down
    size = high * wide * (lumas + 2)
    units = np.frombuffer(_decompress(page, data, size), np.uint8, size).reshape(high, wide, lumas + 2)
    luma = units[..., :lumas].reshape(high, wide, down, across).transpose(0, 2, 1, 3)
    chroma = units[..., lumas:].repeat(down, axis=0).repeat(across, axis=1)
    both = np.dstack([luma.reshape(high * down, wide * across), chroma])
    return both[None, :rows, :width]


def decode_triples(page: Any, data: bytes, index: int) -> NDArray[Any]:
    """Decode 24 bits in the byte order of the file, as libtiff does; tifffile 2026.3.3 does not."""
    shape = (1, *_segment_size(page, index), page.shaped[-1], 3)
    size = int(np.prod(shape))
    triples = np.frombuffer(_decompress(page, data, size), np.uint8, size).reshape(shape).astype(np.uint32)
    low, middle, high = np.moveaxis(triples if page.parent.byteorder == "<" else triples[..., ::-1], -1, 0)
    return low | middle << 8 | high << 16


def trim(page: Any, data: bytes, index: int) -> bytes:
    """Drop what follows the values of a strip, and add the end that it may lack, as libtiff needs neither."""
    rows, width = _segment_size(page, index)
    size = rows * page.tiledepth * -(-width * page.shaped[-1] * page.bitspersample // 8)
    values = zlib.decompressobj().decompress(data, size)
    if len(values) < size:
        raise ValueError("compressed data end early")
    return zlib.compress(values, 1)


def _decompress(page: Any, data: bytes, size: int) -> bytes:
    if page.fillorder == _FILL_ORDER_REVERSED:
        import imagecodecs

        data = bytes(imagecodecs.bitorder_decode(data))
    if page.compression == 1:
        return data
    return bytes(tifffile.TIFF.DECOMPRESSORS[page.compression](data, out=size))


def decode_fax(page: Any, segments: Sequence[bytes], rows: int) -> NDArray[Any]:
    """Decode strips of CCITT that follow each other, or a tile, by libtiff in Pillow.

    imagecodecs 2026.3.6 decodes valid codes of Group 4 wrongly.
    """
    from PIL import Image

    data = b"".join(segments)
    data += b"\0" * (len(data) % 2)
    starts = [8 + sum(map(len, segments[:n])) for n in range(len(segments))]
    each = page.tilelength if page.is_tiled else min(page.rowsperstrip, rows)
    tags = {
        256: page.tilewidth if page.is_tiled else page.imagewidth,
        257: rows,
        258: 1,
        262: 1,
        277: 1,
        278: each,
    }
    tags |= {259: int(page.compression), 266: int(page.fillorder)}
    tags |= {code: page.tags.valueof(code) for code in (292, 293) if page.tags.valueof(code)}
    listed = {273: starts, 279: [len(segment) for segment in segments]}
    tables = {code: struct.pack(f"<{len(values)}I", *values) for code, values in listed.items()}
    end = 8 + len(data) + 2 + 12 * (len(tags) + len(tables)) + 4
    entries = {code: struct.pack("<HHII", code, 4, 1, value) for code, value in tags.items()}
    for place, (code, table) in enumerate(tables.items()):
        value = table if len(table) == 4 else struct.pack("<I", end + place * len(table))
        entries[code] = struct.pack("<HHI", code, 4, len(segments)) + value
    directory = (
        struct.pack("<H", len(entries)) + b"".join(entries[code] for code in sorted(entries)) + bytes(4)
    )
    file = b"II*\0" + struct.pack("<I", 8 + len(data)) + data + directory + b"".join(tables.values())
    with Image.open(BytesIO(file), formats=["TIFF"]) as image:
        return np.asarray(image)[None, ..., None]


def _segment_size(page: Any, index: int) -> tuple[int, int]:
    """Return the rows and columns of a strip or tile."""
    if page.is_tiled:
        return page.tilelength, page.tilewidth
    strips = -(-page.imagelength // page.rowsperstrip)
    return min(page.rowsperstrip, page.imagelength - index % strips * page.rowsperstrip), page.imagewidth
