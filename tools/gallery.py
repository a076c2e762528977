"""Draw sheets of crops for the cards of the shipped models: what they do well, and where they fail."""

from __future__ import annotations

import argparse
import io
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw
from scipy.ndimage import gaussian_filter
from skimage import data

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.harness.measure import ROOT, show
from benchmarks.harness.protocols import psnr
from kbnet_plugin import Restorer
from kbnet_plugin.arrays.degradations import add_gaussian, add_poisson_gaussian
from kbnet_plugin.degradations import Draws, Pipeline
from kbnet_plugin.errors import nearest

SIZE, MARGIN, LINE = 184, 6, 18
Picture = np.ndarray[Any, np.dtype[np.float32]]
"""(H, W) or (H, W, 3) in 0..1."""
Degrade = Callable[[Picture, np.random.Generator], Picture]
"""From a clean picture to a degraded one; may replace the clean one's pixels by those to compare with."""


@dataclass(frozen=True)
class Scene:
    """A crop of a picture inside scikit-image, and what degrades it."""

    title: str
    name: str
    corner: tuple[int, int]
    noise: str
    degrade: Degrade
    fails: bool = False


def gaussian(sigma: float) -> Degrade:
    """Add white noise; `sigma` is its standard deviation, of 255."""
    return lambda x, g: x + (add_gaussian(np.zeros(x.shape), sigma, g) / 255).astype(np.float32)


def correlated(sigma: float) -> Degrade:
    """Add noise that is correlated between neighbours, as after demosaicking or resampling."""

    def degrade(x: Picture, g: np.random.Generator) -> Picture:
        noise = gaussian_filter(g.standard_normal(x.shape), (1, 1, 0)[: x.ndim])
        return x + (noise / noise.std() * sigma / 255).astype(np.float32)

    return degrade


def compressed(sigma: float, quality: int) -> Degrade:
    """Add white noise, then compress as JPEG."""

    def degrade(x: Picture, g: np.random.Generator) -> Picture:
        picture = Image.fromarray((gaussian(sigma)(x, g).clip(0, 1) * 255).round().astype(np.uint8))
        file = io.BytesIO()
        picture.save(file, "JPEG", quality=quality)
        return np.asarray(Image.open(file), np.float32) / 255

    return degrade


def sensor(gain: float, read_noise: float) -> Degrade:
    """Add Poisson-Gaussian noise."""

    def degrade(x: Picture, g: np.random.Generator) -> Picture:
        return add_poisson_gaussian(x, gain, read_noise, g).astype(np.float32)

    return degrade


def degraded(*steps: dict[str, Any]) -> Degrade:
    """Apply degradations, written as in option files."""
    pipeline = Pipeline(list(steps))

    def degrade(x: Picture, g: np.random.Generator) -> Picture:
        batch = torch.from_numpy(np.ascontiguousarray(x)).permute(2, 0, 1)[None]
        pair = pipeline(batch, Draws([(0, int(g.integers(2**31)))]))
        noisy, target = (t[0].permute(1, 2, 0).numpy() for t in pair)
        x[...] = target  # as the camera would have taken it without noise
        return noisy

    return degrade


CAMERA = {"type": "Camera"}
RAIN = {"type": "Rain", "blend": "add", "density": 0.25, "length": 40, "thickness": 2, "brightness": 0.5}
NOISE = {"type": "Gaussian", "sigma": 25}
PHOTOGRAPHS = (
    ("a face", "astronaut", (0, 130)),
    ("fur", "chelsea", (60, 100)),
    ("skin and fabric", "astronaut", (300, 40)),
    ("a table", "coffee", (150, 190)),
    ("grass", "grass", (100, 100)),
    ("night sky", "hubble_deep_field", (330, 420)),
    ("text", "page", (0, 20)),
)
COLOURED = [p for p in PHOTOGRAPHS if p[1] not in ("grass", "page")]
SCENES = {
    "denoise-color": [
        *(Scene(t, n, c, "sigma 25", gaussian(25)) for t, n, c in COLOURED),
        Scene("noise that JPEG spread", "chelsea", (60, 100), "sigma 25, JPEG", compressed(25, 60), True),
        Scene("correlated noise", "coffee", (150, 190), "sigma 25", correlated(25), True),
        Scene("too much noise", "astronaut", (0, 130), "sigma 90", gaussian(90), True),
    ],
    "denoise-gray": [
        *(Scene(t, n, c, "sigma 25", gaussian(25)) for t, n, c in PHOTOGRAPHS if n != "chelsea"),
        Scene("fine texture, strong noise", "grass", (100, 100), "sigma 50", gaussian(50), True),
        Scene("correlated noise", "page", (0, 20), "sigma 25", correlated(25), True),
    ],
    "denoise-photo": [
        *(Scene(t, n, c, "a camera", degraded(CAMERA)) for t, n, c in COLOURED),
        Scene("white noise", "coffee", (150, 190), "sigma 25", gaussian(25)),
        Scene("JPEG, colour at half resolution", "chelsea", (60, 100), "sigma 15, JPEG", compressed(15, 90)),
        Scene("strong compression", "chelsea", (60, 100), "sigma 25, JPEG", compressed(25, 40), True),
    ],
    "derain": [
        *(Scene(t, n, c, "rain", degraded(RAIN)) for t, n, c in COLOURED if n in ("astronaut", "chelsea")),
        Scene("thin rain", "coffee", (150, 190), "rain", degraded({"type": "Rain"})),
        Scene("bright saturated colours", "coffee", (150, 190), "rain", degraded(RAIN), True),
        Scene("rain and noise", "chelsea", (60, 100), "rain, sigma 25", degraded(RAIN, NOISE), True),
    ],
    "denoise-micro": [
        Scene("a cell", "cell", (180, 180), "10 photons at white", sensor(0.1, 0.02)),
        Scene("inverted tissue", "immunohistochemistry", (100, 100), "20 photons", sensor(0.05, 0.02)),
        Scene("stars", "hubble_deep_field", (330, 420), "30 photons at white", sensor(0.033, 0.02)),
        Scene("vessels", "retina", (500, 300), "50 photons at white", sensor(0.02, 0.01)),
        Scene("correlated noise", "cell", (180, 180), "sigma 25", correlated(25), True),
        Scene("hardly any light", "immunohistochemistry", (100, 100), "1 photon", sensor(1, 0.1), True),
    ],
}  # fmt: skip
SCENES["denoise-color-fast"] = SCENES["denoise-color"]
INVERTED = ("immunohistochemistry",)


def crop(scene: Scene, channels: int) -> Picture:
    """Return the clean crop, (SIZE, SIZE) or (SIZE, SIZE, 3) in 0..1."""
    picture = np.asarray(getattr(data, scene.name)(), np.float32) / 255
    if channels == 1 and picture.ndim == 3:
        picture = picture @ np.array([0.299, 0.587, 0.114], np.float32)
        picture = 1 - picture if scene.name in INVERTED else picture
    elif channels == 3 and picture.ndim == 2:
        picture = np.stack([picture] * 3, -1)
    top, left = scene.corner
    return picture[top : top + SIZE, left : left + SIZE]


def sheet(name: str, device: str = "auto") -> tuple[Image.Image, list[tuple[Scene, float, float]]]:
    """Draw noisy, restored and clean crops, one row per scene; also return the PSNR of the first two."""
    restorer = Restorer.from_pretrained(name, device=device)
    scenes = SCENES[name]
    width, height = 3 * (SIZE + MARGIN) + MARGIN, SIZE + LINE + MARGIN
    drawn = Image.new("RGB", (width, len(scenes) * height + MARGIN), "white")
    draw = ImageDraw.Draw(drawn)
    found = []
    for row, scene in enumerate(scenes):
        show(f"{name}: {scene.title}")
        truth = crop(scene, restorer.in_channels).copy()
        noisy = scene.degrade(truth, np.random.default_rng(row))
        restored = restorer(noisy)
        before, after = (psnr(x, truth) for x in (noisy, restored))
        found.append((scene, before, after))
        top = MARGIN + row * height
        word = "fails: " if scene.fails else ""
        captions = (f"{word}{scene.title}", f"restored {after:.2f} dB", "clean")
        for column, (caption, picture) in enumerate(zip(captions, (noisy, restored, truth), strict=True)):
            left = MARGIN + column * (SIZE + MARGIN)
            draw.text((left, top), caption, fill="darkred" if scene.fails else "black", font_size=12)
            drawn.paste(
                Image.fromarray((picture.clip(0, 1) * 255).round().astype(np.uint8)), (left, top + LINE)
            )
    show("")
    return drawn, found


def main(argv: list[str] | None = None) -> int:
    """Run the command; returns its exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="example:\n  python tools/gallery.py --out docs/models",
    )
    parser.add_argument("models", nargs="*", default=list(SCENES), help="default: all shipped models")
    parser.add_argument(
        "--out", type=Path, default=ROOT / "docs" / "models", help="folder (default: docs/models)"
    )
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, ... (default: auto)")
    args = parser.parse_args(argv)
    if unknown := [name for name in args.models if name not in SCENES]:
        print(f"gallery: no scenes for {unknown[0]}{nearest(unknown[0], SCENES)}", file=sys.stderr)
        return 2
    args.out.mkdir(parents=True, exist_ok=True)
    for name in args.models:
        drawn, found = sheet(name, args.device)
        file = args.out / f"{name}.jpg"
        drawn.save(file, quality=80)
        print(f"{file}")
        for scene, before, after in found:
            print(f"  {scene.title}, {scene.noise}: {before:.2f} -> {after:.2f} dB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
