"""Take EXIF blocks apart, and build the directories of tags that TIFF stores instead."""

from __future__ import annotations

import struct

import numpy as np

SUB_DIRECTORIES = (34665, 34853, 40965)
"""Tags that point to a directory of further tags: EXIF, GPS and Interoperability."""

SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4}
"""From each type of values to the number of bytes of one."""

WORDS = {3: 2, 4: 4, 5: 4, 8: 2, 9: 4, 10: 4, 11: 4, 12: 8, 13: 4}
"""From each type of several bytes to the number of those that swap together."""

_LONG = 4

Directory = dict[int, "tuple[int, bytes] | Directory"]
"""From each tag to its type and little-endian bytes, or to a directory of further tags."""


def read_exif(block: bytes) -> Directory:
    """Take an EXIF block apart.

    Parameters
    ----------
    block : bytes
        As in a JPEG, with or without the prefix ``Exif\\0\\0``.

    Returns
    -------
    dict
        The first directory with those that it points to, without the thumbnail. What is damaged is left out.

    References
    ----------
    .. [1] CIPA DC-008, Exchangeable image file format for digital still cameras: Exif, section 4.5.
    """
    block = block.removeprefix(b"Exif\0\0")
    if block[:4] not in (b"II*\0", b"MM\0*") or len(block) < 8:
        return {}
    order = "<" if block[:2] == b"II" else ">"
    return _read_directory(block, order, struct.unpack_from(f"{order}I", block, 4)[0], depth=0)


def _read_directory(block: bytes, order: str, start: int, depth: int) -> Directory:
    found: Directory = {}
    if start + 2 > len(block) or depth > 2:
        return found
    for n in range(struct.unpack_from(f"{order}H", block, start)[0]):
        entry = start + 2 + 12 * n
        if entry + 12 > len(block):
            break
        tag, kind, count = struct.unpack_from(f"{order}HHI", block, entry)
        size = SIZES.get(kind, 0) * count
        at = entry + 8 if size <= 4 else struct.unpack_from(f"{order}I", block, entry + 8)[0]
        value = block[at : at + size]
        if not size or len(value) < size:
            continue
        if order == ">" and kind in WORDS:
            value = np.frombuffer(value, f">u{WORDS[kind]}").byteswap().tobytes()
        if tag not in SUB_DIRECTORIES:
            found[tag] = kind, value
        elif size == 4 and (
            below := _read_directory(block, order, int.from_bytes(value, "little"), depth + 1)
        ):
            found[tag] = below
    return found


def pack_directory(directory: Directory, start: int, *, big: bool) -> bytes:
    """Build a directory for a little-endian TIFF.

    Parameters
    ----------
    directory : dict
        As `read_exif` returns it.
    start : int
        Where the result will lie in the file; even.
    big : bool
        For BigTIFF.

    Returns
    -------
    bytes
        The directory, its values and the directories that it points to; of even length.
    """
    count, entry, room = ("<Q", "<HHQ", 8) if big else ("<H", "<HHI", 4)
    end = start + struct.calcsize(count) + len(directory) * (struct.calcsize(entry) + room) + room
    head, values = struct.pack(count, len(directory)), b""
    for tag, content in sorted(directory.items()):
        if isinstance(content, dict):
            position = end + len(values)
            values += pack_directory(content, position, big=big)
            kind, value = _LONG, struct.pack("<I", position)
        else:
            kind, value = content
        head += struct.pack(entry, tag, kind, len(value) // SIZES[kind])
        if len(value) <= room:
            head += value.ljust(room, b"\0")
        else:
            head += struct.pack("<Q" if big else "<I", end + len(values))
            values += value + b"\0" * (len(value) % 2)
    return head + bytes(room) + values
