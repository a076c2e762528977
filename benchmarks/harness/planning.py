"""The plan of a comparison: which networks are trained, at what cost, and for how many iterations."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from basicsr_ext import registry  # noqa: F401 - first: it imports BasicSR without its messages
from kbnet_plugin.errors import BadInput, one_line

from . import measure, variants
from .processes import Workers
from .progress import note
from .store import Store
from .studies import Row, Studies, Study, write_plan

USED = 0.85
"""Share of the budget that is planned; the rest covers what a few timed steps cannot foresee."""

TESTING = 0.15
"""Share of that for testing, where there are more images than it allows."""

LEAST_TESTED = 8
"""Images that every network is tested on, whatever the budget."""

LEAST = 10
"""Iterations below which nothing is trained."""

BUSY = 0.02
"""Seconds that KBNet must take for the timed image, so that launching kernels does not dominate."""

SIDES = (256, 512, 1024, 2048)


def affordable(
    budget: float, jobs: int, seeds: int, timed: Sequence[Mapping[str, float]], images: int
) -> tuple[int, int]:
    """Compute how many iterations each run may take, and how many images it may be tested on.

    Parameters
    ----------
    budget : float
        Seconds left.
    jobs, seeds : int
        Processes at a time, and runs of each network.
    timed : sequence of mapping of str to float
        For each network the seconds of a step, of a test image and of the start of a run, measured while all
        processes were busy.
    images : int
        Number of test images.

    Raises
    ------
    BadInput
        If the budget allows fewer than `LEAST` iterations.
    """
    step, image, start = (seeds * sum(t[key] for t in timed) for key in ("step", "image", "start"))
    left = budget * jobs * USED - start
    tested = min(images, max(LEAST_TESTED, int(left * TESTING / image)))
    found = int((left - tested * image) / step)
    if found < LEAST:
        needed = (start + min(LEAST_TESTED, images) * image + LEAST * step) / (jobs * USED)
        raise BadInput(
            f"--budget: too small for {seeds * len(timed)} runs of {LEAST} iterations, which take "
            f"{needed / 60:.1f} minutes after planning; increase it, or name fewer studies (--study)"
        )
    return found if found < 100 else found // 10 * 10, tested


def create(
    given: Studies,
    chosen: Sequence[Study],
    conditions: Mapping[str, Any],
    folder: Path,
    device: str,
    workers: Workers,
    started: float,
) -> dict[str, Any]:
    """Plan a comparison and write the plan; the workers time some steps of each network for it.

    Parameters
    ----------
    given, chosen
        The file of studies, and those of them that are wanted.
    conditions : dict
        As `conditions.conditions` returns them.
    folder : Path
    device : str
    workers : Workers
        Running in `folder`.
    started : float
        When the budget began, as ``time.time()`` gives it.

    Raises
    ------
    BadInput
        If a network cannot be built or trained, or the budget is too small.
    """
    jobs = len(workers.processes)
    plan: dict[str, Any] = {
        "conditions": conditions,
        "iterations": None,
        "tested": None,
        "networks": {},
        "studies": [],
        "provenance": measure.provenance(device),
    }
    store = Store(folder / "cells")
    added = _add_studies(plan, given, chosen)
    write_plan(folder, plan, "draft.json")
    note(f"timing a few steps of {len(plan['networks'])} networks, {jobs} at a time")
    keys = [f"step-{slug}" for slug in plan["networks"]]
    workers.wait_for(lambda: all(store.read(k) or store.failure(k, started) for k in keys))
    _time(added, plan["networks"], device)
    found = {slug: store.read(f"step-{slug}") for slug in plan["networks"]}
    timed = [t for t in found.values() if t]
    if not timed:
        reason = store.failure(f"step-{next(iter(found))}", started)
        raise BadInput(f"no network can be trained: {reason}")
    # Networks of equal time are added after the steps were timed, and may be the slowest.
    slowest = {key: max(t[key] for t in timed) for key in ("step", "image", "start")}
    timed = [t or slowest for t in found.values()]
    left = conditions["budget"] - (time.time() - started)
    plan["iterations"], plan["tested"] = affordable(
        left, jobs, conditions["seeds"], timed, len(conditions["test"]["files"])
    )
    (folder / "draft.json").unlink()
    note(
        f"a step takes {min(t['step'] for t in timed) * 1e3:.0f} to {slowest['step'] * 1e3:.0f} ms, "
        f"{jobs} at a time; each run is tested on {plan['tested']} images"
    )
    _finish(plan, folder)
    return plan


def extend(
    plan: dict[str, Any], given: Studies, chosen: Sequence[Study], folder: Path, device: str
) -> dict[str, Any]:
    """Add the studies that a plan lacks; it keeps its conditions and iterations."""
    _time(_add_studies(plan, given, chosen), plan["networks"], device)
    _finish(plan, folder)
    return plan


def _finish(plan: Mapping[str, Any], folder: Path) -> None:
    seeds = plan["conditions"]["seeds"]
    note(f"{plan['iterations']} iterations each: {seeds} seeds of {len(plan['networks'])} networks")
    write_plan(folder, plan)


def _add_studies(plan: dict[str, Any], given: Studies, chosen: Sequence[Study]) -> list[dict[str, Any]]:
    known = {s["name"] for s in plan["studies"]}
    added = [_planned(given, study, plan["networks"]) for study in chosen if study.name not in known]
    plan["studies"] += added
    return added


def _planned(given: Studies, study: Study, networks: dict[str, Any]) -> dict[str, Any]:
    """Turn a study into its part of the plan and add its networks; those of equal time follow in `_time`."""
    rows = []
    first = network_of(given, study.rows[0])
    for row in study.rows:
        network = network_of(given, row)
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
    """Add a network and return the name of its runs: its type and a hash of its arguments."""
    text = json.dumps(network, sort_keys=True)
    slug = f"{network['type']}-{hashlib.sha256(text.encode()).hexdigest()[:10]}"
    if slug not in networks:
        networks[slug] = {"network": network, **variants.cost(network)}
    return slug


def _time(studies: Sequence[Mapping[str, Any]], networks: dict[str, Any], device: str) -> None:
    """Find the networks of equal time, and time all networks of the timed studies side by side."""
    studies = [s for s in studies if s["timed"]]
    if not studies:
        return
    side = _side(networks[studies[0]["rows"][0]["run"]]["network"], device)
    for study in studies:
        for row in study["rows"]:
            if network := row.pop("open", None):
                model = networks[study["rows"][0]["run"]]["network"]
                row["run"] = _add(equal_time(model, network, side, device), networks)
    slugs = dict.fromkeys(r["run"] for s in studies for r in s["rows"] if r["run"])
    note(f"timing {len(slugs)} networks side by side at {side} x {side}")
    calls = {slug: _call(networks[slug]["network"], side, device) for slug in slugs}
    for slug, timing in measure.interleave(calls, 9, device, warm_up=3).items():
        networks[slug] |= {"seconds": timing.median, "low": timing.low, "high": timing.high, "side": side}


def network_of(given: Studies, row: Row) -> dict[str, Any]:
    """Return the section ``network_g`` of a row."""
    return dict(row.network) if row.network else given.network | row.arguments


def equal_macs(model: Mapping[str, Any], network: Mapping[str, Any]) -> dict[str, Any]:
    """Give `network` the width at which it needs about as many multiply-accumulates as `model`."""
    wanted = variants.cost(model)["macs_full"]
    return _width(network, lambda n: variants.cost(n)["macs_full"] / wanted)


def equal_time(
    model: Mapping[str, Any], network: Mapping[str, Any], side: int, device: str
) -> dict[str, Any]:
    """Give `network` the width at which one image takes it about as long as `model`."""
    call = _call(model, side, device)

    def ratio(candidate: dict[str, Any]) -> float:
        calls = {"model": call, "candidate": _call(candidate, side, device)}
        timings = measure.interleave(calls, 5, device, warm_up=2)
        return timings["candidate"].median / timings["model"].median

    return _width(network, ratio)


def _width(network: Mapping[str, Any], ratio: Callable[[dict[str, Any]], float]) -> dict[str, Any]:
    """Find the even width at which `ratio` is closest to 1."""
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
    """Find the side of an image that keeps the device busy."""
    for side in SIDES:
        timing = measure.interleave({"": _call(network, side, device)}, 3, device, warm_up=2)[""]
        if timing.median >= BUSY:
            break
    return side


def _call(network: Mapping[str, Any], side: int, device: str) -> Callable[[], None]:
    module = variants.build(network).eval().to(device)
    image = torch.rand(1, 3, side, side, device=device)

    def call() -> None:
        with torch.inference_mode():
            module(image)

    return call
