"""Read and check the YAML files of tables and data sets."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError, field_validator, model_validator

from kbnet_plugin.errors import BadInput, nearest

from .protocols import PROTOCOLS, Metric
from .results import Published
from .sets import Description

FOLDER = Path(__file__).parents[1] / "specs"
ORDER = [
    "complexity",
    "speed",
    "gaussian_color",
    "gaussian_gray",
    "sidd",
    "sensenoise",
    "deraining",
    "defocus",
]
"""Order of the tables in the report; others follow."""

CostName = Literal[
    "parameters",
    "macs_published",
    "macs_full",
    "convolution",
    "linear",
    "kba",
    "attention",
    "memory_inference",
    "memory_training",
]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class PublishedCell(_Strict):
    """A published number with a source or a note of its own."""

    value: int | float | None = None  # 69 was not printed as 69.0
    source: str | None = None
    note: str = ""


Number = int | float | None | PublishedCell


class Column(_Strict):
    """A column: a metric on a data set, a cost, a timing, or only published numbers."""

    key: str
    title: str
    group: str = ""
    unit: str = ""
    digits: int = 2
    better: Literal["higher", "lower"] | None = None
    tolerance: float | None = None
    metric: Metric | None = None
    dataset: str | None = None
    sigma: float | None = None
    protocol: str | None = None
    cost: CostName | None = None
    size: tuple[int, int] = (256, 256)
    size_of: str | None = None
    speed: Literal["seconds", "memory"] | None = None
    quick: bool = True

    @model_validator(mode="after")
    def _one_thing(self) -> Column:
        if sum(x is not None for x in (self.metric, self.cost, self.speed)) > 1:
            raise ValueError("a column has only one of metric, cost and speed")
        if (self.metric is None) != (self.dataset is None):
            raise ValueError("metric and dataset require each other")
        return self

    @field_validator("protocol")
    @classmethod
    def _known(cls, name: str | None) -> str | None:
        return _protocol(name)


class Measure(_Strict):
    """How a row is measured.

    It is the input itself, what `Restorer.for_image` chooses, a file of weights, a shipped model, or a
    network whose cost is counted.
    """

    input: bool = False
    automatic: bool = False
    network: str | None = None
    arguments: dict[str, Any] = {}
    weights: str | None = None
    zoo: str | None = None
    candidate: str | None = None
    where: str = ""
    columns: tuple[str, ...] = ()
    multiple: int = 16  # of height and width, as the network requires
    square: bool = False

    @model_validator(mode="after")
    def _one_thing(self) -> Measure:
        named = (self.weights, self.zoo, self.candidate)
        if self.input + self.automatic + sum(name is not None for name in named) > 1:
            raise ValueError("measure has only one of input, automatic, weights, zoo and candidate")
        return self


class Row(_Strict):
    """A method; `published` is by column, or by group with a list in the order of its columns."""

    name: str
    note: str = ""
    ours: bool = False
    quick: bool = True
    source: str = ""
    published: dict[str, Number | list[Number]] = {}
    measure: Measure | None = None


class Speed(_Strict):
    """How candidates are timed."""

    size: tuple[int, int] = (256, 256)
    rounds: int = 5


class Table(_Strict):
    """One YAML file."""

    name: str
    title: str
    text: str
    quick: bool = False
    protocol: str | None = None
    tolerance: float | None = None
    sources: dict[str, str] = {}
    speed: Speed = Speed()
    columns: tuple[Column, ...]
    rows: tuple[Row, ...]

    @field_validator("protocol")
    @classmethod
    def _known(cls, name: str | None) -> str | None:
        return _protocol(name)

    @model_validator(mode="after")
    def _consistent(self) -> Table:
        for what, names in (
            ("column", [c.key for c in self.columns]),
            ("row", [r.name for r in self.rows]),
        ):
            if twice := next((n for n in names if names.count(n) > 1), None):
                raise ValueError(f"two {what}s are named {twice!r}")
        for column in self.columns:
            if column.metric and not (column.protocol or self.protocol):
                raise ValueError(f"column {column.key!r} has no protocol")
        for row in self.rows:
            self.published(row)
        return self

    def published(self, row: Row) -> dict[str, Published]:
        """Return the published numbers of a row by column."""
        keys = {c.key: [c.key] for c in self.columns}
        for column in self.columns:
            if column.group:
                keys.setdefault(column.group, []).append(column.key)
        found = {}
        for name, given in row.published.items():
            if name not in keys:
                raise ValueError(f"row {row.name!r}: no column or group {name!r}{nearest(name, keys)}")
            numbers = given if isinstance(given, list) else [given]
            if len(numbers) != len(keys[name]):
                raise ValueError(
                    f"row {row.name!r}: {name!r} has {len(keys[name])} columns but {len(numbers)} numbers"
                )
            for key, number in zip(keys[name], numbers, strict=True):
                cell = number if isinstance(number, PublishedCell) else PublishedCell(value=number)
                source = cell.source or row.source
                if cell.value is not None and source not in self.sources:
                    raise ValueError(f"row {row.name!r}: no source {source!r}{nearest(source, self.sources)}")
                found[key] = Published(cell.value, source, cell.note)
        return found

    def chosen(self, row: Row) -> tuple[Column, ...]:
        """Return the columns in which a row is measured."""
        wanted = row.measure.columns if row.measure else ()
        return tuple(c for c in self.columns if not wanted or c.key in wanted or c.group in wanted)


class Suite:
    """All tables and data sets in a folder."""

    def __init__(self, folder: Path = FOLDER) -> None:
        files = sorted(p for p in folder.glob("*.yml") if p.name != "datasets.yml")
        if not files:
            raise BadInput(f"{folder}: contains no tables (*.yml)")
        self.datasets = read_datasets(folder / "datasets.yml")
        tables = [self._read_table(file) for file in files]
        tables.sort(key=lambda t: (ORDER.index(t.name) if t.name in ORDER else len(ORDER), t.name))
        self.tables = tuple(tables)

    def _read_table(self, file: Path) -> Table:
        table = _read_table(file)
        for column in table.columns:
            for name in (column.dataset, column.size_of):
                if name is not None and name not in self.datasets:
                    known = nearest(name, self.datasets)
                    raise BadInput(f"{file}: column {column.key!r}: no data set {name!r}{known}")
        return table

    @cached_property
    def names(self) -> tuple[str, ...]:
        """Names of the tables."""
        return tuple(t.name for t in self.tables)

    def select(self, words: Iterable[str]) -> Selection:
        """Select what words like TABLE, TABLE/ROW or TABLE/ROW/COLUMN name; a group means all its columns."""
        found = []
        for word in words:
            name, *rest = word.split("/", 2)
            if name not in self.names:
                raise BadInput(f"--only {word}: no table {name!r}{nearest(name, self.names)}")
            table = next(t for t in self.tables if t.name == name)
            rows = [r.name for r in table.rows]
            columns = [*(c.key for c in table.columns), *(c.group for c in table.columns if c.group)]
            chosen: list[str | None] = [None, None]
            for place, (what, wanted, known) in enumerate(
                zip(("row", "column"), rest, (rows, columns), strict=False)
            ):
                chosen[place] = next((k for k in known if k.lower() == wanted.lower()), None)
                if chosen[place] is None:
                    raise BadInput(f"--only {word}: no {what} {wanted!r} in {name}{nearest(wanted, known)}")
            found.append((name, *chosen))
        return Selection(tuple(found))


@dataclass(frozen=True)
class Selection:
    """What --only selects; everything where it is not given."""

    parts: tuple[tuple[str, str | None, str | None], ...] = ()

    def has(self, table: Table, row: Row | None = None, column: Column | None = None) -> bool:
        """Return whether a table, a row or a cell is selected."""
        return not self.parts or any(
            name == table.name
            and (row is None or wanted is None or wanted == row.name)
            and (column is None or place is None or place in (column.key, column.group))
            for name, wanted, place in self.parts
        )


def read_datasets(file: Path) -> dict[str, Description]:
    """Read the data sets that a file describes."""
    content = _read(file)
    try:
        return TypeAdapter(dict[str, Description]).validate_python(content)
    except ValidationError as error:
        raise _explained(file, error, content) from None


def _read_table(file: Path) -> Table:
    content = _read(file)
    try:
        return Table.model_validate({"name": file.stem} | content)
    except ValidationError as error:
        raise _explained(file, error, content) from None


def _read(file: Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise BadInput(f"{file}: no such file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(f"{file}: cannot be read ({error})") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f" at line {mark.line + 1}" if mark else ""
        raise BadInput(f"{file}: not YAML{where} ({getattr(error, 'problem', '') or 'damaged'})") from None
    if not isinstance(content, dict):
        raise BadInput(f"{file}: contains a {type(content).__name__} instead of keys and values")
    return content


def _protocol(name: str | None) -> str | None:
    if name is not None and name not in PROTOCOLS:
        raise ValueError(f"no protocol {name!r}{nearest(name, PROTOCOLS)}")
    return name


_MODELS: dict[str, type[BaseModel]] = {"columns": Column, "rows": Row, "measure": Measure, "speed": Speed}


def _explained(file: Path, error: ValidationError, content: Any) -> BadInput:
    """Describe the first problem on one line: file, place and remedy."""
    problem = error.errors()[0]
    place = [p for p in problem["loc"] if not (isinstance(p, str) and re.search(r"[\[(]|^float$", p))]
    words, here = [], content
    for part in place:
        try:
            here = here[part]
        except (KeyError, IndexError, TypeError):
            here = None
        name = here.get("name", here.get("key")) if isinstance(here, dict) else None
        words.append(f"{part + 1 if isinstance(part, int) else part}" + (f" ({name})" if name else ""))
    where = " ".join(words)
    if problem["type"] == "extra_forbidden":
        parents = [p for p in place[:-1] if p in _MODELS]
        if file.name == "datasets.yml":
            model: type[BaseModel] = Description
        elif "published" in place:
            model = PublishedCell
        else:
            model = _MODELS[str(parents[-1])] if parents else Table
        key = str(place[-1])
        inside = " ".join(words[:-1])
        what = f"unknown key {key!r}{nearest(key, model.model_fields)}"
        return BadInput(f"{file}: {inside + ': ' if inside else ''}{what}")
    message = problem["msg"].removeprefix("Value error, ")
    return BadInput(f"{file}: {where + ': ' if where else ''}{message}")
