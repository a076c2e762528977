"""Draw the page of samples: what each registered degradation makes of a picture, five times."""

from __future__ import annotations

import argparse
import io
import sys
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw
from skimage import data

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from kbnet_plugin.degradations import DEGRADATIONS, Draws, Pipeline
from kbnet_plugin.degradations.pipeline import OneOf
from kbnet_plugin.errors import BadInput, one_line
from kbnet_plugin.io import read_image

ROOT = Path(__file__).resolve().parent.parent
SIZE, MARGIN, LINE = 156, 4, 15
LIMIT = 400_000
"""Bytes."""
COLUMNS = 5
SHIPPED = {"astronaut": (0, 150), "coffee": (100, 210), "rocket": (220, 300)}
"""Pictures in scikit-image, and the corner of the crop."""

STILL = {"saturation": 1, "hue": 0, "permutation": 0, "inversion": 0, "contrast": 1, "brightness": 0}
# Arguments that show a degradation better than five seeds of its defaults do.
STRENGTHS: dict[str, Sequence[Mapping[str, Any]]] = {
    "Gaussian": [
        {"sigma": 10},
        {"sigma": 35},
        {"sigma": 35, "gray": 1},
        {"sigma": 35, "colored": 1},
        {"sigma": 35, "blur": 1},
    ],
    "PoissonGaussian": [{"gain": g, "read_noise": g**0.5 / 10} for g in (0.001, 0.005, 0.02, 0.05, 0.1)],
    "HotPixels": [{"share": s} for s in (1e-4, 3e-4, 1e-3, 3e-3, 1e-2)],
    "Quantize": [*({"bits": b} for b in (6, 5, 4, 3)), {"saturation": 0.5}],
    "JPEG": [
        {"quality": 90, "subsampling": 0},
        {"quality": 60, "subsampling": 0},
        {"quality": 60, "subsampling": 1},
        {"quality": 30, "subsampling": 1},
        {"quality": 10, "subsampling": 1},
    ],
    "Resize": [
        {"factor": 0.5, "kernels": "area"},
        {"factor": 0.3, "kernels": "bilinear"},
        {"factor": 0.2, "kernels": "bicubic"},
        {"factor": 0.5, "between": [{"type": "Gaussian", "sigma": 30}]},
        {"factor": 0.5, "between": [{"type": "JPEG", "quality": 40}]},
    ],
    "Blur": [
        *({"sigma": s, "anisotropic": 0} for s in (0.7, 1.5, 3)),
        *({"sigma": [1, s], "anisotropic": 1} for s in (4, 8)),
    ],
    "Defocus": [
        {"radius": 2, "disc": 1},
        {"radius": 5, "disc": 1},
        {"radius": 5, "disc": 0, "blades": 5},
        {"radius": [0, 6]},
        {"radius": [0, 10]},
    ],
    "Rain": [
        {"density": 0.2, "brightness": 0.5},
        {"density": 0.5, "brightness": 0.8},
        {"density": 0.5, "angle": 30},
        {"length": 15, "brightness": 0.8},
        {"density": 0.4, "veil": 0.3},
    ],
    "ColorJitter": [
        STILL | changed
        for changed in (
            {"saturation": 1.5},
            {"hue": 20},
            {"permutation": 1},
            {"inversion": 1},
            {"contrast": 0.6},
        )
    ],
}


def rows() -> dict[str, list[tuple[str, Mapping[str, Any]]]]:
    """Name the samples of every degradation: what is written below each, and its arguments."""
    found = {}
    for name, cls in sorted(DEGRADATIONS.items()):
        if cls is OneOf:  # draws nothing itself
            continue
        given = STRENGTHS.get(name)
        found[name] = [
            (_caption(each), each) if given else (f"seed {i}", {})
            for i, each in enumerate(given or [{}] * COLUMNS)
        ]
    return found


def _caption(arguments: Mapping[str, Any]) -> str:
    parts = []
    for key, value in arguments.items():
        if STILL.get(key) == value:
            continue
        if isinstance(value, list) and isinstance(value[0], Mapping):
            parts += [step["type"] for step in value]
        elif isinstance(value, list):
            parts.append(f"{key} {value[0]:g}..{value[1]:g}")
        else:
            parts.append(value if isinstance(value, str) else f"{key} {value:.2g}")
    return ", ".join(parts)


def crops(paths: Sequence[Path]) -> list[torch.Tensor]:
    """Return crops, (1, 3, SIZE, SIZE) in 0..1, of the pictures or of those in scikit-image."""
    if not paths:
        pictures = [(getattr(data, name)(), corner) for name, corner in SHIPPED.items()]
    else:
        pictures = []
        for path in paths:
            array = np.asarray(read_image(path)[0])
            if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in (1, 3)):
                raise BadInput(f"{path}: not a gray or RGB picture")
            if min(array.shape[:2]) < SIZE:
                raise BadInput(f"{path}: smaller than {SIZE} x {SIZE} pixels")
            pictures.append((array, ((array.shape[0] - SIZE) // 2, (array.shape[1] - SIZE) // 2)))
    return [_crop(picture, *corner) for picture, corner in pictures]


def _crop(picture: np.ndarray, top: int, left: int) -> torch.Tensor:
    part = np.atleast_3d(picture)[top : top + SIZE, left : left + SIZE]
    white = np.iinfo(picture.dtype).max if np.issubdtype(picture.dtype, np.integer) else 1
    tensor = torch.from_numpy(part.astype(np.float32) / white).permute(2, 0, 1)[None]
    return tensor.expand(-1, 3, -1, -1)


def page(clean: Sequence[torch.Tensor]) -> Image.Image:
    """Draw a row for each degradation, with one of the clean crops at its left."""
    named = rows()
    width, height = SIZE + MARGIN, SIZE + LINE + MARGIN
    drawn = Image.new("RGB", ((COLUMNS + 1) * width + MARGIN, len(named) * height + MARGIN), "white")
    draw = ImageDraw.Draw(drawn)
    for row, (name, samples) in enumerate(named.items()):
        seed = zlib.crc32(name.encode())  # so that other classes may come and go
        picture = clean[seed % len(clean)]
        cells = [(name, picture)]
        for i, (caption, arguments) in enumerate(samples):
            made, _ = Pipeline([{"type": name, **arguments}])(picture, Draws([(seed, i)]))
            cells.append((caption, made))
        for column, (caption, made) in enumerate(cells):
            left, top = MARGIN + column * width, MARGIN + row * height
            draw.text((left, top), caption, fill="black", font_size=14 if column == 0 else 10)
            levels = (made[0].clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy()
            drawn.paste(Image.fromarray(levels), (left, top + LINE))
    return drawn


def compressed(drawn: Image.Image) -> bytes:
    """Compress as JPEG of the best quality, 90 at most, that stays within `LIMIT`."""
    for quality in range(90, 20, -5):
        file = io.BytesIO()
        drawn.save(file, "JPEG", quality=quality, optimize=True)
        if file.tell() <= LIMIT:
            break
    return file.getvalue()


def main(argv: list[str] | None = None) -> int:
    """Run the command; returns its exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="examples:\n"
        "  python tools/degradation_samples.py\n"
        "  python tools/degradation_samples.py holiday.jpg portrait.png -o samples.jpg",
    )
    parser.add_argument(
        "pictures",
        nargs="*",
        type=Path,
        metavar="PICTURE",
        help=f"default: {', '.join(SHIPPED)} of scikit-image",
    )
    default = ROOT / "docs" / "explanation" / "degradations.jpg"
    parser.add_argument(
        "-o",
        "--out",
        type=Path,
        default=default,
        metavar="FILE",
        help="default: docs/explanation/degradations.jpg",
    )
    args = parser.parse_args(argv)
    try:
        content = compressed(page(crops(args.pictures)))
        args.out.write_bytes(content)
    except (BadInput, OSError) as error:
        print(f"degradation_samples: {one_line(error)}", file=sys.stderr)
        return 2
    print(f"{args.out}: {len(rows())} degradations, {len(content) / 1000:.0f} kB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
