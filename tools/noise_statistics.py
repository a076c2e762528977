"""Compare the noise that Camera makes with that of real cameras: CC15 and PolyU.

Noise is noisy minus mean picture, in crops of 128 pixels, less the crop's mean, so that a change of exposure
does not count. Of made noise it is the difference of two pictures of one crop by one camera, over the square
root of 2, which leaves no content either. Correlations and spectra are divided by the crop's variance and
averaged over the crops, so that those with strong noise do not outweigh the others.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from kbnet_plugin.degradations import Draws
from kbnet_plugin.degradations.camera import LUMA, Camera
from kbnet_plugin.errors import BadInput, one_line
from kbnet_plugin.files import atomic_path

Picture = np.ndarray[Any, np.dtype[np.float32]]
"""(H, W, 3), 0..255."""
Pairs = Iterator[tuple[Picture, Picture]]
"""Noise and brightness; the latter is (H, W)."""

SIZE = 128
LAGS = (1, 2, 3, 4, 5, 6)
EDGES = (0, 32, 64, 96, 128, 160, 192, 256)
CHANNELS = ("red", "green", "blue", "luma", "chroma (blue)", "chroma (red)")
LUMA_INDEX, CHROMA = 3, [4, 5]


@dataclass(frozen=True)
class Statistics:
    """Means over the crops.

    Parameters
    ----------
    crops : int
        How many.
    deviation : ndarray
        Standard deviation of each of `CHANNELS`, (6,), of 255.
    correlation : ndarray
        At `LAGS`, along rows and along columns, (6, 2, lags).
    between : ndarray
        Between red and green, green and blue, red and blue, (3,).
    level : ndarray
        Standard deviation of luma between the brightnesses `EDGES`.
    spectrum : ndarray
        Power of each channel at 0 to 0.5 cycles per pixel, rings, (6, rings); white noise has 1 throughout.
    """

    crops: int
    deviation: np.ndarray[Any, Any]
    correlation: np.ndarray[Any, Any]
    between: np.ndarray[Any, Any]
    level: np.ndarray[Any, Any]
    spectrum: np.ndarray[Any, Any]


def measure(pairs: Pairs) -> Statistics:
    """Measure noise, (H, W, 3), beside the brightness of the picture, (H, W)."""
    crops, power = [], np.zeros((2, len(EDGES) - 1))
    frequency = np.hypot(np.fft.fftfreq(SIZE)[:, None], np.fft.fftfreq(SIZE))
    rings = np.minimum(np.rint(frequency * SIZE / 2).astype(int), SIZE // 4 + 1)
    for noise, brightness in pairs:
        luma = noise @ np.array(LUMA, np.float32)
        every = np.stack([*np.moveaxis(noise, 2, 0), luma, noise[..., 2] - luma, noise[..., 0] - luma])
        every -= every.mean((1, 2), keepdims=True)
        variance = (every**2).mean((1, 2))
        if variance[:3].min() < 1:  # clipped, or lost in the rounding to 8 bits
            continue
        along = [
            [(every[:, :, :-lag] * every[:, :, lag:]).mean((1, 2)) for lag in LAGS],
            [(every[:, :-lag] * every[:, lag:]).mean((1, 2)) for lag in LAGS],
        ]
        spectra = np.abs(np.fft.fft2(every)) ** 2 / SIZE**2 / variance[:, None, None]
        ring = np.array([np.bincount(rings.ravel(), s.ravel()) for s in spectra]) / np.bincount(rings.ravel())
        between = np.corrcoef(every[:3].reshape(3, -1))[[0, 1, 0], [1, 2, 2]]
        crops.append((np.sqrt(variance), np.moveaxis(along, 2, 0) / variance[:, None, None], between, ring))
        bins = np.digitize(brightness.ravel(), EDGES[1:-1])
        power += [
            np.bincount(bins, w, len(EDGES) - 1) for w in (every[LUMA_INDEX].ravel() ** 2, np.ones(bins.size))
        ]
    if not crops:
        raise BadInput("no crop has noise of more than one gray level")
    deviation, correlation, between, spectrum = (np.mean(part, 0) for part in zip(*crops, strict=True))
    level = np.sqrt(power[0] / np.maximum(power[1], 1))
    return Statistics(len(crops), deviation, correlation, between, level, spectrum[:, 1:-1])


def real(folder: Path, step: int = 1) -> Pairs:
    """Yield the noise of a set of pairs, every `step`-th."""
    files = sorted(folder.glob("*_real.*"))[::step]
    if not files:
        raise BadInput(f"no pairs in {folder}")
    for file in files:
        mean = _read(file.with_name(file.name.replace("_real", "_mean")))
        for noise, clean in zip(_crops(_read(file) - mean), _crops(mean), strict=True):
            yield noise, clean @ np.array(LUMA, np.float32)


def made(folder: Path, camera: Camera, count: int, seed: int = 0) -> Pairs:
    """Yield the noise of a camera in crops of the training photographs, which are reduced before."""
    pictures = [_reduced(f, 4) for f in sorted((folder / "photos").glob("*.*g"))]
    pictures += [_reduced(f, 2) for f in sorted((folder / "BSDS500").rglob("*.jpg"))[::12]]
    if not pictures:
        raise BadInput(f"no photographs in {folder}")
    generator = np.random.default_rng(seed)
    for index in range(count):
        picture = pictures[index % len(pictures)]
        top, left = (generator.integers(side - SIZE + 1) for side in picture.shape[:2])
        crop = picture[top : top + SIZE, left : left + SIZE]
        scene = torch.from_numpy(crop / 255).permute(2, 0, 1)[None]
        shots = []
        for skipped in (1, 1 << 22):  # more pixels than a shot draws, so that the second has noise of its own
            draws = Draws([(seed, index)])
            draws.uniform_map(skipped)
            shots.append(camera(scene, scene, draws)[0][0].permute(1, 2, 0).numpy() * 255)
        yield (shots[0] - shots[1]) / np.sqrt(2).astype(np.float32), shots[0] @ np.array(LUMA, np.float32)


def _read(file: Path) -> Picture:
    with Image.open(file) as image:
        return np.asarray(image.convert("RGB"), np.float32)


def _reduced(file: Path, factor: int) -> Picture:
    with Image.open(file) as image:
        factor = min(factor, min(image.size) // SIZE)
        return np.asarray(image.convert("RGB").reduce(factor), np.float32)


def _crops(picture: Picture) -> Iterator[Picture]:
    for top in range(0, picture.shape[0] - SIZE + 1, SIZE):
        for left in range(0, picture.shape[1] - SIZE + 1, SIZE):
            yield picture[top : top + SIZE, left : left + SIZE]


def table(columns: dict[str, Statistics]) -> str:
    """Return a table in Markdown, one column a set."""
    rows: list[tuple[str, list[str]]] = []

    def add(name: str, values: list[Any], form: str = "{:.2f}") -> None:
        rows.append((name, [form.format(v) for v in values]))

    sets = list(columns.values())
    add("crops", [s.crops for s in sets], "{}")
    for name, index in (("luma", [LUMA_INDEX]), ("chroma", CHROMA), ("red, green, blue", [0, 1, 2])):
        for lag in (1, 2, 3):
            add(
                f"correlation of {name}, {lag} px",
                [s.correlation[index, :, lag - 1].mean() for s in sets],
                "{:.3f}",
            )
    for i, name in enumerate(("along rows", "along columns")):
        for lag in (1, 2):
            add(f"luma {name}, {lag} px", [s.correlation[LUMA_INDEX, i, lag - 1] for s in sets], "{:.3f}")
    for i, name in enumerate(("red and green", "green and blue", "red and blue")):
        add(f"correlation between {name}", [s.between[i] for s in sets])
    for i, name in enumerate(CHANNELS):
        add(f"standard deviation, {name}", [s.deviation[i] for s in sets])
    for i, (low, high) in enumerate(pairwise(EDGES)):
        add(f"of luma at {low} to {high}", [s.level[i] for s in sets])
    lines = [["", *columns], ["---"] * (len(columns) + 1), *([name, *values] for name, values in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def draw(columns: dict[str, Statistics], file: Path) -> None:
    """Plot power spectra and correlations."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    settings = {"svg.hashsalt": "kbnet", "font.size": 9, "axes.spines.top": False, "axes.spines.right": False}
    with matplotlib.rc_context(settings):
        figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
        for color, (name, s) in zip(("C0", "C7", "C3"), columns.items(), strict=False):
            spectra = {"luma": s.spectrum[LUMA_INDEX], "chroma": s.spectrum[CHROMA].mean(0)}
            lags = {"luma": s.correlation[LUMA_INDEX].mean(0), "chroma": s.correlation[CHROMA].mean((0, 1))}
            for style, part in (("-", "luma"), ("--", "chroma")):
                frequency = (np.arange(spectra[part].size) + 1) * 2 / SIZE
                left.semilogy(frequency, spectra[part], style, color=color, label=f"{name}, {part}")
                right.plot((0, *LAGS), (1, *lags[part]), style, marker=".", color=color)
        left.set(xlabel="cycles per pixel", ylabel="power (of white noise: 1)", xlim=(0, 0.5))
        right.set(xlabel="distance in pixels", ylabel="correlation")
        right.axhline(0, color="0.7", linewidth=0.8)
        left.legend(frameon=False)
        with atomic_path(file) as temporary:
            metadata = {"Date": None, "Creator": None} if file.suffix == ".svg" else None
            figure.savefig(temporary, format=file.suffix[1:], metadata=metadata, facecolor="white")
        plt.close(figure)


def main(argv: list[str] | None = None) -> int:
    """Run the command; returns its exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="example:\n  KBNET_DATA=/path/to/data python tools/noise_statistics.py -o camera-noise.svg",
    )
    parser.add_argument("--data", type=Path, help="folder with test/ and train/ (default: KBNET_DATA)")
    parser.add_argument(
        "--iso",
        type=float,
        nargs=2,
        default=[1600, 6400],
        metavar=("LOW", "HIGH"),
        help="of the made noise; the default is CC15's",
    )
    parser.add_argument("--count", type=int, default=400, help="crops of made noise (default: %(default)s)")
    parser.add_argument("-o", "--output", type=Path, metavar="FILE", help="draw a plot: .svg or .png")
    args = parser.parse_args(argv)
    data = args.data or os.environ.get("KBNET_DATA")
    try:
        if not data:
            raise BadInput("no data: set KBNET_DATA or use --data")
        if args.output and args.output.suffix not in (".svg", ".png"):
            raise BadInput(f"{args.output}: the name must end in .svg or .png")
        columns = {
            "CC15": measure(real(Path(data) / "test" / "CC15")),
            "PolyU": measure(real(Path(data) / "test" / "PolyU", 14)),
            "Camera": measure(made(Path(data) / "train", Camera(iso=args.iso), args.count)),
            "Camera, no phones": measure(
                made(Path(data) / "train", Camera(iso=args.iso, phones=0), args.count)
            ),
        }
    except BadInput as error:
        print(f"noise_statistics: {one_line(error)}", file=sys.stderr)
        return 2
    print(table(columns))
    if args.output:
        draw(columns, args.output)
    return 0


if __name__ == "__main__":
    sys.exit(main())
