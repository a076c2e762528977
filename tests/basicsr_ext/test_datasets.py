"""The samples of the datasets."""

from __future__ import annotations

import os
import random
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from basicsr.data import build_dataset
from basicsr.utils.lmdb_util import make_lmdb_from_imgs
from torch.utils.data import DataLoader

from basicsr_ext.sampler import Failure, Reproducible, StageBatchSampler, Stages, Ticket, collate
from kbnet_plugin.errors import BadInput


def gaussian(root, phase="train", **keys):
    options = {"type": "Dataset_GaussianDenoising", "name": "noisy", "phase": phase, "dataroot_gt": str(root)}
    return build_dataset(options | {"gt_size": 16, "sigma_range": 25, "sigma_test": 25} | keys)


def paired(root, phase="val", **keys):
    options = {"type": "Dataset_PairedImage", "name": "pairs", "phase": phase, "gt_size": 16}
    return build_dataset(options | {"dataroot_gt": f"{root}/gt", "dataroot_lq": f"{root}/lq"} | keys)


def to_lmdb(folder):
    names = sorted(os.listdir(folder))
    target = f"{folder}.lmdb"
    make_lmdb_from_imgs(str(folder), target, names, [n.split(".")[0] for n in names], map_size=2**20)
    return target


def test_lmdb_meta_info_and_folder_give_the_same_images(pairs, capsys):
    listing = pairs / "meta.txt"
    listing.write_text("".join(f"{i}.png (24,20,3)\n" for i in range(3)))
    folder = paired(pairs)
    roots = {"dataroot_gt": to_lmdb(pairs / "gt"), "dataroot_lq": to_lmdb(pairs / "lq")}
    for other in (
        paired(pairs, meta_info_file=str(listing)),
        paired(pairs, io_backend={"type": "lmdb"}, **roots),
    ):
        assert len(other) == len(folder) == 3
        for first, second in zip(folder, other, strict=False):
            assert torch.equal(first["lq"], second["lq"])
            assert torch.equal(first["gt"], second["gt"])


@pytest.mark.parametrize("workers", [0, 1])
def test_training_and_validation_may_share_an_lmdb(pairs, capsys, workers):
    keys = {"io_backend": {"type": "lmdb"}, "dataroot_gt": to_lmdb(pairs / "gt")}
    keys["dataroot_lq"] = to_lmdb(pairs / "lq")
    stock = build_dataset(
        {"type": "PairedImageDataset", "name": "stock", "phase": "val", "scale": 1}
        | keys
        | {"io_backend": {"type": "lmdb"}}
    )
    noisy = gaussian(keys["dataroot_gt"], "val", io_backend={"type": "lmdb"})
    here = [paired(pairs, **keys)[0]["gt"], stock[0]["gt"], noisy[0]["gt"]]
    there = [
        next(iter(DataLoader(d, num_workers=workers)))["gt"][0] for d in (paired(pairs, **keys), stock, noisy)
    ]
    for image in (*here, *there):
        assert torch.equal(image, here[0])


def test_16_bit_png_and_tiff_keep_their_depth(tmp_path, picture):
    for suffix in ("png", "tif"):
        folder = tmp_path / suffix
        folder.mkdir()
        image = picture(dtype=np.uint16)
        cv2.imwrite(str(folder / f"a.{suffix}"), image)
        got = gaussian(folder, "val")[0]["gt"]
        expected = torch.from_numpy(image[..., ::-1].transpose(2, 0, 1) / np.float32(65535))
        assert torch.equal(got, expected.float())
        assert (got * 255 % 1 > 0.01).any()


def test_gray_and_colour_are_converted_as_asked(tmp_path, picture):
    cv2.imwrite(str(tmp_path / "colour.png"), picture())
    cv2.imwrite(str(tmp_path / "gray.png"), picture(channels=1)[..., None])
    cv2.imwrite(str(tmp_path / "transparent.png"), picture(channels=4))
    assert {tuple(s["gt"].shape) for s in iterate(gaussian(tmp_path, "val", in_ch=1))} == {(1, 24, 20)}
    colour, gray, _ = samples = list(iterate(gaussian(tmp_path, "val")))
    assert {tuple(s["gt"].shape) for s in samples} == {(3, 24, 20)}
    assert torch.equal(gray["gt"][0], gray["gt"][1])
    assert not torch.equal(colour["gt"][0], colour["gt"][1])


def iterate(dataset):
    return (dataset[i] for i in range(len(dataset)))


def test_validation_noise_is_the_documented_one_and_leaves_the_global_generators_alone(pairs):
    states = random.getstate(), np.random.get_state()[1].copy(), torch.get_rng_state()
    first, second = gaussian(pairs / "gt", "val"), gaussian(pairs / "gt", "val")
    noise = [s["lq"] - s["gt"] for s in iterate(first)]
    for index, sample in enumerate(iterate(second)):
        expected = np.random.default_rng([0, index]).standard_normal((24, 20, 3)) * 25 / 255
        assert torch.allclose(
            sample["lq"] - sample["gt"], torch.from_numpy(expected.transpose(2, 0, 1)).float(), atol=1e-6
        )
        assert torch.equal(sample["lq"] - sample["gt"], noise[index])
    assert not torch.equal(noise[0], noise[1])
    assert random.getstate() == states[0]
    assert (np.random.get_state()[1] == states[1]).all()
    assert torch.equal(torch.get_rng_state(), states[2])


@pytest.mark.parametrize(
    ("kind", "given", "low", "high"),
    [
        ("constant", 25, 25, 25),
        ("constant", [25], 25, 25),
        ("random", [10, 40], 10, 40),
        ("random", 40, 0, 40),
        ("choice", [15, 25, 50], 15, 50),
    ],
)
def test_training_noise_has_the_asked_strength(tmp_path, picture, kind, given, low, high):
    cv2.imwrite(str(tmp_path / "a.png"), picture(128, 128))
    dataset = gaussian(tmp_path, sigma_type=kind, sigma_range=given, gt_size=128)
    samples = [dataset[0] for _ in range(40)]
    sigmas = np.array([float((s["lq"] - s["gt"]).std() * 255) for s in samples])
    assert low * 0.97 <= sigmas.min() <= low + (high - low) / 3 + 1
    assert high - (high - low) / 3 - 1 <= sigmas.max() <= high * 1.03
    if kind == "choice":
        assert {min(given, key=lambda g: abs(g - s)) for s in sigmas} == set(given)
    assert (torch.stack([s["lq"] for s in samples]) < 0).any()  # not clipped


@pytest.mark.parametrize(
    ("kind", "given"), [("constant", [1, 2]), ("random", [40, 10]), ("blind", 25), ("random", None)]
)
def test_invalid_noise_is_refused(pairs, kind, given):
    with pytest.raises(BadInput, match="sigma"):
        gaussian(pairs / "gt", sigma_type=kind, sigma_range=given)


def test_crop_and_turn_keep_the_pair_together_and_all_eight_turns_occur(pairs):
    turned = set()
    for seed in range(80):
        np.random.seed(seed)
        dataset = paired(pairs, "train", geometric_augs=True)
        sample = dataset[0]
        assert sample["gt"].shape == (3, 16, 16)
        # lq is gt halved in 8 bits
        assert torch.equal((sample["gt"] * 255).round() // 2, (sample["lq"] * 255).round())
        gt = paired(pairs, "val")[0]["gt"].numpy()
        for turn in range(8):
            whole = np.rot90(gt[..., ::-1] if turn > 3 else gt, turn % 4, (1, 2))
            if (np.abs(sliding(whole, 16) - sample["gt"].numpy()).max((2, 3, 4)) == 0).any():
                turned.add(turn)
    assert turned == set(range(8))


def sliding(image, size):
    return np.lib.stride_tricks.sliding_window_view(image, (size, size), (1, 2)).transpose(1, 2, 0, 3, 4)


def test_small_images_are_reflected_when_asked(pairs):
    dataset = paired(pairs, "train", gt_size=30, pad_small=True)
    sample = dataset[0]
    assert sample["gt"].shape == sample["lq"].shape == (3, 30, 30)
    assert torch.equal(sample["gt"][:, 24:], sample["gt"][:, 18:24].flip(1))
    assert torch.equal(sample["gt"][..., 20:], sample["gt"][..., 10:20].flip(2))


def test_scale_two_crops_the_same_place(tmp_path, picture):
    for role, step in (("gt", 1), ("lq", 2)):
        (tmp_path / role).mkdir()
        cv2.imwrite(str(tmp_path / role / "a.png"), picture(40, 32)[::step, ::step])
    sample = paired(tmp_path, "train", scale=2)[0]
    assert sample["gt"].shape == (3, 16, 16)
    assert torch.equal(sample["gt"][:, ::2, ::2], sample["lq"])


def test_dual_pixel_views_are_stacked_left_then_right(tmp_path, picture):
    folders = {}
    for seed, role in enumerate(("gt", "lqL", "lqR")):
        folder = tmp_path / role
        folder.mkdir()
        cv2.imwrite(str(folder / "a.png"), picture(seed=seed, dtype=np.uint16))
        folders[f"dataroot_{role}"] = str(folder)
    options = {"type": "Dataset_DefocusDeblur_DualPixel_16bit", "name": "dpdd", "phase": "val"} | folders
    sample = build_dataset(options)[0]
    assert sample["lq"].shape == (6, 24, 20)
    for part, role in ((sample["lq"][:3], "lqL"), (sample["lq"][3:], "lqR"), (sample["gt"], "gt")):
        image = cv2.imread(str(tmp_path / role / "a.png"), cv2.IMREAD_UNCHANGED)
        assert torch.allclose(part, torch.from_numpy(image[..., ::-1].transpose(2, 0, 1) / np.float32(65535)))


def test_the_dataset_can_be_part_of_an_installed_package_and_kept_in_memory():
    folder = Path(__import__("skimage").__file__).parent / "data"
    dataset = gaussian(folder, "train", files=["chelsea.png"], cache_images=True)
    assert len(dataset) == 1
    dataset[0]
    assert dataset._cache[str(folder / "chelsea.png")].shape == (300, 451, 3)
    assert not torch.equal(dataset[0]["gt"], dataset[0]["gt"])  # other crops of it


def test_the_same_ticket_gives_the_same_sample_in_any_process(pairs):
    dataset = Reproducible(gaussian(pairs / "gt"), "train")
    sampler = StageBatchSampler(3, Stages((2, 3), (2, 1), (8, 12)), 4)
    runs = [
        list(DataLoader(dataset, batch_sampler=sampler, num_workers=w, collate_fn=collate)) for w in (0, 0, 2)
    ]
    for other in runs[1:]:
        for first, second in zip(runs[0], other, strict=True):
            assert torch.equal(first["lq"], second["lq"])
    assert [tuple(b["lq"].shape) for b in runs[0]] == [(2, 3, 8, 8)] * 2 + [(1, 3, 12, 12)] * 2


def test_a_stock_dataset_becomes_reproducible_too(pairs):
    options = {"type": "PairedImageDataset", "name": "stock", "phase": "train", "scale": 1, "gt_size": 8}
    options |= {"dataroot_gt": f"{pairs}/gt", "dataroot_lq": f"{pairs}/lq", "io_backend": {"type": "disk"}}
    dataset = Reproducible(build_dataset(options | {"use_hflip": True, "use_rot": True}), "train")
    samples = [dataset[Ticket(0, 12, (0, n))]["gt"] for n in (5, 6, 5)]
    assert samples[0].shape == (3, 12, 12)
    assert torch.equal(samples[0], samples[2])
    assert not torch.equal(samples[0], samples[1])


def test_every_pass_contains_every_image_once_over_all_ranks():
    stages = Stages((5,), (3,), (None,))
    ranks = [list(StageBatchSampler(6, stages, 8, rank=r, world=2)) for r in (0, 1)]
    stream = [t.image for pair in zip(*ranks, strict=True) for batch in pair for t in batch]
    passes = [stream[i : i + 6] for i in range(0, 48, 6)]
    assert all(sorted(p) == list(range(6)) for p in passes)
    assert len({tuple(p) for p in passes}) > 1


def test_a_sampler_that_starts_late_continues_the_same_stream():
    stages = Stages((2, 4), (3, 1), (8, 9))
    whole = list(StageBatchSampler(5, stages, 9))
    assert list(StageBatchSampler(5, stages, 9, start=3, samples=7)) == whole[3:]


def test_stage_boundaries_are_the_sums_of_iters():
    stages = Stages.from_options({"iters": [2, 3], "mini_batch_sizes": [4, 1], "gt_sizes": [8, 16]})
    assert [stages.at(i) for i in range(1, 8)] == [(4, 8)] * 2 + [(1, 16)] * 5


def test_a_failed_sample_names_the_file_instead_of_a_traceback(pairs):
    dataset = Reproducible(paired(pairs, "train"), "datasets.train")
    (pairs / "lq" / "1.png").write_bytes(b"not a picture")
    failure = collate([dataset[Ticket(0, None, (0, 0))], dataset[Ticket(1, None, (0, 1))]])
    assert isinstance(failure, Failure)
    assert failure.message.startswith("datasets.train: ")
    assert str(pairs / "lq" / "1.png") in failure.message


def test_large_images_are_sometimes_reduced_and_small_ones_never(tmp_path):
    """A chessboard of single pixels becomes gray when reduced, whatever the factor."""
    board = np.indices((400, 400)).sum(0) % 2 * 255
    for name, side in (("large", 400), ("small", 60)):
        (tmp_path / name).mkdir()
        cv2.imwrite(str(tmp_path / name / "board.png"), board[:side, :side].astype(np.uint8))
    np.random.seed(0)

    def contrasts(name, **keys):
        dataset = gaussian(tmp_path / name, phase="train", reduce=4, **keys)
        crops = [dataset[0]["gt"] for _ in range(40)]
        assert {tuple(crop.shape) for crop in crops} == {(keys.get("in_ch", 3), 16, 16)}
        return [float(crop.max() - crop.min()) for crop in crops]

    for channels in (1, 3):
        seen = contrasts("large", in_ch=channels)
        assert min(seen) < 0.2, "reduced"
        assert max(seen) == 1, "at full scale too"
    assert set(contrasts("small")) == {1.0}


def test_pairs_are_not_reduced(pairs):
    with pytest.raises(BadInput, match="reduce is for clean images only"):
        paired(pairs, phase="train", reduce=2)
