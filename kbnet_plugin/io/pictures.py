"""PNG, JPEG and TIFF files as arrays, with what belongs to the picture but not to its pixels."""

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
"""The formats that are read and written, by lower-case suffix."""

_SIGNATURES = {
    b"\x89PNG": "PNG",
    b"\xff\xd8\xff": "JPEG",
    b"II*\0": "TIFF",
    b"MM\0*": "TIFF",
    b"II+\0": "TIFF",  # BigTIFF
    b"MM\0+": "TIFF",
}
_ORIENTATION = 0x0112
_JPEG_QUALITY = 95
_PNG_LEVEL = 3  # a third of the time of the usual 6, for files a tenth larger
_STRAIGHT_ALPHA = 2  # TIFF's ExtraSamples


@dataclass(frozen=True, slots=True)
class Metadata:
    """What a file says of its picture, carried from input to output where the format has room.

    Attributes
    ----------
    icc, exif : bytes or None
        Colour profile and EXIF block (without orientation: the array is upright).
    dpi : (float, float) or None
        Horizontal and vertical pixels per inch.
    description : str or None
        TIFF's ImageDescription, where it is free text.
    alpha : int
        TIFF's kind of extra sample; 1 is premultiplied, 2 is straight alpha.
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
        PNG, JPEG or TIFF, gray, gray with alpha, RGB or RGBA, of any dtype that the format has.

    Returns
    -------
    array : ndarray
        (H, W) or (H, W, C), upright, in the file's dtype. Palettes become RGB or RGBA; 1-bit images become
        gray of 0 and 255.
    metadata : Metadata
        To be handed to `write_image`.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If it is damaged, of another format than its name says, or of a kind that is not one such picture
        (CMYK, a stack); one line that names it.
    """
    path = Path(path)
    kind = _format(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such image file")
    with path.open("rb") as file:
        head = file.read(32)
    found = next((name for sign, name in _SIGNATURES.items() if head.startswith(sign)), None)
    if found is None:
        raise ValueError(f"{path}: no {kind} inside; it is damaged or something else")
    if found != kind:
        suffix = next(s for s, name in FORMATS.items() if name == found)
        raise ValueError(
            f"{path}: a {found} by its content, a {kind} by its name; rename it to end in {suffix}"
        )
    try:
        if kind == "TIFF":
            return _read_tiff(path)
        return _read_pillow(path, deep=kind == "PNG" and head[24] == 16)
    except (MemoryError, _UnsupportedError) as error:
        raise type(error)(f"{path}: {error}") from None
    except Image.DecompressionBombError:
        raise ValueError(
            f"{path}: beyond what a {kind} may hold here (179 megapixels); save it as TIFF"
        ) from None
    except Exception as error:  # decoders raise whatever they like
        raise ValueError(
            f"{path}: damaged or incomplete {kind} ({one_line(error)}); export it again"
        ) from error


def write_image(path: str | PathLike[str], array: NDArray[Any], metadata: Metadata | None = None) -> None:
    """Write one picture in the format that the name says; the file appears whole or not at all.

    Parameters
    ----------
    path : str or path
        Ends in one of `FORMATS`. JPEG is written at quality 95 without colour subsampling.
    array : ndarray
        (H, W) or (H, W, C), C from 1 (gray) to 4 (RGBA).
    metadata : Metadata, optional
        Of the file that the picture comes from.

    Raises
    ------
    FileNotFoundError
        If the folder does not exist.
    ValueError
        If the format cannot hold this array.
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
    """Raise ValueError unless the format that `path` names can hold such an array."""
    path = Path(path)
    kind = _format(path)
    channels = shape[2] if len(shape) == 3 else 1
    if len(shape) not in (2, 3) or channels > 4:
        raise ValueError(f"{path}: a picture is (H, W) or (H, W, up to 4), not {shape}")
    if kind == "JPEG" and channels in (2, 4):
        raise ValueError(f"{path}: JPEG has no alpha channel; write .png or .tif")
    dtypes = {"JPEG": ("uint8",), "PNG": ("uint8", "uint16")}.get(kind)
    if dtypes and dtype.name not in dtypes:
        other = ".png or .tif" if dtype == np.uint16 else ".tif"
        raise ValueError(f"{path}: {kind} cannot hold {dtype.name}; write {other}")


class _UnsupportedError(ValueError):
    """A sound file of a kind that is not taken."""


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
                f"an animation of {getattr(image, 'n_frames', 1)} frames; save single pictures"
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
        if deep:  # Pillow would cut 16-bit colour down to 8
            import imagecodecs  # late: nothing else needs it, and what learns from arrays does without

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
    """Open a TIFF, and raise ValueError where pages point beyond its end.

    tifffile only logs that and leaves the pages out: a stack that was cut short would pass for a shorter one.
    """
    with ExitStack() as stack:
        with _listening() as listener:
            tiff = stack.enter_context(tifffile.TiffFile(path))
            if tiff.series and listener.cut_short:
                raise ValueError("pages are missing at its end")
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
    """Hears what tifffile complains of in the thread that opens a file."""

    def __init__(self) -> None:
        self.cut_short = False
        self.thread = threading.get_ident()

    def hear(self, record: logging.LogRecord) -> None:
        if record.levelno >= logging.ERROR:
            self.cut_short |= "offset" in record.getMessage()


_listeners: list[_Listener] = []


def _pass_on(record: logging.LogRecord) -> bool:
    """Whether others hear a complaint: not of a file that this thread is opening, whose faults are raised."""
    here = [listener for listener in _listeners.copy() if listener.thread == threading.get_ident()]
    for listener in here:
        listener.hear(record)
    return not here


# A filter that stays: files are closed in any order, so none of them could put back what it found.
logging.getLogger("tifffile").addFilter(_pass_on)


def _read_tiff(path: Path) -> tuple[NDArray[Any], Metadata]:
    with open_tiff(path) as tiff:
        series = tiff.series[0]
        page = tiff.pages.first
        if series.axes not in ("YX", "YXS", "SYX"):
            raise _UnsupportedError(f"a stack ({series.axes} {series.shape}); save its planes one by one")
        if any(not other.keyframe.is_reduced for other in tiff.series[1:]):
            raise _UnsupportedError(f"holds {len(tiff.series)} pictures; save them one by one")
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
        tags = {code: page.tags.valueof(code) for code in (_ORIENTATION, 34675, 282, 283, 296)}
        free_text = not (page.is_imagej or page.is_ome or page.is_shaped)
        metadata = Metadata(
            icc=tags[34675],
            dpi=_dpi(tags[282], tags[283], tags[296]),
            description=page.description if free_text and page.description else None,
            alpha=int(page.extrasamples[0]) if page.extrasamples else _STRAIGHT_ALPHA,
        )
    return _upright(array, tags[_ORIENTATION] or 1), metadata


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
    """Turn a picture as its EXIF orientation says (1 to 8, row and column that the first ones show)."""
    if orientation in (5, 6, 7, 8):
        array = array.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        array = array[::-1]
    if orientation in (2, 3, 6, 7):
        array = array[:, ::-1]
    return np.ascontiguousarray(array)
