"""Choose the pictures that accompany the tables of a run."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from kbnet_plugin import KBNet_l, KBNet_s
from kbnet_plugin.errors import BadInput

from . import pictures, results
from .pictures import Picture, Point
from .store import Store
from .suite import Plan, Planner
from .tables import Column, Table

SQUARE = 96
FULL = "one 3x256x256 image"
PUBLISHED = " as published"


def draw(
    chosen: Sequence[tuple[Table, Sequence[Any]]],
    found: Sequence[results.Table],
    plan: Plan,
    planner: Planner,
    store: Store,
) -> list[Picture]:
    """Draw crops, errors, quality against cost, and what a network has learned."""
    drawn = []
    by_name = {t.name: t for t in found}
    for table, rows in chosen:
        drawn += _beside(table, rows, plan, store)
        drawn += _against_cost(table, by_name)
        drawn += _against_time(table, by_name)
    return drawn + _learned(chosen, plan, planner, store)


def trained(
    tables: Sequence[results.Table], runs: Mapping[str, Sequence[tuple[str, Sequence[float]]]]
) -> list[Picture]:
    """Draw every seed of the controlled comparisons; `runs` are the values of each row, by study."""
    drawn = []
    for table in tables:
        done = [(name, values) for name, values in runs[table.name.removeprefix("compare-")] if values]
        ours = [row.name for row in table.rows if row.ours]
        if done:
            title = f"{table.title}: every seed"
            drawn.append(pictures.seeds(title, done, table.columns[0], ours=ours, table=table.name))
    return drawn


def shipped(file: Path) -> list[Picture]:
    """Draw quality against time from the file of ``speed.py --part shipped``, one picture for each size.

    Raises
    ------
    BadInput
        If it is not such a file.
    """
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        part, about = content["shipped"], content["provenance"]
        marks: dict[str, list[Point]] = {}
        for name, method in part["methods"].items():
            for size, timed in method["sizes"].items():
                if timed["seconds"] and method["psnr"] is not None:
                    point = Point(name, timed["seconds"]["median"], method["psnr"], method["ours"])
                    marks.setdefault(size, []).append(point)
        caption = f"{part['caption']} {about['device']}, {about['threads']} threads, {about['date'][:10]}."
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise BadInput(f"{file}: not a result of speed.py --part shipped; delete it") from error
    return [
        pictures.scatter(
            f"Denoisers: quality against time, {size} pixels",
            points,
            "time (s)",
            "PSNR (dB)",
            caption=caption,
            table="speed",
        )
        for size, points in marks.items()
        if len(points) > 1
    ]


def _beside(table: Table, rows: Sequence[Any], plan: Plan, store: Store) -> list[Picture]:
    """Draw the first image of the column in which most methods were measured."""
    best: tuple[Column | None, dict[str, Any]] = None, {}
    for column in table.columns:
        kept = {}
        for row in rows:
            cell = plan.get((table.name, row.name, column.key))
            image = (
                store.picture(cell[0].key) if column.metric == "psnr" and isinstance(cell, tuple) else None
            )
            if image and not (row.measure and row.measure.input):
                kept[row.name] = image
        if len(kept) > len(best[1]):
            best = column, kept
    column, kept = best
    if column is None:
        return []
    first = next(iter(kept.values()))
    images = {"input": first["given"]} | {name: image["restored"] for name, image in kept.items()}
    level = f", σ {column.sigma:g}" if column.sigma else ""
    title = f"First image of {column.dataset}{level}"
    size = min(SQUARE, *first["truth"].shape[:2])
    return [
        pictures.crops(title, first["truth"], images, size=size, table=table.name),
        pictures.errors(f"{title}: errors", first["truth"], images, size=size, table=table.name),
    ]


def _against_cost(table: Table, found: Mapping[str, results.Table]) -> list[Picture]:
    cost = next((c for c in table.columns if c.cost == "macs_full"), None)
    if cost is None or not any(c.metric for c in table.columns):
        return []
    made = found[table.name]
    heads = {c.key: c for c in made.columns}
    all_points = {c.key: pictures.points(made, cost.key, c.key) for c in table.columns if c.metric == "psnr"}
    key = max(all_points, key=lambda k: len(all_points[k]), default=None)
    if key is None or len(all_points[key]) < 2:
        return []
    return [
        pictures.scatter(
            f"{heads[key].group or table.title} against multiply-accumulates",
            all_points[key],
            heads[cost.key],
            heads[key],
            caption=f"Multiply-accumulates counted in full, {FULL}.",
            table=table.name,
        )
    ]


def _against_time(table: Table, found: Mapping[str, results.Table]) -> list[Picture]:
    """Draw quality against the time in the speed table, for networks of the same name and size."""
    timed = found.get("speed")
    if table.name != "sidd" or timed is None:
        return []
    seconds = {
        row.name.removesuffix(PUBLISHED): cell.measured.value
        for row in timed.rows
        if (cell := row.cells.get("seconds")) and cell.measured and cell.measured.value is not None
        if row.ours or (row.name.endswith(PUBLISHED) and not row.name.startswith("KBNet"))
    }
    made = found[table.name]
    marks = []
    for row in made.rows:
        cell = row.cells.get("psnr")
        number = cell and (
            cell.measured.value
            if cell.measured and cell.measured.value is not None
            else cell.published and cell.published.value
        )
        if number and row.name in seconds:
            own = bool(cell and cell.measured and cell.measured.value is not None)
            marks.append(Point(row.name, seconds[row.name], number, row.ours, not own))
    if len(marks) < 2:
        return []
    title = f"{made.title} against measured time"
    x = next(c for c in timed.columns if c.key == "seconds")
    y = next(c for c in made.columns if c.key == "psnr")
    return [pictures.scatter(title, marks, x, y, caption=timed.text.split(";")[0], table=table.name)]


def _learned(
    chosen: Sequence[tuple[Table, Sequence[Any]]], plan: Plan, planner: Planner, store: Store
) -> list[Picture]:
    """Draw the bases and the coefficients of the first KBNet that was measured."""
    from .networks import load

    for table, rows in chosen:
        for row in rows:
            for column in table.columns:
                cell = plan.get((table.name, row.name, column.key))
                if not (row.ours and row.measure and column.metric and isinstance(cell, tuple)):
                    continue
                image = store.picture(cell[0].key)
                if image is None:
                    continue
                sigma = f"{column.sigma:g}" if column.sigma else ""
                network = load(planner.find_weights(row.measure, sigma=sigma)).module
                if not isinstance(network, KBNet_s | KBNet_l):
                    continue
                block = list(pictures.adaptive_blocks(network))[-1]  # at full resolution
                return [
                    pictures.bases(network, block, table=table.name),
                    pictures.coefficients(network, block, image["given"], table=table.name),
                ]
    return []
