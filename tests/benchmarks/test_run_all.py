"""The whole command on a tiny suite."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from benchmarks import run_all
from benchmarks.harness import networks, protocols
from benchmarks.harness.store import Store
from benchmarks.harness.tables import FOLDER, Suite
from kbnet_plugin import save_network

SCRIPT = Path(run_all.__file__)
IMAGES = 12

DATASETS = {
    "Clean": {
        "title": "c",
        "where": "example.org",
        "folder": "test/Clean",
        "target": "*.png",
        "count": IMAGES,
    },
    "Pairs": {
        "title": "p",
        "where": "example.org/pairs",
        "folder": "test/Pairs",
        "input": "in/*.png",
        "target": "out/*.png",
        "count": 2,
    },
    "Absent": {"title": "a", "where": "example.org/absent", "folder": "test/Absent", "target": "*.png"},
}
TABLE = {
    "title": "T",
    "text": "t",
    "protocol": "gaussian",
    "tolerance": 0.02,
    "sources": {"X": "a paper"},
    "columns": [
        {"key": "c25", "group": "Clean", "title": "25", "metric": "psnr", "dataset": "Clean", "sigma": 25},
        {"key": "p", "title": "P", "metric": "psnr", "dataset": "Pairs", "protocol": "pairs"},
        {"key": "s", "title": "S", "metric": "ssim", "dataset": "Pairs", "protocol": "pairs"},
        {"key": "a", "title": "A", "metric": "psnr", "dataset": "Absent", "sigma": 25},
        {"key": "macs", "title": "M", "cost": "macs_full", "size": [32, 32]},
    ],
    "rows": [
        {"name": "input", "measure": {"input": True}},
        {
            "name": "KBNet",
            "source": "X",
            "published": {"c25": 31.0},
            "measure": {"network": "KBNet_s", "arguments": {"width": 8}, "weights": "tiny.pth"},
        },
        {"name": "peer", "measure": {"weights": "peer_{sigma}.pth", "columns": ["Clean"]}},
        {"name": "printed", "source": "X", "published": {"c25": 32.5}},
    ],
}


@pytest.fixture
def place(tmp_path, lively, monkeypatch):
    """Folders of tables, data and weights, and the command that uses them."""
    for name in ("KBNET_DATA", "KBNET_WEIGHTS"):
        monkeypatch.delenv(name, raising=False)
    g = np.random.default_rng(0)
    for folder, names in {
        "test/Clean": [f"{i:02}" for i in range(IMAGES)],
        "test/Pairs/in": "ab",
        "test/Pairs/out": "ab",
    }.items():
        (tmp_path / "data" / folder).mkdir(parents=True)
        for name in names:
            image = g.integers(0, 256, (48, 40, 3), np.uint8)
            Image.fromarray(image).save(tmp_path / "data" / folder / f"{name}.png")
    (tmp_path / "weights").mkdir()
    save_network(lively(), tmp_path / "weights" / "tiny.pth")
    (tmp_path / "tables").mkdir()
    write(tmp_path, "datasets", DATASETS)
    write(tmp_path, "t", TABLE)
    return tmp_path


def write(place, name, content):
    (place / "tables" / f"{name}.yml").write_text(yaml.safe_dump(content, sort_keys=False))


def command(place, *more, out="out"):
    folders = {"--tables": "tables", "--data": "data", "--weights": "weights", "--out": out}
    return [*(str(x) for k, v in folders.items() for x in (k, place / v)), *more]


def measured(place, out="out"):
    """Row, column: what was measured, from the report's JSON."""
    (table,) = (
        t for t in json.loads((place / out / "report.json").read_text())["tables"] if t["name"] == "t"
    )
    return {(r["name"], k): c["measured"] for r in table["rows"] for k, c in r["cells"].items()}


def refused(place, capsys, *words, out="out"):
    """Run; it must end with 2 and one line that contains the words."""
    assert run_all.main(command(place, out=out)) == 2
    said = capsys.readouterr().err.strip()
    assert "\n" not in said
    assert all(word in said for word in words), said
    return said


def failed(place, capsys, *words):
    """Run; it must end with 1, measure the rest, and name the failure on one line."""
    assert run_all.main(command(place)) == 1
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("failed: ")]
    assert len(lines) == 1
    assert all(word in lines[0] for word in words), lines
    assert any(c and c["status"] == "measured" for c in measured(place).values())


def test_cells_are_measured_what_is_missing_is_named_and_the_report_is_written(place, capsys):
    assert run_all.main(command(place)) == 0
    found = measured(place)
    assert 20.17 < found["input", "c25"]["value"] < 20.9  # 20 log10(255 / 25), plus a little from clipping
    assert found["KBNet", "c25"]["provenance"]["weights"] == "tiny.pth"
    assert found["KBNet", "macs"]["value"] > 0
    assert "example.org/absent" in found["input", "a"]["reason"]
    assert found["peer", "c25"]["reason"] == "needs weights: peer_25.pth"
    said = capsys.readouterr().out
    assert str(place / "out" / "report.html") in said
    rows = {line.split("|")[1].strip(): line for line in said.splitlines() if line.startswith("| ")}
    assert "[31.00]" in rows["KBNet"]
    assert "[32.50]" in rows["printed"]  # published beside measured
    assert "peer" not in rows


def test_what_was_measured_is_not_measured_again(place, monkeypatch):
    assert run_all.main(command(place)) == 0
    first = measured(place)
    monkeypatch.setattr(networks.Network, "restore", lambda *_, **__: pytest.fail("computed twice"))
    assert run_all.main(command(place)) == 0
    assert measured(place) == first


def test_other_weights_and_other_data_are_measured_anew(place, tiny_s):
    assert run_all.main(command(place)) == 0
    first = measured(place)
    save_network(tiny_s(), place / "weights" / "tiny.pth")
    Image.fromarray(np.zeros((48, 40, 3), np.uint8)).save(place / "data/test/Pairs/in/a.png")
    assert run_all.main(command(place)) == 0
    second = measured(place)
    assert second["KBNet", "c25"]["value"] != first["KBNet", "c25"]["value"]
    assert second["input", "p"]["value"] != first["input", "p"]["value"]
    assert second["input", "c25"] == first["input", "c25"]


def test_a_killed_run_resumes_and_computes_nothing_twice(place, monkeypatch):
    assert run_all.main(command(place, out="whole")) == 0
    cells = place / "out" / "cells"
    process = started(place)
    while not any(p.read_text().count("\n") > 1 for p in cells.glob("*.parts")):
        assert process.poll() is None, process.communicate()
        time.sleep(0.001)
    process.kill()
    process.communicate()
    kept = sum(p.read_text().count("\n") for p in cells.glob("*.parts"))
    finished = len(list(cells.glob("*.json")))
    assert list(cells.glob("*.lock"))  # it could not clean up

    compared = []
    compare = protocols.compare
    monkeypatch.setattr(protocols, "compare", lambda *a: compared.append(1) or compare(*a))
    assert run_all.main(command(place)) == 0
    images = 2 * (IMAGES + 2)  # two rows on both sets
    done_before = sum(len(c["images"]) for c in contents(cells)) - len(compared)
    assert sum(len(c["images"]) for c in contents(cells)) == images
    assert done_before >= kept
    assert finished < len(list(cells.glob("*.json")))
    values = [{k: m and m["value"] for k, m in measured(place, out).items()} for out in ("out", "whole")]
    assert values[0] == values[1]


def started(place):
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, SCRIPT, *command(place)],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def contents(cells):
    return [c for f in cells.glob("*.json") if "images" in (c := json.loads(f.read_text()))]


def test_two_processes_share_a_folder_and_each_cell_is_computed_once(place):
    pair = [started(place), started(place)]
    said = []
    for process in pair:
        out, err = process.communicate(timeout=120)
        assert process.returncode == 0, err
        assert "report:" in out
        said += [
            line.split("] ", 1)[1] for line in err.splitlines() if line.startswith("[") and ": psnr" in line
        ]
    assert len(said) == len(set(said)) == 4  # two rows on two sets
    assert not list((place / "out" / "cells").glob("*.lock"))


def test_helpers_do_a_part_and_end_with_the_run(place, capfd):
    assert run_all.main(command(place, "--jobs", "2")) == 0
    said = [line for line in capfd.readouterr().err.splitlines() if ": psnr" in line]
    assert len(said) == 4  # by whichever process
    assert {k for k, m in measured(place).items() if m and m["status"] == "measured"} >= {("KBNet", "c25")}


def test_ctrl_c_ends_with_130_and_a_line(place, monkeypatch, capsys):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(protocols, "compare", interrupt)
    assert run_all.main(command(place)) == 130
    assert "the same command resumes it" in capsys.readouterr().err
    assert not list((place / "out" / "cells").glob("*.lock"))


def test_a_lock_of_a_dead_process_is_taken_over_and_a_living_one_is_respected(tmp_path):
    store = Store(tmp_path)
    with store.lock("k") as mine:
        assert mine
        with Store(tmp_path).lock("k") as other:
            assert not other
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    (tmp_path / "k.lock").write_text(f"{socket.gethostname()} {ended.pid} x")
    with store.lock("k") as mine:
        assert mine
    (tmp_path / "k.lock").write_text("elsewhere 1 x")  # another machine: only time tells
    with store.lock("k") as mine:
        assert not mine
    store._seen = {p: (holder, touched, then - 61) for p, (holder, touched, then) in store._seen.items()}
    with store.lock("k") as mine:
        assert mine
    assert not list(tmp_path.iterdir())


def test_a_torn_line_of_a_killed_run_is_dropped(tmp_path):
    store = Store(tmp_path)
    store.add_part("k", {"psnr": 1.0})
    with (tmp_path / "k.parts").open("a") as file:
        file.write('{"psnr": 2')
    assert store.parts("k") == [{"psnr": 1.0}]
    store.add_part("k", {"psnr": 2.0})
    assert store.parts("k") == [{"psnr": 1.0}, {"psnr": 2.0}]


def test_bad_yaml_is_refused(place, capsys):
    (place / "tables" / "t.yml").write_text("title: [unclosed\ncolumns: 3")
    refused(place, capsys, "t.yml", "not YAML", "line")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda t: t.update(protocol="gausian"), ("t.yml", "'gausian'", "did you mean 'gaussian'")),
        (lambda t: t["rows"][1].update(publishd=3), ("t.yml", "KBNet", "'publishd'", "'published'")),
        (lambda t: t["columns"][0].update(sigm=3), ("t.yml", "c25", "'sigm'", "'sigma'")),
        (lambda t: t["rows"][1]["measure"].update(wieghts="x"), ("'wieghts'", "'weights'")),
        (lambda t: t["columns"][0].update(dataset="Claen"), ("c25", "'Claen'", "'Clean'")),
        (lambda t: t["rows"][1].update(published={"Clean": [1, 2]}), ("KBNet", "1 columns", "2 numbers")),
        (lambda t: t["rows"][1].update(source="Y"), ("KBNet", "no source 'Y'")),
    ],
    ids=["protocol", "row", "column", "measure", "dataset", "numbers", "source"],
)
def test_a_wrong_table_is_refused_with_the_nearest_name(place, capsys, change, words):
    table = yaml.safe_load(yaml.safe_dump(TABLE))
    change(table)
    write(place, "t", table)
    refused(place, capsys, *words)


def test_a_missing_image_is_a_failed_cell(place, capsys):
    (place / "data/test/Clean/03.png").unlink()
    failed(place, capsys, "Clean", f"{IMAGES - 1} images", f"not {IMAGES}")


def test_an_image_without_a_partner_is_a_failed_cell(place, capsys):
    (place / "data/test/Pairs/in/b.png").unlink()
    failed(place, capsys, "Pairs", "b.png", "has no input")


def test_a_truncated_image_is_a_failed_cell(place, capsys):
    file = place / "data/test/Pairs/out/b.png"
    file.write_bytes(file.read_bytes()[:300])
    failed(place, capsys, "b.png")


def test_weights_of_another_network_are_a_failed_cell(place, capsys, tiny_l):
    save_network(tiny_l(), place / "weights" / "tiny.pth")
    failed(place, capsys, "tiny.pth", "KBNet_l", "the row is KBNet_s")


def test_weights_of_no_network_are_a_failed_cell(place, capsys):
    torch.save({"params": {"x.weight": torch.zeros(3, 3)}}, place / "weights" / "tiny.pth")
    failed(place, capsys, "tiny.pth", "no known network")


def test_a_folder_that_cannot_be_written_is_refused(place, capsys):
    (place / "file").write_text("")
    refused(place, capsys, "--out", "cannot be written to", out="file/out")


def test_folders_and_names_that_are_not_there_are_refused(place, capsys):
    assert run_all.main([*command(place), "--data", str(place / "nowhere")]) == 2
    assert "--data: no folder" in capsys.readouterr().err
    assert run_all.main(command(place, "--only", "tt")) == 2
    assert "did you mean 't'" in capsys.readouterr().err
    assert run_all.main(command(place, "--only", "t/KBnt")) == 2
    assert "did you mean 'KBNet'" in capsys.readouterr().err


def test_only_one_cell_is_measured_where_one_is_named(place):
    assert run_all.main(command(place, "--only", "t/kbnet/c25")) == 0
    found = {k for k, m in measured(place).items() if m and m["status"] == "measured"}
    assert found == {("KBNet", "c25")}


def test_a_model_of_ones_own_gets_a_row(place):
    assert run_all.main(command(place, "--model", str(place / "weights" / "tiny.pth"))) == 0
    found = measured(place)
    assert found["tiny", "c25"]["value"] == found["KBNet", "c25"]["value"]


def test_the_list_says_where_to_get_what_is_missing(place, capsys):
    assert run_all.main(command(place, "--list")) == 0
    said = capsys.readouterr().out
    assert "Clean" in said
    assert "missing: expected at test/Absent/*.png; get it from example.org/absent" in said
    assert "peer_25.pth" in said
    assert not (place / "out").exists()


def test_the_shipped_tables_are_valid_and_contain_the_known_numbers():
    suite = Suite(FOLDER)
    tables = {t.name: t for t in suite.tables}
    color = tables["gaussian_color"]
    row = next(r for r in color.rows if r.name == "KBNet_s")
    assert color.published(row)["CBSD68-15"].value == 34.41
    assert color.published(row)["CBSD68-50"].value is None
    rain = tables["deraining"]
    restormer = next(r for r in rain.rows if r.name.startswith("Restormer"))
    assert rain.published(restormer)["Test1200-psnr"].source == "mmagic"


@pytest.mark.skipif("KBNET_DATA" not in os.environ, reason="needs KBNET_DATA")
def test_noisy_pairs_have_the_published_psnr(tmp_path):
    out = ["--out", str(tmp_path), "--only", "real_noise/noisy input/CC15-psnr"]
    assert run_all.main(out) == 0
    tables = json.loads((tmp_path / "report.json").read_text())["tables"]
    cell = tables[0]["rows"][0]["cells"]["CC15-psnr"]["measured"]
    assert cell["value"] == pytest.approx(33.41, abs=0.02)
