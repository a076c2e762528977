"""Measure the error of every backend of kernel basis attention against the equation in float64."""

from __future__ import annotations

import argparse
import importlib
import sys
from pathlib import Path

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.harness import measure
from kbnet_plugin import ops
from kbnet_plugin.ops import reference
from kbnet_plugin.ops.backend import Arguments

SHAPES = [  # batch, channels, channels per group, kernel, bases, height, width
    (2, 64, 4, 3, 32, 128, 128),
    (1, 72, 2, 3, 32, 37, 41),
    (3, 24, 8, 5, 64, 9, 7),
    (1, 1024, 4, 3, 32, 8, 8),
    (2, 12, 1, 1, 7, 1, 33),
    (1, 4, 4, 3, 1, 1, 1),
]
LIMITS = {torch.float32: 1e-5, torch.bfloat16: 1e-2, torch.float16: 1e-2}
RESULTS = ("output", "d x", "d coefficients", "d weight", "d bias")


def tensors(shape: tuple[int, ...], dtype: torch.dtype, device: str) -> list[Tensor]:
    """Create x, coefficients, weight, bias and the output's gradient, the same on every device."""
    batch, channels, per_group, kernel, bases, height, width = shape
    g = torch.Generator().manual_seed(0)
    shapes = (
        (batch, channels, height, width),
        (batch, bases, height, width),
        (1, bases, channels * per_group * kernel**2),
        (1, bases, channels),
        (batch, channels, height, width),
    )
    return [torch.randn(s, generator=g).to(device, dtype) for s in shapes]


def errors(backend: str, shape: tuple[int, ...], dtype: torch.dtype, device: str) -> list[float] | None:
    """Return the largest difference over the largest value of each result; None if the backend cannot run."""
    module = importlib.import_module(f"kbnet_plugin.ops.{backend}")
    *inputs, grad = tensors(shape, dtype, device)
    sizes = (shape[1] // shape[2], shape[3])
    given = Arguments(*inputs, *sizes)
    if module.unsupported(given) is not None:
        return None
    needs = (True, True, True, True)
    found = [module.forward(given), *module.backward(grad, given, needs)]
    exact = Arguments(*(t.cpu().double() for t in inputs), *sizes)
    expected = [reference.forward(exact), *reference.backward(grad.cpu().double(), exact, needs)]
    return [
        ((f.cpu().double() - e).abs().max() / e.abs().max()).item()
        for f, e in zip(found, expected, strict=True)
    ]


def main(argv: list[str] | None = None) -> int:
    """Run the command; returns its exit status: 1 if a limit is exceeded."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="examples:\n  python benchmarks/accuracy.py\n"
        "  python benchmarks/accuracy.py --device cuda --backends triton --json accuracy.json",
    )
    parser.add_argument("--device", default="cpu", help="cpu or cuda (default: %(default)s)")
    parser.add_argument(
        "--backends", nargs="+", choices=ops.BACKENDS, default=list(ops.BACKENDS), help="default: all"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the results to this file")
    args = parser.parse_args(argv)

    rows, content, right = [], [], True
    for backend in args.backends:
        for dtype, limit in LIMITS.items():
            kind = str(dtype).removeprefix("torch.")
            worst = [0.0] * len(RESULTS)
            count = 0
            for shape in SHAPES:
                measure.show(f"{backend} {kind} {shape}")
                found = errors(backend, shape, dtype, args.device)
                if found is not None:
                    # max() would hide NaN, because it keeps its first argument.
                    worst = [w if e <= w else e for w, e in zip(worst, found, strict=True)]
                    count += 1
            if not count:
                continue
            good = all(w <= limit for w in worst)
            right &= good
            rows.append([backend, kind, str(count), *(f"{w:.1e}" for w in worst), f"{limit:.0e}"])
            rows[-1].append("yes" if good else "NO")
            content.append(
                {"backend": backend, "dtype": kind, "shapes": count, "limit": limit}
                | dict(zip(RESULTS, worst, strict=True))
            )
    measure.show("")
    print(measure.table(["backend", "dtype", "shapes", *RESULTS, "limit", "within"], rows))
    if args.json:
        measure.write_json(args.json, provenance=measure.provenance(args.device), accuracy=content)
    if not rows:
        print(f"none of {', '.join(args.backends)} can run on {args.device}", file=sys.stderr)
    return 0 if rows and right else 1


if __name__ == "__main__":
    sys.exit(main())
