"""Measure what the training loop adds to the network's own step, and compare it with another source tree.

A run trains the network of an option file for some steps by the real command, then repeats the last step on
its batch alone, without the loop. The pictures are scikit-image's own. With --against, another tree, such as
an older commit, trains the same; the runs take turns, and figures are medians over the rounds.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

RUN = """
import json, sys, time, warnings
warnings.simplefilter("ignore")
import torch
from basicsr_ext import registry
registry.register()
from basicsr_ext.model import ImageCleanModel as Model
from basicsr_ext.__main__ import main
file, warm_up, steps = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
step, times, inside, bare = Model.optimize_parameters, [], [], []
cuda = torch.cuda.is_available()
def now():
    if cuda:
        torch.cuda.synchronize()
    return time.perf_counter()
def timed(self, i):
    whole = i in (warm_up, warm_up + steps)
    if whole:
        times.append(now())
    before = time.perf_counter()
    step(self, i)
    if warm_up < i <= warm_up + steps:
        inside.append(time.perf_counter() - before)
    if i == warm_up + steps:
        for _ in range(steps):
            before = now()
            step(self, i)
            bare.append(now() - before)
        getattr(self, "check", lambda: None)()
Model.optimize_parameters = timed
sys.argv = ["basicsr", "train", "-opt", file]
assert main(["train", "-opt", file]) == 0
loop = (times[1] - times[0]) / steps
share = 1 - sum(inside) / (times[1] - times[0])
print("RESULT", json.dumps({"loop": loop, "bare": sorted(bare)[len(bare) // 2], "outside": share}))
"""
FILES = (
    "astronaut.png",
    "chelsea.png",
    "coffee.png",
    "rocket.jpg",
    "motorcycle_left.png",
    "motorcycle_right.png",
)


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="examples:\n"
        "  python benchmarks/engine.py\n"
        "  python benchmarks/engine.py --batch 16x192 64x128 --force train:compile=true --rounds 1\n"
        "  git worktree add /tmp/before v0.9 && python benchmarks/engine.py --against /tmp/before",
    )
    parser.add_argument("-opt", default=str(ROOT / "options/zoo/denoise-color.yml"), metavar="FILE")
    parser.add_argument("--batch", nargs="+", default=["3x128"], metavar="NxSIZE", help="default: 3x128")
    parser.add_argument("--against", type=Path, metavar="TREE", help="another source tree")
    parser.add_argument("--force", nargs="+", default=[], metavar="A:B=VALUE", help="override options")
    parser.add_argument("--steps", type=int, default=20, help="steps that are measured (default: 20)")
    parser.add_argument("--warm-up", type=int, default=4, help="steps before them (default: 4)")
    parser.add_argument("--rounds", type=int, default=3, help="default: 3")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures")
    args = parser.parse_args()
    trees = {"this tree": ROOT} | ({"the other": args.against.resolve()} if args.against else {})
    found: dict[str, dict[str, list[dict[str, float]]]] = {}
    print(f"{'':28} loop, ms  step alone, ms  ratio  Mpixels/s  outside the step")
    for batch in args.batch:
        images, size = map(int, batch.split("x"))
        runs: dict[str, list[dict[str, float]]] = {name: [] for name in trees}
        for _ in range(args.rounds):
            for name, tree in trees.items():
                runs[name].append(_run(tree, args, images, size))
        for name, results in runs.items():
            median = {key: statistics.median(r[key] for r in results) for key in results[0]}
            print(
                f"{batch:10} {name:17} {1e3 * median['loop']:8.1f} {1e3 * median['bare']:15.1f} "
                f"{median['loop'] / median['bare']:6.2f} {images * size**2 / median['loop'] / 1e6:10.3f} "
                f"{median['outside']:17.1%}",
                flush=True,
            )
        if args.against:
            pairs = zip(runs["the other"], runs["this tree"], strict=True)
            ratio = statistics.median(other["loop"] / this["loop"] for other, this in pairs)
            print(f"{batch:10} x {ratio:.2f} pixels per second")
        found[batch] = runs
    if args.json:
        args.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


def _run(tree: Path, args: argparse.Namespace, images: int, size: int) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "options.yml")
        file.write_text(json.dumps(_options(args, images, size)), encoding="utf-8")
        command = [sys.executable, "-c", RUN, str(file), str(args.warm_up), str(args.steps)]
        environment = os.environ | {"PYTHONPATH": str(tree)}
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    line = next((x for x in done.stdout.splitlines() if x.startswith("RESULT")), None)
    if line is None:
        raise SystemExit(f"{tree} failed: {' '.join((done.stderr or done.stdout).strip().splitlines()[-1:])}")
    result: dict[str, float] = json.loads(line.removeprefix("RESULT"))
    return result


def _options(args: argparse.Namespace, images: int, size: int) -> Mapping[str, Any]:
    from basicsr_ext.options import read_options

    options = read_options(args.opt)
    total = args.warm_up + args.steps
    dataset = options["datasets"]["train"]
    for key in ("meta_info_file", "gt_sizes", "mini_batch_sizes", "iters"):
        dataset.pop(key, None)
    dataset |= {
        "dataroot_gt": "package:skimage/data",
        "files": list(FILES),
        "gt_size": size,
        "batch_size_per_gpu": images,
        "pad_small": True,
    }
    options["datasets"], options["val"] = {"train": dataset}, None
    options.get("path", {}).pop("pretrain_network_g", None)
    options["train"]["total_iter"] = total
    options["logger"] = {"print_freq": 10, "save_checkpoint_freq": total}
    for entry in args.force:
        keys, _, value = entry.partition("=")
        at = options
        for key in keys.split(":")[:-1]:
            at = at[key]
        at[keys.split(":")[-1]] = json.loads(value)
    return options


if __name__ == "__main__":
    main()
