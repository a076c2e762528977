"""Read the values that a TIFF stores, by windows of its planes."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import numpy as np
import tifffile
from numpy.typing import NDArray

from ..signatures import UnsupportedError
from .codecs import decode_fax, decode_old_jpeg, decode_triples, decode_units, trim

JPEG = (6, 7, 33007, 34892)
"""Compressions that store JPEG; the decoder returns RGB for YCbCr, unless planes are separate."""

_FAX = (2, 3, 4)
_DEFLATE = (8, 32946)
_BAND = 256  # rows of fax that are decoded together
_OLD_JPEG = 6
_YCBCR = 6  # photometric interpretation
_KEPT = 1 << 28  # bytes of decoded strips or tiles
_BY_LIBTIFF = ("JBIG", "NEXT", "PIXARLOG", "THUNDERSCAN")  # compressions that nothing here decodes


@contextmanager
def opened(file: Any) -> Iterator[None]:
    """Open a file of tifffile, which closes all but one of an OME-TIFF in several files."""
    closed = file.closed
    if closed:
        file.open()
    try:
        yield
    finally:
        if closed:
            file.close()


class Store:
    """What all images of a file share: a lock on its position, and the strips or tiles decoded last."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self._lock = threading.Lock()
        self._kept: OrderedDict[Any, NDArray[Any] | None] = OrderedDict()
        self._bytes = 0

    def get(self, key: Any, decode: Callable[[], NDArray[Any] | None]) -> NDArray[Any] | None:
        """Return what is kept under a key, or else what `decode` returns, and keep it."""
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
                return self._kept[key]
        value = decode()
        with self._lock:
            if key not in self._kept:
                self._kept[key] = value
                self._bytes += value.nbytes if value is not None else 0
            while self._bytes > _KEPT and len(self._kept) > 1:
                dropped = self._kept.popitem(last=False)[1]
                self._bytes -= dropped.nbytes if dropped is not None else 0
        return value


class Planes:
    """The planes of TIFF pages of one kind, as stored.

    Parameters
    ----------
    page : TiffPage
        Says how all of them are stored.
    pages : sequence of (TiffPage, TiffFrame or None)
        None stands for a missing page, which reads as zeros.
    store : Store
        Of the file.
    offset : int, optional
        Where the planes begin if they follow each other without gaps, of which pages describe only the first.
    count : int, optional
        Number of planes in that case.

    Attributes
    ----------
    count : int
    height, width, samples : int
        Of each plane.
    dtype : dtype
    path : Path
        Of the file.

    Raises
    ------
    UnsupportedError
        If nothing decodes them.
    """

    def __init__(
        self,
        page: Any,
        pages: Sequence[Any],
        store: Store,
        *,
        offset: int | None = None,
        count: int | None = None,
    ) -> None:
        if 0 in page.shaped:
            raise UnsupportedError(f"the image is empty: {page.imagewidth} x {page.imagelength} pixels")
        if page.photometric != _YCBCR:
            page.subsampling = None  # means nothing then, but tifffile refuses it
        self._page, self._pages, self._offset = page, pages, offset
        self.path = Path(page.parent.filehandle.path)
        separate, self._depth, self.height, self.width, together = page.shaped
        self._separate = separate > 1
        self.samples = separate * together
        self.count = (count or len(pages)) * self._depth
        self.dtype = _find_dtype(page)
        self._subsampling = _find_subsampling(page)
        _check_decoder(page, self._subsampling)
        self._store = store
        # Starting the decoder takes longer than a strip of a few rows.
        fax = page.compression in _FAX and not page.is_tiled
        self._band = max(1, _BAND // page.rowsperstrip) if fax else 1
        page.decode  # noqa: B018 - cached, but not safe for threads at first

    def check(self) -> None:
        """Raise ValueError if values lie beyond the end of the file."""
        if self._offset is not None:
            ends = {self._page.parent.filehandle: self._offset + self.count * self._plane_bytes}
        else:
            ends = {}
            for page in self._pages:
                if page is not None:
                    file = page.parent.filehandle
                    ends[file] = max(ends.get(file, 0), self._end(page))
        if any(end > file.size for file, end in ends.items()):
            raise ValueError("the last pixels are missing")

    @property
    def _plane_bytes(self) -> int:
        return self.height * self.width * self.samples * self.dtype.itemsize

    def _end(self, page: Any) -> int:
        if page.keyframe.is_final and len(page.dataoffsets):
            return int(page.dataoffsets[0]) + self._depth * self._plane_bytes
        segments = zip(page.dataoffsets, page.databytecounts, strict=False)
        return max((o + n for o, n in segments if n), default=0)

    def read(self, plane: int, rows: slice, columns: slice, samples: slice = slice(None)) -> NDArray[Any]:
        """Read a window of a plane.

        Parameters
        ----------
        plane : int
        rows, columns, samples : slice
            With start and stop inside the plane, and step 1; `samples` may be open.

        Returns
        -------
        ndarray
            (rows, columns, samples)
        """
        number, depth = divmod(plane, self._depth)
        if self._offset is not None:
            offset = self._offset + plane * self._plane_bytes
            return self._mapped(self._page, offset, 0, rows, columns, samples)
        page = self._pages[number]
        if page is None:
            kept = range(self.samples)[samples]
            return np.zeros((rows.stop - rows.start, columns.stop - columns.start, len(kept)), self.dtype)
        if page.keyframe.is_final and not self._subsampling:
            return self._mapped(page, int(page.dataoffsets[0]), depth, rows, columns, samples)
        if page.keyframe.compression == _OLD_JPEG:
            try:
                return self._assembled(number, depth, rows, columns, samples)
            except Exception:
                whole = self._store.get((self, number), lambda: decode_old_jpeg(page))
                return cast("NDArray[Any]", whole)[rows, columns, samples]
        return self._assembled(number, depth, rows, columns, samples)

    def _mapped(
        self, page: Any, offset: int, depth: int, rows: slice, columns: slice, samples: slice
    ) -> NDArray[Any]:
        # Mapped only during each access: a lasting mapping counts as memory of this process.
        file = page.parent.filehandle
        stored = np.dtype(page.parent.byteorder + self.dtype.char)
        shape = page.keyframe.shaped if self._offset is None else (*page.shaped[:1], 1, *page.shaped[2:])
        values = np.memmap(Path(file.path), stored, "r", offset, shape)
        key = (samples, depth, rows, columns, 0) if self._separate else (0, depth, rows, columns, samples)
        part = np.moveaxis(values[key], 0, -1) if self._separate else values[key]
        return np.array(part, self.dtype, order="C")

    def _assembled(
        self, number: int, depth: int, rows: slice, columns: slice, samples: slice
    ) -> NDArray[Any]:
        page = self._page
        kept = range(self.samples)[samples]
        if page.is_tiled:
            deep, high, wide = page.tiledepth, page.tilelength, page.tilewidth
        else:
            deep, high, wide = 1, page.rowsperstrip * self._band, self.width
        across, down = -(-self.width // wide), -(-self.height // high)
        layers = -(-self._depth // deep)
        out = np.empty((rows.stop - rows.start, columns.stop - columns.start, len(kept)), self.dtype)
        for place, sample in enumerate(kept) if self._separate else [(slice(None), 0)]:
            for y in range(rows.start // high, -(-rows.stop // high)):
                for x in range(columns.start // wide, -(-columns.stop // wide)):
                    index = ((sample * layers + depth // deep) * down + y) * across + x
                    segment = self._segment(number, index)
                    top, bottom = max(rows.start, y * high), min(rows.stop, (y + 1) * high)
                    left, right = max(columns.start, x * wide), min(columns.stop, (x + 1) * wide)
                    target = (
                        slice(top - rows.start, bottom - rows.start),
                        slice(left - columns.start, right - columns.start),
                    )
                    if segment is None:
                        out[(*target, place)] = page.nodata
                        continue
                    inside = (
                        slice(top - y * high, bottom - y * high),
                        slice(left - x * wide, right - x * wide),
                    )
                    part = segment[(depth % deep, *inside)]
                    out[(*target, place)] = part[..., 0] if self._separate else part[..., samples]
        return out

    def _segment(self, number: int, index: int) -> NDArray[Any] | None:
        return self._store.get((self, number, index), lambda: self._decode(number, index))

    def _decode(self, number: int, index: int) -> NDArray[Any] | None:
        """Decode one strip or tile, (depth, rows, columns, samples); None if the file leaves it out."""
        page = self._pages[number]
        if page.keyframe.compression in _FAX:
            return self._decode_fax(page, index)
        if (data := self._read(page, index)) is None:
            return None
        if self._subsampling:
            return decode_units(page.keyframe, data, index, self._subsampling)
        if self.dtype == np.uint32 and page.keyframe.bitspersample == 24:
            return decode_triples(page.keyframe, data, index)
        tables = {}
        if page.keyframe.compression in JPEG:
            tables = {"jpegtables": page.jpegtables, "jpegheader": page.keyframe.jpegheader}
        try:
            decoded = page.keyframe.decode(data, index, **tables)[0]
        except Exception:
            if page.keyframe.compression not in _DEFLATE or not isinstance(page.keyframe.bitspersample, int):
                raise
            decoded = page.keyframe.decode(trim(page.keyframe, data, index), index)[0]
        return cast("NDArray[Any]", decoded)

    def _decode_fax(self, page: Any, band: int) -> NDArray[Any] | None:
        if page.keyframe.is_tiled:
            rows, numbers = page.keyframe.tilelength, range(band, band + 1)
        else:
            strips = -(-self.height // page.keyframe.rowsperstrip)
            bands = -(-strips // self._band)
            first = band % bands * self._band
            last = min(first + self._band, strips)
            rows = min(last * page.keyframe.rowsperstrip, self.height) - first * page.keyframe.rowsperstrip
            numbers = range(band // bands * strips + first, band // bands * strips + last)
        segments = [self._read(page, number) for number in numbers]
        present = [segment for segment in segments if segment is not None]
        if not present:
            return None
        if len(present) < len(segments):
            raise ValueError("strips are missing")
        return decode_fax(page.keyframe, present, rows)

    def _read(self, page: Any, index: int) -> bytes | None:
        """Read a strip or tile as stored; None if the file leaves it out."""
        if index >= len(page.dataoffsets):
            raise ValueError("strips or tiles are missing")
        offset, size = page.dataoffsets[index], page.databytecounts[index]
        if not offset or not size:
            return None
        file = page.parent.filehandle
        with self._store.lock, opened(file):
            file.seek(offset)
            data: bytes = file.read(size)
        if len(data) < size:
            raise ValueError("the last pixels are missing")
        return data


def _find_dtype(page: Any) -> np.dtype[Any]:
    odd = page.bitspersample in (*range(17, 24), *range(25, 32))
    if page.dtype is None or odd or isinstance(page.sampleformat, tuple):
        raise UnsupportedError(
            f"samples of {page.bitspersample} bits in format {page.sampleformat} are not read; "
            "save it with 8 or 16 bits"
        )
    if page.dtype.kind == "c" or page.sampleformat in (5, 6):
        raise UnsupportedError("values are complex numbers; save their magnitude, as numpy.abs returns it")
    return np.dtype(page.dtype)


def _find_subsampling(page: Any) -> tuple[int, int] | None:
    """Return how many columns and rows share their colours, where the decoder does not expand them."""
    if page.photometric != _YCBCR or page.samplesperpixel != 3 or page.compression in JPEG:
        return None
    across, down = page.tags.valueof(530) or (2, 2)
    return None if (across, down) == (1, 1) else (int(across), int(down))


def _check_decoder(page: Any, subsampling: tuple[int, int] | None) -> None:
    name = getattr(page.compression, "name", str(page.compression))
    by_libtiff = name in _BY_LIBTIFF
    fix = "convert it with: tiff2rgba in.tif out.tif" if by_libtiff else "save it with another compression"
    if page.compression != 1:
        try:
            tifffile.TIFF.DECOMPRESSORS[page.compression]
        except KeyError:
            raise UnsupportedError(f"compression {name} is not read; {fix}") from None
    if page.compression in _FAX and page.samplesperpixel > 1 and page.planarconfig == 1:
        raise UnsupportedError("fax compression of several samples is not read; save it with another one")
    if page.bitspersample == 24 and page.predictor != 1:
        raise UnsupportedError("samples of 24 bits with a predictor are not read; save it with 32 bits")
    if subsampling and (page.planarconfig == 2 or page.bitspersample != 8 or page.predictor != 1):
        raise UnsupportedError(
            "YCbCr with colours at a lower resolution is read only in 8 bits, all samples together; "
            "save it as RGB"
        )
