"""What photographs of nature lack: plain colours, straight edges, repetition and writing."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from .base import Bounds, Degradation, Draws
from .checks import probability, whole_bounds
from .pipeline import register_degradation

Floats = NDArray[np.float64]

FAR = 1e4
"""Pixels: farther away than anything in a picture."""

LATTICE = 48
"""Points along a side of the lattice whose random values writing is made from."""

GLYPH = (7, 5)
"""Points of the lattice, down and across, from one sign to the next."""


@register_degradation
class Shapes(Degradation):
    """Draw over the clean and the degraded image alike, as man-made things look.

    Boxes, stripes, ellipses, rings and parts of these, single or repeated like windows, have a plain colour
    or a gradient, and edges that are sharp or soft; lines of strokes look like writing from afar. Colours are
    grays, the corners of the colour cube, or any.

    The degraded image moves with the clean one: what was between the two stays.

    Parameters
    ----------
    count : int or pair of int
        Shapes in an image, 0..64; between bounds, small numbers are drawn more often.
    plain : float
        Probability that the picture gives way to a plain colour or a gradient, before anything is drawn on
        it.
    text : float
        Probability of writing.
    """

    def __init__(self, count: Bounds = (0, 12), plain: float = 0.5, text: float = 0.3) -> None:
        self.count = whole_bounds(count, "count", 0, 64)
        self.plain, self.text = probability(plain, "plain"), probability(text, "text")

    def __call__(self, degraded: Tensor, clean: Tensor, draws: Draws) -> tuple[Tensor, Tensor]:
        channels, height, width = clean.shape[1:]
        low, high = self.count
        count = low + np.floor((high + 1 - low) * draws.uniform() ** 1.5)
        plain, text = draws.uniform() < self.plain, draws.uniform() < self.text
        # The ground, then the shapes, then the writing.
        scenes = draws.host(lambda g: _scene(g, high + 2, min(height, width)))
        scene = {key: np.stack([one[key] for one in scenes]) for key in scenes[0]}
        shown = np.arange(high) < count[:, None]
        scene["opacity"] *= np.concatenate([plain[:, None], shown, text[:, None]], 1)
        drawn = int(count.max())  # known on the host: nothing is computed for shapes that no sample has
        order = [0, *range(1, drawn + 1), high + 1]
        table = {key: draws.on_device(v[:, order].reshape(len(draws), -1)) for key, v in scene.items()}
        p = {key: v.reshape(len(draws), len(order), -1, 1, 1) for key, v in table.items()}

        along, across = _frame(p, height, width)
        cover = _cover(along, across, p)
        cover[:, 0] = 1
        cover[:, -1] *= _writing(along[:, -1], across[:, -1], p["thickness"][:, -1, 0], draws)
        cover *= p["opacity"][:, :, 0]
        # Across the picture or along the shape.
        shade = (along / p["reach"][:, :, 0] / 2 + 0.5).clamp_(0, 1)
        first, change = (p[key][:, :, :channels] for key in ("first", "change"))
        changed = clean
        for n in range(len(order)):
            paint = torch.addcmul(first[:, n], change[:, n], shade[:, n, None])
            changed = torch.lerp(changed, paint, cover[:, n, None])
        if degraded is clean:
            return changed, changed
        return changed + (degraded - clean), changed


def _scene(generator: np.random.Generator, number: int, side: int) -> dict[str, Floats]:
    """Draw shapes, each a row of every table; sizes are half ones, in pixels."""
    u = generator.random((number, 20))
    size = np.stack([0.7 * (0.5 * side / 0.7) ** u[:, 0], 0.7 * (0.5 * side / 0.7) ** u[:, 1]], 1)
    size[u[:, 2] < 0.2, 0] = FAR  # a stripe
    # One in three is repeated in a row or a grid.
    period = size * (2.4 + 3 * u[:, 3:5])
    period[u[:, 5] > 1 / 3] = 2 * FAR
    period[(u[:, 5] > 1 / 6) & (u[:, 5] < 1 / 3), 0] = 2 * FAR
    # Half are upright; the others lean anyhow.
    angle = np.where(u[:, 6] < 0.5, np.pi / 2 * (u[:, 6] < 0.25), np.pi * u[:, 7])
    first, second = _colours(generator, number), _colours(generator, number)
    gradient = u[:, 8, None] < 0.3
    cut = np.where(u[:, 9] < 0.6, FAR, (2 * u[:, 10] - 1) * size.min(1))
    opacity = np.where(u[:, 11] < 0.8, 1, 0.2 + 0.8 * u[:, 12])
    opacity[0] = opacity[-1] = 1
    thickness = size.min(1) * (0.1 + 0.5 * u[:, 16])
    kind = np.floor(3 * u[:, 15] ** 1.5)  # box, ellipse, ring
    # A page, where the thickness is that of strokes: pixels between the points of the lattice.
    size[-1], period[-1], kind[-1], cut[-1] = side * (0.1 + 0.9 * u[-1, :2]), 2 * FAR, 0, FAR
    thickness[-1] = 1 + 2.5 * u[-1, 16] ** 2
    return {
        "centre": u[:, 13:15],
        "angle": angle,
        "size": size,
        "period": period,
        "kind": kind,
        "thickness": thickness,
        "cut": cut,
        "cut_angle": 2 * np.pi * u[:, 17],
        "softness": np.where(u[:, 18] < 0.8, 0.7 + u[:, 19], 0.7 * 12 ** u[:, 19]),
        "opacity": opacity,
        "reach": np.where(size[:, 0] < FAR, np.maximum(size[:, 0], 2), side / 2),
        "first": first,
        "change": (second - first) * gradient,
    }


def _colours(generator: np.random.Generator, number: int) -> Floats:
    """Draw colours, (number, 3)."""
    u = generator.random((number, 5))
    kind = np.floor(4 * u[:, 3:4])
    gray, corners = np.tile(u[:, :1] ** 1.5, 3), np.rint(u[:, :3])
    return np.select([kind == 0, kind == 1, kind == 2], [gray, corners, corners * u[:, 4:]], u[:, :3])


def _frame(p: dict[str, Tensor], height: int, width: int) -> tuple[Tensor, Tensor]:
    """Return the coordinates of pixels along and across each shape, (B, N, H, W), from its middle."""
    device = p["angle"].device
    y = torch.arange(height, device=device)[:, None] - p["centre"][:, :, 0] * height
    x = torch.arange(width, device=device) - p["centre"][:, :, 1] * width
    cos, sin = p["angle"][:, :, 0].cos(), p["angle"][:, :, 0].sin()
    return x * cos + y * sin, y * cos - x * sin


def _cover(along: Tensor, across: Tensor, p: dict[str, Tensor]) -> Tensor:
    """Return how far each shape covers a pixel, (B, N, H, W), in 0..1."""
    period, size = p["period"], p["size"]
    a = along - (along / period[:, :, 0]).round_() * period[:, :, 0]
    b = across - (across / period[:, :, 1]).round_() * period[:, :, 1]
    half, other, kind = size[:, :, 0], size[:, :, 1], p["kind"][:, :, 0]
    box = torch.maximum(a.abs() - half, b.abs() - other)
    least = torch.minimum(half, other)
    ellipse = (torch.hypot(a / half, b / other) - 1) * least
    ring = (ellipse + least * 0.5).abs_() - p["thickness"][:, :, 0]
    distance = torch.where(kind == 0, box, torch.where(kind == 1, ellipse, ring))
    angle = p["cut_angle"][:, :, 0]
    distance = torch.maximum(distance, a * angle.cos() + b * angle.sin() - p["cut"][:, :, 0])
    return (0.5 - distance / p["softness"][:, :, 0]).clamp_(0, 1)


def _writing(along: Tensor, across: Tensor, pitch: Tensor, draws: Draws) -> Tensor:
    """Return strokes on lines, (B, H, W), in 0..1; coordinates are (B, H, W), pixels per point (B, 1, 1)."""
    rows, columns = GLYPH
    ink, words = draws.uniform_map(2, LATTICE, LATTICE).split(1, 1)
    place = torch.arange(LATTICE, device=ink.device)
    # Nothing between lines and signs, nor between words.
    ink = ink * (place % rows < rows - 2)[:, None] * (place % columns < columns - 1)
    ink = ink * (words[:, :, place - place % rows][..., place - place % columns] > 0.2)
    points = torch.stack([along, across], 3) / (pitch[..., None] * (LATTICE / 2))
    points = points - 2 * ((points + 1) / 2).floor_()  # written over and over
    values = F.grid_sample(ink, points, mode="bilinear", padding_mode="border", align_corners=False)
    return ((values[:, 0] - 0.45) * 4 + 0.5).clamp_(0, 1)
