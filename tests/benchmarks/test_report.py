"""The report: nothing is lost, nothing can be confused, nothing loads from elsewhere."""

from __future__ import annotations

import csv
import json
import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest

from benchmarks.harness import report
from benchmarks.harness.pictures import Panel, Picture
from benchmarks.harness.results import Cell, Column, Measured, Published, Row, Table, from_json
from benchmarks.harness.tables import Suite

VOID = {"meta", "img", "br", "link", "input", "hr"}
PROVENANCE = {
    "command": "python benchmarks/run_all.py --only gaussian_color",
    "device": "an invented CPU",
    "threads": 2,
    "versions": {"torch": "0.0.1", "numpy": "0.0.2"},
    "weights_sha256": "0123456789ab" + 52 * "c",
    "protocol": "gaussian: σ of 255, seed 0, not clipped",
}
REASON = "needs weights: gau_color_15.pth, from https://example.org/weights?a=1&b=2"


def measured(value: float, spread: float | None = None, **facts) -> Measured:
    return Measured("measured", value, spread, provenance=PROVENANCE | facts)


def gaussian() -> Table:
    """Invented numbers in every state that a cell can have."""
    columns = [Column("params", "parameters", unit="M", better="lower")]
    columns += [
        Column(f"{name}-{sigma}", f"σ {sigma}", name, "dB", better="higher")
        for name in ("CBSD68", "Kodak24", "McMaster", "Urban100")
        for sigma in (15, 25, 50)
    ]
    keys = [c.key for c in columns]
    peer = {key: Cell(Published(30.1 + i / 4, "IMG SwinIR")) for i, key in enumerate(keys[1:])}
    small = {
        key: Cell(
            Published(33.9 - i / 4, "IMG GRL"),
            measured(33.891 - i / 4, seconds=3.25, date=f"2000-01-{i + 1:02}"),
            0.02,
        )
        for i, key in enumerate(keys[1:])
    }
    kbnet = {
        key: Cell(Published(34.41 if i == 0 else None, "PWC"), Measured("not measured", reason=REASON))
        for i, key in enumerate(keys[1:])
    }
    kbnet["CBSD68-25"] = Cell(Published(31.8, "PWC"), measured(31.66, 0.0312), 0.02)
    kbnet["CBSD68-50"] = Cell(
        Published(28.62, "PWC", "mean of | two"),
        Measured("failed", reason="RuntimeError: <b>out</b> of memory"),
    )
    return Table(
        "gaussian_color",
        "Gaussian noise, colour",
        "PSNR in dB with white noise of the given standard deviation, mean over the images.",
        tuple(columns),
        (
            Row("noisy input", cells={k: Cell(None, measured(24.6 - i / 2)) for i, k in enumerate(keys[1:])}),
            Row(
                "KBNet_s",
                "a network of its own for each level",
                True,
                {"params": Cell(Published(142, "CODE"), measured(141.97)), **kbnet},
            ),
            Row("DnCNN", cells={"params": Cell(Published(0.56, "IMG GRL"), measured(0.5584), 0.01), **small}),
            Row("BM3D", cells=peer),
        ),
        {
            "PWC": "a listing of the paper",
            "CODE": "counted in the code, https://github.com/zhangyi-3/KBNet",
            "IMG SwinIR": "table images in https://github.com/JingyunLiang/SwinIR (figs/)",
            "IMG GRL": "table images elsewhere",
        },
    )


def complexity() -> Table:
    columns = (
        Column("published", "published convention", "MACs", "G", 1, "lower"),
        Column("full", "in full", "MACs", "G", 1, "lower"),
        Column("memory", "training", "activations", "MiB", 0, "lower"),
    )
    names = {
        "KBNet_s": (68.7, 117.3, 3123),
        "NAFNet-w64": (63.2, 63.2, 1894),
        "Restormer": (141.0, 154.9, 2950),
    }
    return Table(
        "complexity",
        "Complexity",
        "One 3x256x256 image. The columns differ by work that hook-based counters do not see.",
        columns,
        tuple(
            Row(
                name,
                ours=name == "KBNet_s",
                cells={
                    c.key: Cell(None, measured(v, protocol="counted"))
                    for c, v in zip(columns, values, strict=True)
                },
            )
            for name, values in names.items()
        ),
    )


@pytest.fixture
def folder(tmp_path):
    chart = Picture("A chart", "Its caption", (Panel(b"<svg/>", media="image/svg+xml"),), "complexity")
    square = Picture("Crops", "Two", (Panel(b"\x89PNG", "noisy\n20.00 dB"), Panel(b"\x89PNG", "truth")))
    about = {"date": "2000-01-01", "device": "an invented CPU", "versions": {"torch": "0.0.1"}}
    page = report.write([gaussian(), complexity()], tmp_path, pictures=[chart, square], about=about)
    assert page == tmp_path / "report.html"
    return tmp_path


class Page(HTMLParser):
    """Tags, targets and the cells of the first table, by row and column."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.ids: list[str] = []
        self.rows: list[list[str]] = []
        self.text = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self.ids += [value for key, value in attrs if key == "id"]
        if tag not in VOID:
            self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
        if "td" in self.open:
            self.rows[-1][-1] += self.get_starttag_text()

    def handle_endtag(self, tag):
        assert self.open.pop() == tag  # well-formed: nothing of the texts opened or closed a tag

    def handle_data(self, data):
        self.text += data
        if "td" in self.open or "th" in self.open:
            self.rows[-1][-1] += data


def page_of(folder) -> Page:
    return Page((folder / "report.html").read_text())


def cell_of(page: Page, row: str, column: int) -> str:
    return next(cells for cells in page.rows if cells[0] == row)[column]


def test_nothing_in_the_page_loads_from_elsewhere(folder):
    page = page_of(folder)
    for tag, attributes in page.tags:
        assert tag not in ("script", "link", "iframe", "object", "embed", "video", "audio", "base", "form")
        for name, value in attributes.items():
            assert not name.startswith("on")
            if name == "href":
                assert tag == "a"
                assert value.startswith(("#", "https://"))  # followed when a reader follows it
            elif name in ("src", "srcset", "data", "poster", "background", "action"):
                assert value.startswith("data:image/")
            elif name == "style":
                assert "url" not in value
    style = re.search(r"<style>(.*?)</style>", (folder / "report.html").read_text(), re.DOTALL).group(1)
    assert "url(" not in style
    assert "@import" not in style
    policies = [a["content"] for t, a in page.tags if a.get("http-equiv") == "Content-Security-Policy"]
    assert policies == ["default-src 'none'; img-src data:; style-src 'unsafe-inline'"]


def test_every_link_within_the_page_has_its_target_and_every_target_is_one(folder):
    page = page_of(folder)
    inside = {a["href"][1:] for t, a in page.tags if t == "a" and a["href"].startswith("#")}
    assert inside <= set(page.ids)
    assert len(page.ids) == len(set(page.ids))


def test_every_number_of_the_page_leads_to_where_it_comes_from(folder):
    page = page_of(folder)
    kinds = {"pub": 0, "measured": 0}
    for cells in page.rows:
        for cell in (c for c in cells if "<div>" in c):
            for line in cell.split("<div>")[1:]:
                if "n/f" not in line:
                    assert re.match(r'<a href="#(s-gaussian_color-[a-z]|p\d+)"', line), line
                    kinds["pub" if "#s-" in line else "measured"] += 1
    assert kinds["pub"] == 1 + 1 + 2 + 1 + 12 + 12
    assert kinds["measured"] == 12 + 12 + 1 + 13 + 9  # every state but "n/f" is one


def test_published_and_measured_numbers_cannot_be_mistaken(folder):
    page = page_of(folder)
    cell = cell_of(page, "KBNet_s", 3)
    assert re.search(r'<i class="pub">31.80<sup>b', cell)
    assert re.search(r"<b>31.66<small>± 0.03", cell)
    assert not re.search(r"<b>31.80|<i[^>]*>31.66", cell)
    line = markdown_row(folder, "**KBNet\\_s**")[3]
    assert "*31.80* [PWC]<br>**31.66 ± 0.03**" in line
    tex = (folder / "gaussian_color.tex").read_text()
    assert r"\textit{31.80}\textsuperscript{b}" in tex
    assert r"\textbf{31.66} $\pm$ 0.03" in tex
    found = {(r["method"], r["group"], r["column"]): r for r in rows_of(folder)}[
        ("KBNet_s", "CBSD68", "σ 25")
    ]
    assert (found["published"], found["measured"], found["spread"]) == ("31.8", "31.66", "0.0312")


def markdown_row(folder, name: str) -> list[str]:
    lines = (folder / "report.md").read_text().splitlines()
    line = next(line for line in lines if line.startswith(f"| {name} |"))
    return [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]


def rows_of(folder) -> list[dict[str, str]]:
    with (folder / "report.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_failed_unmeasured_and_not_found_differ_in_every_format(folder):
    page = page_of(folder)
    html = [re.sub(r"<[^>]*>", "", cell_of(page, "KBNet_s", i)) for i in (3, 4, 5)]
    assert html == ["31.80b31.66± 0.03≠ −0.14", "28.62b✕ failed", "n/f○"]
    text = markdown_row(folder, "**KBNet\\_s**")
    assert re.fullmatch(r"\*28.62\* \[PWC\]<br>✕ FAILED\[\^p\d+\]", text[4])
    assert re.fullmatch(r"\*n/f\*<br>○\[\^p\d+\]", text[5])
    tex = (folder / "gaussian_color.tex").read_text().splitlines()
    start = next(i for i, line in enumerate(tex) if line.startswith(r"\textbf{KBNet\_s}"))
    published, found = (tex[i].removesuffix(r" \\").split(" & ") for i in (start, start + 1))
    assert (published[4], found[4]) == (r"\textit{28.62}\textsuperscript{b}", r"\textsc{failed}")
    assert (published[5], found[5]) == (r"\textit{n/f}", r"$\circ$")
    lines = {(r["group"], r["column"]): r for r in rows_of(folder) if r["method"] == "KBNet_s"}
    failed, missing = lines["CBSD68", "σ 50"], lines["Kodak24", "σ 15"]
    assert (failed["published"], failed["status"], failed["measured"]) == ("28.62", "failed", "")
    assert (missing["published"], missing["status"], missing["measured"]) == ("n/f", "not measured", "")


def test_a_failure_and_a_difference_are_named_at_the_top_with_their_reason(folder):
    page = page_of(folder)
    top = page.text[: page.text.index("the letter names the source")]
    assert "KBNet_s, CBSD68 σ 25: 31.66 measured, 31.80 published" in top
    assert re.search(r"threads\s*2", top)  # what all measurements share is part of the summary
    assert "KBNet_s, CBSD68 σ 50: failed, RuntimeError: <b>out</b> of memory" in top


def test_only_a_difference_above_the_tolerance_is_flagged(folder):
    assert [(r["method"], r["column"]) for r in rows_of(folder) if r["differs"]] == [("KBNet_s", "σ 25")]
    assert (folder / "report.md").read_text().count("<br>≠") == 1
    assert (folder / "gaussian_color.tex").read_text().count(r"($\neq$") == 1


def test_cells_measured_alike_share_one_provenance(folder):
    page = page_of(folder)
    dncnn = {re.search(r"#p\d+", cell_of(page, "DnCNN", i)).group() for i in range(2, 14)}
    assert len(dncnn) == 1
    assert "2000-01-01 to 2000-01-12" in page.text
    assert "39" in page.text  # 12 times 3.25 seconds
    missing = {re.search(r"#p\d+", cell_of(page, "KBNet_s", i)).group() for i in range(5, 14)}
    assert len(missing) == 1
    assert dncnn.isdisjoint(missing)


def test_markup_in_a_text_stays_text(tmp_path):
    evil = "<script>alert(1)</script>\"'><img src=x onerror=y>{{ 7*7 }} | `a` [b](c) \\end{x} 50% #1 a_b~^&"
    table = gaussian()
    cells = {
        "params": Cell(Published(1.0, evil, evil), Measured("failed", reason=evil, provenance={evil: evil}))
    }
    column = replace(table.columns[0], title=evil, group=evil, unit=evil)
    table = replace(
        table,
        title=evil,
        text=evil,
        columns=(column,),
        rows=(Row(evil, evil, True, cells),),
        sources={evil: evil},
    )
    picture = Picture(evil, evil, (Panel(b"x", evil),))
    report.write([table], tmp_path, pictures=[picture], about={evil: evil})
    page = page_of(tmp_path)  # well-formed, or it raises
    assert not {"script", "object"} & {tag for tag, _ in page.tags}
    assert all("onerror" not in attributes for _, attributes in page.tags)
    assert "{{ 7*7 }}" in page.text
    text = (tmp_path / "report.md").read_text()
    assert not re.search(r"(?<!\\)<(script|img)", text)
    assert not re.search(r"(?<!\\)`", text)
    assert "\\[b\\](" in text
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert {len(re.findall(r"(?<!\\)\|", line)) for line in rows} == {3}
    tex = (tmp_path / "gaussian_color.tex").read_text()
    assert r"\end{x}" not in tex
    assert r"\textbackslash{}end\{x\} 50\% \#1 a\_b\textasciitilde{}\textasciicircum{}\&" in tex
    assert tex.count("{") - tex.count(r"\{") == tex.count("}") - tex.count(r"\}")


def test_a_source_with_another_scheme_is_no_link():
    assert "href" not in report._linked("javascript:alert(1) file:///etc/passwd")


def test_json_gives_the_tables_back(folder):
    content = json.loads((folder / "report.json").read_text())
    assert from_json(json.dumps(content["tables"])) == [gaussian(), complexity()]
    assert content["about"]["device"] == "an invented CPU"


def test_csv_holds_every_cell_unrounded_with_its_whole_provenance(folder):
    rows = rows_of(folder)
    assert len(rows) == sum(len(r.cells) for t in (gaussian(), complexity()) for r in t.rows)
    dncnn = next(r for r in rows if r["method"] == "DnCNN" and r["column"] == "parameters")
    assert dncnn["measured"] == "0.5584"
    assert json.loads(dncnn["provenance"])["weights_sha256"] == PROVENANCE["weights_sha256"]


@pytest.mark.parametrize(
    ("value", "digits", "shown"),
    [(69, 1, "69"), (31.8, 2, "31.80"), (0.9614, 2, "0.9614"), (-0.5, 2, "−0.50"), (1e-05, 2, "0.00001")],
)
def test_a_published_number_keeps_the_digits_that_were_printed(value, digits, shown):
    assert report._printed(value, Column("c", "c", digits=digits)) == shown


def test_a_whole_number_of_a_yaml_file_gets_no_decimals():
    table = next(t for t in Suite().tables if t.name == "complexity")
    row = next(r for r in table.rows if r.name == "KBNet_s")
    assert report._printed(table.published(row)["macs"].value, Column("macs", "MACs", digits=1)) == "69"


def test_a_spread_is_never_rounded_to_nothing():
    cell = Cell(None, measured(31.66, 0.0004))
    found: dict = {}
    shown = report._shown(cell, Column("c", "c"), report._entry(cell, found, 0))
    assert shown.spread == "0.0004"


def test_pictures_are_in_the_page_and_beside_the_markdown(folder):
    page = page_of(folder)
    sources = [a["src"].partition(",")[0] for t, a in page.tags if t == "img"]
    assert sources == ["data:image/svg+xml;base64", "data:image/png;base64", "data:image/png;base64"]
    named = re.findall(r"!\[.*?\]\((pictures/[^)]*)\)", (folder / "report.md").read_text())
    assert sorted(named) == sorted(f"pictures/{p.name}" for p in (folder / "pictures").iterdir())
    assert page.text.index("A chart") < page.text.index("Crops")  # beside its table, before the rest


def test_a_report_that_cannot_be_written_leaves_the_old_one(folder, monkeypatch):
    before = (folder / "report.html").read_bytes()
    monkeypatch.setattr(report, "_html", lambda *_: "\ud800")  # no UTF-8 for it
    with pytest.raises(UnicodeEncodeError):
        report.write([gaussian()], folder, about={})
    assert (folder / "report.html").read_bytes() == before
    assert not [p for p in folder.iterdir() if p.name.startswith(".")]


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="file"):
        report.write([gaussian()], tmp_path / "file", about={})
