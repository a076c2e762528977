"""Pictures for the report: crops, errors, charts and what the network has learned."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import matplotlib
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter
from numpy.typing import NDArray
from PIL import Image
from scipy.ndimage import uniform_filter
from skimage.transform import downscale_local_mean
from torch import Tensor, nn

from kbnet_plugin.nn.layers import KBAMixin

from .protocols import psnr
from .results import Column, Row, Table

OURS, OTHERS = "#D55E00", "#0072B2"  # by Okabe and Ito; safe for colour-blind readers
STYLE = {
    "font.family": "sans-serif",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#888",
    "axes.labelcolor": "#333",
    "xtick.color": "#555",
    "ytick.color": "#555",
    "text.parse_math": False,  # names may contain $
    "svg.hashsalt": "kbnet",  # the same numbers give the same file
}


@dataclass(frozen=True)
class Panel:
    """An image file and the label below it."""

    content: bytes
    label: str = ""
    media: str = "image/png"


@dataclass(frozen=True)
class Picture:
    """Panels under one title, which the page wraps to its width, below the table that `table` names."""

    title: str
    caption: str
    panels: tuple[Panel, ...]
    table: str = ""


# --- Photographs


def busiest(truth: NDArray, size: int) -> tuple[int, int]:
    """Find the square with the largest total variation: texture, which is hard to restore.

    Only the truth decides, so no method is favoured.

    Returns
    -------
    (int, int)
        Top and left.

    Raises
    ------
    ValueError
        If the picture is smaller than the square.
    """
    gray = _unit(truth).mean(axis=-1)
    if size > min(gray.shape):
        raise ValueError(f"no square of {size} pixels in a picture of {gray.shape[0]}x{gray.shape[1]}")
    steps = np.abs(np.diff(gray, axis=0, append=gray[-1:])) + np.abs(
        np.diff(gray, axis=1, append=gray[:, -1:])
    )
    variation = uniform_filter(steps, size)
    half = size // 2
    inside = variation[half : gray.shape[0] - size + half + 1, half : gray.shape[1] - size + half + 1]
    top, left = np.unravel_index(int(inside.argmax()), inside.shape)
    return int(top), int(left)


def crops(
    title: str, truth: NDArray, images: Mapping[str, NDArray], *, size: int = 96, table: str = ""
) -> Picture:
    """Show the same square of every image and of the truth, with PSNR.

    Parameters
    ----------
    truth : (H, W) or (H, W, C) array
        uint8, or float in 0..1.
    images : mapping of str to array like `truth`
        In the order of the page, the noisy one first.
    size : int
        Side of the square in pixels.
    table : str
        Name of the table below which the picture appears.
    """
    square, where = _square(truth, size)
    panels = [
        Panel(_png(_bytes(image)[square]), f"{name}\n{_psnr(truth, image):.2f} dB")
        for name, image in images.items()
    ]
    panels.append(Panel(_png(_bytes(truth)[square]), "truth"))
    caption = f"{where} PSNR is of the whole picture in 8 bits."
    return Picture(title, caption, tuple(panels), table)


def errors(
    title: str, truth: NDArray, images: Mapping[str, NDArray], *, size: int = 96, table: str = ""
) -> Picture:
    """Show absolute errors, mean over the channels, on a common scale; parameters as for `crops`."""
    square, where = _square(truth, size)
    target = _unit(truth)[square]
    maps = {name: 255 * np.abs(_unit(im)[square] - target).mean(axis=-1) for name, im in images.items()}
    limit = max(1, round(max(float(np.quantile(m, 0.99)) for m in maps.values())))
    panels = tuple(
        Panel(_png(_colored(m / limit, "cividis")), f"{name}\nmean {m.mean():.2f} of 255")
        for name, m in maps.items()
    )
    caption = (
        f"{where} Absolute error, mean over the channels, on a common scale: dark blue is none, yellow is "
        f"{limit} of 255 or more."
    )
    return Picture(title, caption, panels, table)


def _square(truth: NDArray, size: int) -> tuple[tuple[slice, slice], str]:
    top, left = busiest(truth, size)
    where = f"The {size}x{size} pixels where the truth varies most, from row {top}, column {left}."
    return np.s_[top : top + size, left : left + size], where


def _unit(image: NDArray) -> NDArray[np.float32]:
    """Return (H, W, C) in 0..1, rounded as in an 8-bit file."""
    image = _bytes(image).astype(np.float32) / 255
    return image[..., None] if image.ndim == 2 else image


def _bytes(image: NDArray) -> NDArray[np.uint8]:
    if image.dtype == np.uint8:
        return image
    if not np.issubdtype(image.dtype, np.floating):
        raise ValueError(f"a picture must be uint8 or float in 0..1, not {image.dtype}")
    return np.rint(255 * np.clip(image, 0, 1)).astype(np.uint8)


def _psnr(truth: NDArray, image: NDArray) -> float:
    return psnr(_unit(image), _unit(truth))


def _png(image: NDArray[np.uint8]) -> bytes:
    out = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(image).squeeze()).save(out, "png", optimize=True)
    return out.getvalue()


def _colored(values: NDArray, colors: str) -> NDArray[np.uint8]:
    """Map values in 0..1 to colours."""
    return matplotlib.colormaps[colors](np.clip(values, 0, 1), bytes=True)[..., :3]


# --- What a network has learned


def adaptive_blocks(network: nn.Module) -> dict[str, KBAMixin]:
    """Return the blocks with kernel bases by name, starting at the input."""
    return {name: module for name, module in network.named_modules() if isinstance(module, KBAMixin)}


def bases(network: nn.Module, block: str, *, table: str = "") -> Picture:
    """Show the learned kernel bases of a block, one per row; `adaptive_blocks` lists the blocks.

    Raises
    ------
    ValueError
        If the block has none.
    """
    module = _block(network, block)
    w = module.w.detach().float().cpu()[0]
    channels, side = module.b.shape[-1], 3
    inputs = w.shape[1] // (channels * side**2)
    shown = w.view(len(w), -1, side, side)[:, : inputs * inputs].numpy()  # the first group: inputs x inputs
    limit = float(np.abs(shown).max()) or 1.0
    gap = np.pad(shown, ((0, 0), (0, 0), (0, 1), (0, 1)), constant_values=np.nan)
    sheet = gap.transpose(0, 2, 1, 3).reshape(len(w) * (side + 1), -1)[:-1, :-1]
    image = _colored(sheet / (2 * limit) + 0.5, "PuOr_r")
    image[np.isnan(sheet)] = 150  # white would read as zero
    caption = (
        f"Block {block}: {len(w)} bases, one per row, with the {side}x{side} kernels of the first of "
        f"{module.groups} groups ({inputs} outputs from {inputs} inputs). Purple is {limit:.2g}, white 0, "
        f"orange -{limit:.2g}."
    )
    return Picture(
        "Learned kernel bases", caption.replace(" -", " \N{MINUS SIGN}"), (Panel(_png(image)),), table
    )


def coefficients(
    network: nn.Module, block: str, image: NDArray, *, most: int = 11, table: str = ""
) -> Picture:
    """Show the coefficient maps of a block that vary most for a picture like the truth of `crops`.

    Raises
    ------
    ValueError
        If the block has none.
    """
    module = _block(network, block)
    maps = _coefficients(network, module, _unit(image))
    chosen = sorted(np.argsort(-maps.std(axis=(1, 2)), kind="stable")[:most].tolist())
    limit = float(np.quantile(np.abs(maps[chosen]), 0.995)) or 1.0
    panels = [Panel(_png(_bytes(_small(_unit(image)))), "input")]
    panels += [
        Panel(_png(_colored(_small(maps[i]) / (2 * limit) + 0.5, "PuOr_r")), f"basis {i + 1}") for i in chosen
    ]
    caption = (
        f"Block {block}: the coefficients of each pixel's kernel, for the {len(chosen)} of {len(maps)} bases "
        f"whose maps vary most. On a common scale: purple is {limit:.2g} or more, white 0, "
        f"orange \N{MINUS SIGN}{limit:.2g} or less."
    )
    return Picture("Coefficient maps", caption, tuple(panels), table)


def _small(image: NDArray, most: int = 160) -> NDArray:
    """Shrink by a whole factor to at most `most` pixels on a side."""
    factor = -(-max(image.shape[:2]) // most)
    return downscale_local_mean(image, (factor, factor, 1)[: image.ndim])


def _block(network: nn.Module, name: str) -> KBAMixin:
    found = adaptive_blocks(network)
    if name not in found:
        raise ValueError(f"no block {name!r} with kernel bases; known: {', '.join(found) or 'none'}")
    return found[name]


def _coefficients(network: nn.Module, block: KBAMixin, image: NDArray) -> NDArray[np.float32]:
    """Return (bases, h, w) at the block's own resolution."""
    seen: list[Tensor] = []
    hook = block.conv211.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    weight = next(network.parameters())
    batch = torch.from_numpy(image).permute(2, 0, 1)[None].to(weight.device, weight.dtype)
    try:
        with torch.inference_mode():
            network(batch)
    finally:
        hook.remove()
    with torch.inference_mode():
        return block._coefficients(seen[0])[0].float().cpu().numpy()


# --- Charts


@dataclass(frozen=True)
class Point:
    """A method in a scatter plot."""

    label: str
    x: float
    y: float
    ours: bool = False
    published: bool = False  # at least one number comes from the literature


def points(table: Table, x: str, y: str) -> list[Point]:
    """Return the rows of a table that have both columns, measured numbers before published ones."""
    found = []
    for row in table.rows:
        pair = [_number(row, key) for key in (x, y)]
        if pair[0] and pair[1]:
            found.append(Point(row.name, pair[0][0], pair[1][0], row.ours, pair[0][1] or pair[1][1]))
    return found


def _number(row: Row, key: str) -> tuple[float, bool] | None:
    cell = row.cells.get(key)
    if cell and cell.measured and cell.measured.value is not None:
        return cell.measured.value, False
    if cell and cell.published and cell.published.value is not None:
        return cell.published.value, True
    return None


def scatter(
    title: str,
    found: Sequence[Point],
    x: Column | str,
    y: Column | str,
    *,
    caption: str = "",
    table: str = "",
) -> Picture:
    """Plot quality against cost on a logarithmic axis; hollow marks are published numbers."""
    with matplotlib.rc_context(STYLE):
        figure, axes = _figure(4.2, 3.6)
        axes.set_xscale("log")
        axes.grid(color="#e6e6e6", linewidth=0.6)
        axes.set_axisbelow(True)
        for p in found:
            color = OURS if p.ours else OTHERS
            axes.plot(
                p.x, p.y, "D" if p.ours else "o", color=color, ms=6, mfc="white" if p.published else color
            )
        axes.margins(0.16, 0.12)
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
            axis.set_minor_formatter(NullFormatter())
        _few_ticks(axes)
        axes.set_xlabel(_axis(x))
        axes.set_ylabel(_axis(y))
        _labels(figure, axes, found)
        content = _svg(figure)
    notes = [caption, "Up and to the left is better."]
    notes += ["Diamonds: KBNet."] if any(p.ours for p in found) else []
    notes += (
        ["Hollow: at least one number is published rather than measured here."]
        if any(p.published for p in found)
        else []
    )
    return Picture(title, " ".join(filter(None, notes)), (Panel(content, media="image/svg+xml"),), table)


def seeds(
    title: str,
    runs: Sequence[tuple[str, Sequence[float]]],
    x: Column | str,
    *,
    ours: Sequence[str] = (),
    caption: str = "",
    table: str = "",
) -> Picture:
    """Plot one row per label: a dot for each run, a bar for their mean, a band for the standard deviation."""
    with matplotlib.rc_context(STYLE):
        figure, axes = _figure(4.2, 0.7 + 0.3 * len(runs))
        for i, (name, values) in enumerate(runs):
            color = OURS if name in ours else OTHERS
            mean = float(np.mean(values))
            if len(values) > 1:
                axes.plot(
                    [mean - np.std(values, ddof=1), mean + np.std(values, ddof=1)],
                    [i, i],
                    color=color,
                    lw=5,
                    alpha=0.25,
                    solid_capstyle="butt",
                )
            axes.plot([mean, mean], [i - 0.3, i + 0.3], color=color, lw=2)
            axes.plot(values, [i] * len(values), "D" if name in ours else "o", color=color, ms=4, mfc="white")
        axes.set_yticks(range(len(runs)), [name for name, _ in runs])
        axes.set_ylim(len(runs) - 0.4, -0.6)
        axes.grid(axis="x", color="#e6e6e6", linewidth=0.6)
        axes.set_axisbelow(True)
        axes.tick_params(axis="y", length=0)
        axes.set_xlabel(_axis(x))
        content = _svg(figure)
    note = "Dots: single runs; bars: means; bands: one standard deviation on either side."
    return Picture(title, f"{caption} {note}".strip(), (Panel(content, media="image/svg+xml"),), table)


def _figure(width: float, height: float) -> tuple[Figure, Axes]:
    """Create a figure as wide as a phone, where 9 points are 10 pixels; sizes in inches."""
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots()


def _axis(column: Column | str) -> str:
    if isinstance(column, str):
        return column
    return f"{column.group} {column.title}".strip() + (f" ({column.unit})" if column.unit else "")


def _few_ticks(axes: Axes) -> None:
    """Put ticks at 1, 2 and 5 of every decade, so that an axis shorter than a decade has several."""
    low, high = axes.get_xlim()
    decades = range(int(np.floor(np.log10(low))), int(np.ceil(np.log10(high))) + 1)
    ticks = [step * 10.0**d for d in decades for step in (1, 2, 5)]
    axes.set_xticks([t for t in ticks if low <= t <= high])
    axes.set_xlim(low, high)


PLACES = [
    (6, 0),
    (-6, 0),
    (0, 7),
    (0, -7),
    (6, 7),
    (-6, 7),
    (6, -7),
    (-6, -7),
    (6, 15),
    (-6, -15),
    (6, -15),
    (-6, 15),
]


def _labels(figure: Figure, axes: Axes, found: Sequence[Point]) -> None:
    """Write names beside the points, at the first place where they cover neither points nor other names."""
    figure.draw_without_rendering()
    taken = [(x - 3, y - 3, x + 3, y + 3) for x, y in axes.transData.transform([(p.x, p.y) for p in found])]
    frame = axes.get_window_extent().extents
    for p in sorted(found, key=lambda p: (not p.ours, -p.y)):
        options = []
        for dx, dy in PLACES:
            text = axes.annotate(
                p.label,
                (p.x, p.y),
                (dx, dy),
                textcoords="offset points",
                ha="left" if dx > 0 else "right" if dx < 0 else "center",
                va="center" if dy == 0 else "bottom" if dy > 0 else "top",
                fontsize=8,
                fontweight="bold" if p.ours else "normal",
                color="#222",
            )
            box = text.get_window_extent().extents
            cost = sum(_overlap(box, other) for other in taken)
            cost += (box[2] - box[0]) * (box[3] - box[1]) - _overlap(box, frame)
            options.append((cost, len(options), text, box))
            if not cost:
                break
        _, _, best, box = min(options)
        for _, _, text, _ in options:
            if text is not best:
                text.remove()
        taken.append(tuple(box))


def _overlap(a: Sequence[float], b: Sequence[float]) -> float:
    """Return the common area of two rectangles (left, bottom, right, top)."""
    return max(0.0, min(a[2], b[2]) - max(a[0], b[0])) * max(0.0, min(a[3], b[3]) - max(a[1], b[1]))


def _svg(figure: Figure) -> bytes:
    out = io.BytesIO()
    figure.savefig(out, format="svg", metadata={"Date": None, "Creator": None}, facecolor="white")
    return out.getvalue()
