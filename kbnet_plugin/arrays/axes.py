"""What the axes of an array mean, and which of its values a network sees together."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray

AXES = "TZCSYX"
"""Time, depth, channel (each restored alone), sample (colours, restored together), row, column."""

_SMALL = 16  # pixels; an axis this short need not be one of a picture's sides


@dataclass(frozen=True, slots=True)
class Layout:
    """How an array of pictures is laid out.

    Attributes
    ----------
    axes : str
        A letter of `AXES` for every axis.
    shape : tuple of int
        The array's.
    channel_axis : str
        The axis that the network sees together: ``"S"``, ``"C"`` or none.
    alpha : bool
        Whether the last value along that axis is opacity, which is copied.
    """

    axes: str
    shape: tuple[int, ...]
    channel_axis: str
    alpha: bool

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of a plane."""
        return self.shape[self.axes.index("Y")], self.shape[self.axes.index("X")]

    @property
    def channels(self) -> int:
        """Values of a pixel, opacity included."""
        return self.shape[self.axes.index(self.channel_axis)] if self.channel_axis else 1

    @property
    def count(self) -> int:
        """Planes that are restored one by one."""
        height, width = self.size
        return math.prod(self.shape) // (height * width * self.channels)

    def planes(self) -> Iterator[tuple[int, ...]]:
        """Index of every plane along the axes that are restored one by one."""
        inner = "YX" + self.channel_axis
        return product(*(range(n) for a, n in zip(self.axes, self.shape, strict=True) if a not in inner))

    @property
    def channel_count(self) -> int:
        """Channels that are restored one by one."""
        separate = "C" in self.axes and self.channel_axis != "C"
        return self.shape[self.axes.index("C")] if separate else 1

    def channel(self, plane: tuple[int, ...]) -> int:
        """Which of these a plane belongs to."""
        outer = [a for a in self.axes if a not in "YX" + self.channel_axis]
        return plane[outer.index("C")] if "C" in outer else 0

    def key(self, plane: tuple[int, ...], window: tuple[slice, slice]) -> tuple[int | slice, ...]:
        """What to slice the array with for a window (rows, columns) of a plane."""
        inner: dict[str, slice] = {"Y": window[0], "X": window[1], self.channel_axis: slice(None)}
        outer = iter(plane)
        return tuple(inner[a] if a in inner else next(outer) for a in self.axes)

    def to_picture(self, block: NDArray[Any]) -> NDArray[Any]:
        """(H, W, C) of what `key` sliced."""
        kept = [a for a in self.axes if a in "YX" + self.channel_axis]
        picture = block.transpose([kept.index(a) for a in "YX" + self.channel_axis])
        return picture if self.channel_axis else picture[..., None]

    def from_picture(self, picture: NDArray[Any]) -> NDArray[Any]:
        """Undo `to_picture`."""
        order = "YX" + self.channel_axis
        block = picture if self.channel_axis else picture[..., 0]
        return block.transpose([order.index(a) for a in self.axes if a in order])

    def with_channels(self, channels: int) -> tuple[int, ...]:
        """The array's shape, but with so many values a pixel."""
        return tuple(
            channels if a == self.channel_axis else n for a, n in zip(self.axes, self.shape, strict=True)
        )


def layout(shape: tuple[int, ...], axes: str | None, in_channels: int) -> Layout:
    """Lay out an array for a network.

    Parameters
    ----------
    shape : tuple of int
        The array's.
    axes : str or None
        A letter of `AXES` for every axis, in any case; None to find them by the shape.
    in_channels : int
        Channels that the network takes. Where that is 1 or 3, samples (S) may be one or three, followed by
        opacity, and channels (C) are restored one by one: a gray picture may go into a colour network, and
        each colour by itself into a gray one. Otherwise S, or C where there is no S, must be as long as the
        network takes.

    Raises
    ------
    ValueError
        If the axes do not fit the shape, the shape leaves a choice, or the network does not take such
        pictures; the choices are shown.
    """
    axes = infer(shape, in_channels) if axes is None else axes.upper()
    if wrong := next((a for a in axes if a not in AXES), None):
        raise ValueError(f"axes {axes!r}: {wrong!r} is none of {', '.join(AXES)}")
    if len(set(axes)) < len(axes) or not {"Y", "X"} <= set(axes):
        raise ValueError(f"axes {axes!r} must name Y and X, and none twice")
    if len(axes) != len(shape):
        raise ValueError(f"axes {axes!r} are {len(axes)}, the array has {len(shape)}: {shape}")
    if 0 in shape:
        raise ValueError(f"the array must be not empty, but axis {axes[shape.index(0)]} is 0 long: {shape}")
    channel_axis = "S" if "S" in axes else "C" if in_channels not in (1, 3) and "C" in axes else ""
    count = shape[axes.index(channel_axis)] if channel_axis else 1
    allowed = {1, 3} if in_channels in (1, 3) else {in_channels}
    if count in allowed:
        return Layout(axes, shape, channel_axis, alpha=False)
    if in_channels in (1, 3) and count - 1 in allowed:
        return Layout(axes, shape, channel_axis, alpha=True)
    kinds = "RGB or gray pictures" if in_channels in (1, 3) else f"pictures of {in_channels} channels"
    raise ValueError(
        f"the model takes {kinds}, not {count} channels; convert the picture or use another model"
    )


def infer(shape: tuple[int, ...], in_channels: int) -> str:
    """Axes that a shape can only mean.

    Two axes are YX. A last axis of at most 4, or of what the network takes, is S. Other arrays are stacks of
    planes, unless one of their axes could be S as well or a plane would be less than 16 pixels wide.

    Raises
    ------
    ValueError
        If there is a choice, which is shown, or none.
    """
    stacks = {2: "YX", 3: "ZYX", 4: "TZYX", 5: "TZCYX"}
    coloured = {3: "YXS", 4: "ZYXS", 5: "TZYXS", 6: "TZCYXS"}
    count = len(shape)
    if count not in stacks | coloured:
        raise ValueError(f"a picture must be (H, W) or (H, W, C), or a stack of them, not {shape}")
    if 0 in shape:
        raise ValueError(f"a picture must be (H, W) or (H, W, C) and not empty, not {shape}")
    if count == 2:
        return "YX"
    if shape[-1] <= 4 or shape[-1] == in_channels:
        return coloured[count]
    if count == 6:
        raise ValueError(f"shape {shape} is no known order of axes; name them: axes='TZCSYX'")
    plural = {3: {2, 3, 4}, 1: {2}}.get(in_channels, {in_channels})
    choices = [stacks[count]] if in_channels in (1, 3) else []
    choices += [
        stacks[count][:i] + "S" + stacks[count][i + 1 :] for i, n in enumerate(shape[:-2]) if n in plural
    ]
    if shape[-1] < _SMALL:
        choices.append(coloured[count])
    if len(choices) == 1 and choices[0] != coloured[count]:
        return choices[0]
    if not choices:
        raise ValueError(
            f"the model takes pictures of {in_channels} channels, and no axis of {shape} is that long"
        )
    described = " or ".join(f"{c!r} ({_describe(c, shape)})" for c in choices)
    raise ValueError(f"shape {shape} may mean several things; say which by axes: {described}")


def _describe(axes: str, shape: tuple[int, ...]) -> str:
    height, width = shape[axes.index("Y")], shape[axes.index("X")]
    samples = shape[axes.index("S")] if "S" in axes else 1
    planes = int(np.prod(shape)) // (height * width * samples)
    what = {1: "gray"}.get(samples, f"{samples}-channel")
    return f"{planes} {what} picture{'s' if planes > 1 else ''} of {height} x {width}"
