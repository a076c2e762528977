"""Read and write PNG, JPEG and TIFF pictures with their metadata."""

from __future__ import annotations

import logging
import struct
import threading
import warnings
import zlib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from numpy.typing import NDArray
from PIL import Image

from ..errors import one_line
from ..files import atomic_path

FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".tif": "TIFF", ".tiff": "TIFF"}
"""From each lower-case suffix to its format."""

TIFF_SUFFIXES = tuple(suffix for suffix, kind in FORMATS.items() if kind == "TIFF")
"""Suffixes of TIFF files."""

_SIGNATURES = {
    b"\x89PNG": "PNG",
    b"\xff\xd8\xff": "JPEG",
    b"II*\0": "TIFF",
    b"MM\0*": "TIFF",
    b"II+\0": "TIFF",  # BigTIFF
    b"MM\0+": "TIFF",
}
_ORIENTATION = 0x0112  # EXIF and TIFF tag
_JPEG_QUALITY = 95
_PNG_LEVEL = 3  # takes a third of the time of the default, 6; files are a tenth larger
_STRAIGHT_ALPHA = 2  # value of TIFF's ExtraSamples


@dataclass(frozen=True, slots=True)
class Metadata:
    """Metadata of a picture, copied from input to output as far as the formats allow.

    Attributes
    ----------
    icc, exif : bytes or None
        Colour profile, and EXIF block without its orientation (the array is upright).
    dpi : (float, float) or None
        Horizontal and vertical pixels per inch.
    description : str or None
        TIFF's ImageDescription, if it is free text.
    alpha : int
        TIFF's ExtraSamples: 1 is premultiplied, 2 is straight alpha.
    """

    icc: bytes | None = None
    exif: bytes | None = None
    dpi: tuple[float, float] | None = None
    description: str | None = None
    alpha: int = _STRAIGHT_ALPHA


def read_image(path: str | PathLike[str]) -> tuple[NDArray[Any], Metadata]:
    """Read one picture.

    Parameters
    ----------
    path : str or path
        PNG, JPEG or TIFF; gray, gray with alpha, RGB or RGBA, of any dtype that the format supports.

    Returns
    -------
    array : ndarray
        (H, W) or (H, W, C), upright, in the file's dtype. Palettes become RGB or RGBA; 1-bit images become
        gray of 0 and 255.
    metadata : Metadata
        For `write_image`.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If it is damaged, has another format than its name says, or is not one such picture (CMYK, a stack);
        one line that names it.
    """
    path = Path(path)
    kind = _format(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such image file")
    with path.open("rb") as file:
        head = file.read(32)
    found = next((name for sign, name in _SIGNATURES.items() if head.startswith(sign)), None)
    if found is None:
        raise ValueError(f"{path}: damaged, or not a {kind}; export it again")
    if found != kind:
        suffix = next(s for s, name in FORMATS.items() if name == found)
        raise ValueError(
            f"{path}: a {found} by its content but a {kind} by its name; rename it to end in {suffix}"
        )
    try:
        if kind == "TIFF":
            return _read_tiff(path)
        return _read_pillow(path, deep=kind == "PNG" and head[24] == 16)
    except (MemoryError, _UnsupportedError) as error:
        raise type(error)(f"{path}: {error}") from None
    except Image.DecompressionBombError:
        raise ValueError(
            f"{path}: larger than the 179 megapixels accepted for a {kind}; save it as TIFF"
        ) from None
    except Exception as error:  # decoders raise errors of all kinds
        raise ValueError(
            f"{path}: damaged or incomplete {kind} ({one_line(error)}); export it again"
        ) from error


def write_image(path: str | PathLike[str], array: NDArray[Any], metadata: Metadata | None = None) -> None:
    """Write one picture, completely or not at all, in the format that its name says.

    Parameters
    ----------
    path : str or path
        Ends in one of `FORMATS`. JPEG is written with quality 95, without colour subsampling.
    array : ndarray
        (H, W) or (H, W, C), with C from 1 (gray) to 4 (RGBA).
    metadata : Metadata, optional
        As `read_image` returns it.

    Raises
    ------
    FileNotFoundError
        If the folder does not exist.
    ValueError
        If the format cannot store this array.
    OSError
        If the file cannot be written.
    """
    path = Path(path)
    check_format(path, array.dtype, array.shape)
    kind, metadata = _format(path), metadata or Metadata()
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[..., 0]
    try:
        with atomic_path(path) as temporary:
            if kind == "TIFF":
                _write_tiff(temporary, array, metadata)
            elif array.dtype == np.uint16:
                temporary.write_bytes(_encode_deep_png(array, metadata))
            else:
                extra = {"icc_profile": metadata.icc, "exif": metadata.exif, "dpi": metadata.dpi}
                options = {"JPEG": {"quality": _JPEG_QUALITY, "subsampling": 0}}.get(
                    kind, {"compress_level": _PNG_LEVEL}
                )
                known = {name: value for name, value in extra.items() if value is not None}
                Image.fromarray(array).save(temporary, kind, **known, **options)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise OSError(f"{path}: cannot be written ({one_line(error)})") from error


def check_format(path: str | PathLike[str], dtype: np.dtype[Any], shape: tuple[int, ...]) -> None:
    """Raise ValueError unless the format that `path` names can store such an array."""
    path = Path(path)
    kind = _format(path)
    channels = shape[2] if len(shape) == 3 else 1
    if len(shape) not in (2, 3) or channels > 4:
        raise ValueError(f"{path}: a picture is (H, W) or (H, W, C) with up to 4 channels, not {shape}")
    if kind == "JPEG" and channels in (2, 4):
        raise ValueError(f"{path}: JPEG has no alpha channel; write .png or .tif")
    dtypes = {"JPEG": ("uint8",), "PNG": ("uint8", "uint16")}.get(kind)
    if dtypes and dtype.name not in dtypes:
        other = ".png or .tif" if dtype == np.uint16 else ".tif"
        raise ValueError(f"{path}: {kind} cannot store {dtype.name}; write {other}")


class _UnsupportedError(ValueError):
    """A valid file of an unsupported kind."""


def _format(path: Path) -> str:
    try:
        return FORMATS[path.suffix.lower()]
    except KeyError:
        raise ValueError(
            f"{path}: unknown image type {path.suffix!r}; use PNG, JPEG or TIFF ({', '.join(FORMATS)})"
        ) from None


def _read_pillow(path: Path, deep: bool) -> tuple[NDArray[Any], Metadata]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        image = Image.open(path, formats=[_format(path)])
    with image:
        if image.format == "PNG" and getattr(image, "n_frames", 1) > 1:
            raise _UnsupportedError(
                f"an animation of {getattr(image, 'n_frames', 1)} frames; save them as single pictures"
            )
        image.load()
        exif = image.getexif()
        orientation = exif.pop(_ORIENTATION, 1)
        block = image.info.get("exif") if orientation == 1 else exif.tobytes()
        dpi = image.info.get("dpi")
        metadata = Metadata(
            icc=image.info.get("icc_profile") or None,
            exif=block or None,
            dpi=(float(dpi[0]), float(dpi[1])) if dpi else None,
        )
        if deep:  # Pillow reduces 16-bit colour to 8 bits
            import imagecodecs  # here, because importing this module must not need it

            array: NDArray[Any] = imagecodecs.png_decode(path.read_bytes())
        else:
            array = np.array(image.convert(_mode(image)))
    return _upright(array, orientation), metadata


def _mode(image: Image.Image) -> str:
    transparent = image.has_transparency_data
    if image.mode in ("1", "L", "LA"):
        return "LA" if transparent else "L"
    if image.mode in ("P", "PA", "RGB", "RGBA"):
        return "RGBA" if transparent else "RGB"
    raise _UnsupportedError(f"pixels are {image.mode}; convert it to gray or RGB first")


def _encode_deep_png(array: NDArray[Any], metadata: Metadata) -> bytes:
    import imagecodecs

    data = bytes(imagecodecs.png_encode(np.ascontiguousarray(array), level=_PNG_LEVEL))
    chunks = b""
    if metadata.icc:
        chunks += _chunk(b"iCCP", b"ICC profile\0\0" + zlib.compress(metadata.icc))
    if metadata.dpi:
        chunks += _chunk(b"pHYs", struct.pack(">IIB", *(round(d / 0.0254) for d in metadata.dpi), 1))
    if metadata.exif:
        chunks += _chunk(b"eXIf", metadata.exif.removeprefix(b"Exif\0\0"))
    after_header = 8 + 25  # signature, IHDR
    return data[:after_header] + chunks + data[after_header:]


def _chunk(name: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


@contextmanager
def open_tiff(path: Path) -> Iterator[tifffile.TiffFile]:
    """Open a TIFF, checking that no page lies beyond the end of the file.

    tifffile only logs missing pages and skips them, so a truncated stack would pass for a shorter one.

    Raises
    ------
    ValueError
        If pages are missing.
    """
    with ExitStack() as stack:
        with _listening() as listener:
            tiff = stack.enter_context(tifffile.TiffFile(path))
            if tiff.series and listener.cut_short:
                raise ValueError("pages are missing at the end")
        yield tiff


@contextmanager
def _listening() -> Iterator[_Listener]:
    listener = _Listener()
    _listeners.append(listener)
    try:
        yield listener
    finally:
        _listeners.remove(listener)


class _Listener:
    """Notices what tifffile logs in the thread that opens a file."""

    def __init__(self) -> None:
        self.cut_short = False
        self.thread = threading.get_ident()

    def hear(self, record: logging.LogRecord) -> None:
        if record.levelno >= logging.ERROR:
            self.cut_short |= "offset" in record.getMessage()


_listeners: list[_Listener] = []


def _pass_on(record: logging.LogRecord) -> bool:
    """Tell whether a record is logged: not while this thread opens a file, whose errors are raised."""
    here = [listener for listener in _listeners.copy() if listener.thread == threading.get_ident()]
    for listener in here:
        listener.hear(record)
    return not here


# Permanent, because files that overlap in time could not restore the logger's filters in the right order.
logging.getLogger("tifffile").addFilter(_pass_on)


def _read_tiff(path: Path) -> tuple[NDArray[Any], Metadata]:
    with open_tiff(path) as tiff:
        series = tiff.series[0]
        page = tiff.pages.first
        if series.axes not in ("YX", "YXS", "SYX"):
            raise _UnsupportedError(f"a stack ({series.axes} {series.shape}); save its planes one by one")
        if any(not other.keyframe.is_reduced for other in tiff.series[1:]):
            raise _UnsupportedError(f"contains {len(tiff.series)} pictures; save them one by one")
        photometric, bits = page.photometric.name, page.bitspersample
        if photometric not in ("MINISWHITE", "MINISBLACK", "RGB", "PALETTE", "YCBCR"):
            raise _UnsupportedError(f"pixels are {photometric}; convert it to gray or RGB first")
        if photometric == "YCBCR" and "JPEG" not in page.compression.name:  # JPEG is decoded to RGB
            raise _UnsupportedError("pixels are uncompressed YCbCr; convert it to RGB first")
        array = page.asarray()
        if series.axes == "SYX":
            array = np.moveaxis(array, 0, -1)
        if photometric == "PALETTE":
            array = np.moveaxis(page.colormap[:, array] >> 8, 0, -1).astype(np.uint8)
        if photometric == "MINISWHITE":
            array = ~array if array.dtype == bool else ((1 << bits) - 1 - array).astype(array.dtype)
        if array.dtype == bool:
            array = array.astype(np.uint8) * 255
        tag = page.tags.valueof
        free_text = not (page.is_imagej or page.is_ome or page.is_shaped)
        metadata = Metadata(
            icc=tag("InterColorProfile"),
            dpi=_dpi(tag("XResolution"), tag("YResolution"), tag("ResolutionUnit")),
            description=page.description if free_text and page.description else None,
            alpha=int(page.extrasamples[0]) if page.extrasamples else _STRAIGHT_ALPHA,
        )
        orientation = tag(_ORIENTATION) or 1
    return _upright(array, orientation), metadata


def _dpi(x: Any, y: Any, unit: Any) -> tuple[float, float] | None:
    factor = {2: 1.0, 3: 2.54}.get(int(unit or 2))
    if factor is None or not x or not y or not x[1] or not y[1]:
        return None
    return factor * x[0] / x[1], factor * y[0] / y[1]


def _write_tiff(path: Path, array: NDArray[Any], metadata: Metadata) -> None:
    channels = array.shape[2] if array.ndim == 3 else 1
    tifffile.imwrite(
        path,
        array,
        photometric="rgb" if channels >= 3 else "minisblack",
        planarconfig="contig" if channels > 1 else None,
        extrasamples=[metadata.alpha] if channels in (2, 4) else None,
        compression="zlib",
        predictor=True,
        iccprofile=metadata.icc,
        description=metadata.description,
        resolution=metadata.dpi,
        resolutionunit="INCH" if metadata.dpi else None,
        metadata=None,
    )


def _upright(array: NDArray[Any], orientation: int) -> NDArray[Any]:
    """Turn a picture upright by its EXIF orientation (1 to 8)."""
    if orientation in (5, 6, 7, 8):
        array = array.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        array = array[::-1]
    if orientation in (2, 3, 6, 7):
        array = array[:, ::-1]
    return np.ascontiguousarray(array)
