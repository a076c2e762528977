"""How to run a network on arrays; imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from ..arrays.intensity import RangeRule, check_rule

TILE = 768
"""Largest side of a tile in pixels, if memory allows."""

Pooling = Literal["local", "global"]
Precision = Literal["auto", "float32", "float16", "bfloat16"]
PRECISIONS: tuple[Precision, ...] = ("auto", "float32", "float16", "bfloat16")


@dataclass(frozen=True, slots=True)
class Settings:
    """The parameters of a `Restorer`, validated; it documents them and their defaults.

    Raises
    ------
    ValueError
        If a value is out of range.
    """

    device: str
    tile: int | None
    halo: int | None
    batch: int
    pooling: Pooling
    window: int
    precision: Precision
    range: RangeRule
    strength: float
    chroma: float | None
    decorrelate: tuple[int, float] | None
    limit: float | None
    keep_mean: bool
    self_ensemble: bool

    def __post_init__(self) -> None:
        if self.pooling not in ("local", "global"):
            raise ValueError(f"pooling must be 'local' or 'global', not {self.pooling!r}")
        if self.precision not in PRECISIONS:
            raise ValueError(f"precision must be {', '.join(PRECISIONS)}, not {self.precision!r}")
        if self.batch < 1:
            raise ValueError(f"batch must be at least 1, not {self.batch}")
        for name, weight in (("strength", self.strength), ("chroma", self.chroma)):
            if weight is not None and not 0 <= weight <= 1:
                raise ValueError(f"{name} must be from 0 to 1, not {weight:g}")
        if self.limit is not None and not self.limit > 0:
            raise ValueError(f"limit must be above 0, not {self.limit:g}")
        object.__setattr__(self, "range", check_rule(self.range))
        if self.decorrelate is not None:
            object.__setattr__(self, "decorrelate", check_decorrelate(self.decorrelate))


def check_decorrelate(setting: Any) -> tuple[int, float]:
    """Return the stride and the standard deviation of the added noise, validated.

    Raises
    ------
    ValueError
        If the setting is not a pair of numbers, or one of them is out of range.
    """
    try:
        stride, sigma = setting
        stride, sigma = int(stride), float(sigma)
        good = float(setting[0]) == stride and 1 <= stride <= 4 and 0 <= sigma <= 100
    except (TypeError, ValueError):
        good = False
    if not good:
        raise ValueError(
            f"decorrelate must be a stride of 1 to 4 and a standard deviation of 0 to 100, not {setting!r}"
        )
    return stride, sigma
