"""Time KBNet beside its peers, interleaved in one run.

The parts: whole networks (inference and training); or the shipped models beside other denoisers, with the
PSNR that the time buys.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.harness import denoisers, measure
from benchmarks.harness.candidates import BATCH, CANDIDATES, CROP, PEER_OF, TRAINING, peak_memory, prepare
from benchmarks.harness.processes import exit_status
from benchmarks.harness.shipped import Shipped

PUBLISHED, OPTIMIZED = "as published", "optimized"
SIZES = ((1080, 1920), (3000, 4000))  # of the part `shipped`: a film's frame and a photograph


def available(needs: Mapping[str, str], wanted: list[str] | None) -> list[str]:
    """Return the names whose modules are installed, in order; report those that are left out."""
    found = []
    for name, modules in needs.items():
        if wanted and not any(w.lower() in name.lower() for w in wanted):
            continue
        if absent := denoisers.missing(modules):
            print(f"left out: {name} (pip install {' '.join(absent)})", file=sys.stderr)
            continue
        found.append(name)
    return found


def ratio_to_peer(name: str, form: str, timings: dict[str, measure.Timing]) -> str:
    """Return a KBNet's time over its peer's, as published or optimized; the latter in the same precision."""
    network = name.split()[0]
    precision = " bf16" if form == OPTIMIZED and name.endswith("bf16") else ""
    peer = f"{PEER_OF.get(network)} {form}{precision}"
    return f"{timings[name].median / timings[peer].median:.2f}x" if peer in timings else "-"


def shipped(args: argparse.Namespace) -> int:
    """Time the shipped models beside other denoisers."""
    methods = denoisers.known(args.data)
    if not args.device.startswith("cpu"):
        methods = {n: m for n, m in methods.items() if m.torch}
    names = available({n: m.needs for n, m in methods.items()}, args.only)
    sizes = [tuple(args.size)] if args.size else list(SIZES)
    part = Shipped({n: methods[n] for n in names}, args.device, args.data)
    status = 0
    try:
        for size in sizes:
            part.time(size, args.repeats, args.limit)
        for size in sizes if not args.no_memory else []:
            part.measure_memory(size)
        part.judge(args.images)
    except KeyboardInterrupt:
        measure.show("")
        print("interrupted: what was measured so far", file=sys.stderr)
        status = 130
    print(part.text())
    provenance = measure.provenance(args.device)
    print(f"\n{measure.origin(provenance)}")
    if args.json is None:
        args.json = measure.ROOT / "results" / "benchmarks" / "speed-shipped.json"
        args.json.parent.mkdir(parents=True, exist_ok=True)
    measure.write_json(args.json, provenance=provenance, shipped=part.content())
    return status


def main(argv: list[str] | None = None) -> int:
    """Run the command; returns its exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="examples:\n  python benchmarks/speed.py\n"
        "  python benchmarks/speed.py --only kbnet_s nafnet --repeats 9\n"
        "  python benchmarks/speed.py --device cuda --size 720 1280 --json speed.json\n"
        "  python benchmarks/speed.py --part shipped --size 1080 1920 --data DATA --images 4",
    )
    parser.add_argument(
        "--size",
        nargs=2,
        type=int,
        metavar=("H", "W"),
        help="default: 256 256; for the part shipped: 1080 1920, then 3000 4000",
    )
    parser.add_argument("--device", default="cpu", help="cpu or cuda (default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=5, help="timed rounds (default: %(default)s)")
    parser.add_argument(
        "--only", nargs="+", metavar="WORD", help="only candidates whose name contains one of these words"
    )
    parser.add_argument(
        "--part",
        choices=("inference", "training", "all", "shipped"),
        default="all",
        help="default: all, which is inference and training",
    )
    parser.add_argument("--no-memory", action="store_true", help="do not measure memory")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the results to this file")
    only = parser.add_argument_group("the part shipped")
    only.add_argument("--data", type=Path, help="folder with test/Kodak24 and peers (default: KBNET_DATA)")
    only.add_argument("--images", type=int, metavar="N", help="compute PSNR for the first N images only")
    only.add_argument(
        "--limit",
        type=float,
        default=600,
        metavar="SECONDS",
        help="leave out what would take longer for one picture (default: %(default)s)",
    )
    args = parser.parse_args(argv)
    if args.part == "shipped":
        if args.data is None and (given := os.environ.get("KBNET_DATA")):
            args.data = Path(given)
        return exit_status("speed.py", lambda: shipped(args))
    size = tuple(args.size or (256, 256))

    result: dict[str, Any] = {"provenance": measure.provenance(args.device)}
    for part in ("inference", "training") if args.part == "all" else (args.part,):
        chosen = CANDIDATES if part == "inference" else TRAINING
        names = available({n: CANDIDATES[n].needs for n in chosen}, args.only)
        if not names:
            continue
        calls = {n: prepare(part, n, size, args.device) for n in names}
        timings = measure.interleave(calls, args.repeats, args.device)
        if args.no_memory:
            memory: dict[str, int | None] = dict.fromkeys(names)
        elif args.device.startswith("cuda"):  # its allocator keeps count; a process takes seconds to start
            memory = {n: measure.peak_extra_memory(call, args.device) for n, call in calls.items()}
        else:
            calls.clear()
            memory = {n: peak_memory(part, n, size, args.device) for n in names}
        calls.clear()
        header = ["network", "median (quartiles)", "vs. itself as published", "peak extra memory"]
        if part == "inference":
            header[3:3] = ["vs. peer as published", "vs. peer optimized"]
        rows = []
        for name in names:
            published = f"{name.split()[0]} {PUBLISHED}"
            row = [
                name,
                str(timings[name]),
                f"{timings[name].median / timings[published].median:.2f}x" if published in timings else "-",
                "not measured" if memory[name] is None else f"{memory[name] / 2**20:.0f} MiB",
            ]
            if part == "inference":
                row[3:3] = [ratio_to_peer(name, form, timings) for form in (PUBLISHED, OPTIMIZED)]
            rows.append(row)
        what = (
            f"Inference, 1x3x{size[0]}x{size[1]}; ratios are of times: below 1 is faster"
            if part == "inference"
            else f"Training step, {BATCH}x3x{CROP}x{CROP}, fused AdamW"
        )
        print(f"\n{what}\n\n{measure.table(header, rows)}")
        result[part] = {n: {"seconds": timings[n], "peak_extra_bytes": memory[n]} for n in names}
    print(f"\n{measure.origin(result['provenance'])}")
    if args.json:
        measure.write_json(args.json, **result)
    return 0


if __name__ == "__main__":
    sys.exit(main())
