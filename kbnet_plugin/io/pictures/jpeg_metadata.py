"""Metadata in the marker segments of JPEG.

References
----------
.. [1] ITU-T Recommendation T.871 (JFIF), 2011.
.. [2] XMP Specification, Part 3: Storage in Files, Adobe, 2020.
.. [3] ICC.1:2022, Annex B.
.. [4] CIPA DC-007, Multi-Picture Format, 2009.
"""

from __future__ import annotations

import hashlib
import re
import struct
from collections.abc import Iterator, Sequence
from contextlib import suppress
from fractions import Fraction
from typing import Any, NamedTuple
from xml.etree import ElementTree

from .. import embedded
from ..embedded import TEXTS, find_iptc, find_resolution, photoshop_resource, read_tag, software, with_tags
from ..metadata import Metadata
from .png import ratio

APP0, APP14 = 0xE0, 0xEE
_APP1, _APP2, _APP13, _COM = 0xE1, 0xE2, 0xED, 0xFE
METADATA = frozenset((*range(APP0, 0xF0), _COM))
"""Markers of segments that are no part of the picture."""

_EXIF = b"Exif\0\0"
_XMP, _MORE_XMP = b"http://ns.adobe.com/xap/1.0/\0", b"http://ns.adobe.com/xmp/extension/\0"
_ICC, _MPF, _PHOTOSHOP = b"ICC_PROFILE\0", b"MPF\0", b"Photoshop 3.0\0"
_LONGEST = 0xFFFF - 2
_POINTER = (
    '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
    '<rdf:Description rdf:about="" xmlns:xmpNote="http://ns.adobe.com/xmp/note/" '
    'xmpNote:HasExtendedXMP="{}"/></rdf:RDF></x:xmpmeta>'
)
_POINTS = re.compile(rb"\s*xmpNote:HasExtendedXMP\s*=\s*[\"'](\w{32}|{})[\"']")
_MPF_COUNT = 0xB001
_KEYWORDS = {keyword: tag for tag, keyword in TEXTS.items()}
_DATE = re.compile(r"\d{4}:\d\d:\d\d \d\d:\d\d:\d\d")


class Segment(NamedTuple):
    """A marker segment.

    Attributes
    ----------
    marker : int
        Second byte of its marker.
    content : bytes
        Without marker and length.
    """

    marker: int
    content: bytes


def read_metadata(segments: Sequence[Segment], notes: list[str]) -> Metadata:
    """Read what segments say about a picture, and add notes of what is left out."""

    def contents(marker: int, prefix: bytes = b"") -> list[bytes]:
        found = [s.content for s in segments if s.marker == marker and s.content.startswith(prefix)]
        return [content[len(prefix) :] for content in found]

    exif = contents(_APP1, _EXIF)
    comments = [c.rstrip(b"\0") for c in contents(_COM)]
    for index in contents(_APP2, _MPF):
        try:
            count = read_tag(index, _MPF_COUNT)
        except (ValueError, struct.error):
            continue
        if isinstance(count, int) and count > 1:
            notes.append(f"{count - 1} further picture{'s' * (count > 2)} in the file dropped")
    resolution, unit = None, None
    for version_and_density in contents(APP0, b"JFIF\0"):
        code, x, y = struct.unpack_from(">BHH", version_and_density.ljust(7, b"\0"), 2)
        unit = embedded.UNITS.get(code + 1)
        if x and y and (unit or (x, y) != (1, 1)):
            resolution = (float(x), float(y))
    return Metadata(
        icc=_join_icc(contents(_APP2, _ICC), notes),
        exif=_join_exif(exif),
        xmp=_join_xmp(contents(_APP1, _XMP), contents(_APP1, _MORE_XMP), notes),
        iptc=find_iptc(b"".join(contents(_APP13, _PHOTOSHOP))),
        resolution=resolution,
        resolution_unit=unit if resolution else None,
        description="\n".join(_decode(c) for c in comments if c) or None,
    )


def _decode(content: bytes) -> str:
    try:
        return content.decode()
    except UnicodeDecodeError:
        return content.decode("latin-1")


def _join_icc(parts: list[bytes], notes: list[str]) -> bytes | None:
    parts = [part for part in parts if len(part) > 2]
    if not parts:
        return None
    numbered = {part[0]: part[2:] for part in reversed(parts)}
    if sorted(numbered) != list(range(1, parts[0][1] + 1)):
        notes.append("incomplete colour profile dropped")
        return None
    return b"".join(numbered[number] for number in sorted(numbered))


def _join_exif(parts: list[bytes]) -> bytes | None:
    """Join the EXIF of several segments, unless a second one starts an EXIF block of its own."""
    more = [part for part in parts[1:] if part[:4] not in (b"II*\0", b"MM\0*")]
    return b"".join([*parts[:1], *more]) or None


def _join_xmp(packets: list[bytes], extensions: list[bytes], notes: list[str]) -> bytes | None:
    if not packets:
        return None
    packet = packets[0]
    pointer = _POINTS.search(packet)
    if not pointer:
        return packet
    parts: dict[int, bytes] = {}
    length = 0
    for extension in extensions:
        if extension[:32] == pointer[1]:
            length, start = struct.unpack_from(">II", extension, 32)
            parts[start] = extension[40:]
    more = b"".join(parts[start] for start in sorted(parts))
    packet = _POINTS.sub(b"", packet)
    body = re.search(rb"<rdf:RDF[^>]*>(.*)</rdf:RDF>", more, re.DOTALL)
    if body and len(more) == length:
        if packet == _POINTS.sub(b"", _POINTER.encode()):
            return more
        joined = packet.replace(b"</rdf:RDF>", body[1] + b"</rdf:RDF>")
        with suppress(ElementTree.ParseError):  # prefixes may be declared outside of the body
            ElementTree.fromstring(joined)
            return joined
    notes.append("second part of the XMP dropped")
    return packet


def write_metadata(metadata: Metadata) -> tuple[list[Segment], list[str]]:
    """Make the segments for metadata; also return what was dropped, because JPEG cannot store it."""
    losses = [
        f"PNG chunk {name.decode()}" for name, _ in metadata.png if not (metadata.icc or name == b"sRGB")
    ]
    losses += [f"TIFF tag {tag}" for tag in metadata.tags]
    density, tags = _density(metadata)
    for key, text in metadata.text.items():
        tag = _KEYWORDS.get(key)
        if tag is None or (key == "Creation Time" and not _DATE.fullmatch(text)):
            losses += [f"text {key!r}"] * (text != metadata.description)
        elif not embedded.exif_text(metadata.exif, tag):
            tags[tag] = text
    made = software(metadata)
    if made and made != embedded.exif_text(metadata.exif, embedded.SOFTWARE):
        tags[embedded.SOFTWARE] = made
    exif = metadata.exif
    try:
        exif = with_tags(exif, tags) if tags else exif
    except (ValueError, struct.error):
        losses.append("damaged EXIF")
        exif = with_tags(None, tags)
    if exif and len(_EXIF + exif) > _LONGEST:
        losses.append("EXIF, which is too long")
        exif = with_tags(None, tags) if tags else None
    segments = [Segment(APP0, b"JFIF\0\1\1" + density + b"\0\0")]
    if exif:
        segments.append(Segment(_APP1, _EXIF + exif))
    if metadata.xmp:
        segments += _xmp(metadata.xmp)
    if metadata.iptc:
        resources = photoshop_resource(embedded.IPTC, metadata.iptc)
        segments += [Segment(_APP13, _PHOTOSHOP + part) for part in _parts(resources, len(_PHOTOSHOP))]
    if metadata.icc:
        profile = list(_parts(metadata.icc, len(_ICC) + 2))
        segments += [
            Segment(_APP2, _ICC + bytes([number, len(profile)]) + part)
            for number, part in enumerate(profile, start=1)
        ]
    if metadata.description:
        comment = metadata.description.encode("utf-8", "replace")
        segments += [Segment(_COM, part) for part in _parts(comment, 0)]
    return segments, [f"{loss} dropped" for loss in losses]


def _density(metadata: Metadata) -> tuple[bytes, dict[int, Any]]:
    """Return JFIF's unit and density, or EXIF tags for a resolution that is no whole number."""
    found = find_resolution(metadata)
    if not found:
        return struct.pack(">BHH", 0, 1, 1), {}
    (x, y), unit = found
    if unit == "NONE":
        return struct.pack(">BHH", 0, *ratio((x, y), 0xFFFF)), {}
    for code, factor in ((1, 1 if unit == "INCH" else 2.54), (2, 1 if unit == "CENTIMETER" else 1 / 2.54)):
        values = [value * factor for value in (x, y)]
        if all(abs(v - round(v)) < 1e-3 * v and 0 < round(v) <= 0xFFFF for v in values):
            return struct.pack(">BHH", code, *(round(v) for v in values)), {}
    tags = {
        embedded.X_RESOLUTION: Fraction(x),
        embedded.Y_RESOLUTION: Fraction(y),
        embedded.RESOLUTION_UNIT: 2 if unit == "INCH" else 3,
    }
    return struct.pack(">BHH", 0, 1, 1), tags


def _xmp(packet: bytes) -> Iterator[Segment]:
    if len(_XMP + packet) <= _LONGEST:
        yield Segment(_APP1, _XMP + packet)
        return
    packet = re.sub(rb"<\?xpacket[^>]*\?>", b"", packet).strip()
    digest = hashlib.md5(packet, usedforsecurity=False).hexdigest().upper().encode()
    yield Segment(_APP1, _XMP + _POINTER.format(digest.decode()).encode())
    place = 0
    for part in _parts(packet, len(_MORE_XMP) + 40):
        yield Segment(_APP1, _MORE_XMP + digest + struct.pack(">II", len(packet), place) + part)
        place += len(part)


def _parts(content: bytes, overhead: int) -> Iterator[bytes]:
    step = _LONGEST - overhead
    for start in range(0, len(content), step):
        yield content[start : start + step]
