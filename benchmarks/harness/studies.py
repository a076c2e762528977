"""Studies: what is compared by training, and a table for each that says what the numbers support."""

from __future__ import annotations

import json
import re
import statistics
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError, field_validator, model_validator

from basicsr_ext.options import read_options
from kbnet_plugin.errors import BadInput, nearest
from kbnet_plugin.files import atomic_path

from . import results
from .store import Store

FILE = Path(__file__).parents[1] / "compare.yml"

APART = 2
"""Spreads above which a difference counts; with three seeds, one row in 14 gets there by chance."""

COMPARED = (
    "Differences are between runs with the same seed, and their spread is the standard deviation over the "
    f"seeds; rows differ if the mean difference exceeds {APART} spreads. MACs are for one 3x256x256 image, "
    "counted in full."
)


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Row(_Strict):
    """A network of a study: how it differs from the common network, or a network of its own."""

    name: str
    ours: bool = False
    arguments: dict[str, Any] = {}
    network: dict[str, Any] = {}
    equal: Literal["macs", "time"] | None = None

    @model_validator(mode="after")
    def _one_thing(self) -> Row:
        if self.network and self.arguments:
            raise ValueError("a row has either arguments or a network of its own")
        if self.equal and "type" not in self.network:
            raise ValueError("equal requires a network of its own, with a type")
        return self


class Study(_Strict):
    """Rows that are compared with the first of them."""

    name: str
    title: str
    text: str
    timed: bool = False
    rows: tuple[Row, ...]

    @field_validator("name")
    @classmethod
    def _usable(cls, name: str) -> str:
        if not re.fullmatch(r"[a-z0-9-]+", name):
            raise ValueError(f"{name!r} must consist of lower-case letters, digits and hyphens")
        return name

    @model_validator(mode="after")
    def _consistent(self) -> Study:
        names = [r.name for r in self.rows]
        if len(names) < 2 or len(set(names)) < len(names):
            raise ValueError(f"study {self.name!r}: needs at least two rows, with different names")
        if self.rows[0].network:
            raise ValueError(f"study {self.name!r}: the first row must be a variant of the common network")
        return self


class Test(_Strict):
    """What the trained networks are tested on: the first of the sets that is there."""

    sets: tuple[str, ...]
    sigma: float


class Studies(_Strict):
    """A file of studies."""

    options: dict[str, Any]
    network: dict[str, Any]
    test: Test
    studies: tuple[Study, ...]

    def chosen(self, names: Sequence[str]) -> tuple[Study, ...]:
        """Return the studies with these names, or all where none is named."""
        known = {s.name: s for s in self.studies}
        for name in names:
            if name not in known:
                raise BadInput(f"--study {name}: no such study{nearest(name, known)}")
        return tuple(s for s in self.studies if not names or s.name in names)


def read_studies(file: Path = FILE) -> Studies:
    """Read a file of studies.

    Raises
    ------
    BadInput
        If it cannot be used; one line that names the file and the place.
    """
    content = read_options(file)
    try:
        return Studies.model_validate(content)
    except ValidationError as error:
        problem = error.errors()[0]
        place = " ".join(str(p + 1 if isinstance(p, int) else p) for p in problem["loc"])
        message = problem["msg"].removeprefix("Value error, ")
        raise BadInput(f"{file}: {place + ': ' if place else ''}{message}") from None


def every_run(plan: Mapping[str, Any]) -> Iterator[tuple[str, str, int]]:
    """Yield name, network and seed of all runs: every network once before any a second time."""
    for seed in range(plan["conditions"]["seeds"]):
        for slug in plan["networks"]:
            yield f"{slug}-seed{seed}", slug, seed


def tables(folder: Path) -> list[results.Table]:
    """Return a table for each study in a folder, with what its numbers support."""
    plan, store = _need_plan(folder), Store(folder / "cells")
    return [_table(plan, study, store) for study in plan["studies"]]


def series(folder: Path) -> dict[str, list[tuple[str, list[float]]]]:
    """Return the PSNR of every finished seed, by study and row."""
    plan, store = _need_plan(folder), Store(folder / "cells")
    return {
        study["name"]: [(row["name"], list(_values(plan, row, store)[0].values())) for row in study["rows"]]
        for study in plan["studies"]
    }


def _need_plan(folder: Path) -> dict[str, Any]:
    if (plan := read_plan(folder)) is None:
        raise BadInput(f"{folder}: contains no plan.json; benchmarks/compare.py --out creates one")
    return plan


def _values(
    plan: Mapping[str, Any], row: Mapping[str, Any], store: Store
) -> tuple[dict[int, float], list[dict[str, Any]], list[str]]:
    """Return PSNR by seed and provenance of the finished runs, and why others failed."""
    values, found, failures = {}, [], []
    for run, slug, seed in every_run(plan):
        if slug != row["run"]:
            continue
        if (content := store.read(run)) is not None:
            values[seed] = content["psnr"]
            found.append(content["provenance"])
        elif (reason := store.failure(run, 0)) is not None:
            failures.append(reason)
    return values, found, failures


def _table(plan: Mapping[str, Any], study: Mapping[str, Any], store: Store) -> results.Table:
    conditions = plan["conditions"]
    wanted = conditions["seeds"]
    test = conditions["test"]
    protocol = _protocol(plan)
    columns = [
        results.Column("psnr", "PSNR", test["title"].split(" (")[0], "dB", 2, "higher"),
        results.Column("parameters", "params", "cost", "M", 3, "lower"),
        results.Column("macs_full", "MACs", "cost", "G", 2, "lower"),
    ]
    if study["timed"]:
        columns.append(results.Column("time", "time", "cost", "ms", 1, "lower"))
    rows, numbers = [], {}
    for row in study["rows"]:
        values, found, failures = _values(plan, row, store)
        if values:
            numbers[row["name"]] = values
        note = []
        if row["run"] and row["equal"]:
            note.append(f"width {plan['networks'][row['run']]['network']['width']}")
        if values and len(values) < wanted:
            note.append(f"{len(values)} of {wanted} seeds finished")
            if failures:
                note.append(f"{len(failures)} failed: {failures[0]}")
        cells = {"psnr": results.Cell(measured=_quality(plan, row, values, found, failures, protocol))}
        if row["run"]:
            cells |= _costs(plan, row, study["timed"])
        rows.append(results.Row(row["name"], "; ".join(note), row["ours"], cells))
    text = [study["text"], verdict([r["name"] for r in study["rows"]], numbers, wanted)]
    if study["timed"]:
        side = next((n["side"] for n in plan["networks"].values() if "side" in n), None)
        text[0] += f" Time: one image of {side} x {side} on {plan['provenance']['device']}."
    first = plan["studies"][0]
    if study["name"] == first["name"]:
        text.append(f"Small networks, {protocol}. The order may differ for other sizes or longer training.")
        text.append(COMPARED)
    else:
        text.append(f"Trained, tested and compared as in “{first['title']}”.")
    text = "\n\n".join(text)
    return results.Table(f"compare-{study['name']}", study["title"], text, tuple(columns), tuple(rows))


def _protocol(plan: Mapping[str, Any]) -> str:
    """Describe how all rows of a folder were trained and tested."""
    conditions = plan["conditions"]
    train, test = conditions["train"], conditions["test"]
    options = conditions["options"]["datasets"]["train"]
    crop, all_of_them = options["gt_size"], len(test["files"])
    tested = f"all {all_of_them}" if plan["tested"] == all_of_them else f"the first {plan['tested']}"
    return (
        f"trained from scratch: {plan['iterations']} iterations of {options['batch_size_per_gpu']} crops of "
        f"{crop} x {crop} from {train['title']}, white noise of sigma {options['sigma_range']:g}, the same "
        f"images, crops, noise and seeds for each network; tested on {tested} images of {test['title']} with "
        f"sigma {test['sigma']:g} (not clipped, results rounded to 8 bits, in tiles of "
        f"{conditions['options']['val']['tile']})"
    )


def _quality(
    plan: Mapping[str, Any],
    row: Mapping[str, Any],
    values: Mapping[int, float],
    found: Sequence[Mapping[str, Any]],
    failures: Sequence[str],
    protocol: str,
) -> results.Measured:
    wanted = plan["conditions"]["seeds"]
    if row["reason"]:
        return results.Measured("not measured", reason=row["reason"])
    if not values and failures:
        return results.Measured("failed", reason=failures[0])
    if not values:
        return results.Measured("not measured", reason=f"0 of {wanted} seeds finished")
    train, test = plan["conditions"]["train"], plan["conditions"]["test"]
    provenance = dict(found[-1]) | {
        "command": plan["provenance"]["command"],
        "date": max(f["date"] for f in found),
        "seconds": round(sum(f["seconds"] for f in found), 1),
        "network": plan["networks"][row["run"]]["network"],
        "weights": f"trained here, {len(values)} of {wanted} seeds",
        "data": f"{train['title']}; {test['title']}",
        "data_sha256": test["sha256"],
        "protocol": protocol,
    }
    spread = statistics.stdev(values.values()) if len(values) > 1 else None
    mean = statistics.fmean(values.values())
    return results.Measured("measured", mean, spread, provenance=provenance)


def _costs(plan: Mapping[str, Any], row: Mapping[str, Any], timed: bool) -> dict[str, results.Cell]:
    network, conditions = plan["networks"][row["run"]], plan["conditions"]
    here = plan["provenance"] | {"network": network["network"]}
    counted = here | {"protocol": "one image of 256 x 256 pixels, counted by torch's FLOP counter"}
    cells = {
        "parameters": results.Cell(
            measured=results.Measured("measured", network["parameters"], provenance=counted)
        ),
        "macs_full": results.Cell(
            measured=results.Measured("measured", network["macs_full"], provenance=counted)
        ),
    }
    if timed and "seconds" in network:
        side = network["side"]
        tf32 = ", TF32 allowed" if conditions["device"] == "cuda" else ""
        protocol = (
            f"one image of {side} x {side}, float32{tf32}, all timed rows in turn; median, and half the "
            "interquartile range"
        )
        cells["time"] = results.Cell(
            measured=results.Measured(
                "measured",
                network["seconds"] * 1e3,
                (network["high"] - network["low"]) / 2 * 1e3,
                provenance=here | {"protocol": protocol},
            )
        )
    return cells


def verdict(names: Sequence[str], values: Mapping[str, Mapping[int, float]], wanted: int) -> str:
    """Say what the numbers support about each row against the first one, and no more.

    Parameters
    ----------
    names : sequence of str
        All rows of the study, in order.
    values : mapping of str to mapping of int to float
        PSNR in dB by seed, of the rows that have any.
    wanted : int
        Number of seeds that were planned.
    """
    first, *others = names
    groups: dict[str, list[str]] = {"above": [], "below": [], "within": [], "alone": []}
    for name in others:
        # Runs with the same seed see the same images, crops and noise, so they are compared in pairs.
        ours, theirs = values.get(first, {}), values.get(name, {})
        pairs = [theirs[seed] - ours[seed] for seed in theirs if seed in ours]
        if not pairs:
            continue
        difference = statistics.fmean(pairs)
        if len(pairs) == 1:
            groups["alone"].append(f"{name} ({difference:+.2f} dB)")
            continue
        spread = statistics.stdev(pairs)
        kind = "within" if abs(difference) <= APART * spread else "above" if difference > 0 else "below"
        groups[kind].append(f"{name} ({difference:+.2f} dB, spread {spread:.2f})")
    sentences = [
        f"{lead}: {', '.join(groups[kind])}."
        for kind, lead in (
            ("above", f"Above {first!r}"),
            ("below", f"Below {first!r}"),
            ("within", f"Within the spread, so not distinguishable from {first!r}"),
            ("alone", f"One seed against {first!r}, which proves nothing"),
        )
        if groups[kind]
    ]
    if not sentences:
        return "No conclusion yet: too few runs are finished."
    done = [len(values.get(n, ())) for n in names]
    if min(done) < wanted:
        sentences.append(f"Unfinished: {min(done)} to {max(done)} of {wanted} seeds per row.")
    return " ".join(sentences)


def read_plan(folder: Path, name: str = "plan.json") -> dict[str, Any] | None:
    """Read the plan of a folder, or its draft; None where there is none."""
    path = folder / name
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except json.JSONDecodeError:
        raise BadInput(f"{path}: damaged; remove it to plan again") from None


def write_plan(folder: Path, content: Mapping[str, Any], name: str = "plan.json") -> None:
    """Write the plan of a folder, or its draft; whole or not at all."""
    with atomic_path(folder / name) as temporary:
        temporary.write_text(json.dumps(content, indent=1, allow_nan=False) + "\n", encoding="utf-8")
