"""How the pixel values of a set of images become 0..1: by one rule for all of its files."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from kbnet_plugin.arrays.intensity import Range
from kbnet_plugin.errors import BadInput
from kbnet_plugin.io.embedded import rescale

SAMPLED = 32
"""Images of a set that are looked at, at most."""

_DEPTHS = (8, 10, 12, 14, 16)


class Depth:
    """The values that become 0 and 1 in a set.

    Integers are scaled by the largest value of their dtype; but where 16-bit files contain 10, 12 or 14 bits,
    as those of many cameras do, by the largest value of these. Floats must be in 0..1 already.

    Parameters
    ----------
    rule : list of two numbers, optional
        The values that become 0 and 1, in files of any dtype.
    images : iterable of (str, ndarray)
        Path and pixels of some images of the set; looked at without a rule.

    Attributes
    ----------
    bits : int or None
        Of 16-bit files; None if there are none among `images`, or with a rule.

    Raises
    ------
    BadInput
        If the rule is invalid, or floats are far outside 0..1.
    """

    def __init__(self, rule: Any, images: Iterable[tuple[str, np.ndarray]]) -> None:
        self.bits: int | None = None
        self._range: Range | None = None
        if rule is not None:
            if len(rule) != 2 or not rule[0] < rule[1]:
                raise BadInput(f"range must be two rising numbers, not {rule!r}")
            self._range = Range(float(rule[0]), float(rule[1] - rule[0]))
            return
        largest = -1
        for path, image in images:
            if image.dtype == np.float32:
                _check_floats(path, image)
            elif image.dtype == np.uint16:
                largest = max(largest, int(image.max()))
            if largest >= 1 << _DEPTHS[-2]:
                break
        if largest >= 0:
            self.bits = next(bits for bits in _DEPTHS if largest < 1 << bits)

    @property
    def note(self) -> str:
        """What is unusual about the files, for the log; empty if nothing is."""
        if self.bits is None or self.bits == 16:
            return ""
        return (
            f"the 16-bit files contain {self.bits} bits: {(1 << self.bits) - 1:,} becomes 1 "
            "(set range to change it)"
        )

    def apply(self, image: np.ndarray, path: str) -> np.ndarray:
        """Scale an image to the full range of its dtype, or to float32 in 0..1 with a rule.

        Raises
        ------
        BadInput
            If it contains more bits than the rest of its set.
        """
        if self._range is not None:
            return self._range.apply(image)
        if self.bits is None or self.bits == 16 or image.dtype != np.uint16:
            return image
        if (largest := int(image.max())) >= 1 << self.bits:
            raise BadInput(
                f"{path} contains values up to {largest:,}, but the other 16-bit files of the set only "
                f"{self.bits} bits; set range: [0, 65535], or the values that are to become 0 and 1"
            )
        return rescale(image, self.bits)


def _check_floats(path: str, image: np.ndarray) -> None:
    finite = image[np.isfinite(image)]
    low, high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 1.0)
    if low < -0.5 or high > 1.5:
        raise BadInput(
            f"{path} contains floats from {low:.4g} to {high:.4g}, not in 0..1; "
            "set range to the values that are to become 0 and 1"
        )
