"""Fluorescence (W2S, one frame beside the mean of 400): a model, and the usual filters at their best."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.harness import measure
from kbnet_plugin import Restorer
from kbnet_plugin.errors import one_line

FOLDER = Path("micro") / "W2S"
Picture = np.ndarray[Any, np.dtype[np.float32]]


@dataclass(frozen=True)
class Score:
    """Of one method at one setting: PSNR in dB, change of the mean in %, slope of output against truth."""

    psnr: float
    change: float
    slope: float


def pairs(data: Path, limit: int | None, crop: int | None) -> Iterator[tuple[Picture, Picture]]:
    """Noisy pictures in 0..1 and their truth.

    Every file was stretched to 0..255 on its own, so the truth is ``s * avg400 + o`` with s and o that fit
    the noisy frame best.

    Raises
    ------
    FileNotFoundError
        If the pictures are not there.
    """
    files = sorted((data / FOLDER / "avg1").glob("*.png"))
    if not files:
        raise FileNotFoundError(
            f"{data / FOLDER / 'avg1'}: no pictures; --data names the folder that holds {FOLDER}"
        )
    for file in files[:: -(-len(files) // limit) if limit else 1]:
        clean = file.parent.parent / "avg400" / file.name.replace("input_avg1", "target_avg400")
        noisy, mean = (_read(path, crop) for path in (file, clean))
        yield noisy, fitted(mean, noisy)


def fitted(mean: Picture, noisy: Picture) -> Picture:
    """``s * mean + o`` nearest to `noisy` in least squares."""
    s, o = np.polyfit(mean.ravel().astype(np.float64), noisy.ravel().astype(np.float64), 1)
    return (s * mean + o).astype(np.float32)


def _read(path: Path, crop: int | None) -> Picture:
    picture = np.asarray(Image.open(path).convert("L"), np.float32) / 255
    if crop:
        top, left = ((n - crop) // 2 if n > crop else 0 for n in picture.shape)
        picture = picture[top : top + crop, left : left + crop]
    return picture


def score(output: Picture, noisy: Picture, truth: Picture) -> Score:
    """How near an output is to the truth; neither is clipped."""
    o, t = output.astype(np.float64).ravel(), truth.astype(np.float64).ravel()
    psnr = -10 * np.log10(np.square(o - t).mean())
    return Score(
        float(psnr), float(100 * (o.mean() / noisy.mean(dtype=np.float64) - 1)), float(np.polyfit(t, o, 1)[0])
    )


def methods(model: str, device: str) -> dict[str, dict[str, Callable[[Picture], Picture]]]:
    """By name, what to do at every setting."""
    from scipy.ndimage import gaussian_filter
    from skimage.restoration import denoise_nl_means, denoise_wavelet, estimate_sigma

    restorer = Restorer.from_pretrained(model, device=device)
    return {
        "noisy frame": {"": lambda x: x},
        "Gaussian filter": {
            f"sigma {s:g}": lambda x, s=s: gaussian_filter(x, s) for s in (0.7, 1, 1.3, 1.6, 2, 2.5, 3, 4, 5)
        },
        "non-local means": {
            f"h {h:g} x sigma": lambda x, h=h: denoise_nl_means(
                x, 5, 6, h=h * estimate_sigma(x), sigma=estimate_sigma(x), fast_mode=True
            )
            for h in (1, 1.7, 2.2, 3, 4, 5.5)
        },
        "wavelet": {
            f"{method}, {f:g} x sigma": lambda x, method=method, f=f: denoise_wavelet(
                x, sigma=f * estimate_sigma(x), method=method, mode="soft", rescale_sigma=True
            )
            for method in ("BayesShrink", "VisuShrink")
            for f in (0.7, 1, 1.5, 2, 3, 4)
        },
        model: {"": restorer},
        "automatic choice": {"": lambda x: Restorer.for_image(x, device=device)(x)},
    }


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="examples:\n  KBNET_DATA=/path/to/data python benchmarks/micro.py\n"
        "  python benchmarks/micro.py --data /path/to/data --pairs 6 --crop 128",
    )
    parser.add_argument("--data", type=Path, help="folder that holds micro/W2S; default: KBNET_DATA")
    parser.add_argument("--model", default="denoise-micro", help="a name or a checkpoint, of one channel")
    parser.add_argument("--pairs", type=int, help="so many at most, evenly taken; default all")
    parser.add_argument("--crop", type=int, help="central square of so many pixels; default all")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--json", type=Path, metavar="FILE")
    args = parser.parse_args(argv)
    data = args.data or os.environ.get("KBNET_DATA")
    if not data:
        print("micro: no data: set KBNET_DATA, or give --data", file=sys.stderr)
        return 2
    try:
        every = methods(args.model, args.device)
        scores = run(every, list(pairs(Path(data), args.pairs, args.crop)))
    except (ValueError, OSError, ImportError) as error:
        print(f"micro: {one_line(error)}", file=sys.stderr)
        return 2
    rows, content = [], []
    for name, settings in scores.items():
        best = max(settings, key=lambda setting: np.mean([s.psnr for s in settings[setting]]))
        found = settings[best]
        psnr, change, slope = (
            float(np.mean([getattr(s, k) for s in found])) for k in ("psnr", "change", "slope")
        )
        worst = max((s.change for s in found), key=abs)
        rows.append([name, best, f"{psnr:.2f}", f"{change:+.2f}", f"{worst:+.2f}", f"{slope:.3f}"])
        content.append(
            {"method": name, "setting": best, "psnr": psnr, "mean_change_percent": change}
            | {"largest_change_percent": worst, "slope": slope}
        )
    count = len(next(iter(scores[args.model].values())))
    print(f"{count} pairs of W2S; PSNR in dB of 0..1, neither clipped nor rounded\n")
    header = ["method", "best setting", "PSNR", "mean intensity, %", "at worst, %", "slope against truth"]
    print(measure.table(header, rows))
    if args.json:
        measure.write_json(args.json, provenance=measure.provenance(), pairs=count, micro=content)
    return 0


def run(
    every: dict[str, dict[str, Callable[[Picture], Picture]]], images: list[tuple[Picture, Picture]]
) -> dict[str, dict[str, list[Score]]]:
    """Scores of every method, setting and pair."""
    scores: dict[str, dict[str, list[Score]]] = {
        name: {s: [] for s in settings} for name, settings in every.items()
    }
    for number, (noisy, truth) in enumerate(images, start=1):
        for name, settings in every.items():
            measure.show(f"{number}/{len(images)}: {name}")
            for setting, denoise in settings.items():
                scores[name][setting].append(score(denoise(noisy), noisy, truth))
    measure.show("")
    return scores


if __name__ == "__main__":
    sys.exit(main())
