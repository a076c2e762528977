"""Measure BM3D with a known sigma on a test set, to see whether published figures can be reproduced.

This requires the authors' package bm3d, which is free for non-commercial use only; nothing else here uses it.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.harness import measure, protocols, sets, tables
from kbnet_plugin.errors import BadInput, one_line

PROTOCOL = protocols.PROTOCOLS["gaussian"]


def denoise(noisy: protocols.Image, sigma: float) -> protocols.Image:
    """Apply BM3D to (H, W, 1) or CBM3D to (H, W, 3), in 0..1; `sigma` is of 255."""
    from bm3d import bm3d, bm3d_rgb

    method = bm3d_rgb if noisy.shape[2] == 3 else bm3d
    return np.asarray(method(noisy.squeeze(), sigma / 255), np.float32).reshape(noisy.shape)


def run(dataset: sets.Dataset, sigma: float, limit: int | None) -> Iterator[tuple[str, float]]:
    """Yield name and PSNR in dB of every image."""
    for index, item in enumerate(dataset.items[:limit]):
        _, truth = item.load(dataset.description.channels)
        restored = denoise(protocols.noisy(truth, sigma, index, PROTOCOL), sigma)
        yield item.name, protocols.compare(restored, truth, ["psnr"], PROTOCOL)["psnr"]


def main(argv: list[str] | None = None) -> int:
    """Run the command; returns its exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="example:\n  pip install bm3d\n"
        "  KBNET_DATA=/path/to/data python benchmarks/classical.py --set Kodak24 --sigma 25",
    )
    known = tables.Suite(tables.FOLDER).datasets
    clean = [name for name, description in known.items() if not description.input]
    parser.add_argument("--data", type=Path, help="folder with test/<name> (default: KBNET_DATA)")
    parser.add_argument("--set", choices=clean, default="photographs", help="test set (default: %(default)s)")
    parser.add_argument(
        "--sigma",
        type=float,
        default=25,
        help="standard deviation of the noise, of 255 (default: %(default)s)",
    )
    parser.add_argument("--images", type=int, help="use at most this many (default: all)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the results to this file")
    args = parser.parse_args(argv)
    data = args.data or os.environ.get("KBNET_DATA")
    found: dict[str, float] = {}
    try:
        dataset = sets.find(args.set, known[args.set], Path(data) if data else None)
        if dataset is None:
            raise BadInput(f"no {args.set} in --data (or KBNET_DATA); get it from {known[args.set].where}")
        for name, psnr in run(dataset, args.sigma, args.images):
            found[name] = psnr
            mean = np.mean(list(found.values()))
            print(f"{len(found)}/{len(dataset.items)} {name}: {psnr:.2f} dB, mean {mean:.2f}", flush=True)
    except ModuleNotFoundError as error:
        print(f"classical: requires a package: pip install {error.name}", file=sys.stderr)
        return 2
    except (BadInput, ValueError, OSError) as error:
        print(f"classical: {one_line(error)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("classical: interrupted; the mean above covers the images so far", file=sys.stderr)
        return 130
    if args.json:
        measure.write_json(args.json, provenance=measure.provenance(), sigma=args.sigma, psnr=found)
    return 0


if __name__ == "__main__":
    sys.exit(main())
