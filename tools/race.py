"""Candidates for the shipped networks: time beside FFDNet, cost, and quality of the weights that exist.

All are timed in one run, in turns. With `--data`, the weights of denoise-color are reduced to each candidate
of their family that has no more bases (see tools/reduce_bases.py), without further training; PSNR on crops of
training pictures then says what the reduction costs. It is not a test of the model.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.harness import measure
from benchmarks.harness.networks import ConvStack
from kbnet_plugin import KBNet_s, load_network, zoo
from kbnet_plugin.errors import BadInput, one_line
from kbnet_plugin.nn.cost import count
from kbnet_plugin.zoo.architectures import identify
from tools.reduce_bases import crops, pictures, started

FULL = {"width": 16, "enc_blk_nums": [1, 2, 2], "middle_blk_num": 2, "dec_blk_nums": [1, 2, 2]}
DEEP = FULL | {"middle_blk_num": 3, "dec_blk_nums": [2, 2, 2]}
DEEPER = FULL | {"enc_blk_nums": [1, 2, 3], "middle_blk_num": 4, "dec_blk_nums": [3, 2, 2]}
LOW = {"width": 16, "enc_blk_nums": [0, 2, 2], "middle_blk_num": 2, "dec_blk_nums": [1, 2, 1]}
FOLDED = {"width": 32, "enc_blk_nums": [2, 2], "middle_blk_num": 2, "dec_blk_nums": [2, 2], "fold": 2}

CANDIDATES: Mapping[str, Mapping[str, Any]] = {
    **{f"full, {n} bases": FULL | {"bases": n} for n in (32, 16, 12, 8, 4)},
    "deeper, 16 bases (denoise-color)": DEEPER | {"bases": 16},
    "deep, 16 bases (standard)": DEEP | {"bases": 16},
    "deep, 8 bases": DEEP | {"bases": 8},
    "low, 8 bases (fast)": LOW | {"bases": 8},
    "low, 4 bases": LOW | {"bases": 4},
    **{f"folded, {n} bases": FOLDED | {"bases": n} for n in (1, 4, 8, 16)},
    "folded, 16 bases, depthwise": FOLDED | {"bases": 16, "per_group": 1},
    "folded, 48 channels, 8 bases": FOLDED | {"width": 48, "bases": 8},
    "folded, 64 channels, 8 bases": FOLDED | {"width": 64, "bases": 8},
    "folded by 4, 96 channels": FOLDED
    | {"width": 96, "enc_blk_nums": [2], "dec_blk_nums": [3], "middle_blk_num": 3, "fold": 4, "bases": 8},
}
SIGMAS = (15, 25, 50)


def psnr(network: torch.nn.Module, images: Sequence[torch.Tensor]) -> list[float]:
    """Compute the mean PSNR in dB at each of `SIGMAS`; image i has the noise of `default_rng([0, i])`."""
    found = []
    for sigma in SIGMAS:
        values = []
        for i, clean in enumerate(images):
            noise = np.random.default_rng([0, i]).standard_normal(clean.shape, np.float32) * sigma / 255
            with torch.inference_mode():
                error = network(clean + torch.from_numpy(noise)).clamp(0, 1) - clean
            values.append(-10 * error.square().mean().log10().item())
        found.append(float(np.mean(values)))
    return found


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="examples:\n  python tools/race.py\n  python tools/race.py --only full --data DATA",
    )
    parser.add_argument("--size", nargs=2, type=int, default=(1080, 1920), metavar=("H", "W"))
    parser.add_argument("--repeats", type=int, default=5, help="timed rounds (default: %(default)s)")
    parser.add_argument("--only", nargs="+", metavar="WORD", help="only candidates with one of these words")
    parser.add_argument("--data", type=Path, default=os.environ.get("KBNET_DATA"), help="data root")
    args = parser.parse_args(argv)
    try:
        return race(args)
    except (BadInput, ValueError, OSError) as error:
        print(f"race: {one_line(error)}", file=sys.stderr)
        return 2


def race(args: argparse.Namespace) -> int:
    """Print the table; returns the exit status."""
    chosen = {n: a for n, a in CANDIDATES.items() if not args.only or any(w in n for w in args.only)}
    networks = {n: KBNet_s(lightweight=True, **a).eval() for n, a in chosen.items()}
    image = torch.rand(1, 3, *args.size)

    def call(network: torch.nn.Module) -> Any:
        def run() -> torch.Tensor:
            with torch.inference_mode():
                return network(image)

        return run

    ffdnet = ConvStack("FFDNet", 3, features=96, layers=12).to(memory_format=torch.channels_last).eval()
    timings = measure.interleave(
        {"FFDNet": call(ffdnet), **{n: call(network) for n, network in networks.items()}}, args.repeats
    )
    quality: dict[str, list[float]] = {}
    if args.data:
        source = load_network(zoo.get_model("denoise-color").path)
        most = identify(source.state_dict())[1]["bases"]
        files = pictures(args.data)
        seen, images = crops(files, 3), crops(files[::20], 3, sigma=0)
        for name, arguments in chosen.items():
            fits = arguments.get("fold", 1) == 1 and arguments["bases"] <= most
            if fits and isinstance(source, KBNet_s):
                quality[name] = psnr(started(source, seen, **arguments), images)
    info = measure.provenance()
    print(
        f"{info['device']}, {info['threads']} threads, {args.size[0]} x {args.size[1]}, torch {info['torch']}"
    )
    print(
        "| network | seconds | against FFDNet | parameters | GMACs, 256 x 256, full / as published | PSNR |"
    )
    print("|---|---|---|---|---|---|")
    base = timings["FFDNet"].median
    print(f"| FFDNet | {base:.3g} | 1.00 | {sum(p.numel() for p in ffdnet.parameters()):,} | 14.0 / 14.0 | |")
    for name, network in networks.items():
        cost, t = count(network), timings[name].median
        macs = f"{cost.macs_total / 1e9:.2f} / {cost.macs_published / 1e9:.2f}"
        dB = " / ".join(f"{v:.2f}" for v in quality.get(name, []))
        print(f"| {name} | {t:.3g} | {t / base:.2f} | {cost.parameters:,} | {macs} | {dB} |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
