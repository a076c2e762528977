"""Choose a shipped model and its settings for a picture, by the noise measured in it; imports no torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..arrays.axes import layout
from ..arrays.intensity import find_range, is_unit
from ..arrays.noise import Noise
from ..zoo.locations import DEFAULT, DEFAULT_GRAY, DEFAULT_MICRO, DEFAULT_PHOTO
from .reading import measure_channel

# Levels of noise are standard deviations in 1/255 of the range, as in the literature.
_CLEAN = 0.8  # weaker noise is left alone, as no shipped model improves on it
_COUNTS_CLEAN = 1.2  # in counts, whose noise would grow with the brightness: the same for noise that does not
_CORRELATED_CLEAN = 0.25  # the same for correlated noise, which is more visible
_WHITE = 0.6  # least whiteness of white noise, for the colours
_GRAY_WHITE = 0.45  # for gray pictures, where fine structure lowers it
# Colour at half resolution leaves the noise of the brightness white, but averages and spreads that of the
# colours. What differs between neighbours then is mostly the rounding of values: white, too, but faint.
_HALVED = 0.55, 0.7  # least whiteness of the brightness, and the same where that varies as structure does
_HALVED_LEAST = 2.0  # level of the brightness's noise
_FAINT = 0.3  # largest noise of the colours, relative to that of the brightness, if both are white
_CORRELATED = 0.4, 0.3  # largest whiteness of correlated noise, if weak and if strong
_WEAK = 5.0
# Level, and largest `Noise.spread` from that level on; beyond, it is structure. JPEG erases weak noise in
# places, and only strong noise dominates the flattest blocks.
_STRUCTURE = ((0.0, (float("inf"), 5.0)), (1.0, (float("inf"), 3.5)), (2.5, (2.5, 3.5)))
# Largest `Noise.dependence` (2 for pure shot noise) of noise that is equally strong everywhere: in general,
# and if it is strong, so that structure hardly disturbs the measurement.
_DEPENDENT, _STRONG = (1.2, 0.95), 10.0
_STRIDE = 2
_ADDED = 8.0, 16.0  # bounds of the white noise that is added, which is twice the measured noise
_LIMIT, _WHITE_LIMIT = 1.5, 1.2  # tighter for white noise, of which more is known
_PHOTO_LIMIT = 3.0  # wider: blotches of several pixels count little in the measured level


@dataclass(frozen=True, slots=True)
class Treatment:
    """How to restore a picture; `str` formats it for people.

    Attributes
    ----------
    model : str
        Name of a shipped model.
    settings : mapping
        Settings of `Restorer` that differ from its defaults.
    reason : str
        What was measured, in a few words.
    kind : {"white", "dependent", "correlated", "halved", "clean", "unknown"}
        Kind of noise: white, growing with the brightness, correlated between neighbours, white in the
        brightness alone, too weak to remove, or not measurable.
    """

    model: str
    settings: Mapping[str, Any]
    reason: str
    kind: str

    def __str__(self) -> str:
        if self.settings.get("strength") == 0:
            return f"left alone: {self.reason}"
        if "decorrelate" not in self.settings:
            return f"{self.model}: {self.reason}"
        stride, sigma = self.settings["decorrelate"]
        how = f"on every {_ORDINALS[stride]} pixel by itself, with white noise of {sigma:.0f} added"
        return f"{self.model} {how}: {self.reason}"


_ORDINALS = {1: "", 2: "second", 3: "third", 4: "fourth"}


def measure_channels(array: Any, axes: str | None = None) -> list[Noise]:
    """Measure the noise of every channel of an array (colours, which are restored together, count as one).

    Parameters
    ----------
    array : array
        Anything with shape and dtype that can be sliced; at most a million pixels per channel are read.
    axes : str, optional
        As for `Restorer.__call__`.

    Raises
    ------
    ValueError
        If the axes do not fit the shape, or the shape is ambiguous.
    DamagedError
        If the data cannot be decoded.
    """
    arranged = layout(tuple(int(n) for n in array.shape), axes, 3)
    return [measure_channel(array, arranged, channel) for channel in range(arranged.channel_count)]


def choose_treatment(noises: Sequence[Noise], dtype: np.dtype[Any], colours: int) -> Treatment:
    """Choose model and settings for a picture.

    Parameters
    ----------
    noises : sequence of Noise
        One per channel, as from `measure_channels`; the noisiest decides.
    dtype : dtype
        Of the array.
    colours : {1, 3}
        Number of colours that are restored together.
    """
    return max((_treatment(noise, dtype, colours) for noise in noises), key=lambda t: t[0])[1]


def _treatment(noise: Noise, dtype: np.dtype[Any], colours: int) -> tuple[float, Treatment]:
    """Choose the treatment for one channel, and return it with its level of noise."""
    usual = DEFAULT if colours == 3 else DEFAULT_GRAY
    if noise.least == noise.largest:
        return -1.0, Treatment(
            usual, {"strength": 0.0}, "already clean (all measured values are equal)", "clean"
        )
    try:
        unit = find_range("auto", dtype, noise).span / 255
    except ValueError as error:
        return -1.0, Treatment(usual, {"strength": 0.0}, str(error), "unknown")
    counts = colours == 1 and not (dtype.kind == "b" or dtype.itemsize == 1)
    if dtype.kind == "f" and is_unit(noise):
        counts = False
    usual = DEFAULT_MICRO if counts else usual
    if not noise.known:
        return 0.0, Treatment(usual, {}, "too small to measure its noise", "unknown")
    level, neighbours = noise.deviation / unit, noise.correlation
    strong = max(noise.deviations) / unit
    dependent = colours == 1 and _depends(noise, level)
    white, halved, chroma = noise.whiteness >= _GRAY_WHITE, False, noise.chroma / unit
    if colours == 3:
        white = (noise.chroma_whiteness or 0) >= _WHITE and chroma >= _CLEAN
        halved = noise.whiteness >= _HALVED[_is_structure(noise, level)] and level >= _HALVED_LEAST
        halved = halved and (not white or chroma < _FAINT * level)
        white = white and not halved
    correlated = noise.whiteness < _CORRELATED[0 if level <= _WEAK else 1]
    least = _COUNTS_CLEAN if counts and not dependent else _CLEAN
    if white and (strong if dependent or counts else level) >= least:
        settings: dict[str, Any] = {"limit": _WHITE_LIMIT}
        if dependent or counts:
            kind = "noise that grows with the brightness" if dependent else "white noise"
            reason = f"values from {_num(noise.low)} to {_num(noise.high)}, {kind}{_level(noise)}"
            settings = {"limit": _LIMIT, "keep_mean": True}  # intensities in such pictures are often measured
            return strong, Treatment(DEFAULT_MICRO, settings, reason, "dependent")
        return level, Treatment(usual, settings, f"white noise of about {level:.1f} of 255", "white")
    if halved:
        reason = f"white noise of about {level:.1f} of 255 in the brightness alone, as in many JPEGs"
        return level, Treatment(DEFAULT_PHOTO, {"limit": _PHOTO_LIMIT}, reason, "halved")
    if counts and correlated and level >= _CLEAN:
        # A microscope's camera does not interpolate, so this is probably the specimen, which would be lost.
        why = f"neighbouring pixels share its variation, of about {_num(noise.deviation)}, as in structure"
        return 0.0, Treatment(usual, {"strength": 0.0}, f"{why} or in smoothed noise", "unknown")
    if correlated and level >= _CORRELATED_CLEAN and not _is_structure(noise, level):
        percent = round(50 * (neighbours[0][0] + neighbours[1][0]))
        share = f"that neighbouring pixels share ({percent} %), as from a camera"
        reason = f"noise of about {level:.1f} of 255 {share}"
        if colours == 3:
            return level, Treatment(DEFAULT_PHOTO, {"limit": _PHOTO_LIMIT}, reason, "correlated")
        added = float(round(np.clip(2 * level, *_ADDED)))
        settings = {"decorrelate": (_STRIDE, added), "limit": _LIMIT}
        return level, Treatment(usual, settings, reason, "correlated")
    if level < least:
        why = f"its noise of about {level:.1f} of 255 is too weak for a model to remove"
    else:
        why = "its variation looks like structure, not noise"
    return 0.0, Treatment(usual, {"strength": 0.0}, f"already clean ({why})", "clean")


def _depends(noise: Noise, level: float) -> bool:
    """Return whether noise grows with the brightness; `level` is in 1/255 of the range."""
    return noise.dependence > _DEPENDENT[level >= _STRONG]


def _is_structure(noise: Noise, level: float) -> bool:
    """Return whether the variation is concentrated in places, where noise would be everywhere."""
    limits = next(limits for least, limits in reversed(_STRUCTURE) if level >= least)
    return any(found > limit for found, limit in zip(noise.spread, limits, strict=True))


def _num(value: float) -> str:
    """Format with four digits, and counts without powers of ten."""
    return f"{value:.0f}" if 1000 <= abs(value) < 1e7 else f"{value:.4g}"


def _level(noise: Noise) -> str:
    if noise.gain > 0:
        return f" (gain {_num(noise.gain)}, {_num(noise.read)} at black)"
    return f" of about {_num(noise.deviation)}"


def describe_noise(noise: Noise) -> list[str]:
    """Describe the noise of a channel in lines for people."""
    lines = [
        f"values    {_num(noise.least)} to {_num(noise.largest)}, 99.8 % of them between "
        f"{_num(noise.low)} and {_num(noise.high)}"
    ]
    if noise.step > 1:
        lines.append(f"step      {_num(noise.step)}: the lowest bits are unused")
    if not noise.known:
        return [*lines, "noise     not measured: too few pixels"]
    ends = " and ".join(
        f"{_num(noise.deviations[end])} at {_num(noise.levels[end])}"
        for end in sorted({0, len(noise.levels) - 1})
    )
    lines.append(f"noise     standard deviation {_num(noise.deviation)} ({ends})")
    if noise.gain > 0 and _depends(noise, 255 * noise.deviation / max(noise.high - noise.low, 1e-300)):
        lines.append(
            f"          variance = {_num(noise.gain)} x (value - {_num(noise.black)}) "
            f"+ {_num(noise.read)}^2: grows with the brightness"
        )
    else:
        lines.append("          about the same at every brightness")
    (right, right2), (down, down2) = noise.correlation
    lines.append(
        f"          correlation of neighbours {right:.0%} along rows, {down:.0%} along columns; "
        f"of pixels two apart {right2:.0%}, {down2:.0%}"
    )
    if noise.chroma_whiteness is not None:
        lines.append(
            f"colours   noise {_num(noise.chroma)}, whiteness {noise.chroma_whiteness:.2f} (white noise: 1)"
        )
    if noise.hot or noise.dead:
        lines.append(f"outliers  {noise.hot:.2%} of the pixels are hot, {noise.dead:.2%} dead")
    if noise.dark or noise.saturated:
        lines.append(
            f"limits    {noise.dark:.1%} at the smallest value, {noise.saturated:.1%} at the largest"
        )
    if noise.grid:
        lines.append("JPEG      borders of 8 x 8 blocks are visible")
    return lines
