"""Measure the cells of the paper's tables and report them beside the published numbers and the cost."""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.harness.folders import need_folder, writable
from benchmarks.harness.processes import exit_status
from kbnet_plugin.errors import BadInput, one_line

EXAMPLES = """examples:
  python benchmarks/run_all.py --list       what is there, what is missing and where to get it
  python benchmarks/run_all.py              everything that can be measured; without data, the same as --quick
  python benchmarks/run_all.py --data DATA --weights WEIGHTS --jobs 2
  python benchmarks/run_all.py --only gaussian_gray/DnCNN --only complexity
  python benchmarks/run_all.py --only gaussian_color --model net_g_latest.pth
  torchrun --nproc_per_node=8 benchmarks/run_all.py --data DATA --out /shared/folder

Results are kept in --out and never measured twice: the same command resumes an interrupted run, and several
machines can share the folder. Exit status: 0 success, 1 something failed, 2 bad input, 130 interrupted."""


def parse(argv: list[str] | None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, epilog=EXAMPLES
    )
    folder = parser.add_argument_group("folders")
    folder.add_argument(
        "--out",
        type=Path,
        default=Path("results/benchmarks"),
        help="results and report (default: %(default)s)",
    )
    folder.add_argument("--data", type=Path, help="folder with test/<name> (default: KBNET_DATA)")
    folder.add_argument(
        "--weights", type=Path, help="folder of checkpoints, beside DATA/peers (default: KBNET_WEIGHTS)"
    )
    folder.add_argument(
        "--tables", type=Path, help="folder of your own YAML files, instead of benchmarks/specs"
    )
    folder.add_argument(
        "--compare",
        type=Path,
        metavar="FOLDER",
        help="folder of benchmarks/compare.py (default: OUT/compare)",
    )
    what = parser.add_argument_group("what to measure")
    what.add_argument("--list", action="store_true", help="list what is there and what is missing, then exit")
    what.add_argument(
        "--only",
        action="append",
        default=[],
        metavar="TABLE[/ROW[/COLUMN]]",
        help="measure only this; repeatable",
    )
    what.add_argument(
        "--quick", action="store_true", help="only costs, short timings and shipped models: about 3 minutes"
    )
    what.add_argument(
        "--model",
        action="append",
        default=[],
        type=Path,
        metavar="FILE",
        help="add a row for these weights; repeatable",
    )
    how = parser.add_argument_group("how to run")
    how.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, ... (default: auto)")
    how.add_argument("--jobs", type=int, default=1, help="processes on this machine (default: %(default)s)")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.jobs < 1:
        parser.error(f"--jobs must be at least 1, not {args.jobs}")
    for name in ("data", "weights"):
        if getattr(args, name) is None and (given := os.environ.get(f"KBNET_{name.upper()}")):
            setattr(args, name, Path(given))
    return args


def main(argv: list[str] | None = None) -> int:
    """Run the command; returns its exit status."""
    args = parse(argv)
    return exit_status("run_all.py", lambda: _run(args, sys.argv[1:] if argv is None else argv))


def _run(args: argparse.Namespace, argv: list[str]) -> int:
    # torch takes seconds to load, and a misspelt option should not wait for it.
    import torch

    from benchmarks.harness import illustrate, studies
    from benchmarks.harness import tables as specifications
    from benchmarks.harness.processes import helpers, rank_and_device
    from benchmarks.harness.store import Store
    from benchmarks.harness.suite import Planner, measured
    from benchmarks.harness.tables import Suite

    started = time.time()
    for name in ("data", "weights"):
        need_folder(f"--{name}", getattr(args, name))
    suite = Suite(args.tables or specifications.FOLDER)
    only = suite.select(args.only)
    rank, device = rank_and_device(args.device, args.worker)
    torch.backends.cudnn.allow_tf32 = False
    planner = Planner(suite, args.data, args.weights, device)
    if args.list:
        return _list(suite, planner)
    store = Store(writable(args.out) / "cells")
    quick = args.quick or not (args.data or args.weights or args.only or args.model)
    chosen = []
    plan: dict[Any, Any] = {}
    for table in suite.tables:
        if not only.has(table) or (quick and not args.only and not table.quick):
            continue
        rows = [r for r in table.rows if only.has(table, r) and (r.quick or not quick)]
        rows += _models(table, args.model)
        chosen.append((table, rows))
        plan |= planner.plan(
            table,
            rows,
            lambda row, column, table=table: (
                (column.quick or not quick) and (row not in table.rows or only.has(table, row, column))
            ),
        )
    jobs = list({cell[0].key: cell[0] for cell in plan.values() if isinstance(cell, tuple)}.values())

    with helpers(__file__, argv, args.jobs if rank == 0 and args.worker is None else 1):
        failures = run(jobs, store, device, rank, started)
    if rank:
        return 1 if failures else 0
    cells = {place: measured(cell, store, failures) for place, cell in plan.items()}
    found = [_table(table, rows, cells) for table, rows in chosen]
    pictures = illustrate.draw(chosen, found, plan, planner, store)
    if (trainings := args.compare or args.out / "compare").joinpath("plan.json").is_file():
        compared = studies.tables(trainings)
        found += compared
        pictures += illustrate.trained(compared, studies.series(trainings))
    if (timed := args.out / "speed-shipped.json").is_file():
        pictures += illustrate.shipped(timed)
    page = _report(found, pictures, args.out, quick)
    _say(found)
    reasons: dict[str, list[str]] = {}
    for (table_name, row, column), cell in cells.items():
        if cell.status == "failed":
            reasons.setdefault(cell.reason, []).append(f"{table_name}/{row} {column}")
    for reason, places in reasons.items():
        more = f" and {len(places) - 1} more" if len(places) > 1 else ""
        print(f"failed: {places[0]}{more}: {reason}", file=sys.stderr)
    print(f"\nreport: {page}")
    return 1 if reasons else 0


def run(jobs: Sequence[Any], store: Any, device: str, rank: int, since: float) -> dict[str, str]:
    """Do all jobs that no other process does, and wait for the others; return the failures by key."""
    from benchmarks.harness.progress import Progress
    from benchmarks.harness.suite import do

    failures: dict[str, str] = {}
    # Timings come last and in one process, because anything else that runs would distort them.
    pending = [j for j in jobs if not j.alone] + [j for j in jobs if j.alone and rank == 0]
    with Progress(pending) as progress:
        while pending:
            waiting = []
            for job in pending:
                if store.read(job.key) is not None:
                    progress.skip(job)
                    continue
                if (reason := store.failure(job.key, since)) is not None:
                    failures[job.key] = reason
                    progress.skip(job)
                    continue
                if job.alone and waiting:
                    waiting.append(job)
                    continue
                with store.lock(job.key) as held:
                    if not held:
                        waiting.append(job)
                        continue
                    if store.read(job.key) is not None:
                        progress.skip(job)
                        continue
                    progress.start(job)
                    try:
                        do(job, store, device, progress.tick)
                    except Exception as error:
                        failures[job.key] = one_line(error) or type(error).__name__
                        store.fail(job.key, failures[job.key])
                        progress.end(job, f"failed: {failures[job.key]}")
                    else:
                        values = store.read(job.key)["values"]
                        progress.end(job, _few(values))
            if waiting and len(waiting) == len(pending):
                time.sleep(0.5)
            pending = waiting
    return failures


def _few(values: Mapping[str, float]) -> str:
    shown = [f"{name} {value:.4g}" for name, value in values.items() if value]
    return ", ".join(shown[:4]) + (", ..." if len(shown) > 4 else "")


def _models(table: Any, files: Sequence[Path]) -> list[Any]:
    """Return a row for each file, in tables of quality."""
    from benchmarks.harness.networks import load
    from benchmarks.harness.tables import Measure, Row

    rows = []
    for file in files:
        if not any(c.metric for c in table.columns):
            continue
        load(file)  # refuses a wrong file before anything is measured
        how = Measure(weights=str(file.resolve()))
        rows.append(Row(name=file.stem, note="from --model", ours=True, measure=how))
    return rows


def _table(table: Any, rows: Sequence[Any], cells: Mapping[Any, Any]) -> Any:
    from benchmarks.harness import results

    columns = tuple(
        results.Column(c.key, c.title, c.group, c.unit, c.digits, c.better) for c in table.columns
    )
    made = []
    for row in rows:
        published = table.published(row)
        found = {}
        for column in table.columns:
            measured = cells.get((table.name, row.name, column.key))
            tolerance = table.tolerance if column.tolerance is None and column.metric else column.tolerance
            if measured is not None or column.key in published:
                found[column.key] = results.Cell(published.get(column.key), measured, tolerance)
            elif row.published or (row.measure and row.measure.weights and row.ours):
                found[column.key] = results.Cell(results.Published(None, row.source))
        made.append(results.Row(row.name, row.note, row.ours, found))
    return results.Table(table.name, table.title, table.text, columns, tuple(made), dict(table.sources))


def _report(found: Sequence[Any], pictures: Sequence[Any], folder: Path, quick: bool) -> Path:
    from benchmarks.harness import report
    from kbnet_plugin import __version__

    cells = [c.measured for t in found for r in t.rows for c in r.cells.values() if c.measured]
    dates = [m.provenance["date"] for m in cells if m.status == "measured" and "date" in m.provenance]
    about = {
        "version": f"kbnet {__version__}",
        "last measured": max(dates, default="never"),
        "cells measured": len(dates),
        "kind of run": "quick: what needs no data" if quick else "everything that data and weights allow",
    }
    return report.write(found, folder, pictures=pictures, about=about)


def _say(found: Sequence[Any]) -> None:
    """Print the tables in which something was measured, with published numbers in brackets."""
    from benchmarks.harness import measure

    for table in found:
        columns = [
            c
            for c in table.columns
            if any(
                (cell := r.cells.get(c.key)) and cell.measured and cell.measured.status != "not measured"
                for r in table.rows
            )
        ]
        lines = [[row.name, *(_shown(row.cells.get(c.key), c.digits) for c in columns)] for row in table.rows]
        lines = [line for line in lines if any(line[1:])]
        if lines:
            head = [
                "",
                *(" ".join(w for w in (c.group, c.title, c.unit and f"({c.unit})") if w) for c in columns),
            ]
            print(f"\n{table.title}: measured [published]\n\n{measure.table(head, lines)}")


def _shown(cell: Any, digits: int) -> str:
    if cell is None:
        return ""
    text = ""
    if cell.measured is not None and cell.measured.status == "failed":
        text = "failed"
    elif cell.measured is not None and cell.measured.value is not None:
        text = f"{cell.measured.value:.{digits}f}{'!' if cell.differs else ''}"
    if cell.published is not None and cell.published.value is not None:
        text += f"{' ' if text else ''}[{cell.published.value:.{digits}f}]"
    return text


def _list(suite: Any, planner: Any) -> int:
    """Print what is there, what is missing and where to get it."""
    from benchmarks.harness.suite import NotThereError

    print(f"data sets in {planner.data or 'no folder: name one with --data or KBNET_DATA'}")
    for name, description in suite.datasets.items():
        try:
            found = planner.dataset(name)
            print(f"  {name:16} there, {len(found.items)} images")
        except NotThereError:
            print(f"  {name:16} missing: expected at {description.layout}; get it from {description.where}")
        except BadInput as error:
            print(f"  {name:16} broken: {error}")
    print(f"weights in {' and '.join(map(str, planner.folders)) or 'no folder: name one with --weights'}")
    seen = set()
    for table in suite.tables:
        for row in table.rows:
            how = row.measure
            if how is None or not (how.weights or how.zoo):
                continue
            sigmas = {f"{c.sigma:g}" if c.sigma else "" for c in table.chosen(row) if c.metric}
            for sigma in sorted(sigmas, key=lambda s: (len(s), s)):
                name = how.zoo or how.weights.format(sigma=sigma)
                if name in seen:
                    continue
                seen.add(name)
                try:
                    planner.find_weights(how, sigma=sigma)
                    print(f"  {name:44} there")
                except NotThereError:
                    print(f"  {name:44} missing{f': {how.where}' if how.where else ''}")
    print("tables")
    for table in suite.tables:
        print(f"  {table.name:16} {len(table.rows)} rows: {table.title}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
