"""Find the images of a TIFF among its pages."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import tifffile

from ...arrays.axes import AXES
from ..ome_xml import parse_xml
from ..signatures import UnsupportedError
from .metadata import find_orientation

_PLAIN = ("generic", "uniform")  # kinds of series whose pages tifffile only counts
_LEFT_OUT = ("thumbnail", "label", "macro", "map")  # names of what slide scanners add
_UNNAMED = "IQ"  # letters that tifffile gives to axes without a name
_MASK = 4  # photometric interpretation of a transparency mask
_EXIF = 34665
_THUMBNAIL = 256  # pixels of the longest side


@dataclass(frozen=True, slots=True)
class Series:
    """Pages that make up an image, or several that only an axis without a letter tells apart.

    Attributes
    ----------
    page : TiffPage
        The first one.
    pages : list of (TiffPage, TiffFrame or None)
        All, or only the first one if `offset` is set; None where the file has no page.
    axes : str
        Letters of tifffile for the axes around rows, columns and samples.
    shape : tuple of int
        Their lengths.
    kind : str
        As tifffile names it; ``"plain"`` if the file does not say how pages belong together.
    name : str
        Empty if it has none.
    samples : {"S", "C"}
        Whether several samples are colours or channels.
    levels : int
        Of the pyramid.
    offset, count : int or None
        Where the first plane begins, and the number of planes, if all follow without gaps.
    transform : callable or None
        Applied to the values.
    ome_image : int or None
        Number of the image in the OME-XML.
    notes : tuple of str
        As in `kbnet_plugin.io.metadata.Image`.
    """

    page: Any
    pages: list[Any]
    axes: str
    shape: tuple[int, ...]
    kind: str
    name: str = ""
    samples: Literal["S", "C"] = "S"
    levels: int = 1
    offset: int | None = None
    count: int | None = None
    transform: Any = None
    ome_image: int | None = None
    notes: tuple[str, ...] = field(default=())


def find_series(tiff: tifffile.TiffFile) -> tuple[list[Series], tuple[str, ...]]:
    """Find the images of a TIFF, without thumbnails, levels of pyramids and masks.

    Returns
    -------
    series : list of Series
    notes : tuple of str
        What was left out.

    Raises
    ------
    UnsupportedError
        If the pages are not arranged as the file says.
    """
    found = tiff.series
    if not found or found[0].kind in _PLAIN:
        return _plain_series(found)
    wanted = [s for s in found if not s.keyframe.is_reduced and not s.keyframe.is_mask]
    wanted = [s for s in wanted if s.kind == "ome" or s.name.lower() not in _LEFT_OUT] or found[:1]
    notes = _left_out(len(found) - len(wanted), "thumbnail") if found[0].kind != "lsm" else ()
    xml = tiff.ome_metadata if found[0].kind == "ome" else None
    places = [_find_ome_image(xml, s.name, number) if xml else None for number, s in enumerate(wanted)]
    return [_named_series(s, place) for s, place in zip(wanted, places, strict=True)], notes


def _left_out(count: int, what: str) -> tuple[str, ...]:
    return (f"{count} {what}{'s' * (count > 1)} left out",) * (count > 0)


class _Page(NamedTuple):
    """What tells images apart; pages themselves would fill the memory if there are many."""

    page: Any
    place: tuple[int, ...]
    size: tuple[int, int]
    is_mask: bool
    is_reduced: bool
    has_exif: bool
    alike: tuple[Any, ...]


def _plain_series(found: list[Any]) -> tuple[list[Series], tuple[str, ...]]:
    """Group pages in the order of the file; tifffile brings equal ones together from anywhere in it."""
    levels = {page.offset: len(s.levels) for s in found for page in s.pages}
    below = {page.offset for s in found for level in s.levels[1:] for page in level.pages}
    pages = [_look_at(page) for s in found for level in s.levels for page in level.pages]
    pages.sort(key=lambda one: one.place)
    masks = [one for one in pages if one.is_mask]
    reduced = [one for one in pages if not one.is_mask and _is_reduced(one, pages)]
    kept = [one for one in pages if one not in masks and one not in reduced] if masks or reduced else pages
    notes = ("transparency mask left out",) * bool(masks and kept)
    notes += _left_out(len([one for one in reduced if one.page.offset not in below]), "reduced image")
    runs: list[list[_Page]] = []
    for one in kept or pages[:1]:
        if not runs or one.alike != runs[-1][0].alike:
            runs.append([])
        runs[-1].append(one)
    series = []
    for run in runs:
        page, count = run[0].page.aspage(), len(run)
        axes, shape = "I" * (count > 1), (count,) * (count > 1)
        if page.imagedepth > 1:
            axes, shape = f"{axes}Z", (*shape, page.imagedepth)
        following = [one.page for one in run[1:]]
        series.append(
            Series(page, [page, *following], axes, shape, "plain", levels=levels.get(page.offset, 1))
        )
    return series, notes


def _look_at(page: Any) -> _Page:
    whole = page.aspage()
    palette = whole.colormap.tobytes() if whole.colormap is not None else b""
    return _Page(
        page,
        tuple(page.treeindex),
        (whole.imagelength, whole.imagewidth),
        bool(whole.is_mask or whole.photometric == _MASK),
        bool(whole.is_reduced),
        _EXIF in whole.tags,
        (whole.hash, find_orientation(whole), palette),
    )


def _is_reduced(one: _Page, pages: list[_Page]) -> bool:
    """Tell whether a page repeats another one at lower resolution."""
    above = next(other for other in pages if len(one.place) == 1 or other.place == one.place[:1])
    # The second page of a photograph is its thumbnail, by EXIF.
    of_exif = len(pages) == 2 and above.has_exif and not one.has_exif and max(one.size) <= _THUMBNAIL
    if one.is_reduced or not (len(one.place) > 1 or of_exif):
        return one.is_reduced
    shrunk = [full / max(1, small) for full, small in zip(above.size, one.size, strict=True)]
    return min(shrunk) > 1.5 and math.isclose(*shrunk, rel_tol=0.1)


def _named_series(series: Any, ome: _OmeImage | None) -> Series:
    """Take a series apart whose axes the file names."""
    page = series.keyframe
    separate, depth, _, _, together = page.shaped
    axes, shape = series.axes, tuple(series.shape)
    if axes.endswith("S") and shape[-1] == 1:
        axes, shape = axes[:-1], shape[:-1]
    samples, letter, fits = separate * together, "S", True
    if samples > 1:
        place = len(axes) - 1 if together > 1 else len(axes) - 3 - (depth > 1)
        letter, fits = axes[place], shape[place] == samples
        axes, shape = axes[:place] + axes[place + 1 :], shape[:place] + shape[place + 1 :]
    notes: tuple[str, ...] = ()
    if axes.endswith("X") and "Y" not in axes:  # a scan of lines
        notes += (f"rows are axis {axes[-2]}, read as Y",)
        axes = f"{axes[:-2]}YX"
    fits &= axes.endswith("YX") and shape[-2:] == (page.imagelength, page.imagewidth)
    around = [(axis, n) for axis, n in zip(axes[:-2], shape[:-2], strict=True) if axis in AXES or n > 1]
    if ome is not None and not {axis for axis, _ in around} <= set(AXES):
        around = ome.around(samples)
    planes = math.prod(n for _, n in around)
    offset = series.dataoffset
    pages = [page] if offset is not None else list(series.pages)
    if not fits or planes % depth or (offset is None and planes // depth != len(pages)):
        raise UnsupportedError(f"its axes {series.axes} {series.shape} do not fit its pages; export it again")
    if offset is None and pages[0] is not None and series.kind != "ome":
        pages[0] = page = pages[0].aspage()
    if missing := sum(one is None for one in pages):
        notes += (f"{missing} of {len(pages)} planes are not in the file, and are 0",)
    return Series(
        page,
        pages,
        "".join(axis for axis, _ in around),
        tuple(n for _, n in around),
        series.kind,
        name=series.name if series.kind == "ome" else "",
        samples="C" if letter == "C" or series.kind == "lsm" else "S",
        levels=len(series.levels),
        offset=offset,
        count=planes // depth if offset is not None else None,
        transform=series.transform,
        ome_image=ome.number if ome is not None else None,
        notes=notes,
    )


class _OmeImage(NamedTuple):
    number: int
    pixels: dict[str, str]  # attributes

    def around(self, samples: int) -> list[tuple[str, int]]:
        """Return axes and lengths as stored, without those that annotations (Modulo) see in them."""
        order = self.pixels["DimensionOrder"][:1:-1]
        lengths = {axis: int(self.pixels[f"Size{axis}"]) for axis in order}
        lengths["C"] //= samples
        return [(axis, lengths[axis]) for axis in order if lengths[axis] > 1]


def _find_ome_image(xml: str, name: str, number: int) -> _OmeImage | None:
    """Find the image of a series in OME-XML, which may list images without pixels."""
    images = parse_xml(xml).findall("{*}Image")
    names = [image.attrib.get("Name") or "" for image in images]
    if name in names and (number >= len(names) or names[number] != name):
        number = names.index(name)
    pixels = images[number].find("{*}Pixels") if number < len(images) else None
    return _OmeImage(number, dict(pixels.attrib)) if pixels is not None else None


def name_axes(axes: str) -> tuple[str, bool]:
    """Give axes without a name the letters that are free, and tell whether there were any."""
    free = [axis for axis in "TZC" if axis not in axes]
    named = "".join(free.pop(0) if axis in _UNNAMED and free else axis for axis in axes)
    return named, named != axes
