"""TensorBoard, Weights & Biases, and the plot of a run."""

from __future__ import annotations

import re
import sys
from types import SimpleNamespace

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from basicsr_ext import logs
from basicsr_ext.history import History
from basicsr_ext.options import prepare_options
from kbnet_plugin.errors import BadInput


@pytest.fixture
def prepared(pairs, options):
    def _prepared(**logger):
        return prepare_options(options | {"logger": logger}, "x.yml", train=True) | {"rank": 0}

    return _prepared


def scalars(folder):
    events = EventAccumulator(str(folder)).Reload()
    return {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def test_tensorboard_shows_a_lost_stretch_once(prepared, tmp_path):
    options = prepared(use_tb_logger=True)
    for start, steps in ((0, range(1, 6)), (3, range(4, 8))):
        writer = logs.tensorboard(options, start)
        for step in steps:
            writer.add_scalar("loss", 10 * start + step, step)
        writer.close()
    assert scalars(tmp_path / "tb_logger/tiny")["loss"] == [
        (1, 1), (2, 2), (3, 3), (4, 34), (5, 35), (6, 36), (7, 37),
    ]  # fmt: skip
    logs.tensorboard(options, 0).close()
    assert scalars(tmp_path / "tb_logger/tiny") == {}
    assert len(list((tmp_path / "tb_logger").glob("tiny_archived_*/events*"))) == 2


def test_wandb_that_is_missing_is_named(prepared):
    with pytest.raises(BadInput, match=r"logger.wandb.project: the Python package wandb is not installed"):
        prepared(wandb={"project": "mine"})


def test_wandb_works_without_the_key_of_tensorboard(prepared, monkeypatch, tmp_path):
    started = []
    service = SimpleNamespace(init=lambda **keys: started.append(keys), __spec__=True)
    monkeypatch.setitem(sys.modules, "wandb", service)
    options = prepared(wandb={"project": "mine"})
    logs.tensorboard(options, 0).close()
    assert started[0]["project"] == "mine"
    assert started[0]["sync_tensorboard"]
    assert list(tmp_path.glob("tb_logger/tiny/events*"))

    def fails(**_):
        raise RuntimeError("no account\nat all")

    service.init = fails
    with pytest.raises(BadInput, match=r"^logger.wandb: no account at all; log in"):
        logs.tensorboard(options, 0)


def test_losses_are_drawn_on_a_logarithmic_axis_where_they_are_positive(tmp_path):
    history = History(tmp_path, 0)
    for step, loss in enumerate((1.0, 0.1, 0.01), 1):
        history.add(step, {"l_pix": loss, "l_gan": loss - 0.5, "val psnr": 20 + step, "broken": float("inf")})
    history.plot()
    plot = (tmp_path / "history.svg").read_text()
    assert plot.count("logarithmic") == 1
    first, *_ = re.findall(r'points="([^"]*)"', plot)
    heights = [float(point.split(",")[1]) for point in first.split()]
    assert heights[1] - heights[0] == pytest.approx(heights[2] - heights[1], abs=0.2)
