"""Compare a model on fluorescence (W2S, one frame against the mean of 400) with filters at their best."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.harness import measure, protocols, w2s
from kbnet_plugin import Restorer
from kbnet_plugin.errors import one_line

Picture = np.ndarray[Any, np.dtype[np.float32]]


@dataclass(frozen=True)
class Score:
    """PSNR in dB, change of the mean in %, and slope of output against truth, of a method at one setting."""

    psnr: float
    change: float
    slope: float


def pairs(data: Path, limit: int | None, crop: int | None) -> Iterator[tuple[Picture, Picture]]:
    """Yield noisy pictures in 0..1 and their truth, fitted by `w2s.fitted`; errors as of `w2s.frames`."""
    files = w2s.frames(data)
    for file in files[:: -(-len(files) // limit) if limit else 1]:
        noisy, mean = (_unit(picture, crop) for picture in w2s.read(file))
        yield noisy, w2s.fitted(mean, noisy)


def _unit(picture: np.ndarray[Any, Any], crop: int | None) -> Picture:
    picture = picture.astype(np.float32) / 255
    if crop:
        top, left = ((n - crop) // 2 if n > crop else 0 for n in picture.shape)
        picture = picture[top : top + crop, left : left + crop]
    return picture


def score(output: Picture, noisy: Picture, truth: Picture) -> Score:
    """Compare an output with the truth; neither is clipped."""
    o, t = output.astype(np.float64).ravel(), truth.astype(np.float64).ravel()
    change = float(100 * (o.mean() / noisy.mean(dtype=np.float64) - 1))
    return Score(protocols.psnr(output, truth), change, float(np.polyfit(t, o, 1)[0]))


def methods(model: str, device: str) -> dict[str, dict[str, Callable[[Picture], Picture]]]:
    """Return by method and setting what to do with a picture."""
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
    """Run the command; returns its exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="examples:\n  KBNET_DATA=/path/to/data python benchmarks/micro.py\n"
        "  python benchmarks/micro.py --data /path/to/data --pairs 6 --crop 128",
    )
    parser.add_argument("--data", type=Path, help="folder that contains micro/W2S (default: KBNET_DATA)")
    parser.add_argument(
        "--model",
        default="denoise-micro",
        help="name or checkpoint of a model with one channel (default: %(default)s)",
    )
    parser.add_argument("--pairs", type=int, help="use at most this many, evenly spaced (default: all)")
    parser.add_argument("--crop", type=int, help="use a central square of this side (default: everything)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, ... (default: auto)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the results to this file")
    args = parser.parse_args(argv)
    data = args.data or os.environ.get("KBNET_DATA")
    if not data:
        print("micro: no data: set KBNET_DATA or use --data", file=sys.stderr)
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
    print(f"{count} pairs of W2S; PSNR in dB for a range of 0..1, neither clipped nor rounded\n")
    header = ["method", "best setting", "PSNR", "change of mean, %", "at worst, %", "slope against truth"]
    print(measure.table(header, rows))
    if args.json:
        measure.write_json(args.json, provenance=measure.provenance(), pairs=count, micro=content)
    return 0


def run(
    every: dict[str, dict[str, Callable[[Picture], Picture]]], images: list[tuple[Picture, Picture]]
) -> dict[str, dict[str, list[Score]]]:
    """Score every method and setting on every pair."""
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
