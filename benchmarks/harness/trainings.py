"""The runs of a comparison: what a process trains, and how far all of them are."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import os
import shutil
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from kbnet_plugin.errors import BadInput, one_line
from kbnet_plugin.files import atomic_path

from . import measure, processes
from .planning import LEAST
from .processes import Workers
from .progress import QUIET, note, time_left
from .store import Store
from .studies import every_run, read_plan


def watch(plan: Mapping[str, Any], folder: Path, workers: Workers, started: float) -> dict[str, str]:
    """Report the progress of all runs until each is finished or failed; return the failures by label."""
    store = Store(folder / "cells")
    runs, total = list(every_run(plan)), plan["iterations"]
    names = _names(plan)
    finished: set[str] = {r for r, _, _ in runs if store.read(r)}
    failures: dict[str, str] = {}
    begun = _progress(folder, runs, finished, total)
    clock = reported = time.monotonic()
    bar = None
    if sys.stderr.isatty():
        from tqdm import tqdm

        bar = tqdm(total=len(runs) * total, initial=begun, unit="it", dynamic_ncols=True, leave=False)

    def report(text: str) -> None:
        nonlocal reported
        reported = time.monotonic()
        if bar is not None:
            bar.write(text, file=sys.stderr)
            return
        done = _progress(folder, runs, finished | set(failures), total)
        left = ""
        if begun < done < len(runs) * total and reported - clock > 5:
            left = time_left((reported - clock) / (done - begun) * (len(runs) * total - done))
        note(f"[{len(finished)}/{len(runs)} runs{left}] {text}")

    try:
        while len(finished) + len(failures) < len(runs):
            for run, slug, seed in runs:
                if run in finished or run in failures:
                    continue
                label = f"{names[slug]}, seed {seed}"
                if (found := store.read(run)) is not None:
                    finished.add(run)
                    report(f"{label}: {found['psnr']:.2f} dB")
                elif (reason := store.failure(run, started)) is not None:
                    failures[run] = reason
                    report(f"{label}: failed: {reason}")
            if bar is not None:
                bar.update(_progress(folder, runs, finished | set(failures), total) - bar.n)
            elif time.monotonic() - reported > QUIET:
                report("training")
            if workers.ended:
                unseen = [r for r, _, _ in runs if r not in finished | set(failures) and not store.read(r)]
                failures |= {
                    r: store.failure(r, started) or f"its process ended: {workers.last_words()}"
                    for r in unseen
                }
                finished |= {r for r, _, _ in runs if r not in failures}
            time.sleep(0.5)
    finally:
        if bar is not None:
            bar.close()
    return {f"{names[slug]}, seed {seed}": failures[run] for run, slug, seed in runs if run in failures}


def _names(plan: Mapping[str, Any]) -> dict[str, str]:
    """Name each network after the first study that contains it."""
    found: dict[str, str] = {}
    for study in plan["studies"]:
        for row in study["rows"]:
            found.setdefault(row["run"], f"{study['name']}/{row['name']}")
    return found


def _progress(folder: Path, runs: Sequence[Any], ended: set[str], total: int) -> int:
    """Count the finished iterations of all runs."""
    done = 0
    for run, _, _ in runs:
        if run in ended:
            done += total
            continue
        with contextlib.suppress(OSError, IndexError, ValueError):
            done += int((folder / "runs" / run / "history.csv").read_text().splitlines()[-1].split(",")[0])
    return done


def work(folder: Path) -> int:
    """Run one training process: time steps until there is a plan, then train what nobody else trains."""
    processes.die_with_parent()
    parent = os.getppid()
    from basicsr_ext import registry

    from . import variants

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
    """Do a job unless it is finished or has failed; return False if another process is doing it."""
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
                    raise  # after such an error this process cannot compute anything more
    return True


def option_file(
    plan: Mapping[str, Any], slug: str, seed: int, folder: Path, name: str, total: int
) -> dict[str, Any]:
    """Return the options of a run, in the form that `basicsr train` reads."""
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
        "logger": {
            "print_freq": max(1, total // 20),
            "save_checkpoint_freq": max(1, total // 4),
            "keep_checkpoints": 1,
        },
    }
    options["datasets"]["train"] |= {
        "dataroot_gt": train["root"],
        "files": train["files"],
        "num_worker_per_gpu": 1 if gpu else 0,  # a GPU should not wait for crops and noise
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
    """Train one run to its end, or resume it; return its PSNR in dB and its provenance.

    Raises
    ------
    BadInput
        If training fails; the message is its last line.
    KeyboardInterrupt
        If it was interrupted; it has saved its state.
    """
    from basicsr_ext.__main__ import main as basicsr

    total = plan["iterations"]
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"{name}.yml"
    with atomic_path(file) as temporary:
        temporary.write_text(json.dumps(option_file(plan, slug, seed, folder, name, total), indent=1))
    began = time.monotonic()
    messages = io.StringIO()
    with contextlib.redirect_stderr(messages):
        status = basicsr(["train", "-opt", str(file), "--auto_resume"])
    if status >= 128:
        raise KeyboardInterrupt
    if status:
        lines = messages.getvalue().strip().splitlines()
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
        raise BadInput(f"{history}: no PSNR for iteration {total}")
    return float(found[-1]["value"])


def _time_step(plan: Mapping[str, Any], slug: str, folder: Path) -> dict[str, Any]:
    """Measure the seconds of a step, a test image and a start, while the other processes are busy."""
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
    batch, loading = load()  # a second time, when the images are decoded
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
        if i or len(test) == 1:  # the first image also warms up
            restoring.append(wait() - began)
    own = options["datasets"]["train"]["num_worker_per_gpu"] == 0
    return {
        "step": step + loading if own else max(step, loading),
        "image": restoring[-1] + 0.02,  # for reading and comparing it
        "start": start + 2.0,  # for decoding and counting; compiled code is kept for the other seeds
    }
