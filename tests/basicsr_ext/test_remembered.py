"""Models of BasicSR that remember more than weights and moments resume exactly, too."""

from __future__ import annotations

import logging
from copy import deepcopy
from types import SimpleNamespace

import pytest
import torch
from basicsr.utils import get_root_logger

from basicsr_ext.base_model import read_training_state
from basicsr_ext.registry import build_model
from basicsr_ext.remembered import recall, remembered
from basicsr_ext.sampler import seed_everything

DEGRADATION = {"gaussian_noise_prob": 0.5, "gray_noise_prob": 0.4}
OPTIONS = {
    "model_type": "RealESRNetModel", "scale": 2, "gt_size": 16, "queue_size": 4, "gt_usm": False,
    "num_gpu": 0, "is_train": True, "dist": False, "rank": 0, "world_size": 1, "manual_seed": 0,
    **DEGRADATION, "noise_range": [1, 30], "poisson_scale_range": [0.05, 3], "jpeg_range": [30, 95],
    **{f"{key}2": value for key, value in DEGRADATION.items()}, "noise_range2": [1, 25],
    "poisson_scale_range2": [0.05, 2.5], "jpeg_range2": [30, 95], "second_blur_prob": 0.8,
    "resize_prob": [0.2, 0.7, 0.1], "resize_range": [0.5, 1.5], "resize_prob2": [0.3, 0.4, 0.3],
    "resize_range2": [0.5, 1.2],
    "datasets": {"train": {"batch_size_per_gpu": 2}},
    "network_g": {"type": "MSRResNet", "num_feat": 4, "num_block": 1, "upscale": 2},
    "train": {
        "optim_g": {"type": "Adam", "lr": 1e-3},
        "scheduler": {"type": "MultiStepLR", "milestones": [9]},
        "pixel_opt": {"type": "L1Loss"},
    },
}  # fmt: skip


@pytest.fixture(autouse=True)
def _logging(monkeypatch, caplog):
    monkeypatch.setattr(get_root_logger(), "propagate", True)
    caplog.set_level(logging.INFO, "basicsr")


def build(folder, **changes):
    paths = {"models": str(folder), "training_states": str(folder)}
    torch.manual_seed(0)
    return build_model(deepcopy(OPTIONS) | {"path": paths} | changes)


def step(model, iteration):
    """Return the pairs that a model trains on in a step, as the loop seeds it."""
    seed_everything(0, iteration, 0)
    clean = torch.randint(256, (2, 3, 32, 32)) / 255
    model.feed_data(
        {"gt": clean, **dict.fromkeys(("kernel1", "kernel2", "sinc_kernel"), torch.ones(2, 3, 3) / 9)}
    )
    model.optimize_parameters(iteration)
    return model.lq.clone(), model.gt.clone()


@pytest.mark.parametrize("sharpened", [False, True])
@pytest.mark.parametrize("stop", [1, 3])
def test_a_pool_of_training_pairs_goes_on(tmp_path, caplog, sharpened, stop):
    whole = build(tmp_path, gt_usm=sharpened)
    for iteration in range(1, stop + 1):
        step(whole, iteration)
    whole.save_training_state(0, stop)
    whole.save_training_state(0, stop)
    assert caplog.text.count("contains the pool of 4 training pairs: ") == 1
    resumed = build(tmp_path, gt_usm=sharpened)
    state = read_training_state(tmp_path / f"{stop}.state")
    resumed.resume_training(state)
    for iteration in range(stop + 1, 6):
        theirs = step(resumed, iteration)
        for a, b in zip(step(whole, iteration), theirs, strict=True):
            assert torch.equal(a, b), iteration
    assert "starts empty" not in caplog.text
    assert state["networks"] == ["g"]
    pool = state["remembered"]["pool"]
    assert pool["queue_lr"].dtype is torch.uint8
    assert pool["queue_gt"].dtype is (torch.float32 if sharpened else torch.uint8)
    assert len(pool["queue_gt"]) == min(2 * stop, 4)


@pytest.mark.parametrize(
    ("changes", "kept", "reason"),
    [
        ({"queue_size": 8}, 4, None),
        ({"queue_size": 2}, 2, None),
        ({"gt_size": 8}, None, "gt_size, queue_size or the batch has changed"),
        ({"queue_size": 5}, None, "gt_size, queue_size or the batch has changed"),
        ({"world_size": 2}, None, "several processes do not save theirs"),
    ],
)
def test_a_pool_follows_the_option_file_or_starts_empty(tmp_path, caplog, changes, kept, reason):
    model = build(tmp_path)
    step(model, 1)
    step(model, 2)
    other = build(tmp_path, **changes)
    recall(other, remembered(model))
    assert getattr(other, "queue_ptr", None) == kept
    assert ([r.message for r in caplog.records if "empty" in r.message] or [None])[0] == (
        reason and f"the pool of training pairs starts empty: {reason}"
    )
    if reason is None:
        for iteration in (3, 4, 5):
            step(other, iteration)
    if "world_size" in changes:
        assert "pool" not in remembered(other)


def test_a_state_of_stock_basicsr_has_no_pool(tmp_path, caplog):
    recall(build(tmp_path), {})
    assert "starts empty: the training state has none" in caplog.text
    caplog.clear()
    recall(build(tmp_path, high_order_degradation=False), {})
    assert "starts empty" not in caplog.text


def test_stylegans_running_mean_goes_on():
    before, after = (
        SimpleNamespace(opt={}, device="cpu", mean_path_length=m) for m in (torch.tensor(3.0), 0)
    )
    recall(after, remembered(before))
    assert after.mean_path_length == 3
