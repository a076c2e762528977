"""What the axes of an array mean, and which of its values the network sees together."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray

AXES = "TZCSYX"
"""Time, depth, channel (each restored by itself), sample (colours, restored together), row, column."""

_SMALL = 16  # pixels; a shorter last axis might hold channels instead of columns


@dataclass(frozen=True, slots=True)
class Layout:
    """What the axes of an array mean.

    Attributes
    ----------
    axes : str
        One letter of `AXES` per axis.
    shape : tuple of int
        Shape of the array.
    channel_axis : str
        Axis of the values that the network sees together: ``"S"``, ``"C"``, or ``""`` if there is none.
    alpha : bool
        Whether the last value along that axis is opacity, which is copied.
    """

    axes: str
    shape: tuple[int, ...]
    channel_axis: str
    alpha: bool

    @property
    def picture_axes(self) -> str:
        """Axes of a picture as the network sees it: Y, X and the channel axis, if there is one."""
        return "YX" + self.channel_axis

    @property
    def stack_axes(self) -> str:
        """Axes along which planes are restored one by one, in the array's order."""
        return "".join(a for a in self.axes if a not in self.picture_axes)

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of a plane, in pixels."""
        return self.shape[self.axes.index("Y")], self.shape[self.axes.index("X")]

    @property
    def channels(self) -> int:
        """Number of values per pixel, opacity included."""
        return self.shape[self.axes.index(self.channel_axis)] if self.channel_axis else 1

    @property
    def colours(self) -> int:
        """Number of values of a pixel, opacity left out."""
        return self.channels - self.alpha

    @property
    def count(self) -> int:
        """Number of planes, which are restored one by one."""
        height, width = self.size
        return math.prod(self.shape) // (height * width * self.channels)

    def planes(self) -> Iterator[tuple[int, ...]]:
        """Iterate over the planes, each as its index along `stack_axes`, in C order."""
        return product(*(range(self.shape[self.axes.index(a)]) for a in self.stack_axes))

    @property
    def channel_count(self) -> int:
        """Number of channels that are restored one by one; 1 if the network sees them together."""
        return self.shape[self.axes.index("C")] if "C" in self.stack_axes else 1

    def channel(self, plane: tuple[int, ...]) -> int:
        """Return the channel of a plane, from 0 to ``channel_count - 1``."""
        return plane[self.stack_axes.index("C")] if "C" in self.stack_axes else 0

    def key(self, plane: tuple[int, ...], window: tuple[slice, slice]) -> tuple[int | slice, ...]:
        """Return the index into the array for a window of a plane.

        Parameters
        ----------
        plane : tuple of int
            As `planes` yields it.
        window : (slice, slice)
            Rows and columns.
        """
        inner: dict[str, slice] = {"Y": window[0], "X": window[1], self.channel_axis: slice(None)}
        outer = iter(plane)
        return tuple(inner[a] if a in inner else next(outer) for a in self.axes)

    def to_picture(self, block: NDArray[Any]) -> NDArray[Any]:
        """Bring a block that was indexed with `key` into the order (H, W, C)."""
        kept = [a for a in self.axes if a in self.picture_axes]
        picture = block.transpose([kept.index(a) for a in self.picture_axes])
        return picture if self.channel_axis else picture[..., None]

    def from_picture(self, picture: NDArray[Any]) -> NDArray[Any]:
        """Undo `to_picture`."""
        block = picture if self.channel_axis else picture[..., 0]
        return block.transpose([self.picture_axes.index(a) for a in self.axes if a in self.picture_axes])

    def with_channels(self, channels: int) -> tuple[int, ...]:
        """Return the shape of the array with another number of values per pixel."""
        return tuple(
            channels if a == self.channel_axis else n for a, n in zip(self.axes, self.shape, strict=True)
        )


def layout(shape: tuple[int, ...], axes: str | None, in_channels: int) -> Layout:
    """Lay out an array for a network.

    Parameters
    ----------
    shape : tuple of int
        Shape of the array.
    axes : str or None
        One letter of `AXES` per axis, in either case; None to infer them from the shape.
    in_channels : int
        Channels that the network takes. If it takes 1 or 3, the array may have one or three samples (S), also
        with opacity, and its channels (C) are restored one by one: a gray picture may go into a colour
        network, and each colour by itself into a gray one. Otherwise S, or C if there is no S, must have
        exactly this length.

    Returns
    -------
    Layout

    Raises
    ------
    ValueError
        If the axes do not fit the shape, the shape is ambiguous (the message lists the choices), or the
        network does not take such pictures.
    """
    axes = infer(shape, in_channels) if axes is None else axes.upper()
    if unknown := next((a for a in axes if a not in AXES), None):
        raise ValueError(f"axes {axes!r}: unknown axis {unknown!r}; use {', '.join(AXES)}")
    if len(set(axes)) < len(axes) or not {"Y", "X"} <= set(axes):
        raise ValueError(f"axes {axes!r} must name Y and X, and no axis twice")
    if len(axes) != len(shape):
        named = f"axes {axes!r} name {len(axes)} dimensions"
        raise ValueError(f"{named}, but the array has {len(shape)}: {shape}")
    if 0 in shape:
        raise ValueError(f"the array is empty: axis {axes[shape.index(0)]} of {shape} has length 0")
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
    """Infer the axes of an array whose shape allows only one reading.

    Two axes are YX. A last axis of length up to 4, or `in_channels`, is S. Any other array is a stack of
    planes, unless another axis could be S or the planes would be less than 16 pixels wide.

    Parameters
    ----------
    shape : tuple of int
        Shape of the array.
    in_channels : int
        Channels that the network takes.

    Returns
    -------
    str
        One letter of `AXES` per axis.

    Raises
    ------
    ValueError
        If the shape is ambiguous (the message lists the choices) or has no reading.
    """
    stacks = {2: "YX", 3: "ZYX", 4: "TZYX", 5: "TZCYX"}
    coloured = {3: "YXS", 4: "ZYXS", 5: "TZYXS", 6: "TZCYXS"}
    count = len(shape)
    if count not in stacks | coloured:
        raise ValueError(f"a picture must be (H, W) or (H, W, C), or a stack of them, not {shape}")
    if 0 in shape:
        raise ValueError(f"the array is empty: {shape}")
    if count == 2:
        return "YX"
    if shape[-1] <= 4 or shape[-1] == in_channels:
        return coloured[count]
    if count == 6:
        raise ValueError(f"cannot infer the axes of shape {shape}; name them, such as {AXES!r}")
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
            f"the model takes pictures of {in_channels} channels, and no axis of {shape} has that length"
        )
    described = " or ".join(f"{c!r} ({_describe(c, shape)})" for c in choices)
    raise ValueError(f"shape {shape} is ambiguous; set axes to {described}")


def _describe(axes: str, shape: tuple[int, ...]) -> str:
    height, width = shape[axes.index("Y")], shape[axes.index("X")]
    samples = shape[axes.index("S")] if "S" in axes else 1
    planes = int(np.prod(shape)) // (height * width * samples)
    kind = {1: "gray"}.get(samples, f"{samples}-channel")
    return f"{planes} {kind} picture{'s' if planes > 1 else ''} of {height} x {width}"
