"""The operator's benchmark: what it compares, and how it judges the targets."""

from __future__ import annotations

import json

import pytest
import torch

from benchmarks import accuracy, ops
from benchmarks.harness import measure


def test_every_candidate_computes_the_same(monkeypatch):
    monkeypatch.setenv("KBNET_KBA_ISA", "")  # restored afterwards; candidates set it
    found = {}
    for name, candidate in ops.candidates("cpu").items():
        if ops.absent(candidate, "cpu") is None and candidate.backend != "released":
            tensors, groups = ops.inputs(candidate, 1, 8, 6, "cpu")
            monkeypatch.setenv("KBNET_KBA_ISA", candidate.isa)
            found[name] = ops.kernel_basis_attention(*tensors, groups, 3, candidate.backend).float()
    (x, a, w, b), groups = ops.inputs(ops.Candidate("reference"), 1, 8, 6, "cpu")
    expected = ops.kernel_basis_attention(x, a, w, b, groups, 3, "reference")
    assert "tiled" in found
    for name, out in found.items():
        error = ((out - expected).abs().max() / expected.abs().max()).item()
        assert error < (2e-2 if "bf16" in name else 1e-5), name


def test_writes_every_shape_and_target(monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("KBNET_KBA_ISA", "")
    monkeypatch.setattr(ops, "SHAPES", [(8, 6), (16, 4)])
    path = tmp_path / "ops.json"
    arguments = ["--only", "tiled", "--repeats", "2", "--batch", "1", "2", "--no-memory", "--json", str(path)]
    assert ops.main(arguments) == 0
    written = json.loads(path.read_text())
    assert written["provenance"]["threads"] == torch.get_num_threads()
    cells = [(r["part"], r["batch"], r["channels"]) for r in written["results"]]
    assert cells == [
        ("forward", 1, 8),
        ("forward", 1, 16),
        *(("forward + backward", b, c) for b in (1, 2) for c in (8, 16)),
    ]
    assert all(r["seconds"]["tiled"]["calls"] >= 1 for r in written["results"])
    tiled = next(t for t in written["targets"] if t["what"].startswith("tiled, forward, batch 1"))
    assert tiled["target"] == ">= 2.5x"
    assert "forward + backward, batch 2" in capsys.readouterr().out


@pytest.mark.parametrize(("seconds", "met"), [(0.01, True), (0.5, False)])
def test_a_target_is_judged_at_the_worst_shape(seconds, met):
    def timing(median):
        return measure.Timing(median, median, median, 1)

    timings = {
        ("forward", 1, 64, 256): {"released": timing(1.0), "native amx": timing(0.01)},
        ("forward", 1, 512, 32): {"released": timing(1.0), "native amx": timing(seconds)},
    }
    first = ops.acceptance(timings, {}, {}, "cpu")[0]
    assert first["what"] == "native amx, forward, batch 1, against released"
    assert first["met"] is met


def test_errors_of_whole_networks_are_told(tiny_s, monkeypatch, capsys):
    monkeypatch.setattr(accuracy, "networks", lambda: iter([("tiny", tiny_s().eval())]))
    assert accuracy.main(["--part", "networks"]) == 0
    rows = [
        line.split("|")[1:-1] for line in capsys.readouterr().out.splitlines() if line.startswith("| tiny")
    ]
    errors = {(row[1].strip(), row[2].strip()): float(row[3]) for row in rows}
    assert {kind for _, kind in errors} == {"float32", "bfloat16"}
    for (_, kind), error in errors.items():
        assert 0 < error < accuracy.LIMITS[getattr(torch, kind)]
    assert {row[5].strip() for row in rows} <= {"yes", "NO"}


def test_a_wrong_network_fails(tiny_s, monkeypatch):
    class Wrong(type(tiny_s())):
        def forward(self, x):
            return super().forward(x) * (1 + 1e-3 * (x.dtype == torch.float32))

    network = tiny_s().eval()
    network.__class__ = Wrong
    monkeypatch.setattr(accuracy, "networks", lambda: iter([("tiny", network)]))
    assert accuracy.main(["--part", "networks"]) == 1
