"""Controlled comparison: the variants, the plan, the runs, and what their tables say."""

from __future__ import annotations

import json
import os
import signal

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from basicsr_ext import registry  # first: it imports BasicSR without its messages
from basicsr_ext import run as running
from benchmarks import compare
from benchmarks.harness import illustrate, planning, processes, studies, trainings, variants
from benchmarks.harness.store import Store
from kbnet_plugin.errors import BadInput
from tests.conftest import TINY_S

TINY = {
    "options": {
        "model_type": "ImageCleanModel",
        "datasets": {
            "train": {
                "type": "Dataset_GaussianDenoising",
                "sigma_range": 25,
                "gt_size": 16,
                "batch_size_per_gpu": 1,
                "cache_images": True,
            }
        },
        "train": {"optim_g": {"type": "AdamW", "lr": 1e-3}, "pixel_opt": {"type": "L1Loss"}},
        "val": {
            "tile": 208,
            "tile_overlap": 16,
            "samples": 0,
            "metrics": {"psnr": {"type": "calculate_psnr", "crop_border": 0}},
        },
    },
    "network": {
        "type": "KBNetVariant",
        "width": 4,
        "enc_blk_nums": [],
        "dec_blk_nums": [],
        "middle_blk_num": 1,
    },
    "test": {"sets": ["CBSD68"], "sigma": 25},
    "studies": [
        {
            "name": "bases",
            "title": "Bases",
            "text": "How many.",
            "rows": [
                {"name": "full", "ours": True},
                {"name": "none", "arguments": {"bases": 0}},
            ],
        }
    ],
}


def plan_of(rows=("full", "none"), seeds=3, iterations=10):
    """A plan as a folder contains it, of networks that nobody trains."""
    networks = {name: {"network": {"width": 8}, "parameters": 0.1, "macs_full": 1.0} for name in rows}
    return {
        "conditions": {
            "seeds": seeds,
            "device": "cpu",
            "options": TINY["options"],
            "train": {"title": "pictures", "files": ["a"]},
            "test": {"title": "CBSD68", "files": ["b", "c"], "sigma": 25, "sha256": "0"},
        },
        "iterations": iterations,
        "tested": 2,
        "networks": networks,
        "provenance": {"command": "c", "device": "d"},
        "studies": [
            {
                "name": "bases",
                "title": "Bases",
                "text": "How many.",
                "timed": False,
                "rows": [
                    {"name": n, "ours": n == "full", "run": n, "reason": "", "equal": None} for n in rows
                ],
            }
        ],
    }


def folder_of(path, plan, values):
    """A folder with a plan and the PSNR of some runs."""
    (path / "plan.json").write_text(json.dumps(plan))
    store = Store(path / "cells")
    for run, value in values.items():
        store.write(run, {"psnr": value, "provenance": {"date": "2026", "seconds": 1.0, "device": "d"}})
    return store


def gradients(network):
    """Names of the parameters that affect the output."""
    network.train()
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if name.rsplit(".", 1)[-1] in ("beta", "gamma", "ga1", "attgamma"):
                parameter.fill_(0.3)
    network(torch.rand(2, 3, 12, 20)).square().mean().backward()
    return {n for n, p in network.named_parameters() if p.grad is not None and p.grad.any()}


def test_the_variant_without_a_difference_is_kbnet_s(lively):
    network = lively(lightweight=True)
    variant = variants.KBNetVariant(**TINY_S, lightweight=True).eval()
    variant.load_state_dict(network.state_dict())
    image = torch.rand(1, 3, 21, 18)
    with torch.no_grad():
        torch.testing.assert_close(variant(image), network(image), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "arguments",
    [
        *({"bases": n} for n in (0, 1, 64)),
        *({"operator": o} for o in ("depthwise", "grouped", "dynamic", "window")),
        *({"without": [b]} for b in ("channel", "invariant", "adaptive")),
        {"without": ["channel", "adaptive"]},
        {"softmax": True},
        {"parts": ["conv2"]},
        {"parts": ["conv211"]},
    ],
    ids=str,
)
def test_a_variant_has_only_parameters_that_it_uses(arguments):
    network = variants.KBNetVariant(**TINY_S, **arguments)
    assert gradients(network) == {n for n, _ in network.named_parameters()}


def test_what_is_left_out_costs_nothing():
    full = variants.cost({"type": "KBNetVariant", **TINY_S})
    none = variants.cost({"type": "KBNetVariant", **TINY_S, "bases": 0})
    assert full["kba"] > 0 == none["kba"]
    blocks = variants.build({"type": "KBNetVariant", **TINY_S, "bases": 0})
    assert not [n for n, _ in blocks.named_parameters() if n.endswith((".w", ".b", "ga1", "attgamma"))]


def test_softmax_makes_the_coefficients_sum_to_one():
    network = variants.KBNetVariant(**TINY_S, softmax=True)
    block = network.middle_blks[0]
    a = block._coefficients(torch.randn(1, 32, 5, 6))
    torch.testing.assert_close(a.sum(1), torch.ones(1, 5, 6))


def test_window_attention_does_not_look_beyond_its_window():
    layer = variants.WindowAttention(8).eval()
    x = torch.randn(1, 8, 16, 13)
    other = x.clone()
    other[:, :, 8:] = 0
    with torch.no_grad():
        assert torch.allclose(layer(x)[:, :, :8], layer(other)[:, :, :8], atol=1e-6)


def test_a_dynamic_convolution_treats_each_image_by_itself():
    layer = variants.DynamicConvolution(8).eval()
    x = torch.randn(3, 8, 9, 7)
    with torch.no_grad():
        torch.testing.assert_close(layer(x), torch.cat([layer(one[None]) for one in x]))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"operator": "magic"}, "magic"),
        ({"without": ["chanel"]}, "chanel"),
        ({"parts": []}, "nothing is left"),
        ({"bases": -1}, "bases"),
    ],
)
def test_an_impossible_variant_is_refused(arguments, said):
    with pytest.raises(ValueError, match=said):
        variants.KBNetVariant(**TINY_S, **arguments)


def test_the_studies_can_be_built_and_answer_the_questions():
    given = studies.read_studies()
    names = {s.name for s in given.studies}
    assert names == {"nafnet", "bases", "operator", "branches", "softmax", "coefficients"}
    bases = next(s for s in given.studies if s.name == "bases")
    assert {r.arguments.get("bases", 32) for r in bases.rows} == {0, 1, 2, 4, 8, 16, 32, 64}
    for study in given.studies:
        for row in study.rows:
            network = planning.network_of(given, row)
            if row.equal:
                pytest.importorskip("spandrel")
                network["width"] = 8
            variants.build(network)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"studeis": []}, "studeis"),
        ({"studies": [{**TINY["studies"][0], "rows": [{"name": "alone"}]}]}, "at least two rows"),
        ({"studies": [{**TINY["studies"][0], "name": "A b"}]}, "lower-case letters"),
    ],
)
def test_an_unusable_file_of_studies_is_refused_in_one_line(tmp_path, capsys, change, said):
    file = tmp_path / "s.yml"
    file.write_text(yaml.safe_dump(TINY | change))
    assert compare.main(["--studies", str(file), "--out", str(tmp_path / "o")]) == 2
    line = capsys.readouterr().err.strip()
    assert said in line
    assert "s.yml" in line
    assert "\n" not in line


def test_an_unknown_study_is_refused_with_the_nearest(tmp_path, capsys):
    assert compare.main(["--study", "soft-max", "--out", str(tmp_path)]) == 2
    assert "did you mean 'softmax'" in capsys.readouterr().err


@pytest.mark.parametrize(("text", "expected"), [("90s", 90), ("20m", 1200), ("2h", 7200), ("3d", 259200)])
def test_budgets_are_read(text, expected):
    assert compare.seconds(text) == expected


def test_twice_the_budget_gives_about_twice_the_iterations_and_seeds_share_it():
    timed = [{"step": 0.1, "image": 0.5, "start": 2.0}, {"step": 0.3, "image": 0.5, "start": 2.0}]

    def affordable(budget, seeds=3, jobs=1):
        return planning.affordable(budget, jobs, seeds, timed, 68)[0]

    once = affordable(36000)
    assert affordable(72000) == pytest.approx(2 * once, rel=0.02)
    assert affordable(36000, jobs=2) == affordable(72000)
    assert affordable(36000, seeds=6) == pytest.approx(once / 2, rel=0.02)
    steps, tested = planning.affordable(600, 1, 3, timed, 68)
    spent = 3 * (steps * 0.4 + tested * 1.0 + 4.0)
    assert 0.7 * 600 < spent <= 600
    assert tested < 68  # testing takes no more than its share of a small budget


def test_a_budget_that_is_too_small_is_refused():
    timed = [{"step": 1.0, "image": 1.0, "start": 1.0}] * 4
    with pytest.raises(BadInput, match="--budget"):
        planning.affordable(30, 1, 3, timed, 68)


def test_the_width_at_equal_macs_is_the_closest():
    pytest.importorskip("spandrel")
    model = {"type": "KBNetVariant", **TINY_S}
    peer = {"type": "NAFNet", "enc_blk_nums": [1, 1], "middle_blk_num": 1, "dec_blk_nums": [1, 1]}
    wanted = variants.cost(model)["macs_full"]
    found = planning.equal_macs(model, peer)
    macs = [variants.cost({**found, "width": found["width"] + d})["macs_full"] - wanted for d in (-2, 0, 2)]
    assert min(macs, key=abs) == macs[1]


def test_tables_tell_how_many_seeds_are_done(tmp_path):
    store = folder_of(tmp_path, plan_of(("full", "none", "more")), {"full-seed0": 30.0, "full-seed1": 31.0})
    store.fail("none-seed0", "out of memory")
    (table,) = studies.tables(tmp_path)
    full, none, more = table.rows
    assert "2 of 3 seeds finished" in full.note
    assert full.cells["psnr"].measured.value == pytest.approx(30.5)
    assert full.cells["psnr"].measured.spread == pytest.approx(0.5**0.5)
    assert none.cells["psnr"].measured.status == "failed"
    assert "out of memory" in none.cells["psnr"].measured.reason
    assert more.cells["psnr"].measured.status == "not measured"
    assert "0 of 3" in more.cells["psnr"].measured.reason
    assert "No conclusion yet" in table.text


def test_series_draw_with_their_tables(tmp_path):
    values = {f"{n}-seed{i}": 30 + i for n in ("full", "none") for i in range(3)}
    folder_of(tmp_path, plan_of(), values)
    drawn = illustrate.trained(studies.tables(tmp_path), studies.series(tmp_path))
    assert studies.series(tmp_path)["bases"][1] == ("none", [30, 31, 32])
    assert [p.table for p in drawn] == ["compare-bases"]


def verdict(**values):
    names = list(values)
    return studies.verdict(names, {n: dict(enumerate(v)) for n, v in values.items() if v}, 3)


def test_the_text_says_so_where_kbnet_loses():
    text = verdict(ours=[30.0, 30.5, 31.0], other=[30.5, 31.0, 31.6])
    assert "Above 'ours': other (+0.53 dB, spread 0.06)" in text
    assert "Below" not in text


def test_the_text_says_so_where_the_spread_is_too_large():
    text = verdict(ours=[30.0, 30.5, 31.0], other=[30.5, 30.2, 31.6])
    assert "not distinguishable from 'ours': other (+0.27 dB" in text
    assert "Above" not in text


def test_one_seed_decides_nothing():
    text = verdict(ours=[30.0], other=[28.0])
    assert "proves nothing" in text
    assert "Below" not in text
    assert "1 to 1 of 3 seeds per row" in text


@pytest.fixture
def planned(tmp_path, monkeypatch):
    """A folder with the plan of two tiny networks and two seeds, ready to be trained in this process."""
    registry.register()
    variants.register()
    monkeypatch.setattr(processes, "die_with_parent", lambda: None)
    plan = plan_of(seeds=2, iterations=12)
    small(tmp_path / "pictures" / "a.png")
    plan["conditions"]["train"] |= {"root": str(tmp_path / "pictures"), "files": ["a.png"]}
    plan["conditions"]["test"] |= {"root": str(tmp_path / "pictures"), "files": ["a.png"]}
    for name, content in plan["networks"].items():
        content["network"] = TINY["network"] | ({"bases": 0} if name == "none" else {})
    (tmp_path / "plan.json").write_text(json.dumps(plan))
    return tmp_path, plan


def small(path):
    """A picture of 40 x 32 pixels."""
    path.parent.mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (32, 40, 3), np.uint8)
    Image.fromarray(pixels).save(path)


def interrupt_at(monkeypatch, iteration):
    """Send this process the signal that ends a training, in the middle of one step."""
    step = running.Run.step

    def stepping(run, batch):
        step(run, batch)
        if run.iteration == iteration:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(running.Run, "step", stepping)


def test_an_interrupted_run_resumes_and_ends_as_if_it_had_not_been_interrupted(planned, monkeypatch):
    folder, plan = planned
    whole = trainings.train(plan, "full", 0, folder / "whole", "run")
    with monkeypatch.context() as patch:
        interrupt_at(patch, 5)
        with pytest.raises(KeyboardInterrupt):
            trainings.train(plan, "full", 0, folder / "runs", "run")
    (state,) = (folder / "runs" / "run" / "training_states").glob("*.state")
    assert state.stem == "5"
    interrupt_at(monkeypatch, 5)  # would raise, were the first steps repeated
    assert trainings.train(plan, "full", 0, folder / "runs", "run")["psnr"] == whole["psnr"]


def test_what_is_done_is_not_trained_again_and_a_failure_does_not_end_the_rest(planned, monkeypatch):
    folder, plan = planned
    store = folder_of(folder, plan, {"full-seed0": 30.0})
    trained = []

    def train(plan, slug, seed, folder, name):
        trained.append(name)
        if name == "none-seed0":
            raise BadInput("no luck")
        return {"psnr": 31.0, "provenance": {"date": "2026", "seconds": 1.0}}

    monkeypatch.setattr(trainings, "train", train)
    assert trainings.work(folder) == 0
    assert trained == ["none-seed0", "full-seed1", "none-seed1"]
    assert store.failure("none-seed0", 0) == "no luck"
    assert trainings.work(folder) == 0
    assert trained[3:] == ["none-seed0"]  # a failure is tried again, by the next command


def test_the_command_plans_trains_and_reports(tmp_path, monkeypatch, capsys):
    """And the same command again finds everything finished; another budget is refused."""
    monkeypatch.delenv("KBNET_DATA", raising=False)
    monkeypatch.setattr(planning, "affordable", lambda *_: (12, 1))  # however busy the machine is
    file, out = tmp_path / "tiny.yml", tmp_path / "out"
    file.write_text(yaml.safe_dump(TINY))
    command = [*map(str, ("--studies", file, "--out", out)), "--seeds", "1", "--budget"]
    assert compare.main([*command, "25s"]) == 0, capsys.readouterr().err
    assert "One seed against 'full'" in capsys.readouterr().out
    cells = {p: p.stat().st_mtime_ns for p in (out / "cells").glob("*-seed0.json")}
    assert len(cells) == 2
    assert compare.main([*command, "26s"]) == 2
    assert "a budget of 25 s" in capsys.readouterr().err
