"""The report of a benchmark run: a self-contained page, and the same content for other programs."""

from __future__ import annotations

import base64
import csv
import io
import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from itertools import groupby
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup, escape

from kbnet_plugin.files import atomic_path

from .pictures import Picture
from .results import Cell, Column, Table, to_json

NOT_FOUND = "n/f"
MINUS = "\N{MINUS SIGN}"
ARROWS = {"higher": "↑", "lower": "↓", None: ""}


def write(
    tables: Sequence[Table], folder: Path, *, pictures: Sequence[Picture] = (), about: Mapping[str, Any]
) -> Path:
    """Write report.html, .md, .json and .csv, a booktabs `<table>.tex` for each table, and pictures/.

    Each file is written whole or not at all.

    Parameters
    ----------
    tables : sequence of Table
        In the order of the page, with unique names.
    folder : Path
        Created if it does not exist.
    pictures : sequence of Picture
        Each appears below the table that it names, or else at the end.
    about : mapping
        What the head of the page says about the run, in this order ("date", "device", ...).

    Returns
    -------
    Path
        The page, which loads nothing from elsewhere.

    Raises
    ------
    OSError
        If the folder cannot be written to.
    """
    views = _views(tables)
    (folder / "pictures").mkdir(parents=True, exist_ok=True)
    for picture, panel, name in _picture_files(pictures):
        _write(folder / name, picture.panels[panel].content)
    content = {"about": about, "tables": json.loads(to_json(tables))}
    _write(folder / "report.json", json.dumps(content, indent=1, ensure_ascii=False, default=str) + "\n")
    _write(folder / "report.csv", _csv(tables))
    _write(folder / "report.md", _markdown(views, pictures, about))
    for view in views:
        _write(folder / f"{view.table.name}.tex", _latex(view))
    page = folder / "report.html"
    _write(page, _html(views, pictures, about))
    return page


def _write(path: Path, content: str | bytes) -> None:
    with atomic_path(path) as temporary:
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)


# --- What all formats share


@dataclass(frozen=True)
class _Shown:
    """A cell as text; what does not exist is empty."""

    published: str = ""
    source: str = ""
    note: str = ""
    status: str = ""
    value: str = ""
    spread: str = ""
    difference: str = ""  # only if it exceeds the tolerance
    reason: str = ""
    anchor: str = ""


@dataclass
class _Entry:
    """A provenance, shared by all cells that differ only in when they were measured."""

    anchor: str
    status: str
    reason: str
    facts: dict[str, str]
    places: list[str] = field(default_factory=list)
    dates: list[str] = field(default_factory=list)
    seconds: float = 0.0


@dataclass(frozen=True)
class _View:
    """A table as text."""

    table: Table
    groups: list[tuple[str, int]]  # upper headings, and how many columns each spans
    cells: list[list[_Shown | None]]
    letters: dict[str, str]  # tag of a source -> its letter
    notes: list[tuple[str, str]]  # what the note is about, the note
    entries: list[_Entry]


def _views(tables: Sequence[Table]) -> list[_View]:
    views, number = [], 0
    for table in tables:
        found: dict[str, _Entry] = {}
        cells: list[list[_Shown | None]] = []
        tags: dict[str, None] = {}
        notes = [(row.name, row.note) for row in table.rows if row.note]
        for row in table.rows:
            line: list[_Shown | None] = []
            for column in table.columns:
                cell = row.cells.get(column.key)
                line.append(None)
                if cell is None:
                    continue
                place = f"{row.name}, {label(column)}"
                entry = _entry(cell, found, number)
                if entry:
                    number = max(number, int(entry.anchor[1:]))
                    entry.places.append(place)
                if cell.published and cell.published.note:
                    notes.append((place, cell.published.note))
                if cell.published and cell.published.source:
                    tags[cell.published.source] = None
                line[-1] = _shown(cell, column, entry)
            cells.append(line)
        groups = [(g, len(list(cs))) for g, cs in groupby(table.columns, key=lambda c: c.group)]
        letters = {tag: _letter(i) for i, tag in enumerate(tags)}
        views.append(_View(table, groups, cells, letters, _together(notes), list(found.values())))
    return views


def label(column: Column) -> str:
    """Join both headings of a column."""
    return f"{column.group} {column.title}".strip()


def _letter(index: int) -> str:
    """Return a to z, then aa, ab, ...; a raised digit would read as part of a number."""
    rest, last = divmod(index, 26)
    return (_letter(rest - 1) if rest else "") + chr(ord("a") + last)


def _together(notes: list[tuple[str, str]]) -> list[tuple[str, str]]:
    places: dict[str, list[str]] = {}
    for place, note in notes:
        places.setdefault(note, []).append(place)
    return [(_some(names), note) for note, names in places.items()]


def _some(names: Sequence[str], most: int = 4) -> str:
    rest = len(names) - most
    return "; ".join(names[:most]) + (f"; and {rest} more" if rest > 0 else "")


def _entry(cell: Cell, found: dict[str, _Entry], number: int) -> _Entry | None:
    measured = cell.measured
    if measured is None:
        return None
    facts = {k: _text(v) for k, v in measured.provenance.items() if v not in (None, "", {}, [])}
    date, seconds = facts.pop("date", ""), facts.pop("seconds", "")
    key = json.dumps([measured.status, measured.reason, facts], sort_keys=True)
    entry = found.setdefault(key, _Entry(f"p{number + 1}", measured.status, measured.reason, facts))
    entry.dates.append(date)
    entry.seconds += float(seconds or 0)
    return entry


def _text(value: Any) -> str:
    """Format a fact of the provenance on one line; hashes are shortened, except in report.json."""
    if isinstance(value, Mapping):
        return ", ".join(f"{k} {_text(v)}" for k, v in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(map(_text, value))
    return re.sub(r"\b([0-9a-f]{12})[0-9a-f]{52}\b", r"\1…", str(value))


def _shown(cell: Cell, column: Column, entry: _Entry | None) -> _Shown:
    published, measured = cell.published, cell.measured
    shown: dict[str, str] = {}
    if published:
        shown |= {"source": published.source, "note": published.note}
        shown["published"] = NOT_FOUND if published.value is None else _printed(published.value, column)
    if measured and entry:
        shown |= {"status": measured.status, "reason": measured.reason, "anchor": entry.anchor}
        if measured.value is not None:
            shown["value"] = _number(measured.value, column.digits)
        if measured.spread is not None:
            # A spread must not be rounded to 0.
            small = 0 < measured.spread < 0.5 * 10**-column.digits
            shown["spread"] = f"{measured.spread:.1g}" if small else f"{measured.spread:.{column.digits}f}"
    if cell.differs and published and measured:
        difference = (measured.value or 0) - (published.value or 0)
        shown["difference"] = ("+" if difference > 0 else "") + _number(difference, column.digits)
    return _Shown(**shown)


def _number(value: float, digits: int) -> str:
    return f"{value:.{digits}f}".replace("-", MINUS)


def _printed(value: float, column: Column) -> str:
    """Format a published number with the digits it was printed with: 69, not 69.0; 0.9614, not 0.96."""
    if isinstance(value, int):
        return str(value)
    exponent = Decimal(repr(value)).as_tuple().exponent
    return _number(value, max(-int(exponent), column.digits))


def _counts(tables: Sequence[Table]) -> Counter[str]:
    count: Counter[str] = Counter()
    for cell in (cell for table in tables for row in table.rows for cell in row.cells.values()):
        if cell.measured:
            count[cell.measured.status] += 1
        if cell.published:
            count["not found" if cell.published.value is None else "published"] += 1
        count["differs"] += cell.differs
    return count


_LEGEND = (
    ("published", "published; the letter names the source"),
    ("nf", "no published number was found"),
    ("measured", "measured here, ± standard deviation"),
    ("unmeasured", "not measured here; the link says why"),
    ("failed", "the measurement failed; the link says why"),
    ("differs", "measured minus published, where it exceeds the protocol's tolerance"),
)


# --- HTML


def _html(views: Sequence[_View], pictures: Sequence[Picture], about: Mapping[str, Any]) -> str:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"linked": _linked, "uri": _uri, "text": _text, "facts": _facts}
    tables = [view.table for view in views]
    names = {table.name for table in tables}
    entries = [entry for view in views for entry in view.entries]
    return environment.get_template("report.html.jinja").render(
        views=views,
        beside={name: [p for p in pictures if p.table == name] for name in names},
        pictures=[p for p in pictures if p.table not in names],
        about=about,
        counts=_counts(tables),
        legend=_LEGEND,
        shared=_shared(entries),
        arrows=ARROWS,
        some=_some,
        zip=zip,
        trouble=[
            (row.name, label(column), shown)
            for view in views
            for row, line in zip(view.table.rows, view.cells, strict=True)
            for column, shown in zip(view.table.columns, line, strict=True)
            if shown and (shown.status == "failed" or shown.difference)
        ],
    )


def _shared(entries: Sequence[_Entry]) -> dict[str, str]:
    """Return the facts that all measurements share."""
    measured = [entry.facts for entry in entries if entry.status == "measured"]
    first = measured[0] if len(measured) > 1 else {}
    return {k: v for k, v in first.items() if all(facts.get(k) == v for facts in measured)}


_URL = re.compile(r"(https?://[^\s<>\"'|()]*[^\s<>\"'|().,;:])")


def _linked(text: str) -> Markup:
    """Turn addresses into links and escape everything else."""
    parts = _URL.split(text)
    return Markup("").join(
        Markup('<a href="{0}" rel="noreferrer">{0}</a>').format(part) if i % 2 else escape(part)
        for i, part in enumerate(parts)
    )


def _uri(content: bytes, media: str) -> str:
    return f"data:{media};base64,{base64.b64encode(content).decode()}"


# --- Markdown


def _markdown(views: Sequence[_View], pictures: Sequence[Picture], about: Mapping[str, Any]) -> str:
    out = ["# KBNet benchmarks", ""]
    out += [f"- {_md(key)}: {_md(_text(value))}" for key, value in about.items()]
    out += ["", f"Published numbers are in *italics* with their source; *{NOT_FOUND}* means not found. "]
    out[-1] += "Numbers measured here are **bold**; ○ means not measured, ✕ FAILED a failed measurement, "
    out[-1] += "and ≠ marks a difference above the protocol's tolerance. Footnotes say how each was measured."
    for view in views:
        table = view.table
        heads = [
            "method",
            *(_md(" ".join((label(c), c.unit, ARROWS[c.better])).strip()) for c in table.columns),
        ]
        out += ["", f"## {_md(table.title)}", "", _md(table.text), ""]
        out += ["| " + " | ".join(heads) + " |", "|---|" + "---:|" * len(table.columns)]
        for row, line in zip(table.rows, view.cells, strict=True):
            name = f"**{_md(row.name)}**" if row.ours else _md(row.name)
            out.append("| " + " | ".join([name, *(_md_cell(shown) for shown in line)]) + " |")
        notes = [f"- {_md(place)}: {_md(note)}" for place, note in view.notes]
        notes += [f"- [{_md(tag)}] {_md(table.sources.get(tag, ''))}" for tag in view.letters]
        out += ["", *notes] if notes else []
        out += _md_pictures([p for p in pictures if p.table == table.name], pictures)
    out += _md_pictures([p for p in pictures if p.table not in {v.table.name for v in views}], pictures)
    out.append("")
    for entry in (entry for view in views for entry in view.entries):
        facts = [f"{_md(k)}: {_md(v)}" for k, v in _facts(entry).items()]
        out.append(
            f"[^{entry.anchor}]: " + "; ".join([_md(f"{entry.status} {entry.reason}".strip()), *facts])
        )
    return "\n".join(out) + "\n"


def _facts(entry: _Entry) -> dict[str, str]:
    """Return the facts of an entry, with when it was measured and how long that took."""
    dates = sorted({date for date in entry.dates if date})
    when = {"date": dates[0] if len(dates) == 1 else f"{dates[0]} to {dates[-1]}"} if dates else {}
    return entry.facts | when | ({"seconds": f"{entry.seconds:.3g}"} if entry.seconds else {})


def _md_cell(shown: _Shown | None) -> str:
    if shown is None:
        return ""
    source = f" [{_md(shown.source)}]" if shown.source and shown.published != NOT_FOUND else ""
    parts = [f"*{shown.published}*{source}"] if shown.published else []
    mark = f"[^{shown.anchor}]"
    if shown.status == "measured":
        parts.append(f"**{shown.value}{' ± ' + shown.spread if shown.spread else ''}**{mark}")
    elif shown.status:
        parts.append(("✕ FAILED" if shown.status == "failed" else "○") + mark)
    if shown.difference:
        parts.append(f"≠ {shown.difference}")
    return "<br>".join(parts)


def _md(text: str) -> str:
    """Keep addresses as links and escape everything else."""
    parts = _URL.split(" ".join(text.split()))
    return "".join(
        f"<{part}>" if i % 2 else re.sub(r"([\\`*_{}\[\]<>#|~&])", r"\\\1", part)
        for i, part in enumerate(parts)
    )


def _md_pictures(shown: Sequence[Picture], pictures: Sequence[Picture]) -> list[str]:
    out = []
    for picture, panel, name in _picture_files(pictures):
        if picture not in shown:
            continue
        if panel == 0:
            out += ["", f"### {_md(picture.title)}", "", _md(picture.caption), ""]
        text = _md(picture.panels[panel].label)
        out.append(f"![{text or _md(picture.title)}]({name}) {text}".rstrip())
    return out


def _picture_files(pictures: Sequence[Picture]) -> list[tuple[Picture, int, str]]:
    """Return every panel with the name of its file beside report.md."""
    return [
        (picture, j, f"pictures/{i + 1:02}-{j + 1:02}.{'svg' if 'svg' in panel.media else 'png'}")
        for i, picture in enumerate(pictures)
        for j, panel in enumerate(picture.panels)
    ]


# --- CSV: one line per cell, unrounded


def _csv(tables: Sequence[Table]) -> str:
    out = io.StringIO()
    names = "table method group column unit published published_source published_note status measured spread"
    lines = csv.writer(out, lineterminator="\n")
    lines.writerow([*names.split(), "tolerance", "differs", "reason", "provenance"])
    for table in tables:
        for row in table.rows:
            for column in (c for c in table.columns if c.key in row.cells):
                cell = row.cells[column.key]
                printed, found = cell.published, cell.measured
                value = NOT_FOUND if printed and printed.value is None else printed and printed.value
                lines.writerow(
                    [table.name, row.name, column.group, column.title, column.unit]
                    + ([value, printed.source, printed.note] if printed else ["", "", ""])
                    + ([found.status, found.value, found.spread] if found else ["", "", ""])
                    + [cell.tolerance, "yes" if cell.differs else "", found.reason if found else ""]
                    + [json.dumps(found.provenance, ensure_ascii=False, default=str) if found else ""]
                )
    return out.getvalue()


# --- LaTeX


_LATEX = {
    "\\": r"\textbackslash{}",
    **{c: "\\" + c for c in "&%$#_{}"},
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    '"': r"\textquotedbl{}",
    "|": r"\textbar{}",
    "σ": r"$\sigma$",
    "×": r"$\times$",
    "±": r"$\pm$",
    "↑": r"$\uparrow$",
    "↓": r"$\downarrow$",
    "≤": r"$\leq$",
    "≥": r"$\geq$",
    "µ": r"$\mu$",
    "·": r"$\cdot$",
    MINUS: "$-$",
    "…": r"\ldots{}",
}


def _tex(text: str) -> str:
    return "".join(_LATEX.get(c, c) for c in " ".join(text.split()))


def _latex(view: _View) -> str:
    """Format a booktabs table, with a line of published and a line of measured numbers per row."""
    table = view.table
    spans, left = [], 2
    for title, width in view.groups:
        spans.append((title, left, left + width - 1))
        left += width
    out = [
        r"% needs \usepackage{booktabs} and \usepackage[T1]{fontenc}",
        r"\begin{table}",
        r"\centering\footnotesize\setlength{\tabcolsep}{3pt}",
        rf"\caption{{{_tex(table.title)}. {_tex(table.text)}",
        r"\textit{Italic}: published; \textit{n/f}: not found. \textbf{Bold}: measured here; $\circ$: not",
        r"measured; \textsc{failed}: measurement failed; $\neq$: exceeds the protocol's tolerance.}",
        rf"\label{{tab:{re.sub(r'[^a-zA-Z0-9-]', '-', table.name)}}}",
        r"\begin{tabular}{l" + "r" * len(table.columns) + "}",
        r"\toprule",
    ]
    if any(title for title, _, _ in spans):
        out.append(
            "".join(rf" & \multicolumn{{{b - a + 1}}}{{c}}{{{_tex(t)}}}" for t, a, b in spans) + r" \\"
        )
        out.append("".join(rf"\cmidrule(lr){{{a}-{b}}}" for t, a, b in spans if t))
    out.append("".join(f" & {_tex(c.title)}" for c in table.columns) + r" \\")
    out.append("".join(f" & {_tex(f'{c.unit} {ARROWS[c.better]}')}" for c in table.columns) + r" \\")
    out.append(r"\midrule")
    for row, line in zip(table.rows, view.cells, strict=True):
        first = [_tex_published(s, view.letters) for s in line]
        second = [_tex_measured(s) for s in line]
        lines = [cells for cells in (first, second) if any(cells)] or [first]
        name = rf"\textbf{{{_tex(row.name)}}}" if row.ours else _tex(row.name)
        for i, cells in enumerate(lines):
            out.append(" & ".join([name if i == 0 else "", *cells]) + r" \\")
        out.append(r"\addlinespace[2pt]")
    out += [r"\bottomrule", r"\end{tabular}"]
    notes = [
        rf"\textsuperscript{{{b}}}\,{_tex(tag)}: {_tex(table.sources.get(tag, ''))}"
        for tag, b in view.letters.items()
    ]
    notes += [f"{_tex(place)}: {_tex(note)}" for place, note in view.notes]
    out += [rf"\par\smallskip\raggedright\scriptsize {'; '.join(notes)}"] if notes else []
    return "\n".join([*out, r"\end{table}"]) + "\n"


def _tex_published(shown: _Shown | None, letters: Mapping[str, str]) -> str:
    if shown is None or not shown.published:
        return ""
    source = shown.published != NOT_FOUND and letters.get(shown.source)
    return rf"\textit{{{_tex(shown.published)}}}" + (rf"\textsuperscript{{{source}}}" if source else "")


def _tex_measured(shown: _Shown | None) -> str:
    if shown is None or not shown.status:
        return ""
    if shown.status != "measured":
        return r"\textsc{failed}" if shown.status == "failed" else r"$\circ$"
    spread = rf" $\pm$ {_tex(shown.spread)}" if shown.spread else ""
    differs = rf" ($\neq$ {_tex(shown.difference)})" if shown.difference else ""
    return rf"\textbf{{{_tex(shown.value)}}}{spread}{differs}"
