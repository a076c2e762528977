"""Datasets without ground truth, and their loss."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from basicsr_ext.__main__ import main
from basicsr_ext.losses import BlindSpotLoss
from basicsr_ext.sampler import Reproducible, Ticket
from basicsr_ext.selfsup_datasets import Dataset_BlindSpot, Dataset_PlanePairs
from kbnet_plugin.errors import BadInput


@pytest.fixture
def stack(tmp_path):
    """Three planes of ramps, which show where a crop comes from, and the option keys for them."""
    planes = np.arange(3 * 24 * 20).reshape(3, 24, 20).astype(np.uint16)
    np.save(tmp_path / "a.npy", planes)
    return planes, {"phase": "train", "type": "x", "dataroot_lq": str(tmp_path / "a.npy"), "gt_size": 8,
                    "axes": "ZYX", "range": [0, 1000]}  # fmt: skip


def test_the_target_is_the_noisy_plane_at_masked_pixels_and_nan_elsewhere(stack):
    planes, keys = stack
    dataset = Dataset_BlindSpot(keys | {"masked_pixel_percentage": 10, "strategy": "uniform"})
    assert len(dataset) == 3
    sample = Reproducible(dataset, "train")[Ticket(1, None, (0, 0))]
    masked = ~torch.isnan(sample["gt"])
    assert sample["lq"].shape == (1, 8, 8)
    assert masked.sum() == 9
    values = np.rint(sample["gt"][masked].numpy() * 1000)
    assert np.isin(values, planes[1]).all()
    assert (sample["lq"] != sample["gt"])[masked].any()
    assert np.isin(np.rint(sample["lq"].numpy() * 1000), planes[1]).all()


def test_a_ticket_gives_the_same_sample_with_and_without_the_cache(stack):
    _, keys = stack
    one, other = (
        Reproducible(Dataset_BlindSpot(keys | {"cache_images": keep, "geometric_augs": True}), "train")
        for keep in (True, False)
    )
    for number in range(4):
        ticket = Ticket(number % 3, None, (0, number))
        assert torch.equal(one[ticket]["lq"], other[ticket]["lq"])


@pytest.mark.parametrize("augment", [False, True])
def test_a_pair_shows_the_same_place_of_two_planes_either_way_round(stack, augment):
    _, keys = stack
    dataset = Reproducible(Dataset_PlanePairs(keys | {"geometric_augs": augment}), "train")
    assert len(dataset) == 2
    steps = set()
    for number in range(20):
        sample = dataset[Ticket(0, None, (0, number))]
        step = torch.unique(((sample["gt"] - sample["lq"]) * 1000).round())
        assert len(step) == 1
        steps.add(step.item())
    assert steps == {480, -480}  # a plane of 24 x 20 further, or back


def test_a_second_recording_pairs_plane_for_plane(stack, tmp_path):
    planes, keys = stack
    np.save(tmp_path / "b.npy", planes + np.uint16(7))
    dataset = Dataset_PlanePairs(keys | {"dataroot_gt": str(tmp_path / "b.npy")})
    assert len(dataset) == 3
    sample = Reproducible(dataset, "train")[Ticket(2, None, (0, 0))]
    assert torch.allclose((sample["gt"] - sample["lq"]).abs(), torch.tensor(0.007), atol=1e-6)
    np.save(tmp_path / "b.npy", planes[:2])
    with pytest.raises(BadInput, match=r"b\.npy has 2 plane"):
        Dataset_PlanePairs(keys | {"dataroot_gt": str(tmp_path / "b.npy")})


def test_infinite_values_are_neither_inputs_nor_targets(stack, tmp_path):
    planes, keys = stack
    holed = planes.astype(np.float32)
    holed[:, ::3, ::2] = np.inf
    np.save(tmp_path / "a.npy", holed)
    for dataset in (Dataset_BlindSpot(keys | {"masked_pixel_percentage": 50}), Dataset_PlanePairs(keys)):
        sample = Reproducible(dataset, "train")[Ticket(0, None, (0, 1))]
        assert torch.isfinite(sample["lq"]).all()
        assert not torch.isinf(sample["gt"]).any()


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"gt_size": 21}, "is 20x24 .* smaller than the crop of 21"),
        ({"gt_size": None}, "gt_size is missing"),
        ({"phase": "val"}, "no ground truth"),
        ({"range": [2, 1]}, "lower to a higher"),
        ({"axes": "QYX"}, "'Q'"),
    ],
)
def test_invalid_options_are_refused(stack, keys, said):
    with pytest.raises(ValueError, match=said):
        Dataset_BlindSpot(stack[1] | keys)


@pytest.mark.parametrize("kind", ["Dataset_BlindSpot", "Dataset_PlanePairs"])
def test_an_option_file_trains_on_a_noisy_stack(stack, options, write, pairs, capsys, kind):
    del stack[1]["phase"]
    options["datasets"] = {"train": stack[1] | {"type": kind, "batch_size_per_gpu": 2}}
    options["network_g"]["img_channel"] = 1
    options["train"] |= {"pixel_opt": {"type": "BlindSpotLoss"}, "mixing_augs": None}
    options["val"] = None
    assert main(["train", "-opt", write(options)]) == 0
    assert "l_pix" in capsys.readouterr().out


def test_the_loss_refuses_an_unknown_norm():
    assert BlindSpotLoss(2.0, "l1")(torch.tensor([3.0]), torch.tensor([1.0])) == 4
    with pytest.raises(ValueError, match="l2 or l1"):
        BlindSpotLoss(norm="l3")
