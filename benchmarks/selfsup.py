"""Train on noisy pictures alone, and compare the results with the truth that training never saw.

The pictures are BSD68 with noise of sigma 25, single frames of a microscope (W2S), and two made stacks with
few photons; `kbnet fit` trains on each of them. The published figures are those of N2V2's authors
(fmi-faim/N2V2_Experiments, README) and of DnCNN, which was trained with truth (cszn/DnCNN). The same command
resumes an interrupted run of --iterations.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.harness import measure, photons, protocols, w2s
from kbnet_plugin import Restorer, load_network, zoo
from kbnet_plugin.arrays.degradations import add_gaussian, seeded_by_index
from kbnet_plugin.errors import one_line
from kbnet_plugin.selfsup.config import METHODS, NETWORK, SCRATCH, FitConfig
from kbnet_plugin.selfsup.fit import Fit
from kbnet_plugin.selfsup.masking import MASKED_PIXEL_PERCENTAGE, NORMS, STRATEGIES, STRATEGY

SIGMA = 25
BLURS = 0.7, 1, 1.3, 1.6, 2, 2.5, 3

PUBLISHED = {
    "bsd68": {
        "N2V (published)": 27.7,
        "N2V2 (published)": 28.3,
        "DnCNN, trained with truth (published)": 29.23,
    },
}
TITLES = {
    "bsd68": f"BSD68, gray, sigma {SIGMA}, range 255",
    "w2s": w2s.TITLE,
    "filaments": "made filaments, one to nine photons",
    "nuclei": "made nuclei, half a photon to five",
}
Pictures = list[tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]]


def bsd68(data: Path, limit: int | None) -> Pictures:
    """Read BSD68 and add noise that is neither clipped nor rounded; noisy and clean pictures, 0..255.

    Raises
    ------
    FileNotFoundError
        If there are no pictures.
    """
    folder = data / "test" / "BSD68"
    files = sorted(folder.glob("*.png"))
    if not files:
        raise FileNotFoundError(f"{folder}: no pictures *.png; --data must name the folder of the test sets")
    pictures = []
    for i, file in enumerate(files[:limit]):
        clean = np.asarray(Image.open(file).convert("L"), np.float32)
        noise = add_gaussian(np.zeros(clean.shape), SIGMA, seeded_by_index(i))
        pictures.append((clean + noise.astype(np.float32), clean))
    return pictures


def frames(data: Path, limit: int | None, channel: int) -> Pictures:
    """Read frames of one channel of W2S, 8 bits, and the truth that fits each; errors as of `w2s.frames`."""
    pictures = []
    for file in w2s.frames(data, channel)[:limit]:
        noisy, mean = w2s.read(file)
        pictures.append((noisy, w2s.fitted(mean.astype(np.float32), noisy.astype(np.float32))))
    return pictures


def blur(picture: np.ndarray[Any, Any], sigma: float) -> np.ndarray[Any, Any]:
    """Apply a Gaussian filter, the baseline."""
    from scipy.ndimage import gaussian_filter

    return gaussian_filter(picture.astype(np.float32), sigma)


def score(output: np.ndarray[Any, Any], truth: np.ndarray[Any, Any], clip: bool) -> float:
    """Compute PSNR in dB for a range of 255, after clipping the output to it or not."""
    return protocols.psnr(output.clip(0, 255) if clip else output, truth, 255)


def learn(args: argparse.Namespace, task: str, pictures: Pictures) -> tuple[Fit, dict[str, Any]]:
    """Write the noisy pictures and train on them; return the fit and what it took."""
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
        method=args.method,
        init=args.init,
        iterations=args.iterations,
        minutes=args.minutes,
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
    fit = Fit(config, overwrite=not args.iterations)
    print(f"{task}: {fit.summary}", flush=True)
    rate = train(fit)
    options = fit.options
    return fit, {
        "iterations": fit.iteration,
        "iterations_per_second": rate,
        "seconds": time.monotonic() - began,
        "crops_of_a_step": options["datasets"]["train"]["batch_size_per_gpu"],
        "patch": fit.patch,
        "network": options["network_g"],
        "train": options["train"],
        "datasets": options["datasets"]["train"],
    }


def train(fit: Fit) -> float:
    """Train to the end, and return the iterations per second of the second half, without warm-up."""
    reported = time.monotonic()
    seen: list[tuple[int, float]] = []
    for step in fit.run():
        now = time.monotonic()
        seen.append((step.iteration, now))
        if now - reported > 10:
            print(
                f"  {step.iteration:,}/{step.total:,}, loss {step.loss:.3e}"
                + ("" if step.gain is None else f", measured {step.gain:+.2f} dB"),
                flush=True,
            )
            reported = now
    if not seen:
        return 0.0
    (i, first), (j, last) = seen[len(seen) // 2], seen[-1]
    return (j - i) / max(last - first, 1e-9)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="examples:\n  KBNET_DATA=/data python benchmarks/selfsup.py --device cuda --minutes 10\n"
        "  python benchmarks/selfsup.py --data /data --task w2s --init denoise-micro --iterations 500",
    )
    parser.add_argument(
        "--data", type=Path, help="folder with test/BSD68 and micro/W2S (default: KBNET_DATA)"
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("results/selfsup"),
        help="work, models, results (default: %(default)s)",
    )
    parser.add_argument(
        "--task", choices=tuple(TITLES), nargs="+", default=list(TITLES), help="default: all of them"
    )
    parser.add_argument("--name", help="name of the model (default: TASK-INIT)")
    parser.add_argument("--limit", type=int, help="use at most this many pictures")
    parser.add_argument(
        "--channel", type=int, choices=(0, 1, 2), default=0, help="channel of W2S (default: %(default)s)"
    )
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, ... (default: auto)")
    length = parser.add_mutually_exclusive_group()
    length.add_argument(
        "--iterations", type=int, help="of each training (default: as the number of pixels requires)"
    )
    length.add_argument("--minutes", type=float, help="time for each training, instead of iterations")
    parser.add_argument(
        "--init", default=SCRATCH, help="model to start from (default: scratch, the noisy pictures alone)"
    )
    parser.add_argument(
        "--method", choices=METHODS, default=FitConfig.method, help="of `kbnet fit` (default: %(default)s)"
    )
    parser.add_argument("--batch", type=int, help="crops per step")
    parser.add_argument(
        "--patch", type=int, default=FitConfig.patch, help="side of a crop in pixels (default: %(default)s)"
    )
    parser.add_argument("--workers", type=int, help="processes that load crops")
    parser.add_argument("--precision", choices=("fp32", "bf16", "fp16"), help="of training")
    parser.add_argument(
        "--compile", action="store_true", help="compile; pays off on a GPU after some minutes"
    )
    parser.add_argument("--learning-rate", type=float, help="default: as for `kbnet fit`")
    parser.add_argument(
        "--masked-pixel-percentage",
        type=float,
        default=MASKED_PIXEL_PERCENTAGE,
        help="pixels masked in each crop, in percent (default: %(default)s)",
    )
    parser.add_argument(
        "--strategy", choices=STRATEGIES, default=STRATEGY, help="what replaces them (default: %(default)s)"
    )
    parser.add_argument("--norm", choices=NORMS, default="l2", help="of the loss (default: %(default)s)")
    parser.add_argument(
        "--width", type=int, default=NETWORK["width"], help="channels of the network (default: %(default)s)"
    )
    parser.add_argument(
        "--middle",
        type=int,
        default=NETWORK["middle_blk_num"],
        help="blocks in the middle (default: %(default)s)",
    )
    parser.add_argument(
        "--blocks",
        type=int,
        nargs="+",
        default=NETWORK["enc_blk_nums"],
        help="blocks per level of the encoder, and in reverse of the decoder (default: %(default)s)",
    )
    parser.add_argument("--self-ensemble", action="store_true", help="also evaluate the self-ensemble")
    args = parser.parse_args(argv)
    data = args.data or os.environ.get("KBNET_DATA")
    if not data:
        print("selfsup: no data: set KBNET_DATA or use --data", file=sys.stderr)
        return 2
    args.out = args.out.absolute()
    os.environ[zoo.FOLDER_VARIABLE] = str(args.out / "models")
    try:
        for task in args.task:
            load = {
                "bsd68": lambda: bsd68(Path(data), args.limit),
                "w2s": lambda: frames(Path(data), args.limit, args.channel),
            }.get(task, lambda made=task: list(zip(*photons.stack(made), strict=True))[: args.limit])
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
        f"{model.name}, as kept": Restorer(model.load(), **settings),
    }
    if args.self_ensemble:
        eight = Restorer(model.load(), **settings, self_ensemble=True)
        restorers[f"{model.name}, as kept, self-ensemble"] = eight
    if args.init != SCRATCH:
        restorers[f"{args.init}, as it was"] = Restorer(zoo.get_model(args.init).load(), **settings)
    scores = {"noisy": [score(noisy, truth, clip=False) for noisy, truth in pictures]}
    blurred = {sigma: [score(blur(x, sigma), y, clip) for x, y in pictures] for sigma in BLURS}
    best = max(blurred, key=lambda sigma: np.mean(blurred[sigma]))
    scores[f"Gaussian filter, sigma {best:g} (best by the truth)"] = blurred[best]
    for name, restorer in restorers.items():
        scores[name] = [score(restorer(x.astype(np.float32), "YX"), y, clip) for x, y in pictures]
    rows = [[name, f"{np.mean(values):.2f}"] for name, values in scores.items()]
    rows += [[name, f"{value:.2f}"] for name, value in PUBLISHED.get(task, {}).items()]
    device = str(restorer.engine.device)
    facts = measure.provenance(device)
    print(f"\n{TITLES[task]}: {len(pictures)} pictures, mean PSNR in dB")
    print(
        f"{budget['iterations']:,} steps of {budget['crops_of_a_step']} crops of {budget['patch']}, "
        f"{budget['seconds']:.0f} s in this call, {facts['device']}\n"
    )
    print(f"{measure.table(['', 'PSNR'], rows)}\n{fit.verdict}", flush=True)
    measure.write_json(
        args.out / f"{model.name}.json",
        provenance=facts,
        task=task,
        psnr={name: float(np.mean(values)) for name, values in scores.items()},
        each=scores,
        published=PUBLISHED.get(task, {}),
        verdict=fit.verdict,
        budget=budget,
    )


if __name__ == "__main__":
    sys.exit(main())
