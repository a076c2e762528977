"""Images on the device make the samples that the data loader makes."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from basicsr.utils.lmdb_util import make_lmdb_from_imgs
from torch.utils._python_dispatch import TorchDispatchMode

from basicsr_ext import datasets, resident
from basicsr_ext.__main__ import main
from basicsr_ext.datasets import Dataset_GaussianDenoising
from basicsr_ext.resident import Resident, memory, open_resident
from basicsr_ext.sampler import Reproducible, StageBatchSampler, Stages, Ticket, collate
from kbnet_plugin.errors import BadInput

MIXED = [
    {"type": "PoissonGaussian", "gain": [1e-3, 1e-2], "read_noise": 0.01, "prob": 0.5},
    {"type": "OneOf", "of": [[{"type": "Gaussian", "sigma": [0, 55]}], []], "weights": [3, 1]},
]
NOISE = {
    "Dataset_GaussianDenoising": {"sigma_type": "random", "sigma_range": [5, 50]},
    "Dataset_PoissonGaussianDenoising": {"gain_range": [1e-3, 1e-2], "read_noise_range": 0.01},
    "Dataset_CleanImages": {"degradations": MIXED},
}


def build_dataset(options):
    return getattr(datasets, options["type"])(options)


@pytest.fixture
def clean(tmp_path, picture):
    """Build a set of made clean images."""

    def _clean(kind="Dataset_CleanImages", sizes=((40, 50), (33, 61), (57, 38)), dtypes=(np.uint8,), **keys):
        folder = tmp_path / "clean"
        folder.mkdir(exist_ok=True)
        for number, (height, width) in enumerate(sizes):
            dtype = np.dtype(dtypes[number % len(dtypes)])
            image = picture(height, width, seed=number, dtype=np.uint8 if dtype == np.float32 else dtype)
            image = image / np.float32(255) if dtype == np.float32 else image
            cv2.imwrite(str(folder / f"{number}.tif"), image)
        options = {"type": kind, "phase": "train", "dataroot_gt": str(folder), "gt_size": 16}
        return build_dataset(options | {"geometric_augs": True} | NOISE.get(kind, {}) | keys)

    return _clean


@pytest.fixture
def pairs_of(tmp_path, picture):
    """Build a set of pairs, of which the clean images are `scale` times larger."""

    def _pairs_of(scale=1, roles=("gt", "lq"), kind="Dataset_PairedImage", **keys):
        for seed, role in enumerate(roles):
            (tmp_path / role).mkdir()
            step = 1 if role == "gt" else scale
            for number in range(3):
                image = picture(40, 36 + 4 * number, seed=9 * seed + number, dtype=np.uint16)
                cv2.imwrite(str(tmp_path / role / f"{number}.png"), image[::step, ::step])
        roots = {f"dataroot_{role}": str(tmp_path / role) for role in roles}
        options = {"type": kind, "phase": "train", "gt_size": 16, "scale": scale, "geometric_augs": True}
        return build_dataset(options | roots | keys)

    return _pairs_of


def tickets(count, images=3, crop=16, seed=0):
    return [Ticket(number % images, crop, (seed, number)) for number in range(count)]


def same_as_the_loader(dataset, wanted):
    """Assert that both ways make the same batch, and return it."""
    made = Resident(dataset, "cpu").batch(wanted)
    loader = Reproducible(dataset, "train")
    expected = collate([loader[ticket] for ticket in wanted])
    assert made.keys() == expected.keys()
    for key, value in expected.items():
        assert torch.equal(made[key], value) if isinstance(value, torch.Tensor) else made[key] == value, key
    return made


@pytest.mark.parametrize(
    ("kind", "keys"),
    [
        ("Dataset_CleanImages", {}),
        ("Dataset_CleanImages", {"in_ch": 1}),
        ("Dataset_CleanImages", {"dtypes": (np.uint16,)}),
        ("Dataset_CleanImages", {"dtypes": (np.uint8, np.uint16)}),
        ("Dataset_CleanImages", {"dtypes": (np.uint16, np.float32, np.uint8), "in_ch": 1}),
        ("Dataset_CleanImages", {"sizes": ((70, 101), (64, 90), (20, 200)), "reduce": 4, "gt_size": 6}),
        ("Dataset_CleanImages", {"sizes": ((70, 101), (9, 90), (10, 8)), "pad_small": True}),
        ("Dataset_CleanImages", {"geometric_augs": False, "cache_images": True}),
        ("Dataset_GaussianDenoising", {}),
        ("Dataset_GaussianDenoising", {"sigma_type": "choice", "sigma_range": [5, 15, 50]}),
        ("Dataset_PoissonGaussianDenoising", {}),
        ("Dataset_PoissonGaussianDenoising", {"domain": "microscope", "fluorescence": 0.5, "in_ch": 1}),
    ],
)
def test_clean_images_give_the_loaders_batches_bit_for_bit(clean, kind, keys):
    dataset = clean(kind, **keys)
    batch = same_as_the_loader(dataset, tickets(24, crop=dataset.opt["gt_size"]))
    assert batch["lq"].dtype == batch["gt"].dtype == torch.float32
    assert batch["lq"].is_contiguous()
    assert not torch.equal(batch["lq"], batch["gt"])


@pytest.mark.parametrize("scale", [1, 2])
def test_pairs_give_the_loaders_batches_and_stay_together(pairs_of, scale):
    dataset = pairs_of(scale)
    same_as_the_loader(dataset, tickets(16))
    for number in range(3):
        gt = cv2.imread(dataset.paths[number]["gt"], cv2.IMREAD_UNCHANGED)
        size = (gt.shape[1] // scale, gt.shape[0] // scale)
        cv2.imwrite(dataset.paths[number]["lq"], 65535 - cv2.resize(gt, size, interpolation=cv2.INTER_AREA))
    batch = Resident(dataset, "cpu").batch(tickets(24))
    small = torch.nn.functional.interpolate(batch["gt"], scale_factor=1 / scale, mode="area")
    assert torch.allclose(batch["lq"] + small, torch.ones(1), atol=1e-4)


def test_dual_pixel_views_give_the_loaders_batches(pairs_of):
    kind = "Dataset_DefocusDeblur_DualPixel_16bit"
    batch = same_as_the_loader(pairs_of(roles=("gt", "lqL", "lqR"), kind=kind), tickets(8))
    assert batch["lq"].shape == (8, 6, 16, 16)
    assert "lqL" in batch["lq_path"][0]


def test_lmdb_databases_give_the_loaders_batches(pairs, capsys):
    roots = {}
    for role in ("gt", "lq"):
        names = sorted(os.listdir(pairs / role))
        roots[f"dataroot_{role}"] = target = f"{pairs / role}.lmdb"
        keys = [name.split(".")[0] for name in names]
        make_lmdb_from_imgs(str(pairs / role), target, names, keys, map_size=2**20)
    options = {"type": "Dataset_PairedImage", "phase": "train", "gt_size": 16}
    same_as_the_loader(build_dataset(options | roots | {"io_backend": {"type": "lmdb"}}), tickets(8))


def test_every_stage_of_progressive_training_has_its_crops(clean):
    dataset = clean(
        sizes=((130, 101), (30, 20), (64, 64)), gt_sizes=[8, 24], gt_size=None, reduce=3, pad_small=True
    )
    for crop in (8, 24):
        same_as_the_loader(dataset, tickets(24, crop=crop))


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_crops_are_the_files_pixels_in_all_eight_orientations(tmp_path, dtype):
    height, width, side = 12, 20, 5
    numbered = np.arange(height * width, dtype=dtype).reshape(height, width)
    unit = np.iinfo(dtype).max // (height * width)
    cv2.imwrite(str(tmp_path / "a.png"), numbered * unit)
    options = {"type": "Dataset_CleanImages", "degradations": [], "phase": "train", "geometric_augs": True}
    options |= {"dataroot_gt": str(tmp_path), "gt_size": side, "in_ch": 1}
    batch = Resident(build_dataset(options), "cpu").batch(tickets(64, images=1, crop=side))
    crops = (batch["gt"][:, 0] * np.iinfo(dtype).max).round().numpy().astype(int) // unit
    turns = Counter()
    for crop in crops:
        top, left = divmod(crop.min(), width)
        window = numbered[top : top + side, left : left + side].astype(int)
        candidates = [np.rot90(window[:, ::-1] if n > 3 else window, n % 4) for n in range(8)]
        turns[[bool((crop == candidate).all()) for candidate in candidates].index(True)] += 1
    assert set(turns) == set(range(8))


def test_places_factors_and_orientations_are_uniform(clean):
    dataset = clean(sizes=((40, 44),), reduce=3, gt_size=3)
    windows = [dataset.draw_window((40, 44), 3, np.random.default_rng([1, n])) for n in range(6000)]

    def uniform(values, count):
        seen = np.bincount(values, minlength=count)
        assert len(seen) == count
        assert ((seen - len(values) / count) ** 2 / (len(values) / count)).sum() < count + 5 * (
            2 * count
        ) ** 0.5

    uniform([w.factor - 1 for w in windows], 3)
    uniform([w.turns + 4 * w.flip for w in windows], 8)
    for factor in (1, 2, 3):
        some = [w for w in windows if w.factor == factor]
        uniform([w.top for w in some], 40 // factor - 2)
        uniform([w.left for w in some], 44 // factor - 2)


def test_noise_has_the_mean_and_the_variance_of_its_formula_at_every_brightness(tmp_path):
    cv2.imwrite(str(tmp_path / "ramp.png"), np.tile(np.arange(256, dtype=np.uint8), (256, 1)))
    steps = [{"type": "PoissonGaussian", "gain": 0.02, "read_noise": 0.05}]
    options = {"type": "Dataset_CleanImages", "degradations": steps, "phase": "train", "in_ch": 1}
    dataset = build_dataset(options | {"dataroot_gt": str(tmp_path), "gt_size": 256})
    batch = Resident(dataset, "cpu").batch(tickets(4, images=1, crop=256))
    noise, signal = (batch["lq"] - batch["gt"]).flatten(), batch["gt"].flatten()
    for low in torch.arange(0, 1, 0.125):
        some = (signal >= low) & (signal < low + 0.125)
        expected = 0.02 * float(signal[some].mean()) + 0.05**2
        assert float(noise[some].var()) == pytest.approx(expected, rel=0.05)
        assert abs(float(noise[some].mean())) < 4 * (expected / int(some.sum())) ** 0.5


def test_a_batch_made_at_once_is_that_made_one_by_one(clean):
    """As on a GPU, but with the generators of a CPU."""
    images = Resident(clean(reduce=2, gt_size=6), "cpu")
    wanted = tickets(16, crop=6)
    lq, gt = images._make(wanted)
    batch = images.batch(wanted)
    assert torch.equal(gt, batch["gt"])
    assert torch.allclose(lq, batch["lq"], atol=1e-5)


class Waiting(TorchDispatchMode):
    """Fails where a GPU's result would be needed on the host."""

    def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
        aten = torch.ops.aten
        assert function.overloadpacket not in (aten._local_scalar_dense, aten.nonzero, aten.is_nonzero)
        return function(*arguments, **(keywords or {}))


@pytest.mark.parametrize(
    ("kind", "keys"),
    [
        ("Dataset_CleanImages", {"reduce": 2, "dtypes": (np.uint16,)}),
        ("Dataset_GaussianDenoising", {}),
        ("Dataset_PoissonGaussianDenoising", {"fluorescence": 0.5}),
    ],
)
def test_no_step_of_a_batch_needs_a_value_from_the_device(clean, kind, keys):
    images = Resident(clean(kind, gt_size=6, **keys), "cpu")
    with Waiting():
        images._make(tickets(16, crop=6))
        with pytest.raises(AssertionError):
            torch.ones(1).item()


def test_two_ranks_make_the_samples_of_one_process_with_the_whole_batch(clean):
    images, other = (Resident(clean(), "cpu") for _ in range(2))
    one = StageBatchSampler(3, Stages((2, 3), (4, 2), (8, 12)), 4)
    halves = [StageBatchSampler(3, Stages((2, 3), (2, 1), (8, 12)), 4, rank=r, world=2) for r in (0, 1)]
    for whole, *parts in zip(one, *halves, strict=True):
        expected, made = images.batch(whole), [other.batch(part) for part in parts]
        for key in ("lq", "gt"):
            assert torch.equal(expected[key], torch.cat([part[key] for part in made]))
        assert expected["gt_path"] == made[0]["gt_path"] + made[1]["gt_path"]


def test_validation_degrades_every_picture_alike_in_every_run(clean):
    first, second = (clean(phase="val", sizes=((30, 30), (30, 30))) for _ in range(2))
    for index in range(2):
        assert torch.equal(first[index]["lq"], second[index]["lq"])
        assert first[index]["lq"].shape == (3, 30, 30)
    noise = [sample["lq"] - sample["gt"] for sample in (first[0], first[1])]
    assert not torch.equal(*noise)


@pytest.mark.parametrize("keys", [{}, {"reduce": 4, "gt_size": 3}, {"pad_small": True, "gt_size": 60}])
def test_the_memory_is_known_before_the_images_are_read(clean, monkeypatch, keys):
    dataset = clean(**keys)
    read, names = type(dataset).read, []
    monkeypatch.setattr(type(dataset), "read", lambda self, *a: names.append(a) or read(self, *a))
    needed = memory(dataset)
    assert len(names) == 1, "for the depth"
    assert needed == Resident(dataset, "cpu").nbytes


def test_a_pyramid_of_four_takes_half_as_much_again_at_most(clean):
    sizes = ((100, 130), (97, 101))
    assert memory(clean(sizes=sizes, reduce=4, gt_size=4)) < 1.5 * memory(clean(sizes=sizes, gt_size=4))


@pytest.mark.parametrize(
    ("setting", "share", "processes", "used", "said"),
    [
        ("auto", 5, 1, True, "data workers are not needed"),
        ("auto", 3, 1, False, "more than 25%"),
        ("auto", 9, 2, True, "batches are made there"),
        ("auto", 9, 3, False, "more than 25%"),
        (True, 1.5, 1, True, "on cpu"),
        (False, 99, 1, False, "device_images: false"),
    ],
)
def test_auto_compares_the_images_with_the_free_memory(
    clean, monkeypatch, setting, share, processes, used, said
):
    dataset = clean(device_images=setting)
    monkeypatch.setattr(resident, "free_memory", lambda _: round(share * memory(dataset)))
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(processes))
    images, note = open_resident(dataset, "cpu")
    assert (images is not None) == used
    assert note.startswith("3 images")
    assert said in note
    assert "\n" not in note


def test_true_with_too_little_memory_says_how_much_is_needed_and_there(clean, monkeypatch):
    monkeypatch.setattr(resident, "free_memory", lambda _: 2_000_000_000)
    monkeypatch.setattr(resident, "memory", lambda _: 3_000_000_000)
    with pytest.raises(BadInput, match=r"datasets.train: device_images: true needs 3 GB on cpu, where 2 GB"):
        open_resident(clean(device_images=True), "cpu")


def test_memory_that_runs_out_while_reading_is_one_line(clean, monkeypatch):
    def full(*_, **__):
        raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory")

    monkeypatch.setattr(resident.torch, "empty", full)
    with pytest.raises(BadInput, match=r"do not fit into the memory of cpu; set device_images: false"):
        open_resident(clean(device_images=True), "cpu")


class Other(Dataset_GaussianDenoising):
    def __getitem__(self, index):
        return super().__getitem__(index)


@pytest.mark.parametrize(
    ("kind", "keys", "said"),
    [
        (Other, {}, "Other reads them itself"),
        (Dataset_GaussianDenoising, {"phase": "val", "sigma_test": 5}, "not for training"),
        (Dataset_GaussianDenoising, {"gt_size": None}, "no gt_size"),
    ],
)
def test_other_sets_are_read_by_a_data_loader(pairs, kind, keys, said):
    options = {"phase": "train", "dataroot_gt": f"{pairs}/gt", "gt_size": 8, "sigma_range": 5}
    images, note = open_resident(kind(options | keys), "cpu")
    assert images is None
    assert said in note


def test_a_damaged_image_ends_the_run_in_one_line_with_its_name(clean):
    dataset = clean()
    Path(dataset.paths[1]["gt"]).write_bytes(b"not a picture")
    with pytest.raises(BadInput, match=r"^datasets.train: .*1\.tif cannot be read as an image"):
        open_resident(dataset, "cpu")


def test_an_image_of_another_size_than_its_header_said_is_named(clean, picture):
    dataset = clean()
    cv2.imwrite(dataset.paths[2]["gt"], picture(30, 30))
    with pytest.raises(BadInput, match=r"2\.tif has 30x30 pixels, not the 38x57 expected"):
        Resident(dataset, "cpu")


def test_sizes_that_the_headers_do_not_tell_are_read_from_the_pixels(clean):
    dataset = clean()
    dataset.sizes.clear()
    same_as_the_loader(dataset, tickets(6))
    dataset.sizes.clear()
    dataset.crops = [64]
    with pytest.raises(BadInput, match=r"0\.tif is 50x40 .* smaller than the crop of 64"):
        Resident(dataset, "cpu")


@pytest.mark.parametrize(
    ("steps", "said"),
    [
        (
            [{"type": "Gausian", "sigma": 5}],
            "datasets.train.degradations[0].type: no degradation 'Gausian'; did ",
        ),
        ([{"type": "Gaussian", "sigma": 5}, {"type": "Gaussian", "sgima": 5}], "[1] (Gaussian): unknown key"),
        ([{"type": "Gaussian", "sigma": [9, 5]}], "datasets.train.degradations[0] (Gaussian): sigma must be"),
        ([{"sigma": 5}], "datasets.train.degradations[0]: the key 'type' is missing"),
        ([{"type": "Gaussian", "sigma": 5, "prob": 2}], "datasets.train.degradations[0].prob must be less"),
        ({"type": "Gaussian", "sigma": 5}, "datasets.train.degradations must be a list"),
        (None, "datasets.train: the key 'degradations' is missing"),
    ],
)
def test_a_mistake_in_the_list_is_named(pairs, options, write, capsys, steps, said):
    train = options["datasets"]["train"]
    train["type"] = "Dataset_CleanImages"
    del train["dataroot_lq"]
    if steps is not None:
        train["degradations"] = steps
    assert main(["train", "-opt", write(options)]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1


def test_a_list_of_degradations_trains(pairs, options, write):
    options["datasets"]["train"] |= {"type": "Dataset_CleanImages", "degradations": MIXED}
    options["datasets"]["val"] |= {"type": "Dataset_CleanImages", "degradations": MIXED}
    assert main(["train", "-opt", write(options)]) == 0
