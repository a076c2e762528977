"""The loop by the clock, its checkpoints of every minute, and what it prints about time."""

from __future__ import annotations

import re
import time
from pathlib import Path

import pytest
import torch

from basicsr_ext import checkpoints, clock, run
from basicsr_ext.__main__ import main
from basicsr_ext.base_model import read_training_state
from basicsr_ext.model import ImageCleanModel
from basicsr_ext.saver import Saver
from kbnet_plugin.errors import BadInput
from tests.basicsr_ext.checkpoints import same, weights


class Time:
    def __init__(self, monkeypatch):
        self.now = 1000.0
        monkeypatch.setattr(clock.time, "monotonic", lambda: self.now)


def test_by_the_clock_the_schedule_goes_from_its_start_to_its_end(monkeypatch):
    clock_ = Time(monkeypatch)
    schedule = clock.Schedule(500, minutes=2, began=clock_.now)
    clock_.now += 20  # starting up
    found = []
    for _ in range(11):
        schedule.position = schedule.advance()
        found.append(schedule.position)
        clock_.now += 10
    assert found == pytest.approx([50 * i for i in range(11)])
    assert schedule.at(3) == 500


def test_a_resumed_run_has_the_time_that_is_left(monkeypatch):
    clock_ = Time(monkeypatch)
    schedule = clock.Schedule(500, minutes=2, began=clock_.now, seconds=60, start=200)
    assert schedule.advance() == 200
    schedule.reserve = 10
    clock_.now += 25
    assert schedule.advance() == pytest.approx(350)
    clock_.now += 26
    assert schedule.advance() == 500
    assert schedule.seconds == pytest.approx(111)


def test_without_a_limit_the_schedule_counts_iterations():
    schedule = clock.Schedule(500)
    assert not schedule.by_clock
    assert [schedule.at(i) for i in (1, 7)] == [1, 7]


def test_the_meter_separates_the_network_from_the_rest(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(clock.time, "perf_counter", lambda: now[0])
    meter = clock.Meter(torch.device("cpu"))
    for _ in range(4):
        now[0] += 0.25  # data
        with meter.network(2, 500_000):
            now[0] += 0.75
    with meter.pause():
        now[0] += 100  # validation
    speed = meter.read()
    assert str(speed) == "1 s/it, 0.5 Mpixels/s, 25.0% outside the network"
    assert speed.images == pytest.approx(2)


def test_a_time_limit_ends_the_run_with_the_end_of_the_schedule(pairs, options, write, capsys):
    options["train"].update(total_iter=10**6)
    options["train"]["scheduler"].update(periods=[10**6], restart_weights=[1], eta_mins=[1e-6])
    options["datasets"]["train"].update(mini_batch_sizes=[2, 1], iters=[5 * 10**5, 10**6], gt_sizes=[8, 16])
    began = time.monotonic()
    assert main(["train", "-opt", write(options), "--minutes", "0.1"]) == 0
    assert time.monotonic() - began < 6.5
    said = capsys.readouterr().out
    state = read_training_state(next(Path("experiments/tiny/training_states").glob("*.state")))
    assert state["optimizers"][0]["param_groups"][0]["lr"] < 1e-4
    # Both stages had their share of the time.
    assert 1.2 * state["iter"] < state["samples"] < 1.9 * state["iter"]
    assert "image(s): psnr" in said
    assert Path("experiments/tiny/models/net_g_latest.pth").is_file()
    assert re.search(r"Mpixels/s, [\d.]+% outside the network, ends \d\d:\d\d \(in 0:00:0\d\)", said)


def test_a_validation_that_takes_too_long_is_left_out_by_the_clock(
    pairs, options, write, capsys, monkeypatch
):
    monkeypatch.setattr(run.Run, "_validation_time", lambda self: 100.0)
    assert main(["train", "-opt", write(options), "--minutes", "0.07"]) == 0
    said = capsys.readouterr().out
    assert "validation would take about 100 s, too long for --minutes" in said
    assert "image(s): psnr" not in said


@pytest.mark.parametrize("minutes", ["0", "-1", "soon", "inf"])
def test_minutes_must_be_a_number_above_0(pairs, options, write, capsys, minutes):
    assert main(["train", "-opt", write(options), f"--minutes={minutes}"]) == 2
    assert "--minutes: must be a number of minutes above 0" in capsys.readouterr().err


def stop_at(monkeypatch, iteration):
    """Let the process die at a step, without a word."""
    step = ImageCleanModel.optimize_parameters

    def dying(self, i):
        if i == iteration:
            raise SystemExit
        step(self, i)

    monkeypatch.setattr(ImageCleanModel, "optimize_parameters", dying)


def save_every_step(monkeypatch):
    monkeypatch.setattr(checkpoints, "SAVE_EVERY", 0.0)
    monkeypatch.setattr(checkpoints, "SAVING_SHARE", 1e9)
    monkeypatch.setattr(checkpoints.Saver, "busy", False)


def states(name="tiny"):
    return {p.name for p in Path(f"experiments/{name}/training_states").iterdir()}


def test_a_crash_loses_only_what_came_after_the_checkpoint_of_the_last_minute(
    pairs, options, write, monkeypatch
):
    options["train"]["total_iter"] = 6
    option_file = write(options)
    assert main(["train", "-opt", option_file]) == 0
    whole = {key: weights(key=key) for key in ("params", "params_ema")}
    options["name"] = "crashed"
    option_file = write(options)
    save_every_step(monkeypatch)
    with monkeypatch.context() as patch:
        stop_at(patch, 5)
        with pytest.raises(SystemExit):
            main(["train", "-opt", option_file])
    assert states("crashed") == {"4.rolling"}
    assert {p.name for p in Path("experiments/crashed/models").iterdir()} == {"net_g_4.pth"}
    assert main(["train", "-opt", option_file, "--auto_resume"]) == 0
    assert states("crashed") == {"6.state"}
    for key, expected in whole.items():
        assert same(weights("crashed", key=key), expected)


def test_checkpoints_of_every_minute_leave_the_others_alone(pairs, options, write, monkeypatch):
    options["train"]["total_iter"] = 6
    options["logger"] = {"save_checkpoint_freq": 3, "keep_checkpoints": 2}
    save_every_step(monkeypatch)
    assert main(["train", "-opt", write(options)]) == 0
    assert states() == {"3.state", "6.state"}


def test_a_job_that_fails_is_reported_once():
    saver = Saver()

    def fails():
        raise BadInput("the disk is full")

    saver.submit(fails)
    with pytest.raises(BadInput, match="full"):
        saver.wait()
    saver.wait()
    saver.submit(lambda: None)
    saver.close()
