"""Print statistics of every degradation beside what its formula says."""

from __future__ import annotations

import argparse
import io
import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.harness.measure import table
from kbnet_plugin.degradations import DEGRADATIONS, Draws, Pipeline, raw
from kbnet_plugin.degradations.jpeg import compress, quantization_tables

COUNT, SIDE = 16, 128


def made(name: str, value: float = 0.5, **arguments: Any) -> tuple[Tensor, Tensor]:
    """Degrade constant pictures of a value."""
    clean = torch.full((COUNT, 3, SIDE, SIDE), value)
    return Pipeline([{"type": name, **arguments}])(clean, _draws())


def _draws() -> Draws:
    return Draws([(7, i) for i in range(COUNT)])


def neighbours(noise: Tensor, distance: int) -> float:
    """Return the correlation of pixels at a distance along rows."""
    noise = noise - noise.mean((2, 3), keepdim=True)
    return float((noise[..., distance:] * noise[..., :-distance]).mean() / noise.square().mean())


def noise() -> list[list[str]]:
    """Gaussian, Poisson-Gaussian and the noise of the raw data in Camera."""
    white, clean = made("Gaussian", sigma=25)
    rows = [["Gaussian, sigma 25", "standard deviation", 25.0, 255 * float((white - clean).std())]]
    gray, clean = made("Gaussian", sigma=25, gray=1)
    alike = float((gray - clean).var(1).max())
    rows.append(["Gaussian, gray", "largest variance between channels", 0.0, alike])
    blurred, clean = made("Gaussian", sigma=25, blur=1)
    for distance in (1, 2):
        expected = math.exp(-(distance**2) / 4)
        found = neighbours(blurred - clean, distance)
        rows.append(["Gaussian, blur 1", f"correlation at {distance} px: exp(-d^2 / 4)", expected, found])
    for value in (0.1, 0.5, 0.9):
        noisy, clean = made("PoissonGaussian", value, gain=0.01, read_noise=0.02)
        name = f"variance at {value}: gain x + read_noise^2"
        rows.append(["PoissonGaussian", name, 0.01 * value + 0.02**2, float((noisy - clean).var())])
        planes = torch.full((COUNT, 4, SIDE, SIDE), value)
        shot, read = torch.full((2, COUNT, 1, 1, 1), 0.004)
        taken = raw.add_sensor_noise(planes, shot, read / 100, _draws())
        rows.append(
            ["Camera, raw data", f"variance at {value}: a x + b", 0.004 * value + 4e-5, float(taken.var())]
        )
    hot, clean = made("HotPixels", 0.0, share=0.001, brightness=1)
    rows.append(["HotPixels, share 0.001", "share of pixels", 0.001, float((hot != clean).float().mean())])
    ramp = torch.linspace(0, 1, SIDE * SIDE).view(1, 1, SIDE, SIDE)
    few, _ = DEGRADATIONS["Quantize"](bits=4)(ramp, ramp, Draws([(0,)]))
    rows.append(["Quantize, 4 bits", "number of values", 16.0, float(few.unique().numel())])
    return _text(rows)


def optics() -> list[list[str]]:
    """Blur, Defocus, Resize, Rain, ColorJitter."""
    rows: list[list[Any]] = []
    x = torch.arange(SIDE, dtype=torch.float32)
    for period in (6, 12):
        wave = (0.5 + 0.25 * torch.cos(2 * math.pi * x / period)).expand(COUNT, 1, SIDE, SIDE)
        soft, _ = DEGRADATIONS["Blur"](sigma=1.5, anisotropic=0)(wave, wave, _draws())
        inside = slice(SIDE // 4, SIDE // 4 + 4 * period)
        found = float((soft - 0.5)[..., inside].std() / (wave - 0.5)[..., inside].std())
        expected = math.exp(-2 * (math.pi * 1.5 / period) ** 2)
        rows.append(["Blur, sigma 1.5", f"a wave of {period} px: exp(-2 (pi s / p)^2)", expected, found])
    point = torch.zeros(COUNT, 1, 65, 65)
    point[..., 32, 32] = 1
    disc, _ = DEGRADATIONS["Defocus"](radius=6, disc=1, gamma=1)(point, point, _draws())
    rows.append(["Defocus, radius 6", "light of a point", 1.0, float(disc.sum((1, 2, 3)).mean())])
    square = ((torch.arange(65) - 32.0) ** 2)[:, None] + (torch.arange(65) - 32.0) ** 2
    spread = float((disc * square).sum((1, 2, 3)).mean())
    rows.append(["Defocus, radius 6", "mean square distance: r^2 / 2", 18.0, spread])
    small, _ = DEGRADATIONS["Resize"](factor=0.5, kernels=["area"])(disc, disc, _draws())
    rows.append(["Resize, factor 0.5", "light kept", 1.0, float(small.sum() / disc.sum())])
    clean = torch.full((COUNT, 3, SIDE, SIDE), 0.5)
    rainy, _ = DEGRADATIONS["Rain"]()(clean, clean, _draws())
    streaks = DEGRADATIONS["Rain"]().streaks(_draws(), SIDE, SIDE)  # type: ignore[attr-defined]
    screened = 1 - (1 - clean) * (1 - streaks)
    rows.append(["Rain", "least that it brightens", 0.0, float((rainy - clean).min())])
    rows.append(["Rain", "screen blend, largest difference", 0.0, float((rainy - screened).abs().max())])
    gray = torch.rand(COUNT, 1, 8, 8).expand(-1, 3, -1, -1)
    jittered, _ = DEGRADATIONS["ColorJitter"]()(gray, gray, _draws())
    rows.append(
        ["ColorJitter", "a gray picture's colour", 0.0, float((jittered - jittered[:, :1]).abs().max())]
    )
    return _text(rows)


def codec() -> list[list[str]]:
    """JPEG beside Pillow."""
    from PIL import Image
    from skimage import data

    picture = data.astronaut()
    image = torch.from_numpy(picture).permute(2, 0, 1)[None] / 255
    rows: list[list[Any]] = []
    for quality in (30, 75, 95):
        tables = quantization_tables(np.array([quality]))[0].reshape(2, 64)
        for half in (False, True):
            file = io.BytesIO()
            Image.fromarray(picture).save(file, "JPEG", quality=quality, subsampling=2 if half else 0)
            decoded = Image.open(file)
            there = np.asarray(decoded, dtype=np.float32)
            here = compress(image, np.array([quality]), np.array([half]))[0].permute(1, 2, 0).numpy() * 255
            name = f"JPEG, quality {quality}, {'4:2:0' if half else '4:4:4'}"
            rows.append([name, "mean difference to Pillow, levels", 0.0, float(np.abs(here - there).mean())])
        theirs = np.array([decoded.quantization[i] for i in (0, 1)])
        rows.append([name, "entries of the tables that differ", 0.0, float((tables != theirs).sum())])
    return _text(rows)


def _text(rows: list[list[Any]]) -> list[list[str]]:
    return [[name, what, f"{formula:.4g}", f"{found:.4g}"] for name, what, formula, found in rows]


def main(argv: list[str] | None = None) -> int:
    """Run the command; returns its exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="example:\n  python tools/degradation_statistics.py\n"
        "The noise of Camera beside that of real cameras: python tools/noise_statistics.py",
    )
    parser.parse_args(argv)
    print(table(["degradation", "quantity", "formula", "measured"], [*noise(), *optics(), *codec()]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
