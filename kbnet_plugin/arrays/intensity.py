"""Scale an array's values to the 0..1 that networks are trained on, and back without loss."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from .noise import Noise

PERCENTILES = 0.1, 99.9
"""Percentiles of the values that become 0 and 1 by the rule ``"percentile"``."""

LUMA = (0.299, 0.587, 0.114)
"""Weights of red, green and blue in the brightness (ITU-R BT.601)."""

WIDEST = 1e150
"""Largest difference of values that can be measured and scaled: its square is finite in float64."""

RangeRule = Literal["auto", "dtype", "percentile"] | tuple[float, float]
"""How a `Range` is found (see `find_range`), or the values that become 0 and 1."""

_RULES: tuple[Literal["auto", "dtype", "percentile"], ...] = ("auto", "dtype", "percentile")


class Range(NamedTuple):
    """Linear scale from an array's values to 0..1.

    Attributes
    ----------
    low : float
        Value that becomes 0.
    span : float
        Difference that becomes 1.
    """

    low: float
    span: float

    def apply(self, values: NDArray[Any]) -> NDArray[np.float32]:
        """Return ``(values - low) / span`` in float32, computed in `working` precision."""
        work = working(values.dtype)
        scaled: NDArray[Any] = values.astype(work)
        if self.low:
            scaled -= work(self.low)
        if self.span != 1:
            scaled /= work(self.span)
        return scaled.astype(np.float32, copy=False)


def check_rule(rule: Any) -> RangeRule:
    """Return a valid range rule, numbers as floats.

    Raises
    ------
    ValueError
        If it is neither one of the names nor two finite, rising numbers.
    """
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
    """Find the range of a picture, or of planes of one kind together.

    Parameters
    ----------
    rule : "auto", "dtype", "percentile" or (float, float)
        ``"auto"``: limits of the dtype for bool and 8-bit integers, 0 to 1 for floats that look like it, and
        percentiles otherwise. ``"dtype"``: 0 to the largest value of the dtype for integers and bool; for
        floats 0 to 1 if all are within -0.5..1.5, else minimum to maximum. ``"percentile"``: 0.1th to 99.9th
        percentile, without hot and dead pixels. Or the values that become 0 and 1.
    dtype : dtype
        Of the array.
    noise : Noise
        Measured on the array; used only if `needs_values` is true.

    Returns
    -------
    Range

    Raises
    ------
    ValueError
        If the values are further apart than `WIDEST`.
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
    """Tell whether the range depends on the values of the array."""
    if isinstance(rule, tuple) or dtype.kind == "b":
        return False
    if dtype.kind == "f" or rule == "percentile":
        return True
    return rule == "auto" and dtype.itemsize > 1


def is_unit(noise: Noise) -> bool:
    """Tell whether values look like 0..1: the 1st percentile at least -0.5, the 99th within 0.5..1.5."""
    low, high = noise.inner
    return low >= -0.5 and 0.5 < high <= 1.5


def percentile_range(values: NDArray[Any]) -> Range:
    """Return the range between the `PERCENTILES` of some values, ignoring NaN and infinity."""
    finite = values[np.isfinite(values)]
    if not finite.size:
        return Range(0.0, 1.0)
    low, high = (float(v) for v in np.percentile(finite.astype(np.float64), PERCENTILES))
    return _between(low, high)


def float_range(low: float, high: float) -> Range:
    """Return the range of floats from `low` to `high`: 0 to 1 if they are within -0.5..1.5."""
    if low >= -0.5 and high <= 1.5:  # also if there are none: inf, -inf
        return Range(0.0, 1.0)
    return _between(low, high)


def _between(low: float, high: float) -> Range:
    span = high - low
    if not span <= WIDEST:
        raise ValueError(f"values from {low:g} to {high:g} are too far apart to be scaled; set a range")
    return Range(low, span if span > 0 else 1.0)


def working(dtype: np.dtype[Any]) -> type[np.floating[Any]]:
    """Return the float type that represents all values of a dtype (64-bit integers only nearly)."""
    return np.float32 if dtype.itemsize <= 2 or dtype == np.float32 else np.float64


def cast(values: NDArray[Any], dtype: np.dtype[Any]) -> NDArray[Any]:
    """Convert floats to another dtype, rounding and clipping to integers; may overwrite `values`."""
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
