"""Checks of arguments that several degradations take."""

from __future__ import annotations

from ..errors import BadInput
from .base import Bounds, bounds


def probability(value: float, name: str) -> float:
    """Return a probability.

    Raises
    ------
    BadInput
        Unless it is a number from 0 to 1.
    """
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= 1:
        raise BadInput(f"{name} must be a probability from 0 to 1, not {value!r}")
    return float(value)


def whole_bounds(value: Bounds, name: str, least: int, most: int) -> tuple[int, int]:
    """Return the bounds that a parameter gives, as `bounds` does, for whole numbers.

    Raises
    ------
    BadInput
        Unless they are whole, increase and lie within `least` and `most`.
    """
    low, high = bounds(value, name, least, most)
    if low != int(low) or high != int(high):
        raise BadInput(f"{name} must be a whole number or two, not {value!r}")
    return int(low), int(high)


def log_bounds(value: Bounds, name: str, most: float = float("inf")) -> tuple[float, float]:
    """Return the bounds that a parameter gives, as `bounds` does, for one that is drawn log-uniformly.

    Raises
    ------
    BadInput
        Also if the lower bound alone is 0.
    """
    low, high = bounds(value, name, 0, most)
    if low == 0 < high:
        raise BadInput(f"{name}: the lower bound must be above 0, as it is drawn log-uniformly")
    return low, high
