"""What the arrays that are read or written piece by piece have in common."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from types import EllipsisType
from typing import Any

import numpy as np
from numpy.typing import NDArray


class Sliceable(ABC):
    """An array that is read as it is sliced; its subclasses say how.

    Parameters
    ----------
    shape : tuple of int
    dtype : dtype
    """

    def __init__(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
        self.shape, self.dtype = shape, dtype
        self.ndim, self.size = len(shape), math.prod(shape)

    def __len__(self) -> int:
        return self.shape[0]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        return np.asarray(self[()], dtype)

    @abstractmethod
    def __getitem__(self, key: Any) -> NDArray[Any]:
        """Return a part, by indices and slices of any number of axes, perhaps with an ellipsis."""

    def full_key(self, key: int | slice | EllipsisType | tuple[Any, ...]) -> tuple[Any, ...]:
        """Return a key with one index or slice per axis."""
        key = key if isinstance(key, tuple) else (key,)
        if Ellipsis in key:
            at = key.index(Ellipsis)
            key = (*key[:at], *[slice(None)] * (self.ndim - len(key) + 1), *key[at + 1 :])
        return (*key, *[slice(None)] * (self.ndim - len(key)))
