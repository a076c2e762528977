"""Measure errors against float64: of every backend of kernel basis attention, and of whole networks.

Networks are the shipped models, and KBNet_s as the paper has it, untrained. On a CPU each instruction set of
the processor takes its turn, and results with 1, 2 and 3 threads are compared bit for bit. They differ for
KBNet_s in float32: with one thread, torch chooses another convolution where there are 256 channels and more.
"""

from __future__ import annotations

import argparse
import copy
import importlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.harness import measure
from kbnet_plugin import KBNet_s, ops, zoo
from kbnet_plugin.ops import native, reference
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
SIZE = 133, 101
"""Height and width of the image that networks restore: no multiple of anything."""
THREADS = 1, 2, 3
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


def networks() -> Iterator[tuple[str, nn.Module]]:
    """Yield networks in evaluation mode with their names."""
    for model in zoo.list_models():
        if model.shipped:
            yield model.name, model.load().eval()
    torch.manual_seed(0)
    yield "KBNet_s", KBNet_s(lightweight=True, ffn_scale=1.5).eval()


def network_error(network: nn.Module, dtype: torch.dtype, device: str) -> tuple[float, bool]:
    """Return the largest error over the largest value, and whether numbers of threads change no bit."""
    image = torch.rand(
        1, next(network.parameters()).shape[1], *SIZE, generator=torch.Generator().manual_seed(0)
    )
    with torch.inference_mode():
        exact = copy.deepcopy(network).double()(image.double())
        network, found = copy.deepcopy(network).to(device), []
        threads = torch.get_num_threads()
        for count in THREADS if device.startswith("cpu") else (threads,):
            torch.set_num_threads(count)
            with torch.autocast(torch.device(device).type, dtype, enabled=dtype != torch.float32):
                found.append(network(image.to(device)).double().cpu())
        torch.set_num_threads(threads)
    same = all(torch.equal(found[0], f) for f in found)
    return ((found[0] - exact).abs().max() / exact.abs().max()).item(), same


Part = tuple[list[str], list[list[str]], list[dict[str, Any]], bool]
"""Header and rows of a table, the same as values, and whether all errors are within their limits."""


def operator(args: argparse.Namespace) -> Part:
    """Measure the backends."""
    rows: list[list[str]] = []
    content: list[dict[str, Any]] = []
    right = True
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
    return ["backend", "dtype", "shapes", *RESULTS, "limit", "within"], rows, content, right


def whole(device: str) -> Part:
    """Measure the networks, with each instruction set in turn."""
    rows, content, right = [], [], True
    sets = native.available_isas() if device.startswith("cpu") else ()
    for name, network in networks():
        for isa in sets or ("",):
            for dtype in (torch.float32, torch.bfloat16):
                kind, limit = str(dtype).removeprefix("torch."), LIMITS[dtype]
                measure.show(f"{name} {isa} {kind}")
                with patch.dict(os.environ, {"KBNET_KBA_ISA": isa} if isa else {}):
                    error, same = network_error(network, dtype, device)
                good = error <= limit
                right &= good
                rows.append(
                    [name, isa or device, kind, f"{error:.1e}", f"{limit:.0e}", "yes" if same else "NO"]
                )
                rows[-1].append("yes" if good else "NO")
                content.append({"network": name, "isa": isa, "dtype": kind, "error": error, "same": same})
    measure.show("")
    threads = " and ".join((", ".join(map(str, THREADS[:-1])), str(THREADS[-1])))
    return (
        ["network", "runs on", "dtype", "error", "limit", f"same with {threads} threads", "within"],
        rows,
        content,
        right,
    )


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
    parser.add_argument("--part", choices=("operator", "networks", "all"), default="all", help="default: all")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the results to this file")
    args = parser.parse_args(argv)

    parts = ("operator", "networks") if args.part == "all" else (args.part,)
    content, right = {}, True
    for part in parts:
        header, rows, found, good = operator(args) if part == "operator" else whole(args.device)
        print(measure.table(header, rows), end="\n\n")
        content[part], right = found, right and good
        if not rows:
            print(f"none of {', '.join(args.backends)} can run on {args.device}", file=sys.stderr)
            right = False
    provenance = measure.provenance(args.device)
    print(measure.origin(provenance))
    if args.json:
        measure.write_json(args.json, provenance=provenance, **content)
    return 0 if right else 1


if __name__ == "__main__":
    sys.exit(main())
