"""From an array's own values to the 0..1 that the networks know, and back without loss."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

PERCENTILES = 0.1, 99.9
_SAMPLES = 1 << 20  # pixels that percentiles are taken of

RangeRule = Literal["dtype", "percentile"] | tuple[float, float]
Read = Callable[[tuple[slice, slice]], NDArray[Any]]


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
    if rule in ("dtype", "percentile"):
        return "dtype" if rule == "dtype" else "percentile"
    try:
        low, high = (float(v) for v in rule)
    except (TypeError, ValueError):
        raise ValueError(f"range must be 'dtype', 'percentile' or two numbers, not {rule!r}") from None
    if not (np.isfinite(low) and np.isfinite(high) and low < high):
        raise ValueError(f"range must run from a lower to a higher number, not {low:g} to {high:g}")
    return low, high


def find_range(rule: RangeRule, dtype: np.dtype[Any], size: tuple[int, int], read: Read) -> Range:
    """Range of one plane.

    Parameters
    ----------
    rule : "dtype", "percentile" or (float, float)
        ``"dtype"``: integers and bool span 0 to the largest of their dtype; floats within -0.5 and 1.5 span
        0 to 1, others their own least to largest. ``"percentile"``: the 0.1th to the 99.9th of the plane's
        values, taken of a regular grid of at most a million pixels. Or the two ends themselves.
    dtype : dtype
        Of the array.
    size : (int, int)
        Of the plane.
    read : callable
        Gives a window (rows, columns) of the plane, without its opacity. Called only where values matter.
    """
    if isinstance(rule, tuple):
        return Range(rule[0], rule[1] - rule[0])
    if rule == "percentile" and dtype.kind != "b":
        step = percentile_step(size)
        values = np.concatenate([read(window)[::step, ::step].ravel() for window in _strips(size, step)])
        return percentile_range(values)
    if dtype.kind == "b":
        return Range(0.0, 1.0)
    if dtype.kind in "ui":
        return Range(0.0, float(np.iinfo(dtype).max))
    low, high = np.inf, -np.inf
    for window in _strips(size, 1):
        values = read(window)
        values = values[np.isfinite(values)]
        if values.size:
            low, high = min(low, float(values.min())), max(high, float(values.max()))
    return float_range(low, high)


def percentile_step(size: tuple[int, int]) -> int:
    """Rows and columns from one pixel that percentiles are taken of to the next."""
    return max(1, int(np.ceil(np.sqrt(size[0] * size[1] / _SAMPLES))))


def percentile_range(values: NDArray[Any]) -> Range:
    """Range between the `PERCENTILES` of some values; NaN and infinity do not count."""
    finite = values[np.isfinite(values)]
    if not finite.size:
        return Range(0.0, 1.0)
    low, high = (float(v) for v in np.percentile(finite.astype(np.float64), PERCENTILES))
    return Range(low, high - low if high > low else 1.0)


def float_range(low: float, high: float) -> Range:
    """Range of floats that run from `low` to `high`."""
    if low >= -0.5 and high <= 1.5:  # so too where there are none: inf, -inf
        return Range(0.0, 1.0)
    span = high - low
    if not np.isfinite(span):
        raise ValueError(f"values from {low:g} to {high:g} are too far apart to be scaled; name a range")
    return Range(low, span or 1.0)


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


def _strips(size: tuple[int, int], step: int) -> list[tuple[slice, slice]]:
    rows = max(1, _SAMPLES // size[1] // step) * step
    return [(slice(y, min(y + rows, size[0])), slice(0, size[1])) for y in range(0, size[0], rows)]
