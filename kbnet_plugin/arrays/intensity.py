"""From an array's own values to the 0..1 that the networks know, and back without loss."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from .noise import Noise

PERCENTILES = 0.1, 99.9
"""Of the values; between them lies the range that a picture uses."""

LUMA = (0.299, 0.587, 0.114)
"""Weights of red, green and blue in the brightness; ITU-R BT.601."""

RangeRule = Literal["auto", "dtype", "percentile"] | tuple[float, float]
_RULES: tuple[Literal["auto", "dtype", "percentile"], ...] = ("auto", "dtype", "percentile")


class Range(NamedTuple):
    """The value that becomes 0, and how much makes 1."""

    low: float
    span: float

    def apply(self, values: NDArray[Any]) -> NDArray[np.float32]:
        """Values in units of the range, float32."""
        work = working(values.dtype)
        scaled: NDArray[Any] = values.astype(work)
        if self.low:
            scaled -= work(self.low)
        if self.span != 1:
            scaled /= work(self.span)
        return scaled.astype(np.float32, copy=False)


def check_rule(rule: Any) -> RangeRule:
    """Return a rule, or raise ValueError saying what one is."""
    for name in _RULES:
        if isinstance(rule, str) and rule == name:
            return name
    try:
        low, high = (float(v) for v in rule)
    except (TypeError, ValueError):
        raise ValueError(
            f"range must be {', '.join(map(repr, _RULES))} or two numbers, not {rule!r}"
        ) from None
    if not (np.isfinite(low) and np.isfinite(high) and low < high):
        raise ValueError(f"range must run from a lower to a higher number, not {low:g} to {high:g}")
    return low, high


def find_range(rule: RangeRule, dtype: np.dtype[Any], noise: Noise) -> Range:
    """Range of a picture, or of planes of one kind together.

    Parameters
    ----------
    rule : "auto", "dtype", "percentile" or (float, float)
        ``"auto"``: that of the dtype for bool and 8-bit integers, and 0 to 1 for floats that look like it;
        for everything else percentiles. ``"dtype"``: integers and bool span 0 to the largest of their dtype;
        floats within -0.5 and 1.5 span 0 to 1, others their own least to largest. ``"percentile"``: the
        0.1th to the 99.9th of the values, hot and dead pixels left out. Or the two ends themselves.
    dtype : dtype
        Of the array.
    noise : Noise
        As measured; its values are looked at only where `needs_values` says so.
    """
    if isinstance(rule, tuple):
        return Range(rule[0], rule[1] - rule[0])
    if dtype.kind == "b":
        return Range(0.0, 1.0)
    if rule == "auto":
        if dtype.kind in "ui" and dtype.itemsize == 1:
            limits = np.iinfo(dtype)
            return Range(float(limits.min), float(limits.max - limits.min))
        if dtype.kind == "f" and is_unit(noise):
            return Range(0.0, 1.0)
    if rule == "dtype" and dtype.kind in "ui":
        return Range(0.0, float(np.iinfo(dtype).max))
    if rule == "dtype":
        return float_range(noise.least, noise.largest)
    return _between(noise.low, noise.high)


def needs_values(rule: RangeRule, dtype: np.dtype[Any]) -> bool:
    """Whether a range depends on the values of an array."""
    if isinstance(rule, tuple) or dtype.kind == "b":
        return False
    if dtype.kind == "f" or rule == "percentile":
        return True
    return rule == "auto" and dtype.itemsize > 1


def is_unit(noise: Noise) -> bool:
    """Whether values look as if they ran from 0 to 1: nearly all within -0.5 and 1.5, some above a half."""
    low, high = noise.inner
    return low >= -0.5 and 0.5 < high <= 1.5


def percentile_range(values: NDArray[Any]) -> Range:
    """Range between the percentiles of some values; NaN and infinity do not count."""
    finite = values[np.isfinite(values)]
    if not finite.size:
        return Range(0.0, 1.0)
    low, high = (float(v) for v in np.percentile(finite.astype(np.float64), PERCENTILES))
    return _between(low, high)


def float_range(low: float, high: float) -> Range:
    """Range of floats that run from `low` to `high`."""
    if low >= -0.5 and high <= 1.5:  # so too where there are none: inf, -inf
        return Range(0.0, 1.0)
    return _between(low, high)


def _between(low: float, high: float) -> Range:
    span = high - low
    if not np.isfinite(span):
        raise ValueError(f"values from {low:g} to {high:g} are too far apart to be scaled; name a range")
    return Range(low, span if span > 0 else 1.0)


def working(dtype: np.dtype[Any]) -> type[np.floating[Any]]:
    """The float that holds every value of a dtype (of 64-bit integers, nearly)."""
    return np.float32 if dtype.itemsize <= 2 or dtype == np.float32 else np.float64


def cast(values: NDArray[Any], dtype: np.dtype[Any]) -> NDArray[Any]:
    """Floats as another dtype; integers are rounded and clipped."""
    if dtype.kind == "b":
        return values >= 0.5
    if dtype.kind == "f":
        return values.astype(dtype, copy=False)
    limits = np.iinfo(dtype)
    # 64-bit limits are not float64 numbers: the largest float below them is the largest that casts back.
    top = float(limits.max)
    top = top if int(top) <= limits.max else np.nextafter(top, 0)
    rounded = np.rint(values, out=values)
    return np.clip(rounded, limits.min, top, out=rounded).astype(dtype)
