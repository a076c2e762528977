"""Check before decoding that a picture is what its name says, and that it fits in memory."""

from __future__ import annotations

from pathlib import Path

_SIGNATURES = (
    (b"\x89PNG\r\n\x1a\n", "PNG", ".png"),
    (b"\xff\xd8\xff", "JPEG", ".jpg"),
    (b"II*\0", "TIFF", ".tif"),
    (b"MM\0*", "TIFF", ".tif"),
    (b"II+\0", "TIFF", ".tif"),  # BigTIFF
    (b"MM\0+", "TIFF", ".tif"),
    (b"\xff\x0a", "JPEG XL", ".jxl"),
    (b"\0\0\0\x0cJXL \r\n\x87\n", "JPEG XL", ".jxl"),
    (b"FUJIFILMCCD-RAW", "raw photograph", ".raf"),
    (b"IIRO", "raw photograph", ".orf"),
    (b"IIU\0", "raw photograph", ".rw2"),
    (b"ZISRAWFILE", "CZI", ".czi"),
    (b"\xda\xce\xbe\x0a", "ND2", ".nd2"),
    (b"\0\0\0\x0cjP  \r\n\x87\n", "JPEG 2000", ""),
    (b"\xff\x4f\xff\x51", "JPEG 2000", ""),
    (b"GIF8", "GIF", ""),
    (b"BM", "BMP", ""),
    (b"8BPS", "Photoshop document", ""),
    (b"%PDF", "PDF", ""),
    (b"%!PS", "PostScript file", ""),
    (b"\xc5\xd0\xd3\xc6", "PostScript file", ""),
    (b"\x76\x2f\x31\x01", "OpenEXR file", ""),
    (b"#?R", "Radiance picture", ""),
    (b"\x8aMNG", "MNG", ""),
    (b"\x8bJNG", "JNG", ""),
    (b"<svg", "SVG", ""),
    (b"<!DOCTYPE html", "web page", ""),
    (b"<html", "web page", ""),
    (b"version https://git-lfs", "pointer of Git LFS", ""),
)
"""First bytes of files, their format, and its usual suffix if it is read."""

_BRANDS = {
    b"crx ": ("raw photograph", ".cr3"),
    b"avif": ("HEIC", ".avif"),
    b"avis": ("HEIC", ".avif"),
    **dict.fromkeys(
        (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"mif2", b"msf1"), ("HEIC", ".heic")
    ),
}
_HEAD = 64


class UnsupportedError(ValueError):
    """A valid picture that is not read; the message says what to do, and `read_picture` adds the file."""


def find_content(head: bytes) -> tuple[str, str]:
    """Return the format that the first bytes of a file show, and its suffix; both empty if unknown."""
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "WebP", ".webp"
    if head[4:8] == b"ftyp":
        return next((_BRANDS[brand] for brand in brands(head) if brand in _BRANDS), ("video", ""))
    return next(((name, suffix) for sign, name, suffix in _SIGNATURES if head.startswith(sign)), ("", ""))


def brands(data: bytes) -> list[bytes]:
    """Return the brands of a file of the MP4 family (HEIC, AVIF, CR3)."""
    end = min(int.from_bytes(data[:4], "big"), len(data))
    return [data[8:12], *(data[place : place + 4] for place in range(16, end, 4))]


def check_content(path: Path, kind: str) -> None:
    """Raise ValueError unless the first bytes of a file are those of a format.

    Parameters
    ----------
    path : path
        File to look at.
    kind : str
        Name of a format in `kbnet_plugin.io.formats.FORMATS`.
    """
    with path.open("rb") as file:
        found, suffix = find_content(file.read(_HEAD))
    if not found:
        raise ValueError(f"{path}: damaged, or not {_article(kind)}; export it again")
    if found != kind and {found, kind} != {"HEIC", "AVIF"}:
        fix = f"rename it to end in {suffix}" if suffix else "save it as PNG, JPEG or TIFF"
        raise ValueError(f"{path}: {_article(found)} by its content but {_article(kind)} by its name; {fix}")


def _article(name: str) -> str:
    return f"an {name}" if name.startswith(("Open", "MNG", "SVG", "ND2")) else f"a {name}"


def check_memory(width: int, height: int, bytes_per_pixel: int) -> None:
    """Raise UnsupportedError unless a picture fits in the memory that is free, twice."""
    import psutil

    needed, free = 2 * width * height * bytes_per_pixel, psutil.virtual_memory().available
    if needed > free:
        raise UnsupportedError(
            f"{width} x {height} pixels need {needed / 1e9:.0f} GB of memory, {free / 1e9:.0f} GB are free; "
            "close other programs, or save it as TIFF or OME-Zarr, which are read in parts"
        )
