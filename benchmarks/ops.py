"""Time kernel basis attention: every backend beside the released form, interleaved in one run."""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import json
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.harness import measure
from kbnet_plugin.ops import kernel_basis_attention, native
from kbnet_plugin.ops.backend import Arguments

SHAPES = [
    (64, 256),
    (128, 128),
    (256, 64),
    (512, 32),
]  # channels, height = width: the levels of KBNet_s at 256
QUICK = SHAPES[2:]
MEMORY_SHAPE = (64, 256)
PER_GROUP, KERNEL, BASES = 4, 3, 32
PARTS = ("forward", "forward + backward")
FLOAT, BF16 = torch.float32, torch.bfloat16


@dataclass(frozen=True)
class Candidate:
    backend: str
    dtype: torch.dtype = FLOAT
    isa: str = ""  # of the native backend
    last: bool = False  # channels-last x and coefficients


def candidates(device: str) -> dict[str, Candidate]:
    # Without spandrel's copy of the released code, `reference` has the same formulation.
    found = {"released": Candidate("released" if importlib.util.find_spec("spandrel") else "reference")}
    if device.startswith("cuda"):
        found["released bf16"] = Candidate(found["released"].backend, BF16)
        for name in ("tiled", "triton"):
            found[name] = Candidate(name)
            found[f"{name} bf16"] = Candidate(name, BF16)
        found["triton channels-last"] = Candidate("triton", last=True)
        found["triton bf16 channels-last"] = Candidate("triton", BF16, last=True)
        return found
    found["tiled"] = Candidate("tiled")
    for isa in native.ISAS:
        found[f"native {isa}"] = Candidate("native", isa=isa)
    for isa in ("amx", "avx512"):
        found[f"native {isa} channels-last"] = Candidate("native", isa=isa, last=True)
    for last in (False, True):
        found["native amx bf16" + " channels-last" * last] = Candidate("native", BF16, "amx", last)
    return found


TARGETS = {  # device: (candidate, part, batches, times faster than released at every shape)
    "cpu": [
        ("native amx", "forward", (1,), 20),
        ("native avx512", "forward", (1,), 10),
        ("native amx", "forward + backward", (1, 8), 12),
        ("native avx512", "forward + backward", (1, 8), 8),
        ("native amx bf16", "forward", (1,), 30),
        ("tiled", "forward", (1,), 2.5),
        ("tiled", "forward + backward", (1, 8), 2.5),
    ],
    "cuda": [
        (name, part, (8,), factor)
        for part, factor in zip(PARTS, (10, 6), strict=True)
        for name in ("triton", "triton bf16")
    ],
}
MEMORY_TARGETS = {"forward": 32, "forward + backward": 96}  # MiB at MEMORY_SHAPE, batch 1


def absent(candidate: Candidate, device: str) -> str | None:
    """Return why the candidate cannot run here, or None."""
    if candidate.isa and native.available_isas() and candidate.isa not in native.available_isas():
        return f"this processor or build has no {candidate.isa}"
    if candidate.backend == "released":
        return None
    backend = importlib.import_module(f"kbnet_plugin.ops.{candidate.backend}")
    tensors, groups = inputs(candidate, 1, 8, 4, device)
    reason: str | None = backend.unsupported(Arguments(*tensors, groups, KERNEL))
    return reason


def inputs(
    candidate: Candidate, batch: int, channels: int, size: int, device: str
) -> tuple[list[Tensor], int]:
    g = torch.Generator().manual_seed(0)
    shapes = (
        (batch, channels, size, size),
        (batch, BASES, size, size),
        (1, BASES, channels * PER_GROUP * KERNEL**2),
        (1, BASES, channels),
    )
    tensors = [torch.randn(s, generator=g).to(device, candidate.dtype) for s in shapes]
    if candidate.last:
        tensors[:2] = [t.contiguous(memory_format=torch.channels_last) for t in tensors[:2]]
    return tensors, channels // PER_GROUP


def prepare(
    candidate: Candidate, part: str, batch: int, channels: int, size: int, device: str
) -> Callable[[], None]:
    """Return a call of the operator on random tensors; with all four gradients unless `part` is "forward"."""
    tensors, groups = inputs(candidate, batch, channels, size, device)
    backward = part != "forward"
    grad = tensors[0].flip(0).clone(memory_format=torch.preserve_format) if backward else None
    for t in tensors:
        t.requires_grad_(backward)

    def operator() -> Tensor:
        x, a, w, b = tensors
        if candidate.backend == "released":
            from spandrel.architectures.KBNet.__arch.kb_utils import KBAFunction

            out: Tensor = KBAFunction.apply(x, a, KERNEL, groups, b, w)
            return out
        return kernel_basis_attention(x, a, w, b, groups, KERNEL, backend=candidate.backend)

    def call() -> None:
        if candidate.isa:
            os.environ["KBNET_KBA_ISA"] = candidate.isa
        with torch.set_grad_enabled(backward):
            out = operator()
        if backward:
            torch.autograd.grad(out, tensors, grad)

    return call


def enough_memory(batch: int, channels: int, size: int) -> bool:
    """Return whether the released form fits into memory; it needs four tensors of the kernels' size."""
    need = 4 * batch * channels * PER_GROUP * KERNEL**2 * size**2 * 4
    return need < 0.8 * os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


Timings = dict[
    tuple[str, int, int, int], dict[str, measure.Timing]
]  # part, batch, channels, size -> candidate


def run(names: dict[str, Candidate], args: argparse.Namespace) -> Timings:
    timings: Timings = {}
    for part in PARTS:
        for batch in args.batch:
            if batch > 1 and part == "forward" and args.device == "cpu":
                continue  # in the forward pass a batch saves nothing
            for channels, size in QUICK if args.quick else SHAPES:
                if args.device == "cpu" and not enough_memory(batch, channels, size):
                    print(
                        f"left out: {part}, batch {batch}, C {channels} at {size}^2 (memory)", file=sys.stderr
                    )
                    continue
                measure.show(f"{part}, batch {batch}, C {channels} at {size}^2")
                calls = {n: prepare(c, part, batch, channels, size, args.device) for n, c in names.items()}
                rounds = args.repeats if batch == 1 or args.device != "cpu" else max(1, args.repeats // 3)
                timings[part, batch, channels, size] = measure.interleave(calls, rounds, args.device)
    return timings


def speed_up(timings: dict[str, measure.Timing], name: str, baseline: str = "released") -> float:
    return timings[baseline].median / timings[name].median


def print_timings(timings: Timings, names: dict[str, Candidate], missing: dict[str, str]) -> None:
    for part, batch in dict.fromkeys((p, b) for p, b, _, _ in timings):
        cells = {(c, s): t for (p, b, c, s), t in timings.items() if (p, b) == (part, batch)}
        rows = [
            [name, *(f"{t[name]} {speed_up(t, name):.1f}x" for t in cells.values())] for name in names
        ] + [[name, *[f"absent: {reason}"] * len(cells)] for name, reason in missing.items()]
        print(f"\n{part}, batch {batch}: median (quartiles), times faster than released\n")
        print(measure.table(["candidate", *(f"C {c} at {s}^2" for c, s in cells)], rows))


def acceptance(
    timings: Timings, memory: dict[str, dict[str, int]], missing: dict[str, str], device: str
) -> list[dict[str, Any]]:
    """Compare each target with the measurement at the worst shape."""
    lines: list[dict[str, Any]] = []
    for name, part, batches, target in TARGETS["cuda" if device.startswith("cuda") else "cpu"]:
        for batch in batches:
            same = "released bf16" if name.endswith("bf16") and device.startswith("cuda") else "released"
            found = [
                speed_up(t, name, same)
                for (p, b, *_), t in timings.items()
                if (p, b) == (part, batch) and name in t
            ]
            lines.append(
                {
                    "what": f"{name}, {part}, batch {batch}, against {same}",
                    "target": f">= {target}x",
                    "measured": f"{min(found):.1f}x" if found else missing.get(name, "not run"),
                    "met": bool(found) and min(found) >= target,
                }
            )
    for name, parts in memory.items():
        for part, peak in parts.items():
            if name.startswith("released"):
                continue
            lines.append(
                {
                    "what": f"{name}, {part}, extra memory, C {MEMORY_SHAPE[0]} at {MEMORY_SHAPE[1]}^2",
                    "target": f"<= {MEMORY_TARGETS[part]} MiB",
                    "measured": f"{peak / 2**20:.0f} MiB",
                    "met": peak <= MEMORY_TARGETS[part] * 2**20,
                }
            )
    return lines


def main(argv: list[str] | None = None) -> int:
    """Run the command; returns its exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="examples:\n  python benchmarks/ops.py --quick\n"
        "  python benchmarks/ops.py --repeats 9 --json ops.json\n"
        "  python benchmarks/ops.py --only amx tiled --batch 1\n"
        "  python benchmarks/ops.py --device cuda --json ops.json",
    )
    parser.add_argument("--device", default="cpu", help="cpu or cuda (default: %(default)s)")
    parser.add_argument("--threads", type=int, help="torch threads on the CPU (default: torch's own)")
    parser.add_argument(
        "--repeats",
        type=int,
        default=7,
        help="timed rounds, a third as many for batches (default: %(default)s)",
    )
    parser.add_argument(
        "--batch", type=int, nargs="+", default=[1, 8], metavar="B", help="batch sizes (default: 1 8)"
    )
    parser.add_argument(
        "--quick", action="store_true", help="only the two smaller shapes, three rounds, batch 1"
    )
    parser.add_argument(
        "--only",
        nargs="+",
        metavar="WORD",
        help="only candidates whose name contains one of these words, and released",
    )
    parser.add_argument("--no-memory", action="store_true", help="do not measure memory")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the results to this file")
    parser.add_argument("--peak", nargs=2, metavar=("PART", "NAME"), help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.quick:
        args.repeats, args.batch = 3, [1]
    if args.threads:
        torch.set_num_threads(args.threads)

    every = candidates(args.device)

    def peak(part: str, name: str) -> int:
        prepare(every[name], part, 1, 8, 8, args.device)()  # excludes what is loaded only once
        call = prepare(every[name], part, 1, *MEMORY_SHAPE, args.device)
        return measure.peak_extra_memory(call, args.device)

    if args.peak:
        print(json.dumps(peak(*args.peak)))
        return 0

    if args.only:
        words = [w.lower() for w in args.only]
        every = {n: c for n, c in every.items() if n == "released" or any(w in n.lower() for w in words)}
    missing = {n: reason for n, c in every.items() if (reason := absent(c, args.device))}
    names = {n: c for n, c in every.items() if n not in missing}
    if names["released"].backend == "reference":
        print(
            "spandrel is not installed: 'released' is the plain-torch form of this package",
            file=sys.stderr,
        )

    timings = run(names, args)
    print_timings(timings, names, missing)
    memory: dict[str, dict[str, int]] = {}
    for name, candidate in names.items():
        if args.no_memory or candidate.last:
            continue
        measure.show(f"memory: {name}")
        if args.device.startswith("cuda"):  # its allocator keeps count; a process takes seconds to start
            memory[name] = {p: peak(p, name) for p in PARTS}
        else:
            memory[name] = {p: measure.in_fresh_process(__file__, "--peak", p, name) for p in PARTS}
    measure.show("")
    if memory:
        rows = [[n, *(f"{peak / 2**20:.0f} MiB" for peak in m.values())] for n, m in memory.items()]
        print(f"\npeak extra memory, result included, C {MEMORY_SHAPE[0]} at {MEMORY_SHAPE[1]}^2, batch 1\n")
        print(measure.table(["candidate", *PARTS], rows))
    lines = acceptance(timings, memory, missing, args.device)
    print("\ntargets, at the worst of these shapes\n")
    keys = ["what", "target", "measured"]
    print(
        measure.table([*keys, "met"], [[*(r[k] for k in keys), "yes" if r["met"] else "no"] for r in lines])
    )
    p = measure.provenance(args.device)
    print(f"\n{measure.origin(p)}")
    if args.json:
        results = [
            {"part": part, "batch": b, "channels": c, "size": s, "seconds": t}
            for (part, b, c, s), t in timings.items()
        ]
        measure.write_json(
            args.json, provenance=p, results=results, absent=missing, peak_extra_bytes=memory, targets=lines
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
