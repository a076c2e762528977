"""Training without truth, compared with the truth that training never saw.

BSD68 with noise of sigma 25, and single frames of a microscope (W2S), each learned from the noisy pictures
alone by `kbnet fit`. The published figures beside it are those of N2V2's authors (fmi-faim/N2V2_Experiments,
README) and of DnCNN, which was trained with truth (cszn/DnCNN). An interrupted run of --iterations goes on
where it was.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.harness import measure
from benchmarks.micro import fitted
from kbnet_plugin import Restorer, load_network, zoo
from kbnet_plugin.errors import one_line
from kbnet_plugin.selfsup.config import NETWORK, SCRATCH, FitConfig
from kbnet_plugin.selfsup.fit import Fit
from kbnet_plugin.selfsup.masking import MASKED_PIXEL_PERCENTAGE, NORMS, STRATEGIES, STRATEGY

SIGMA = 25
BLURS = 0.7, 1, 1.3, 1.6, 2, 2.5, 3
PROBE = 150
"""Iterations that are timed to see how many fit."""

PUBLISHED = {
    "bsd68": {
        "N2V (published)": 27.7,
        "N2V2 (published)": 28.3,
        "DnCNN, trained with truth (published)": 29.23,
    },
    "w2s": {},
}
TITLES = {"bsd68": f"BSD68, gray, sigma {SIGMA}, range 255", "w2s": "W2S, one frame against the mean of 400"}
Pictures = list[tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]]


def bsd68(data: Path, limit: int | None) -> Pictures:
    """Noisy and clean, 0..255; the noise is neither clipped nor rounded."""
    files = _files(data / "test" / "BSD68", "*.png")
    pictures = []
    for i, file in enumerate(files[:limit]):
        clean = np.asarray(Image.open(file).convert("L"), np.float32)
        noise = np.random.default_rng([0, i]).standard_normal(clean.shape) * SIGMA
        pictures.append((clean + noise.astype(np.float32), clean))
    return pictures


def w2s(data: Path, limit: int | None, channel: int) -> Pictures:
    """Frames of one channel, 8 bits, and ``s * avg400 + o``: every file was stretched for itself."""
    pictures = []
    for file in _files(data / "micro" / "W2S" / "avg1", f"*_{channel}.png")[:limit]:
        mean = file.parent.parent / "avg400" / file.name.replace("input_avg1", "target_avg400")
        noisy, clean = (np.asarray(Image.open(path).convert("L")) for path in (file, mean))
        pictures.append((noisy, fitted(clean.astype(np.float32), noisy.astype(np.float32))))
    return pictures


def _files(folder: Path, pattern: str) -> list[Path]:
    files = sorted(folder.glob(pattern))
    if not files:
        raise FileNotFoundError(f"{folder}: no pictures {pattern}; --data names the folder of the test sets")
    return files


def blur(picture: np.ndarray[Any, Any], sigma: float) -> np.ndarray[Any, Any]:
    """What everybody can do in no time."""
    from scipy.ndimage import gaussian_filter

    return gaussian_filter(picture.astype(np.float32), sigma)


def psnr(output: np.ndarray[Any, Any], truth: np.ndarray[Any, Any], clip: bool) -> float:
    """In dB of a fixed range of 255."""
    values = output.astype(np.float64)
    values = values.clip(0, 255) if clip else values
    return float(-10 * np.log10(np.square(values - truth).mean() / 255**2))


def learn(args: argparse.Namespace, task: str, pictures: Pictures) -> tuple[Fit, dict[str, Any]]:
    """Write the noisy pictures, train on them, and say what it took."""
    began = time.monotonic()
    folder = args.out / task
    folder.mkdir(parents=True, exist_ok=True)
    for number, (noisy, _) in enumerate(pictures):
        np.save(folder / f"{number:03}.npy", noisy)
    network = {**NETWORK, "width": args.width, "middle_blk_num": args.middle}
    network |= {"enc_blk_nums": args.blocks, "dec_blk_nums": args.blocks[::-1]}
    config = FitConfig(
        source=folder,
        name=args.name or f"{task}-{Path(args.init).stem}",
        init=args.init,
        iterations=args.iterations or PROBE,
        axes="YX",
        range=(0, 255),
        patch=args.patch,
        batch=args.batch,
        learning_rate=args.learning_rate,
        masked_pixel_percentage=args.masked_pixel_percentage,
        strategy=args.strategy,
        norm=args.norm,
        network=network,
        device=args.device,
        precision=args.precision,
        compile=args.compile,
        workers=args.workers,
    )
    if not args.iterations:  # as many as fit: the learning rate must know their number beforehand
        rate, ahead = train(Fit(replace(config, name=f"{config.name}-probe"), overwrite=True))
        left = 60 * args.minutes - (time.monotonic() - began) - ahead
        config = replace(config, iterations=max(int(0.95 * left * rate), 1))
    fit = Fit(config, overwrite=not args.iterations)
    print(f"{task}: {fit.summary}; {config.iterations:,} steps", flush=True)
    rate, _ = train(fit, began + 60 * args.minutes if args.minutes else None)
    options = fit.options
    return fit, {
        "iterations": fit.iteration,
        "of": config.iterations,
        "iterations_per_second": rate,
        "seconds": time.monotonic() - began,
        "crops_of_a_step": options["datasets"]["train"]["batch_size_per_gpu"],
        "patch": fit.patch,
        "network": options["network_g"],
        "train": options["train"],
        "datasets": options["datasets"]["train"],
    }


def train(fit: Fit, until: float | None = None) -> tuple[float, float]:
    """Run to the end or to a time; iterations a second, and seconds before the first of them."""
    began = told = time.monotonic()
    seen: list[tuple[int, float]] = []
    for step in fit.run():
        now = time.monotonic()
        seen.append((step.iteration, now))
        if now - told > 10:
            print(
                f"  {step.iteration:,}/{step.total:,}, loss {step.loss:.3e}, {_rate(seen):.3g} it/s",
                flush=True,
            )
            told = now
        if until and now > until:
            fit.stop()
    return _rate(seen), (seen[0][1] if seen else time.monotonic()) - began


def _rate(seen: list[tuple[int, float]]) -> float:
    """Of the second half, which has no warming up in it."""
    (i, first), (j, last) = seen[len(seen) // 2], seen[-1]
    return (j - i) / max(last - first, 1e-9)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="examples:\n  KBNET_DATA=/data python benchmarks/selfsup.py --device cuda --minutes 10\n"
        "  python benchmarks/selfsup.py --data /data --task w2s --init denoise-micro --iterations 500",
    )
    parser.add_argument("--data", type=Path, help="folder of the test sets; default: KBNET_DATA")
    parser.add_argument("--out", type=Path, default=Path("results/selfsup"), help="work, models, results")
    parser.add_argument("--task", choices=tuple(TITLES), nargs="+", default=list(TITLES))
    parser.add_argument("--name", help="of the model, if not TASK-START")
    parser.add_argument("--limit", type=int, help="so many pictures at most")
    parser.add_argument("--channel", type=int, choices=(0, 1, 2), default=0, help="of W2S")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--iterations", type=int, help="of each training")
    parser.add_argument(
        "--minutes",
        type=float,
        help="of each training: as many iterations as fit, timed first; with --iterations: stop then",
    )
    parser.add_argument(
        "--init", default=SCRATCH, help="a model; by default scratch: nothing but the noisy pictures"
    )
    parser.add_argument("--batch", type=int)
    parser.add_argument("--patch", type=int, default=FitConfig.patch)
    parser.add_argument("--workers", type=int)
    parser.add_argument("--precision", choices=("fp32", "bf16", "fp16"))
    parser.add_argument("--compile", action="store_true", help="pays on a GPU from some minutes on")
    parser.add_argument("--learning-rate", type=float)
    parser.add_argument("--masked-pixel-percentage", type=float, default=MASKED_PIXEL_PERCENTAGE)
    parser.add_argument("--strategy", choices=STRATEGIES, default=STRATEGY)
    parser.add_argument("--norm", choices=NORMS, default="l2")
    parser.add_argument("--width", type=int, default=NETWORK["width"])
    parser.add_argument("--middle", type=int, default=NETWORK["middle_blk_num"])
    parser.add_argument("--blocks", type=int, nargs="+", default=NETWORK["enc_blk_nums"])
    parser.add_argument("--self-ensemble", action="store_true", help="evaluate the mean of eight turns, too")
    args = parser.parse_args(argv)
    if not (args.iterations or args.minutes):
        args.iterations = FitConfig.iterations
    data = args.data or os.environ.get("KBNET_DATA")
    if not data:
        print("selfsup: no data: set KBNET_DATA, or give --data", file=sys.stderr)
        return 2
    args.out = args.out.absolute()
    os.environ[zoo.FOLDER_VARIABLE] = str(args.out / "models")
    try:
        for task in args.task:
            load = {"bsd68": lambda: bsd68(Path(data), args.limit)}.get(
                task, lambda: w2s(Path(data), args.limit, args.channel)
            )
            report(args, task, load())
    except (ValueError, OSError) as error:
        print(f"selfsup: {one_line(error)}", file=sys.stderr)
        return 2
    return 0


def report(args: argparse.Namespace, task: str, pictures: Pictures) -> None:
    """Train, evaluate, print a table and write it as JSON."""
    fit, budget = learn(args, task, pictures)
    model, clip = fit.save(), task == "bsd68"
    settings = {"device": args.device, "precision": "float32", "window": model.window, "range": model.range}
    restorers = {
        f"{model.name}, as trained": Restorer(load_network(fit.checkpoint), **settings),
        f"{model.name}, shrunk": Restorer(model.load(), **settings),
    }
    if args.self_ensemble:
        eight = Restorer(model.load(), **settings, self_ensemble=True)
        restorers[f"{model.name}, shrunk, self-ensemble"] = eight
    if args.init != SCRATCH:
        restorers[f"{args.init}, as it was"] = Restorer(zoo.get_model(args.init).load(), **settings)
    scores = {"noisy": [psnr(noisy, truth, clip=False) for noisy, truth in pictures]}
    blurred = {sigma: [psnr(blur(x, sigma), y, clip) for x, y in pictures] for sigma in BLURS}
    best = max(blurred, key=lambda sigma: np.mean(blurred[sigma]))
    scores[f"Gaussian filter, sigma {best:g} (the best by the truth)"] = blurred[best]
    for name, restorer in restorers.items():
        scores[name] = [psnr(restorer(x.astype(np.float32), "YX"), y, clip) for x, y in pictures]
    rows = [[name, f"{np.mean(values):.2f}"] for name, values in scores.items()]
    rows += [[name, f"{value:.2f}"] for name, value in PUBLISHED[task].items()]
    device = str(restorer.engine.device)
    facts = measure.provenance(device)
    print(f"\n{TITLES[task]}: {len(pictures)} pictures, PSNR in dB, mean over pictures")
    print(
        f"{budget['iterations']:,} steps of {budget['crops_of_a_step']} crops of {budget['patch']}, "
        f"{budget['seconds']:.0f} s in this call, {facts['device']}\n"
    )
    print(measure.table(["", "PSNR"], rows), flush=True)
    measure.write_json(
        args.out / f"{model.name}.json",
        provenance=facts,
        task=task,
        psnr={name: float(np.mean(values)) for name, values in scores.items()},
        each=scores,
        published=PUBLISHED[task],
        budget=budget,
    )


if __name__ == "__main__":
    sys.exit(main())
