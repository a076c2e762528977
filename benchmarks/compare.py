"""Networks and parts of networks, trained from scratch under equal conditions, and what follows from it."""

from __future__ import annotations

import argparse
import contextlib
import csv
import ctypes
import hashlib
import io
import json
import os
import re
import shutil
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.harness.store import Store
from benchmarks.harness.studies import (
    FILE,
    Row,
    Studies,
    Study,
    Test,
    every_run,
    read_plan,
    read_studies,
    series,
    tables,
)
from kbnet_plugin.errors import BadInput, nearest, one_line
from kbnet_plugin.files import atomic_path

LISTING = Path(__file__).resolve().parent.parent / "options" / "zoo" / "photographs.txt"
OUR_OWN = {  # for where there is no data; both lists lie inside scikit-image
    "train": [
        "astronaut.png",
        "rocket.jpg",
        "motorcycle_left.png",
        "motorcycle_right.png",
        "color.png",
        "camera.png",
        "brick.png",
        "grass.png",
        "gravel.png",
    ],
    "test": ["chelsea.png", "coffee.png"],
}

SHARE = (
    0.85  # of the budget that is planned for; the rest is for what a calibration of seconds cannot foresee
)
TESTING = 0.15  # of it for testing, where there are more images than that allows
FEW = 8  # images to be tested on in any case
LEAST = 10  # iterations below which nothing is trained
BUSY = (
    0.02  # seconds that KBNet must take on the image that is timed, so that launching alone does not decide
)
SIDES = (256, 512, 1024, 2048)

__all__ = ["main", "series", "tables"]

EXAMPLES = """examples:
  python benchmarks/compare.py --budget 60m --jobs 2 --data DATA
  python benchmarks/compare.py --budget 3d --study nafnet --seeds 5 --data DATA --out results/long
  python benchmarks/run_all.py --only complexity      the report shows what was trained in --out

Every row is trained with `basicsr train` on the same images, crops, noise, seeds and iterations. A few steps
of each row are timed first; the iterations are what the budget then allows for all rows and seeds together,
and stay what they were when the same command goes on after an interruption. Exit status: 0 good, 1 a training
failed, 2 bad input, 130 interrupted."""


def seconds(text: str) -> float:
    """What '90s', '20m', '2h' and '3d' mean; a bare number is minutes."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([smhd]?)", text.strip())
    if not found or float(found[1]) <= 0:
        raise argparse.ArgumentTypeError(f"{text!r}: write it as 90s, 20m, 2h or 3d")
    return float(found[1]) * {"s": 1, "m": 60, "": 60, "h": 3600, "d": 86400}[found[2]]


def affordable(
    budget: float, jobs: int, seeds: int, timed: Sequence[Mapping[str, float]], images: int
) -> tuple[int, int]:
    """How many steps every run may take, and how many images it may be tested on, within the budget.

    Parameters
    ----------
    budget : float
        Seconds that are left.
    jobs, seeds : int
        Processes at a time, and runs of each network.
    timed : sequence of mapping of str to float
        Of each network the seconds of a step, of an image that is tested on, and of the start of a run;
        measured while all processes were at work.
    images : int
        How many there are to be tested on.
    """
    step, image, start = (seeds * sum(t[key] for t in timed) for key in ("step", "image", "start"))
    left = budget * jobs * SHARE - start
    tested = min(images, max(FEW, int(left * TESTING / image)))
    found = int((left - tested * image) / step)
    if found < LEAST:
        needed = (start + min(FEW, images) * image + LEAST * step) / (jobs * SHARE)
        raise BadInput(
            f"--budget: too little for {seeds * len(timed)} runs of {LEAST} iterations, which take "
            f"{needed / 60:.1f} minutes beside the planning; give more, or fewer studies (--study)"
        )
    return found if found < 100 else found // 10 * 10, tested


def parse(argv: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, epilog=EXAMPLES
    )
    parser.add_argument(
        "--out", type=Path, default=Path("results/benchmarks/compare"), help="(default: %(default)s)"
    )
    parser.add_argument("--budget", type=seconds, default=3600.0, help="90s, 20m, 2h, 3d (default: 60m)")
    parser.add_argument("--data", type=Path, help="train/BSDS500 and test/<name> (default: KBNET_DATA)")
    parser.add_argument("--study", action="append", default=[], help="may be given several times")
    parser.add_argument("--studies", type=Path, default=FILE, metavar="FILE", help="a file of your own")
    parser.add_argument("--seeds", type=int, default=3, help="runs of each network (default: 3)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, ... (default: auto)")
    parser.add_argument("--jobs", type=int, default=1, help="trainings at a time (default: 1)")
    parser.add_argument("--worker", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    for name in ("seeds", "jobs"):
        if getattr(args, name) < 1:
            parser.error(f"--{name} must be 1 at least, not {getattr(args, name)}")
    if args.data is None and (given := os.environ.get("KBNET_DATA")):
        args.data = Path(given)
    return args


def main(argv: list[str] | None = None) -> int:
    """Run the command; returns its exit status."""
    args = parse(argv)
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        if args.worker is not None:
            return work(args.out, args.worker)
        return _run(args)
    except BadInput as error:
        print(f"compare.py: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\ncompare.py: interrupted; the same command goes on where it was", file=sys.stderr)
        return 130
    except BrokenPipeError:
        raise
    except OSError as error:
        print(f"compare.py: {one_line(error)}", file=sys.stderr)
        return 2


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


# Planning


def _run(args: argparse.Namespace) -> int:
    started = time.time()
    given = read_studies(args.studies)
    chosen = given.chosen(args.study)
    if args.data is not None and not args.data.is_dir():
        raise BadInput(f"--data: no folder {args.data}")
    import torch

    from benchmarks.run_all import _place, _writable

    _, device = _place(args.device, None)
    torch.set_num_threads(max(1, torch.get_num_threads() // args.jobs))
    folder = _writable(args.out).resolve()
    conditions = _conditions(given, args, device)
    plan = read_plan(folder)
    if plan is not None and (changed := _changed(plan["conditions"], conditions)):
        raise BadInput(f"--out {folder}: holds a comparison of {changed}; name another folder")
    if plan is not None and {s.name for s in chosen} - {s["name"] for s in plan["studies"]}:
        plan = _plan(plan, given, chosen, conditions, args, device, folder, [], started)
    with _workers(args, device, folder) as running:
        if plan is None:
            plan = _plan(plan, given, chosen, conditions, args, device, folder, running, started)
        failures = _watch(plan, folder, running, started)
    _say(folder)
    for name, reason in failures.items():
        print(f"failed: {name}: {reason}", file=sys.stderr)
    print(f"\nplan and results: {folder}; benchmarks/run_all.py --compare shows them")
    return 1 if failures else 0


def _conditions(given: Studies, args: argparse.Namespace, device: str) -> dict[str, Any]:
    """What all runs in a folder share."""
    train, test = _training_images(args.data), _test_images(given.test, args.data)
    return {
        "budget": args.budget,
        "seeds": args.seeds,
        "device": device.split(":")[0],
        "options": given.options,
        "network": given.network,
        "train": train,
        "test": test,
    }


def _changed(before: Mapping[str, Any], now: Mapping[str, Any]) -> str | None:
    """What differs between two conditions, in words."""
    for name, what in (("budget", "a budget of {} s"), ("seeds", "{} seeds"), ("device", "the device {}")):
        if before[name] != now[name]:
            return what.format(f"{before[name]:g}" if name == "budget" else before[name])
    for name in ("train", "test"):
        if before[name]["sha256"] != now[name]["sha256"]:
            return f"other {name}ing images" if name == "train" else "other test images"
    if any(before[name] != now[name] for name in ("options", "network", "test")):
        return "other options"
    return None


def _training_images(data: Path | None) -> dict[str, Any]:
    if data is not None and (data / "train" / "BSDS500").is_dir():
        names = [n for n in LISTING.read_text(encoding="utf-8").splitlines() if n.startswith("BSDS500/")]
        root = data.resolve() / "train"
        if missing := [n for n in names if not (root / n).is_file()]:
            raise BadInput(
                f"{root / missing[0]} is missing ({len(missing)} of {len(names)}); fetch BSDS500 again"
            )
        title = f"{len(names)} photographs of BSDS500"
        return {"title": title, "root": str(root), "files": names, "sha256": _digest(root, names)}
    return _skimage("train")


def _skimage(kind: str) -> dict[str, Any]:
    files = OUR_OWN[kind]
    title = f"photographs inside scikit-image ({', '.join(f.split('.')[0] for f in files)})"
    return {
        "title": title,
        "root": "package:skimage/data",
        "files": files,
        "sha256": hashlib.sha256(" ".join(files).encode()).hexdigest(),
    }


def _test_images(test: Test, data: Path | None) -> dict[str, Any]:
    from benchmarks.harness import sets, tables

    known = tables.read_datasets(tables.FOLDER / "datasets.yml")
    for name in test.sets:
        if name not in known:
            raise BadInput(f"test sets: no data set {name!r}{nearest(name, known)}")
        found = sets.find(name, known[name], data)
        if found is None:
            continue
        paths = [Path(i.target) for i in found.items]
        root, names = paths[0].resolve().parent, [p.name for p in paths]
        content = {"title": name, "root": str(root), "files": names, "sha256": _digest(root, names)}
        return content | {"sigma": test.sigma}
    return _skimage("test") | {"sigma": test.sigma}


@cache
def _sha256(path: Path) -> bytes:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").digest()


def _digest(root: Path, names: Sequence[str]) -> str:
    digest = hashlib.sha256()
    for name in names:
        digest.update(f"{name}\0".encode() + _sha256(root / name))
    return digest.hexdigest()


def _plan(
    before: dict[str, Any] | None,
    given: Studies,
    chosen: Sequence[Study],
    conditions: dict[str, Any],
    args: argparse.Namespace,
    device: str,
    folder: Path,
    running: Sequence[subprocess.Popen[bytes]],
    started: float,
) -> dict[str, Any]:
    """Networks of all rows, what they cost, and how many iterations the budget allows.

    A plan that is there keeps its conditions and iterations, and gets the studies that it lacks.
    """
    from basicsr_ext import registry  # noqa: F401 - first: it imports BasicSR without its noise
    from benchmarks.harness import measure

    plan: dict[str, Any] = before or {
        "conditions": conditions,
        "iterations": None,
        "tested": None,
        "networks": {},
        "studies": [],
        "provenance": measure.provenance(device),
    }
    known = {s["name"] for s in plan["studies"]}
    fresh = [_planned(given, study, plan["networks"]) for study in chosen if study.name not in known]
    plan["studies"] += fresh
    store = Store(folder / "cells")
    if before is None:
        _write(folder / "draft.json", plan)
        _note(f"timing some steps of {len(plan['networks'])} networks, {args.jobs} at a time")
        keys = [f"step-{slug}" for slug in plan["networks"]]
        _wait_for(running, lambda: all(store.read(k) or store.failure(k, started) for k in keys))
    _time([s for s in fresh if s["timed"]], plan["networks"], device)
    if before is None:
        found = {slug: store.read(f"step-{slug}") for slug in plan["networks"]}
        timed = [t for t in found.values() if t]
        if not timed:
            reason = store.failure(f"step-{next(iter(found))}", started)
            raise BadInput(f"no network makes a step: {reason}")
        # A network made equal in time was not there to be timed in steps: it may be the slowest.
        slowest = {key: max(t[key] for t in timed) for key in ("step", "image", "start")}
        timed = [t or slowest for t in found.values()]
        left = args.budget - (time.time() - started)
        plan["iterations"], plan["tested"] = affordable(
            left, args.jobs, args.seeds, timed, len(conditions["test"]["files"])
        )
        (folder / "draft.json").unlink()
        _note(
            f"steps of {min(t['step'] for t in timed) * 1e3:.0f} to {slowest['step'] * 1e3:.0f} ms, "
            f"{args.jobs} at a time; each run is tested on {plan['tested']} images"
        )
    _note(f"{plan['iterations']} iterations each: {args.seeds} seeds of {len(plan['networks'])} networks")
    _write(folder / "plan.json", plan)
    return plan


def _planned(given: Studies, study: Study, networks: dict[str, Any]) -> dict[str, Any]:
    """A study as the plan has it; networks that are new are added. Those of equal time are left open."""
    from benchmarks.harness import variants

    rows = []
    first = _network(given, study.rows[0])
    for row in study.rows:
        network = _network(given, row)
        entry = {"name": row.name, "ours": row.ours, "run": None, "reason": "", "equal": row.equal}
        rows.append(entry)
        try:
            variants.build(network | ({"width": 8} if row.equal else {}))
        except ModuleNotFoundError as error:
            entry["reason"] = f"needs a package: pip install {error}"
            continue
        except (TypeError, ValueError) as error:
            raise BadInput(f"study {study.name}, {row.name}: {one_line(error)}") from error
        if row.equal == "time":
            entry["open"] = network
            continue
        entry["run"] = _add(equal_macs(first, network) if row.equal else network, networks)
    return study.model_dump(include={"name", "title", "text", "timed"}) | {"rows": rows}


def _add(network: dict[str, Any], networks: dict[str, Any]) -> str:
    """The name of a network's runs: its type, and what it is made of."""
    from benchmarks.harness import variants

    text = json.dumps(network, sort_keys=True)
    slug = f"{network['type']}-{hashlib.sha256(text.encode()).hexdigest()[:10]}"
    if slug not in networks:
        networks[slug] = {"network": network, **variants.cost(network)}
    return slug


def _time(studies: Sequence[Mapping[str, Any]], networks: dict[str, Any], device: str) -> None:
    """Find the rows of equal time, and time all rows of these studies side by side."""
    from benchmarks.harness import measure

    if not studies:
        return
    side = _side(networks[studies[0]["rows"][0]["run"]]["network"], device)
    for study in studies:
        for row in study["rows"]:
            if network := row.pop("open", None):
                model = networks[study["rows"][0]["run"]]["network"]
                row["run"] = _add(equal_time(model, network, side, device), networks)
    slugs = dict.fromkeys(r["run"] for s in studies for r in s["rows"] if r["run"])
    _note(f"timing {len(slugs)} networks side by side at {side} x {side}")
    calls = {slug: _call(networks[slug]["network"], side, device) for slug in slugs}
    for slug, timing in measure.interleave(calls, 9, device, warm_up=3).items():
        networks[slug] |= {"seconds": timing.median, "low": timing.low, "high": timing.high, "side": side}


def _network(given: Studies, row: Row) -> dict[str, Any]:
    return dict(row.network) if row.network else given.network | row.arguments


def equal_macs(model: Mapping[str, Any], network: Mapping[str, Any]) -> dict[str, Any]:
    """`network` at the width at which it takes about as many multiply-accumulates as `model`."""
    from benchmarks.harness import variants

    wanted = variants.cost(model)["macs_full"]
    return _width(network, lambda n: variants.cost(n)["macs_full"] / wanted)


def equal_time(
    model: Mapping[str, Any], network: Mapping[str, Any], side: int, device: str
) -> dict[str, Any]:
    """`network` at the width at which it takes about as long as `model` for one image."""
    from benchmarks.harness import measure

    call = _call(model, side, device)

    def ratio(candidate: dict[str, Any]) -> float:
        calls = {"model": call, "candidate": _call(candidate, side, device)}
        timings = measure.interleave(calls, 5, device, warm_up=2)
        return timings["candidate"].median / timings["model"].median

    return _width(network, ratio)


def _width(network: Mapping[str, Any], ratio: Callable[[dict[str, Any]], float]) -> dict[str, Any]:
    """The even width at which `ratio` is closest to 1."""
    at: dict[int, float] = {}

    def look(width: int) -> float:
        if width not in at:
            at[width] = ratio({**network, "width": 2 * width})
        return at[width]

    low, high = 2, 4
    while look(high) < 1 and high < 128:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if look(middle) < 1 else (low, middle)
    look(low)
    best = min(at, key=lambda w: abs(at[w] - 1))
    return {**network, "width": 2 * best}


def _side(network: Mapping[str, Any], device: str) -> int:
    """Of an image that occupies the device."""
    from benchmarks.harness import measure

    for side in SIDES:
        timing = measure.interleave({"": _call(network, side, device)}, 3, device, warm_up=2)[""]
        if timing.median >= BUSY:
            break
    return side


def _call(network: Mapping[str, Any], side: int, device: str) -> Callable[[], None]:
    import torch

    from benchmarks.harness import variants

    module = variants.build(network).eval().to(device)
    image = torch.rand(1, 3, side, side, device=device)

    def call() -> None:
        with torch.inference_mode():
            module(image)

    return call


# Running


@contextlib.contextmanager
def _workers(args: argparse.Namespace, device: str, folder: Path) -> Iterator[list[subprocess.Popen[bytes]]]:
    """Processes that train, for as long as the block runs."""
    import torch

    threads = torch.get_num_threads()
    (folder / "draft.json").unlink(missing_ok=True)
    running = []
    for i in range(args.jobs):
        environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
        if device.startswith("cuda"):
            environment["CUDA_VISIBLE_DEVICES"] = _gpu(args.device, i)
        with (folder / f"worker-{i}.log").open("ab") as log:
            running.append(
                subprocess.Popen(
                    [sys.executable, __file__, "--out", str(folder), "--worker", str(i)],
                    env=environment,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,  # a terminal's interrupt is for us: twice told, nothing is saved
                )
            )
    try:
        yield running
    finally:
        for process in running:
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)  # a training saves first
        for process in running:
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _gpu(device: str, index: int) -> str:
    """The GPU of a worker, as CUDA_VISIBLE_DEVICES has it: all of them in turn, or the one that was named."""
    import torch

    outer = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = outer.split(",") if outer else [str(i) for i in range(torch.cuda.device_count())]
    return names[int(device.split(":")[1]) if ":" in device else index % len(names)]


def _wait_for(running: Sequence[subprocess.Popen[bytes]], done: Callable[[], bool]) -> None:
    while not done():
        if all(p.poll() is not None for p in running):
            raise BadInput(f"the processes that train have ended: {_last_words(running)}")
        time.sleep(0.3)


def _last_words(running: Sequence[subprocess.Popen[bytes]]) -> str:
    folder = Path(running[0].args[3])  # type: ignore[index]
    lines = (folder / "worker-0.log").read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return f"{lines[-1] if lines else 'without a word'} ({folder / 'worker-0.log'})"


def _watch(
    plan: Mapping[str, Any], folder: Path, running: Sequence[subprocess.Popen[bytes]], started: float
) -> dict[str, str]:
    """Tell how far the runs are until all are done or failed; returns the failures."""
    store = Store(folder / "cells")
    runs, total = list(every_run(plan)), plan["iterations"]
    names = _names(plan)
    told: set[str] = {r for r, _, _ in runs if store.read(r)}
    failures: dict[str, str] = {}
    begun = _progress(folder, runs, told, total)
    clock = said = time.monotonic()
    bar = None
    if sys.stderr.isatty():
        from tqdm import tqdm

        bar = tqdm(total=len(runs) * total, initial=begun, unit="it", dynamic_ncols=True, leave=False)

    def tell(text: str) -> None:
        nonlocal said
        said = time.monotonic()
        if bar is not None:
            bar.write(text, file=sys.stderr)
            return
        done = _progress(folder, runs, told | set(failures), total)
        left = ""
        if begun < done < len(runs) * total and said - clock > 5:
            rest = (said - clock) / (done - begun) * (len(runs) * total - done)
            left = f", {rest / 60:.0f} min left" if rest > 90 else f", {rest:.0f} s left"
        print(f"[{len(told)}/{len(runs)} runs{left}] {text}", file=sys.stderr, flush=True)

    try:
        while len(told) + len(failures) < len(runs):
            for run, slug, seed in runs:
                if run in told or run in failures:
                    continue
                label = f"{names[slug]}, seed {seed}"
                if (found := store.read(run)) is not None:
                    told.add(run)
                    tell(f"{label}: {found['psnr']:.2f} dB")
                elif (reason := store.failure(run, started)) is not None:
                    failures[run] = reason
                    tell(f"{label}: failed: {reason}")
            if bar is not None:
                bar.update(_progress(folder, runs, told | set(failures), total) - bar.n)
            elif time.monotonic() - said > 30:
                tell("training")
            if all(p.poll() is not None for p in running):
                unseen = [r for r, _, _ in runs if r not in told | set(failures) and not store.read(r)]
                failures |= {
                    r: store.failure(r, started) or f"its process ended: {_last_words(running)}"
                    for r in unseen
                }
                told |= {r for r, _, _ in runs if r not in failures}
            time.sleep(0.5)
    finally:
        if bar is not None:
            bar.close()
    return {f"{names[slug]}, seed {seed}": failures[run] for run, slug, seed in runs if run in failures}


def _names(plan: Mapping[str, Any]) -> dict[str, str]:
    """What the first study that has it calls a network."""
    found: dict[str, str] = {}
    for study in plan["studies"]:
        for row in study["rows"]:
            found.setdefault(row["run"], f"{study['name']}/{row['name']}")
    return found


def _progress(folder: Path, runs: Sequence[Any], ended: set[str], total: int) -> int:
    """Iterations that are done, of all runs together."""
    done = 0
    for run, _, _ in runs:
        if run in ended:
            done += total
            continue
        with contextlib.suppress(OSError, IndexError, ValueError):
            done += int((folder / "runs" / run / "history.csv").read_text().splitlines()[-1].split(",")[0])
    return done


def work(folder: Path, index: int) -> int:
    """What one process does: time steps while there is no plan, then train what nobody else trains."""
    _die_with_parent()
    parent = os.getppid()
    from basicsr_ext import registry
    from benchmarks.harness import variants

    registry.register()
    variants.register()
    started = time.time()
    store = Store(folder / "cells")
    while (plan := read_plan(folder)) is None:
        if os.getppid() != parent:
            return 1
        if (draft := read_plan(folder, "draft.json")) is not None:
            for slug in draft["networks"]:
                _claim(store, f"step-{slug}", started, lambda s=slug, d=draft: _time_step(d, s, folder))
        time.sleep(0.2)
    runs = list(every_run(plan))
    pending = [run for run, _, _ in runs]
    by_name = {run: (slug, seed) for run, slug, seed in runs}
    while pending:
        waiting = []
        for run in pending:
            if os.getppid() != parent:
                return 1
            slug, seed = by_name[run]
            if not _claim(
                store, run, started, lambda r=run, s=slug, n=seed: train(plan, s, n, folder / "runs", r)
            ):
                waiting.append(run)
        if len(waiting) == len(pending):
            time.sleep(0.5)
        pending = waiting
    return 0


def _claim(store: Store, key: str, since: float, make: Callable[[], dict[str, Any]]) -> bool:
    """Do what is not done, has not failed and nobody else is doing; False where somebody is."""
    if store.read(key) is not None or store.failure(key, since) is not None:
        return True
    with store.lock(key) as held:
        if not held:
            return False
        if store.read(key) is None:
            try:
                store.write(key, make())
            except Exception as error:
                reason = one_line(error) or type(error).__name__
                store.fail(key, reason)
                print(f"{key}: {reason}", flush=True)
                if "CUDA" in reason and "out of memory" not in reason:
                    raise  # nothing more can be computed in this process
    return True


def _die_with_parent() -> None:
    """Ask Linux to end this process, as an interruption would, with the one that started it."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)


def option_file(
    plan: Mapping[str, Any], slug: str, seed: int, folder: Path, name: str, total: int
) -> dict[str, Any]:
    """The options of a run, as `basicsr train` takes them."""
    conditions = plan["conditions"]
    options = json.loads(json.dumps(conditions["options"]))
    gpu = conditions["device"] == "cuda"
    train, test = conditions["train"], conditions["test"]
    options |= {
        "name": name,
        "manual_seed": seed,
        "num_gpu": 1 if gpu else 0,
        "network_g": plan["networks"][slug]["network"],
        "path": {"experiments_root": str(folder)},
        # Crops and noise are made beside a GPU, not between its steps.
        "logger": {
            "print_freq": max(1, total // 20),
            "save_checkpoint_freq": max(1, total // 4),
            "keep_checkpoints": 1,
        },
    }
    options["datasets"]["train"] |= {
        "dataroot_gt": train["root"],
        "files": train["files"],
        "num_worker_per_gpu": 1 if gpu else 0,
    }
    options["datasets"]["val"] = {
        "name": "test",
        "type": "Dataset_GaussianDenoising",
        "dataroot_gt": test["root"],
        "files": test["files"][: plan["tested"]],
        "sigma_test": test["sigma"],
    }
    options["train"] |= {
        "total_iter": total,
        "scheduler": {
            "type": "CosineAnnealingRestartCyclicLR",
            "periods": [total],
            "restart_weights": [1],
            "eta_mins": [1e-6],
        },
        "warmup_iter": min(total // 10, options["train"].get("warmup_iter") or 0),
    }
    options["val"]["val_freq"] = total
    return options


def train(plan: Mapping[str, Any], slug: str, seed: int, folder: Path, name: str) -> dict[str, Any]:
    """One run to its end, or on to it: its PSNR, and how it was come by.

    Raises
    ------
    BadInput
        If it fails; its own last line.
    KeyboardInterrupt
        If it was asked to end; it has saved what it had.
    """
    from basicsr_ext.__main__ import main as basicsr
    from benchmarks.harness import measure

    total = plan["iterations"]
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"{name}.yml"
    with atomic_path(file) as temporary:
        temporary.write_text(json.dumps(option_file(plan, slug, seed, folder, name, total), indent=1))
    began = time.monotonic()
    said = io.StringIO()
    with contextlib.redirect_stderr(said):
        status = basicsr(["train", "-opt", str(file), "--auto_resume"])
    if status >= 128:
        raise KeyboardInterrupt
    if status:
        lines = said.getvalue().strip().splitlines()
        raise BadInput(lines[-1].removeprefix("basicsr: ") if lines else f"training ended with {status}")
    device = plan["conditions"]["device"]
    content = {
        "psnr": _last_psnr(folder / name / "history.csv", total),
        "provenance": measure.provenance(device) | {"seconds": round(time.monotonic() - began, 1)},
    }
    shutil.rmtree(folder / name / "training_states", ignore_errors=True)
    for weights in (folder / name / "models").glob("net_g_[0-9]*.pth"):
        weights.unlink()
    return content


def _last_psnr(history: Path, total: int) -> float:
    with history.open(newline="", encoding="utf-8") as file:
        found = [r for r in csv.DictReader(file) if r["quantity"] == "test psnr"]
    if not found or int(found[-1]["iteration"]) != total:
        raise BadInput(f"{history}: no PSNR of iteration {total}")
    return float(found[-1]["value"])


def _time_step(plan: Mapping[str, Any], slug: str, folder: Path) -> dict[str, Any]:
    """Seconds of a step, and of all else in a run, beside what the other processes do."""
    import torch
    from torch.utils.data import DataLoader

    from basicsr_ext import registry
    from basicsr_ext.options import prepare_options
    from basicsr_ext.sampler import Reproducible, Ticket, collate
    from basicsr_ext.train import choose_device, make_dataset

    content = option_file(plan, slug, 0, folder / "runs", f"step-{slug}", LEAST)
    options = prepare_options(content, f"step-{slug}", train=True)
    options |= {"rank": 0, "world_size": 1, "dist": False}
    registry.check_names(options, f"step-{slug}")
    choose_device(options)
    began = time.monotonic()
    images = make_dataset("train", options["datasets"]["train"])
    model = registry.build_model(options)
    start = time.monotonic() - began
    sampler = Reproducible(images, "train")
    size = options["datasets"]["train"]["batch_size_per_gpu"]

    def wait() -> float:
        if model.device.type == "cuda":
            torch.cuda.synchronize()
        return time.monotonic()

    def load() -> tuple[Any, float]:
        began = time.monotonic()
        return collate([sampler[Ticket(i % len(images), None, (0, i))] for i in range(size)]), (
            time.monotonic() - began
        )

    load()
    batch, loading = load()  # the images are decoded by then
    times = []
    while len(times) < 8 and (len(times) < 4 or sum(times) < 3):
        began = wait()
        model.feed_data(batch)
        model.optimize_parameters(1)
        times.append(wait() - began)
    step = statistics.median(times[2:])
    test = make_dataset("val", options["datasets"]["val"])
    restoring = []
    for i, data in zip(range(2), DataLoader(test), strict=False):
        model.feed_data(data)
        began = wait()
        model.test()
        if i or len(test) == 1:  # the first one also prepares
            restoring.append(wait() - began)
    own = options["datasets"]["train"]["num_worker_per_gpu"] == 0
    return {
        "step": step + loading if own else max(step, loading),
        "image": restoring[-1] + 0.02,  # and reading and comparing it
        "start": start + 2.0,  # decoding and counting; what is compiled is kept for the other seeds
    }


def _say(folder: Path) -> None:
    """The tables on the terminal."""
    from benchmarks.harness import measure

    for table in tables(folder):
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


def _note(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _write(path: Path, content: Mapping[str, Any]) -> None:
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(content, indent=1, allow_nan=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
