"""Time KBNet beside its peers: whole networks, inference and training, interleaved in one run."""

from __future__ import annotations

import argparse
import importlib.util
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.harness import measure
from benchmarks.harness.candidates import BATCH, CANDIDATES, CROP, PEER_OF, TRAINING, peak_memory, prepare

PUBLISHED, OPTIMIZED = "as published", "optimized"


def available(names: list[str], wanted: list[str] | None) -> list[str]:
    """Return the names whose package is installed, in order; report those that are left out."""
    found = []
    for name in names:
        needs = CANDIDATES[name].needs
        if wanted and not any(w.lower() in name.lower() for w in wanted):
            continue
        if needs and importlib.util.find_spec(needs) is None:
            print(f"left out: {name} (pip install {needs})", file=sys.stderr)
            continue
        found.append(name)
    return found


def ratio_to_peer(name: str, form: str, timings: dict[str, measure.Timing]) -> str:
    """Return a KBNet's time over its peer's, as published or optimized; the latter in the same precision."""
    network = name.split()[0]
    precision = " bf16" if form == OPTIMIZED and name.endswith("bf16") else ""
    peer = f"{PEER_OF.get(network)} {form}{precision}"
    return f"{timings[name].median / timings[peer].median:.2f}x" if peer in timings else "-"


def main(argv: list[str] | None = None) -> int:
    """Run the command; returns its exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="examples:\n  python benchmarks/speed.py\n"
        "  python benchmarks/speed.py --only kbnet_s nafnet --repeats 9\n"
        "  python benchmarks/speed.py --device cuda --size 720 1280 --json speed.json",
    )
    parser.add_argument(
        "--size", nargs=2, type=int, default=(256, 256), metavar=("H", "W"), help="default: 256 256"
    )
    parser.add_argument("--device", default="cpu", help="cpu or cuda (default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=5, help="timed rounds (default: %(default)s)")
    parser.add_argument(
        "--only", nargs="+", metavar="WORD", help="only candidates whose name contains one of these words"
    )
    parser.add_argument(
        "--part", choices=("inference", "training", "all"), default="all", help="default: all"
    )
    parser.add_argument("--no-memory", action="store_true", help="do not measure memory")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the results to this file")
    args = parser.parse_args(argv)
    size = tuple(args.size)

    result: dict[str, Any] = {"provenance": measure.provenance(args.device)}
    for part in ("inference", "training") if args.part == "all" else (args.part,):
        names = available(list(CANDIDATES if part == "inference" else TRAINING), args.only)
        if not names:
            continue
        calls = {n: prepare(part, n, size, args.device) for n in names}
        timings = measure.interleave(calls, args.repeats, args.device)
        calls.clear()
        memory = {n: None if args.no_memory else peak_memory(part, n, size, args.device) for n in names}
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
    p = result["provenance"]
    print(f"\n{p['command']}\n{p['date']}, {p['device']}, {p['threads']} threads, torch {p['torch']}")
    if args.json:
        measure.write_json(args.json, **result)
    return 0


if __name__ == "__main__":
    sys.exit(main())
