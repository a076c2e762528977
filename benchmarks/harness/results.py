"""Tables of published and measured numbers, which a run passes to its report."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal


@dataclass(frozen=True)
class Published:
    """A number from the literature; a `value` of None means that it was not found (n/f)."""

    value: float | None
    source: str  # tag of Table.sources
    note: str = ""


@dataclass(frozen=True)
class Measured:
    """A number measured here, or why there is none.

    Attributes
    ----------
    value : float or None
        In the column's unit; None unless `status` is "measured".
    spread : float or None
        Standard deviation over repetitions (seeds, rounds); None if there was only one.
    reason : str
        Why it was not measured ("needs weights: sidd.pth") or why it failed, on one line.
    provenance : dict
        command, date, device, threads, versions, weights, weights_sha256, data, data_sha256, protocol and
        seconds, as far as they apply.
    """

    status: Literal["measured", "not measured", "failed"]
    value: float | None = None
    spread: float | None = None
    reason: str = ""
    provenance: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Cell:
    """A published and a measured number; flagged if they differ by more than `tolerance`."""

    published: Published | None = None
    measured: Measured | None = None
    tolerance: float | None = None

    @property
    def differs(self) -> bool:
        """Whether there are both numbers, and they differ by more than the protocol allows."""
        if self.published is None or self.measured is None or self.tolerance is None:
            return False
        printed, found = self.published.value, self.measured.value
        # Rounding must not decide: 31.21 - 31.19 is 0.0199999...
        return printed is not None and found is not None and abs(found - printed) > self.tolerance + 1e-9


@dataclass(frozen=True)
class Column:
    """A column; `group` is the upper of two headings ("CBSD68"), `title` the lower ("σ 25")."""

    key: str
    title: str
    group: str = ""
    unit: str = ""
    digits: int = 2
    better: Literal["higher", "lower"] | None = None


@dataclass(frozen=True)
class Row:
    """A method; `cells` lacks the columns that do not apply to it."""

    name: str
    note: str = ""
    ours: bool = False
    cells: dict[str, Cell] = field(default_factory=dict)


@dataclass(frozen=True)
class Table:
    """A table; `text` says what it shows and by which protocol, `sources` explains the tags."""

    name: str
    title: str
    text: str
    columns: tuple[Column, ...]
    rows: tuple[Row, ...]
    sources: dict[str, str] = field(default_factory=dict)


def to_json(tables: Sequence[Table]) -> str:
    """Convert tables to JSON."""
    return json.dumps([asdict(t) for t in tables], indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def from_json(text: str) -> list[Table]:
    """Read tables that `to_json` wrote."""
    return [_table(t) for t in json.loads(text)]


def _table(content: Mapping[str, Any]) -> Table:
    columns = tuple(Column(**c) for c in content["columns"])
    rows = tuple(
        Row(**(r | {"cells": {key: _cell(c) for key, c in r["cells"].items()}})) for r in content["rows"]
    )
    return Table(**(content | {"columns": columns, "rows": rows}))


def _cell(content: Mapping[str, Any]) -> Cell:
    published, measured = content["published"], content["measured"]
    return Cell(published and Published(**published), measured and Measured(**measured), content["tolerance"])
