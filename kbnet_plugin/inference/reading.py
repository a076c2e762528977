"""Read windows of an array as pictures, and measure the noise in them; imports no torch."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..arrays.axes import Layout
from ..arrays.chunks import keep_chunks
from ..arrays.noise import Noise, measure_noise, sample
from ..errors import DamagedError


def read_window(
    source: Any, arranged: Layout, plane: tuple[int, ...], window: tuple[slice, slice]
) -> NDArray[Any]:
    """Read a window of a plane of an array.

    Parameters
    ----------
    source : array
        Anything with shape and dtype that can be sliced.
    arranged : Layout
        Of `source`.
    plane : tuple of int
        As `Layout.planes` yields it.
    window : (slice, slice)
        Rows and columns.

    Returns
    -------
    ndarray
        (H, W, C), opacity included.

    Raises
    ------
    DamagedError
        If the data cannot be decoded.
    """
    key = arranged.key(plane, window)
    try:
        return arranged.to_picture(np.asarray(source[key]))
    except (OSError, MemoryError):
        raise
    except Exception as error:  # decoders raise exceptions of any kind
        where = ", ".join(f"{s.start}:{s.stop}" if isinstance(s, slice) else str(s) for s in key)
        raise DamagedError(
            f"cannot read [{where.replace('None:None', ':')}]: damaged data ({error})"
        ) from error


def measure_channel(source: Any, arranged: Layout, channel: int = 0) -> Noise:
    """Measure the noise of one channel of an array, in samples of its planes.

    Parameters
    ----------
    source, arranged
        As for `read_window`.
    channel : int
        As `Layout.channel` returns it.

    Raises
    ------
    DamagedError
        If the data cannot be decoded.
    """
    colours, source = arranged.colours, keep_chunks(source)  # several windows lie in a chunk
    return measure_noise(
        [
            read_window(source, arranged, plane, window)[..., :colours]
            for plane, window in sample(arranged, channel)
        ]
    )
