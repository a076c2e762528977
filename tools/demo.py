"""Train a small KBNet_s, restore a noisy photograph it has never seen, and report the gain in PSNR.

The shipped model restores the same photograph for comparison.
"""

from __future__ import annotations

import argparse
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw
from skimage import data
from skimage.metrics import peak_signal_noise_ratio

from kbnet_plugin.arrays.degradations import add_gaussian

ROOT = Path(__file__).resolve().parent.parent
OPTIONS = "options/kbnet_quickstart.yml"
MODELS = {  # by the names in the captions
    "just trained": "experiments/kbnet_quickstart/models/net_g_latest.pth",
    "shipped": "denoise-color",
}
SIGMA = 25  # of 255; the noise that the quickstart network is trained for
CAPTION = 28  # height in pixels


def run(command: str) -> None:
    """Print a command as a user would type it, and run it from this interpreter's scripts."""
    print(f"\n$ {command}", flush=True)
    script, *arguments = shlex.split(command)
    subprocess.run([Path(sys.executable).with_name(script), *arguments], check=True, cwd=ROOT)


def beside(pictures: dict[str, np.ndarray]) -> Image.Image:
    """Put pictures of one size in a row, each with its caption above it."""
    height, width = next(iter(pictures.values())).shape[:2]
    sheet = Image.new("RGB", (width * len(pictures), height + CAPTION), "white")
    draw = ImageDraw.Draw(sheet)
    for i, (caption, picture) in enumerate(pictures.items()):
        draw.text((i * width + 8, 6), caption, fill="black", font_size=15)
        sheet.paste(Image.fromarray(picture), (i * width, CAPTION))
    return sheet


def main(argv: list[str] | None = None) -> int:
    """Run the command; returns its exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="example:\n  python tools/demo.py --out demo",
    )
    parser.add_argument(
        "--out", type=Path, default=ROOT / "demo", help="folder for the pictures (default: demo)"
    )
    out = parser.parse_args(argv).out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    noisy_file, sheet_file = out / "noisy.png", out / "side_by_side.png"

    run(f"basicsr train -opt {OPTIONS} --auto_resume")

    clean = data.chelsea()  # held out by the option file
    noisy = add_gaussian(clean, SIGMA, np.random.default_rng(0)).clip(0, 255).round().astype(np.uint8)
    Image.fromarray(noisy).save(noisy_file)
    pictures = {"noisy": noisy}
    for name, model in MODELS.items():
        file = out / f"{name.replace(' ', '_')}.png"
        arguments = ["restore", str(noisy_file), "-o", str(file), "--model", model, "--overwrite"]
        run(shlex.join(["kbnet", *arguments]))
        pictures[name] = np.asarray(Image.open(file))
    psnr = {name: float(peak_signal_noise_ratio(clean, p, data_range=255)) for name, p in pictures.items()}
    captions = {f"{name}, {psnr[name]:.2f} dB": picture for name, picture in pictures.items()}
    beside({**captions, "clean": clean}).save(sheet_file)
    print(f"\nnoisy photograph: PSNR {psnr['noisy']:.2f} dB, sigma {SIGMA}, 8-bit RGB")
    for name, model in MODELS.items():
        print(f"{name}: {psnr[name]:.2f} dB (gain {psnr[name] - psnr['noisy']:.2f} dB), {model}")
    print(f"noisy, just trained, shipped and clean side by side: {sheet_file}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
