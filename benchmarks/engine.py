"""Measure what the training loop adds to the network's own step, and compare it with another source tree.

A run trains the network of an option file for some steps by the real command, then repeats the last step on
its batch alone, without the loop. The pictures are scikit-image's own. With --against, another tree, such as
an older commit, trains the same; the two take turns step by step, since the speed of a machine drifts.
Figures are medians over the steps.
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
step, began, loop, inside, bare = Model.optimize_parameters, None, [], [], []
cuda = torch.cuda.is_available()
def now():
    if cuda:
        torch.cuda.synchronize()
    return time.perf_counter()
def turn():
    print("TURN", flush=True)
    sys.stdin.readline()
def timed(self, i):
    global began
    if not cuda:  # there, waiting for each step would hide what runs beside it
        if began is not None and i > warm_up + 1:
            loop.append(now() - began)
        turn()
        began = now()
    elif i in (warm_up + 1, warm_up + steps):
        loop.append(now())
    before = time.perf_counter()
    step(self, i)
    if warm_up < i < warm_up + steps:
        inside.append(time.perf_counter() - before)
    if i == warm_up + steps:
        for _ in range(steps):
            turn()
            before = now()
            step(self, i)
            bare.append(now() - before)
        getattr(self, "check", lambda: None)()
Model.optimize_parameters = timed
sys.argv = ["basicsr", "train", "-opt", file]
assert main(["train", "-opt", file]) == 0
if cuda:
    loop = [(loop[1] - loop[0]) / (steps - 1)]
print("RESULT", json.dumps({"loop": loop, "bare": bare, "inside": sum(inside) / len(inside)}))
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
        "  python benchmarks/engine.py --batch 16x192 64x128 --force train:compile=true\n"
        "  git worktree add ../before v0.9 && python benchmarks/engine.py --against ../before",
    )
    parser.add_argument("-opt", default=str(ROOT / "options/zoo/denoise-color.yml"), metavar="FILE")
    parser.add_argument("--batch", nargs="+", default=["3x128"], metavar="NxSIZE", help="default: 3x128")
    parser.add_argument("--against", type=Path, metavar="TREE", help="another source tree")
    parser.add_argument("--force", nargs="+", default=[], metavar="A:B=VALUE", help="override options")
    parser.add_argument("--steps", type=int, default=20, help="steps that are measured (default: 20)")
    parser.add_argument("--warm-up", type=int, default=4, help="steps before them (default: 4)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures")
    args = parser.parse_args()
    trees = {"this tree": ROOT} | ({"the other": args.against.resolve()} if args.against else {})
    found: dict[str, dict[str, dict[str, Any]]] = {}
    print(f"{'':28} loop, ms  step alone, ms  ratio  Mpixels/s  outside the step")
    for batch in args.batch:
        images, size = map(int, batch.split("x"))
        found[batch] = results = _run(trees, args, images, size)
        for name, result in results.items():
            loop, bare = (statistics.median(result[key]) for key in ("loop", "bare"))
            outside = 1 - result["inside"] / statistics.mean(result["loop"])
            print(
                f"{batch:10} {name:17} {1e3 * loop:8.1f} {1e3 * bare:15.1f} {loop / bare:6.2f} "
                f"{images * size**2 / loop / 1e6:10.3f} {max(outside, 0):17.1%}",
                flush=True,
            )
        if args.against:
            pairs = zip(results["the other"]["loop"], results["this tree"]["loop"], strict=True)
            print(f"{batch:10} x {statistics.median(a / b for a, b in pairs):.2f} pixels per second")
    if args.json:
        args.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


def _run(
    trees: Mapping[str, Path], args: argparse.Namespace, images: int, size: int
) -> dict[str, dict[str, Any]]:
    """Train in all trees, and let each go on for one step at a time."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "options.yml")
        file.write_text(json.dumps(_options(args, images, size)), encoding="utf-8")
        runs: dict[str, subprocess.Popen[str]] = {}
        for name, tree in trees.items():
            Path(folder, name).mkdir()
            runs[name] = subprocess.Popen(
                [sys.executable, "-c", RUN, str(file), str(args.warm_up), str(args.steps)],
                cwd=Path(folder, name),
                env=os.environ | {"PYTHONPATH": str(tree)},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            _next(runs[name], name)  # one after the other, as starting up takes all cores
        results: dict[str, dict[str, Any]] = {}
        while len(results) < len(runs):
            for name in [n for n in runs if n not in results]:
                stdin = runs[name].stdin
                assert stdin is not None
                stdin.write("\n")
                stdin.flush()
                line = _next(runs[name], name)
                if line.startswith("RESULT"):
                    results[name] = json.loads(line.removeprefix("RESULT"))
        for run in runs.values():
            run.communicate()
    return results


def _next(run: subprocess.Popen[str], name: str) -> str:
    assert run.stdout is not None
    for line in run.stdout:
        if line.startswith(("TURN", "RESULT")):
            return line
    raise SystemExit(f"{name} failed: see its messages above")


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
