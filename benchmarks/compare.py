"""Train networks and variants of networks from scratch under equal conditions, and compare them."""

from __future__ import annotations

import argparse
import os
import re
import signal
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.harness import studies
from benchmarks.harness.folders import need_folder, writable
from benchmarks.harness.processes import exit_status
from kbnet_plugin.errors import BadInput

EXAMPLES = """examples:
  python benchmarks/compare.py --budget 60m --jobs 2 --data DATA
  python benchmarks/compare.py --budget 3d --study nafnet --seeds 5 --data DATA --out results/long
  python benchmarks/run_all.py --only complexity      the report includes what was trained in --out

Every row is trained with `basicsr train` on the same images, crops, noise and seeds, for the same number of
iterations. A few steps of each row are timed first; the budget then determines the iterations, which stay the
same when the same command resumes an interrupted comparison. Exit status: 0 success, 1 a training failed,
2 bad input, 130 interrupted."""


def seconds(text: str) -> float:
    """Convert '90s', '20m', '2h' or '3d' to seconds; a bare number is minutes."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([smhd]?)", text.strip())
    if not found or float(found[1]) <= 0:
        raise argparse.ArgumentTypeError(f"{text!r}: write it as 90s, 20m, 2h or 3d")
    return float(found[1]) * {"s": 1, "m": 60, "": 60, "h": 3600, "d": 86400}[found[2]]


def parse(argv: list[str] | None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, epilog=EXAMPLES
    )
    parser.add_argument(
        "--out", type=Path, default=Path("results/benchmarks/compare"), help="default: %(default)s"
    )
    parser.add_argument(
        "--budget", type=seconds, default=3600.0, help="time for everything: 90s, 20m, 2h, 3d (default: 60m)"
    )
    parser.add_argument(
        "--data", type=Path, help="folder with train/BSDS500 and test/<name> (default: KBNET_DATA)"
    )
    parser.add_argument("--study", action="append", default=[], help="only this study; repeatable")
    parser.add_argument(
        "--studies",
        type=Path,
        default=studies.FILE,
        metavar="FILE",
        help="your own studies instead of benchmarks/compare.yml",
    )
    parser.add_argument("--seeds", type=int, default=3, help="runs of each network (default: %(default)s)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, ... (default: auto)")
    parser.add_argument("--jobs", type=int, default=1, help="trainings at a time (default: %(default)s)")
    parser.add_argument("--worker", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    for name in ("seeds", "jobs"):
        if getattr(args, name) < 1:
            parser.error(f"--{name} must be at least 1, not {getattr(args, name)}")
    if args.data is None and (given := os.environ.get("KBNET_DATA")):
        args.data = Path(given)
    return args


def main(argv: list[str] | None = None) -> int:
    """Run the command; returns its exit status."""
    args = parse(argv)
    signal.signal(signal.SIGTERM, _interrupt)
    if args.worker is not None:
        from benchmarks.harness.trainings import work

        return exit_status("compare.py", lambda: work(args.out))
    return exit_status("compare.py", lambda: _run(args))


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def _run(args: argparse.Namespace) -> int:
    started = time.time()
    given = studies.read_studies(args.studies)
    chosen = given.chosen(args.study)
    need_folder("--data", args.data)
    import torch

    from benchmarks.harness import planning, trainings
    from benchmarks.harness.conditions import changed, conditions
    from benchmarks.harness.processes import rank_and_device, workers

    _, device = rank_and_device(args.device)
    torch.set_num_threads(max(1, torch.get_num_threads() // args.jobs))
    folder = writable(args.out).resolve()
    shared = conditions(given, args.data, args.budget, args.seeds, device)
    plan = studies.read_plan(folder)
    if plan is not None and (other := changed(plan["conditions"], shared)):
        raise BadInput(f"--out {folder}: contains a comparison with {other}; name another folder")
    if plan is not None and {s.name for s in chosen} - {s["name"] for s in plan["studies"]}:
        plan = planning.extend(plan, given, chosen, folder, device)
    (folder / "draft.json").unlink(missing_ok=True)  # left by an interrupted planning
    with workers(__file__, folder, args.jobs, device, args.device) as running:
        if plan is None:
            plan = planning.create(given, chosen, shared, folder, device, running, started)
        failures = trainings.watch(plan, folder, running, started)
    _say(folder)
    for name, reason in failures.items():
        print(f"failed: {name}: {reason}", file=sys.stderr)
    print(f"\nplan and results: {folder}; benchmarks/run_all.py --compare shows them")
    return 1 if failures else 0


def _say(folder: Path) -> None:
    """Print the tables."""
    from benchmarks.harness import measure

    for table in studies.tables(folder):
        lines = []
        for row in table.rows:
            line = [row.name + (f" ({row.note})" if row.note else "")]
            for column in table.columns:
                found = row.cells[column.key].measured if column.key in row.cells else None
                if found is None or found.value is None:
                    line.append(f"{found.status}: {found.reason}" if found else "")
                    continue
                spread = f" ± {found.spread:.{column.digits}f}" if found.spread is not None else ""
                line.append(f"{found.value:.{column.digits}f}{spread}")
            lines.append(line)
        head = ["", *(f"{c.title} ({c.unit})" for c in table.columns)]
        print(f"\n{table.title}\n\n{measure.table(head, lines)}\n\n{table.text}")


if __name__ == "__main__":
    sys.exit(main())
