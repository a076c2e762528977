"""Which model and which treatment a picture needs, by the noise that was measured; it knows no torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..arrays.axes import Layout, layout
from ..arrays.intensity import find_range, is_unit
from ..arrays.noise import Noise, measure_noise, sample
from ..zoo.locations import DEFAULT, DEFAULT_GRAY, DEFAULT_MICRO

# Levels of noise are in units of the range over 255, as literature has them.
_CLEAN = 0.8  # noise below it is left alone: no model that ships gains anything there
_CORRELATED_CLEAN = 0.25  # the same for noise that neighbours share, which is seen from further away
_WHITE = 0.6  # of the colours' whiteness
_GRAY_WHITE = 0.45  # of gray pictures, where fine structure takes part
_HALVED = 0.7  # of the whiteness of the brightness, where the colours are not white
_SHARED = 0.4, 0.3  # whiteness below which neighbours share noise: weak noise, and noise of any strength
_WEAK = 5.0
# Of `Noise.spread`, from how strong noise on: beyond that it is structure. JPEG wipes out weak noise in
# places; the flattest blocks say something of strong noise alone.
_STRUCTURE = ((0.0, (float("inf"), 5.0)), (1.0, (float("inf"), 3.5)), (2.5, (2.5, 3.5)))
# Of `Noise.dependence`, of which photons alone give 2: equally strong noise stays below the first, and where
# it is not weak, so that structure is nothing beside it, below the second.
_DEPENDENT, _STRONG = (1.2, 0.95), 10.0
_STRIDE = 2
_COVER = 8.0, 16.0  # the white noise that is added: twice the noise within these
_LIMIT, _WHITE_LIMIT = 1.5, 1.2  # of noise that is equally strong more is known


@dataclass(frozen=True, slots=True)
class Treatment:
    """What to do with a picture.

    Attributes
    ----------
    model : str
        Name of a shipped model.
    settings : mapping
        For `Restorer`, where they differ from its defaults.
    reason : str
        In a few words, for people.
    kind : {"white", "dependent", "correlated", "halved", "clean", "unknown"}
        Of the noise.
    """

    model: str
    settings: Mapping[str, Any]
    reason: str
    kind: str

    def __str__(self) -> str:
        if self.kind == "clean":
            return f"left alone: {self.reason}"
        return f"{self.model}{self.how}: {self.reason}"

    @property
    def how(self) -> str:
        """What is done besides, in a few words."""
        if "decorrelate" in self.settings:
            stride, cover = self.settings["decorrelate"]
            return f", every {_ORDINALS[stride]} pixel by itself with white noise of {cover:.0f} added"
        return " on each colour by itself" if self.kind == "halved" else ""


_ORDINALS = {1: "", 2: "second", 3: "third", 4: "fourth"}


def look(array: Any, axes: str | None = None) -> list[Noise]:
    """Measure the noise of every channel of an array that is restored by itself.

    Parameters
    ----------
    array : array
        Anything with shape and dtype that can be sliced; a million pixels of each channel are read.
    axes : str, optional
        As for `Restorer`.

    Raises
    ------
    ValueError
        If axes do not fit the shape, or the shape leaves a choice.
    """
    arranged = layout(tuple(int(n) for n in array.shape), axes, 3)
    return [_look(array, arranged, channel) for channel in range(arranged.channel_count)]


def _look(array: Any, arranged: Layout, channel: int) -> Noise:
    colours = arranged.channels - arranged.alpha
    return measure_noise(
        [
            arranged.to_picture(np.asarray(array[arranged.key(plane, window)]))[..., :colours]
            for plane, window in sample(arranged, channel)
        ]
    )


def treatment(noises: Sequence[Noise], dtype: np.dtype[Any], colours: int) -> Treatment:
    """Choose model and settings.

    Parameters
    ----------
    noises : sequence of Noise
        Of every channel; the noisiest decides.
    dtype : dtype
        Of the array.
    colours : {1, 3}
        That are restored together.
    """
    return max((_treatment(noise, dtype, colours) for noise in noises), key=lambda t: t[0])[1]


def _treatment(noise: Noise, dtype: np.dtype[Any], colours: int) -> tuple[float, Treatment]:
    """The treatment of one channel, and how noisy that is."""
    unit = find_range("auto", dtype, noise).span / 255
    counts = colours == 1 and not (dtype.kind == "b" or dtype.itemsize == 1)
    if dtype.kind == "f" and is_unit(noise):
        counts = False
    usual = DEFAULT if colours == 3 else DEFAULT_MICRO if counts else DEFAULT_GRAY
    if not noise.known:
        return 0.0, Treatment(usual, {}, "too small for its noise to be measured", "unknown")
    level, neighbours = noise.deviation / unit, noise.correlation
    strong = max(noise.deviations) / unit
    dependent = colours == 1 and _depends(noise, level)
    white, halved, chroma = noise.whiteness >= _GRAY_WHITE, False, noise.chroma / unit
    if colours == 3:
        white = (noise.chroma_whiteness or 0) >= _WHITE and chroma >= _CLEAN
        halved = not white and noise.whiteness >= _HALVED and level >= 2
    shared = noise.whiteness < _SHARED[0 if level <= _WEAK else 1]
    if white and (strong if dependent or counts else level) >= _CLEAN:
        settings: dict[str, Any] = {"limit": _WHITE_LIMIT}
        if dependent or counts:
            grows = "grows with the brightness" if dependent else "is white"
            said = f"{_range_of(noise)}its noise {grows}{_level(noise)}"
            settings = {"limit": _LIMIT, "keep_mean": True}  # those who count photons measure intensities
            return strong, Treatment(DEFAULT_MICRO, settings, said, "dependent")
        return level, Treatment(usual, settings, f"white noise of about {level:.1f} of 255", "white")
    if halved:
        said = (
            f"white noise of about {level:.1f} of 255 in the brightness alone, as in JPEGs of halved colour"
        )
        return level, Treatment(DEFAULT_GRAY, {"limit": _LIMIT}, said, "halved")
    if shared and level >= _CORRELATED_CLEAN and not _is_structure(noise, level):
        cover = float(round(np.clip(2 * level, *_COVER)))
        settings = {"decorrelate": (_STRIDE, cover), "limit": _LIMIT}
        percent = round(50 * (neighbours[0][0] + neighbours[1][0]))
        said = (
            f"noise of about {level:.1f} of 255 that neighbouring pixels share ({percent} %), as cameras "
            "leave it"
        )
        return level, Treatment(usual, settings, said, "correlated")
    if level < _CLEAN:
        said = f"what noise there is, about {level:.1f} of 255, is below what a model would remove"
    else:
        said = "what varies in it looks like structure, not like noise"
    return 0.0, Treatment(usual, {"strength": 0.0}, f"already clean ({said})", "clean")


def _depends(noise: Noise, level: float) -> bool:
    """Whether noise grows with the brightness; its level is of 255."""
    return noise.dependence > _DEPENDENT[level >= _STRONG]


def _is_structure(noise: Noise, level: float) -> bool:
    """Whether what neighbours share is here and there, where noise would be everywhere."""
    limits = next(limits for least, limits in reversed(_STRUCTURE) if level >= least)
    return any(found > limit for found, limit in zip(noise.spread, limits, strict=True))


def _level(noise: Noise) -> str:
    if noise.gain > 0:
        return f" (gain {noise.gain:.3g}, {noise.read:.3g} at black)"
    return f" of about {noise.deviation:.3g}"


def _range_of(noise: Noise) -> str:
    return f"values of {noise.low:.4g} to {noise.high:.4g}, "


def describe(noise: Noise) -> list[str]:
    """What was measured, in sentences for people."""
    lines = [
        f"values    {noise.least:g} to {noise.largest:g}, 99.8 % of them within {noise.low:g} and "
        f"{noise.high:g}"
    ]
    if noise.step > 1:
        lines.append(f"step      {noise.step:g}: the lower bits are not used")
    if not noise.known:
        return [*lines, "noise     too few pixels to measure it"]
    ends = " and ".join(
        f"{noise.deviations[end]:.3g} at {noise.levels[end]:.4g}"
        for end in sorted({0, len(noise.levels) - 1})
    )
    lines.append(f"noise     standard deviation {noise.deviation:.3g} ({ends})")
    if noise.gain > 0 and _depends(noise, 255 * noise.deviation / max(noise.high - noise.low, 1e-300)):
        lines.append(
            f"          variance = {noise.gain:.4g} x (value - {noise.black:.4g}) + {noise.read:.4g}^2: "
            "it grows with the brightness"
        )
    else:
        lines.append("          about equally strong at every brightness")
    (right, right2), (down, down2) = noise.correlation
    lines.append(
        f"pixels    neighbours share {right:.0%} along rows, {down:.0%} along columns; "
        f"two apart {right2:.0%}, {down2:.0%}"
    )
    if noise.chroma_whiteness is not None:
        lines.append(
            f"colours   noise of {noise.chroma:.3g}, whiteness {noise.chroma_whiteness:.2f} (1 is white)"
        )
    if noise.hot or noise.dead:
        lines.append(f"outliers  {noise.hot:.2%} of the pixels are hot, {noise.dead:.2%} dead")
    if noise.dark or noise.saturated:
        lines.append(
            f"limits    {noise.dark:.1%} at the smallest value, {noise.saturated:.1%} at the largest"
        )
    if noise.grid:
        lines.append("JPEG      the borders of its 8 x 8 blocks show")
    return lines
