"""Turn the values that a TIFF stores into plain ones: upright; gray, RGB or channels; dark is small."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..metadata import STRAIGHT_ALPHA
from ..signatures import UnsupportedError
from .planes import JPEG, Planes

_WHITE, _BLACK, _RGB, _PALETTE, _MASK, _INKS, _YCBCR, _LAB, _ICC_LAB = 0, 1, 2, 3, 4, 5, 6, 8, 9
_GRAY = (_WHITE, _BLACK, 51177, 52527)  # the last two are depth and semantic maps
_OPACITY = (1, 2)  # values of ExtraSamples
_DECODED = (*JPEG, 50001, 50002, 52546)  # also WebP and JPEG XL, which decode to RGB
_INKS_CMYK = 1
_LUMA = (0.299, 0.587, 0.114)  # weights of red, green and blue in YCbCr, unless the file says otherwise
_RAW = "values of a raw photograph's sensor; if it is a DNG, rename it to end in .dng, or develop it first"
_UNREAD = {
    10: "colours are ITULAB; convert it to RGB in the program that made it",
    32803: _RAW,
    34892: _RAW,
    32844: "luminance is logarithmic (LogL); convert it with: tiff2rgba in.tif out.tif",
    32845: "colours are LogLuv; convert it with: vips colourspace in.tif out.tif srgb",
}

_Step = Callable[[NDArray[Any]], NDArray[Any]]


@dataclass(frozen=True, slots=True)
class Plain:
    """How stored values become plain ones.

    Attributes
    ----------
    colours : int
        1 for gray, 3 for RGB.
    samples : int
        Colours and extra samples.
    dtype : dtype
    opacity : int
        Value of ExtraSamples for the only extra sample; 0 if it is unspecified or there are none or several.
    steps : tuple of callable
        Each maps (H, W, samples) to the same, or to other colours.
    notes : tuple of str
    keeps_profile : bool
        Whether the colour profile of the file applies to the result.
    """

    colours: int
    samples: int
    dtype: np.dtype[Any]
    opacity: int = 0
    steps: tuple[_Step, ...] = ()
    notes: tuple[str, ...] = ()
    keeps_profile: bool = True


def check_colours(page: Any) -> None:
    """Raise UnsupportedError if the colours of a page are of a kind that is not read."""
    photometric = int(page.photometric)
    if photometric in _UNREAD:
        raise UnsupportedError(_UNREAD[photometric])
    if photometric not in (*_GRAY, _RGB, _PALETTE, _MASK, _INKS, _YCBCR, _LAB, _ICC_LAB):
        raise UnsupportedError(f"photometric interpretation {photometric} is unknown; save it as gray or RGB")
    if photometric == _INKS and page.tags.valueof(332, _INKS_CMYK) != _INKS_CMYK:
        raise UnsupportedError("inks are not CMYK; convert it to RGB in the program that made it")


def understand(page: Any, planes: Planes, icc: bytes | None, *, measured: bool, channels: bool) -> Plain:
    """Find out how the values of a page become plain ones.

    Parameters
    ----------
    page : TiffPage
    planes : Planes
        Of this page.
    icc : bytes or None
        Colour profile of the file.
    measured : bool
        Whether values that have a palette are measurements all the same, and the palette only shows them.
    channels : bool
        Whether the samples are channels, not colours.

    Raises
    ------
    UnsupportedError
        If the colours are of a kind that is not read.
    """
    notes: list[str] = []
    photometric = int(page.photometric) if 262 in page.tags else _guess(page, notes)
    if channels or photometric == _MASK or (photometric == _PALETTE and measured):
        photometric = _BLACK
    if photometric == _RGB and planes.samples < 3:
        photometric = _BLACK
    inputs = 1 if photometric in (*_GRAY, _PALETTE) else 4 if photometric == _INKS else 3
    if planes.samples < inputs:
        raise ValueError(f"{planes.samples} samples per pixel, but its colours need {inputs}")
    extra = planes.samples - inputs
    kinds = [*(int(kind) for kind in page.extrasamples), *[0] * extra]
    steps: list[_Step] = []
    dtype, colours = planes.dtype, 1 if inputs == 1 else 3
    keeps_profile = True
    bits = page.bitspersample if isinstance(page.bitspersample, int) else 8 * dtype.itemsize
    full = 8 * dtype.itemsize
    if dtype.kind == "b" or (dtype.kind == "u" and bits < full):
        dtype = np.dtype(np.uint8) if dtype.kind == "b" else dtype
        if photometric != _PALETTE:
            steps.append(lambda block: _scale(block, bits, dtype))
            notes.append(f"{bits} bit{'s' * (bits > 1)} scaled to {8 * dtype.itemsize}")
    if photometric == _WHITE:
        if dtype.kind == "f":
            notes.append("white is 0, but floating-point values are not inverted")
        else:
            steps.append(lambda block: _per_colour(block, 1, np.invert))
            notes.append("inverted: white was 0")
    elif photometric == _PALETTE:
        table = _read_palette(page)
        colours = 3
        steps.append(_palette(table, bits))
        dtype = table.dtype
        notes.append("palette converted to RGB")
    elif photometric in (_INKS, _LAB, _ICC_LAB, _YCBCR):
        if photometric != _YCBCR or page.compression not in _DECODED or page.planarconfig == 2:
            steps.append(_colours(page, photometric, dtype, icc, notes))
        keeps_profile = photometric == _YCBCR
    return Plain(
        colours,
        colours + extra,
        dtype,
        opacity=_find_opacity(kinds, extra, photometric),
        steps=tuple(steps),
        notes=tuple(notes),
        keeps_profile=keeps_profile,
    )


def _find_opacity(kinds: list[int], extra: int, photometric: int) -> int:
    if extra != 1 or kinds[0] not in _OPACITY:
        return 0
    # Premultiplied values fade to 0, which is white for these.
    return STRAIGHT_ALPHA if photometric in (_WHITE, _INKS) else kinds[0]


def _guess(page: Any, notes: list[str]) -> int:
    """Guess a photometric interpretation that is missing, as libtiff does."""
    fax = page.compression in (2, 3, 4)
    guess = _RGB if page.samplesperpixel >= 3 else _WHITE if fax else _BLACK
    notes.append(f"photometric interpretation missing, taken for {('white is 0', 'gray', 'RGB')[guess]}")
    return guess


def _per_colour(block: NDArray[Any], inputs: int, step: _Step) -> NDArray[Any]:
    """Apply a step to the colours, and leave extra samples as they are."""
    if block.shape[-1] == inputs:
        return step(block)
    colours = step(block[..., :inputs])
    return np.concatenate([colours, block[..., inputs:].astype(colours.dtype)], axis=-1)


def _scale(block: NDArray[Any], bits: int, dtype: np.dtype[Any]) -> NDArray[Any]:
    """Scale whole numbers of some bits to the range of a dtype."""
    largest, full = (1 << bits) - 1, int(np.iinfo(dtype).max)
    wide = block.astype(np.uint32 if dtype.itemsize <= 2 else np.uint64)
    return ((wide * full + largest // 2) // largest).astype(dtype)


def _read_palette(page: Any) -> NDArray[Any]:
    """Return the colours, (N, 3); uint8 unless they need more."""
    if page.colormap is None:
        raise ValueError("the palette is missing")
    table = np.asarray(page.colormap, np.uint16).T
    if table.max() < 256:  # written by programs that knew only 8 bits
        return table.astype(np.uint8)
    if not (table & 255).any() or not (table % 257).any():
        return (table >> 8).astype(np.uint8)
    return table


def _palette(table: NDArray[Any], bits: int) -> _Step:
    def look_up(block: NDArray[Any]) -> NDArray[Any]:
        numbers = block[..., 0].astype(np.intp)
        if numbers.size and numbers.max() >= len(table):
            raise ValueError("values beyond the end of the palette")
        return np.concatenate([table[numbers], _scale(block[..., 1:], bits, table.dtype)], axis=-1)

    return look_up


def is_smooth(page: Any) -> bool:
    """Tell whether the colours of a palette follow each other smoothly, as those that show measurements."""
    table = _read_palette(page).astype(float)
    steps = np.abs(np.diff(table, axis=0)).max(axis=1)
    return bool(np.median(steps) <= 0.04 * np.iinfo(_read_palette(page).dtype).max)


def _colours(page: Any, photometric: int, dtype: np.dtype[Any], icc: bytes | None, notes: list[str]) -> _Step:
    name = {_INKS: "CMYK", _YCBCR: "YCbCr"}.get(photometric, "Lab")
    inputs = 4 if photometric == _INKS else 3
    if dtype not in (np.uint8, np.uint16) and not (photometric == _INKS and dtype.kind == "f"):
        raise UnsupportedError(
            f"{name} of dtype {dtype} is not read; convert it to RGB, or to {name} of 8 bits"
        )
    notes.append(f"{name} converted to RGB")
    if photometric == _YCBCR:
        return lambda block: _per_colour(block, 3, _ycbcr(page, dtype))
    if photometric == _INKS:
        if icc is None or icc[16:20] != b"CMYK" or dtype.kind == "f":
            notes[-1] += " without a profile"
            return lambda block: _per_colour(block, inputs, _mix_inks)
        notes[-1] += " (sRGB) by its profile"
        return lambda block: _per_colour(block, inputs, lambda inks: _transform(inks, icc, "cmyk"))
    notes[-1] += " (sRGB)"
    signed = photometric == _LAB
    return lambda block: _per_colour(block, inputs, lambda lab: _transform_lab(lab, signed=signed))


def _mix_inks(inks: NDArray[Any]) -> NDArray[Any]:
    if inks.dtype.kind == "f":
        return np.asarray((1 - inks[..., :3]) * (1 - inks[..., 3:]), inks.dtype)
    full = int(np.iinfo(inks.dtype).max)
    paper = full - inks.astype(np.uint64)
    return ((paper[..., :3] * paper[..., 3:] + full // 2) // full).astype(inks.dtype)


def _transform(block: NDArray[Any], profile: bytes, space: str) -> NDArray[Any]:
    import imagecodecs

    srgb = imagecodecs.cms_profile("srgb")
    rgb: NDArray[Any] = imagecodecs.cms_transform(
        np.ascontiguousarray(block), profile, srgb, colorspace=space, outcolorspace="rgb"
    )
    return rgb


def _transform_lab(lab: NDArray[Any], *, signed: bool) -> NDArray[Any]:
    """Convert CIELAB (signed a and b) or ICCLAB (unsigned ones) to sRGB.

    References
    ----------
    .. [1] TIFF Revision 6.0, section 23.
    .. [2] Adobe Photoshop TIFF Technical Notes, 2002, "ICC L*a*b*".
    """
    import imagecodecs

    wide = lab.astype(np.uint16) << (16 - 8 * lab.itemsize)
    if signed:
        wide[..., 1:] ^= 1 << 15
        if lab.itemsize == 2:  # 100 is 65535; in the profile's encoding it is 65280, as it is for 8 bits
            wide[..., 0] = (wide[..., 0].astype(np.uint32) * 65280 + 32767) // 65535
    rgb = _transform(wide, imagecodecs.cms_profile("lab2"), "labv2")
    return rgb if lab.itemsize == 2 else ((rgb.astype(np.uint32) + 128) // 257).astype(np.uint8)


def _ycbcr(page: Any, dtype: np.dtype[Any]) -> _Step:
    """Convert YCbCr to RGB (TIFF 6.0, section 21)."""
    full = int(np.iinfo(dtype).max)
    middle = (full + 1) // 2
    red, green, blue = _rationals(page.tags.valueof(529)) or _LUMA
    limits = _rationals(page.tags.valueof(532)) or (0, full, middle, full, middle, full)
    black, span = np.array(limits[::2]), np.array([full, full - middle, full - middle])
    span = span / (np.array(limits[1::2]) - black)

    def convert(block: NDArray[Any]) -> NDArray[Any]:
        y, cb, cr = np.moveaxis((block - black) * span, -1, 0)
        r, b = y + cr * (2 - 2 * red), y + cb * (2 - 2 * blue)
        rgb = np.stack([r, (y - blue * b - red * r) / green, b], axis=-1)
        return rgb.round().clip(0, full).astype(dtype)

    return convert


def _rationals(value: Any) -> tuple[float, ...]:
    """Return the numbers in a tag of fractions; none if it is missing or damaged."""
    pairs = list(zip(value[::2], value[1::2], strict=False)) if value else []
    return tuple(a / b for a, b in pairs) if all(b for _, b in pairs) else ()
