"""Option files with the keys and values that KBNet's authors released, given only data."""

from __future__ import annotations

from copy import deepcopy

import pytest

from basicsr_ext.__main__ import main
from basicsr_ext.options import parse_yaml

COMMON = """
model_type: ImageCleanModel
scale: 1
num_gpu: 8
manual_seed: 100
path: {strict_load_g: true, resume_state: ~}
train:
  total_iter: 300000
  warmup_iter: -1
  use_grad_clip: true
  scheduler:
    type: CosineAnnealingRestartCyclicLR
    periods: [92000, 208000]
    restart_weights: [1, 1]
    eta_mins: [0.0003, 0.000001]
  optim_g: {type: AdamW, lr: !!float 3e-4, weight_decay: !!float 1e-4, betas: [0.9, 0.999]}
  pixel_opt: {type: L1Loss, loss_weight: 1, reduction: mean}
val:
  window_size: 8
  val_freq: !!float 4e3
  save_img: false
  rgb2bgr: true
  max_minibatch: 8
  metrics: {psnr: {type: calculate_psnr, crop_border: 0}}
logger: {print_freq: 1000, use_tb_logger: true, wandb: {project: ~, resume_id: ~}}
dist_params: {backend: nccl, port: 29500}
"""
TRAIN = """
name: TrainSet
geometric_augs: true
filename_tmpl: '{}'
io_backend: {type: petrel}
use_shuffle: true
num_worker_per_gpu: 8
batch_size_per_gpu: 8
iters: [92000, 64000, 48000, 36000, 36000, 24000]
gt_size: 384
dataset_enlarge_ratio: 1
prefetch_mode: ~
"""
LARGE = """
type: KBNet_l
inp_channels: 3
out_channels: 3
dim: 48
num_blocks: [4, 6, 6, 8]
num_refinement_blocks: 4
heads: [1, 2, 4, 8]
ffn_expansion_factor: 1.5
bias: False
"""
NAMES = ["sidd", "gau_color_25", "derain", "defocus"]


def released(task):
    options = parse_yaml(COMMON)
    gaussian = task in ("sidd", "gau_color_25")
    kind = "Dataset_GaussianDenoising" if gaussian else "Dataset_PairedImage"
    train = parse_yaml(TRAIN) | {"type": kind, "dataroot_gt": "s3://private/gt"}
    val = {
        "name": "ValSet",
        "type": kind,
        "dataroot_gt": "s3://private/val",
        "io_backend": {"type": "petrel"},
    }
    if gaussian:
        sigma = 50 if task == "sidd" else 25
        train |= {"sigma_type": "random", "sigma_range": sigma, "in_ch": 3, "dataroot_lq": "none"}
        train |= {"mini_batch_sizes": [8, 5, 3, 2, 1, 1], "gt_sizes": [128, 160, 192, 256, 320, 384]}
        val |= {"sigma_test": 25, "in_ch": 3, "dataroot_lq": "none"}
        network = {"type": "KBNet_s"} | ({"lightweight": True, "ffn_scale": 1.5} if task == "sidd" else {})
    else:
        train |= {"mini_batch_sizes": [8, 5, 3, 1, 1, 1], "gt_sizes": [128, 160, 192, 256, 320, 320]}
        for dataset in (train, val):
            dataset["dataroot_lq"] = "s3://private/lq"
        network = parse_yaml(LARGE)
    options["name"] = {"derain": "rain-kb333", "defocus": "focus-kb333"}.get(task, "gaum-kb333")
    options["datasets"] = {"train": train, "val": val}
    options["network_g"] = network
    options["path"]["pretrain_network_g"] = f"pretrained_models/{task}.pth"
    options["train"]["mixing_augs"] = {"mixup": gaussian, "mixup_beta": 1.2, "use_identity": True}
    options["val"]["use_image"] = task == "derain"
    options["val"]["metrics"]["psnr"]["test_y_channel"] = task == "derain"
    options["logger"]["save_checkpoint_freq"] = 1e3 if gaussian else 4e3
    return options


@pytest.fixture(params=NAMES)
def task(request):
    return request.param


def given_data(options):
    for dataset in options["datasets"].values():
        dataset["dataroot_gt"] = "data/gt"
        if dataset["type"] == "Dataset_PairedImage":
            dataset["dataroot_lq"] = "data/lq"
    return options


def test_its_private_storage_is_the_first_error(pairs, write, capsys, task):
    assert main(["train", "-opt", write(released(task))]) == 2
    said = capsys.readouterr().err
    assert "datasets.train.dataroot_gt: s3://private/gt is the authors' private storage" in said


def test_given_data_it_requires_its_pretrained_weights(pairs, write, capsys, task):
    options = given_data(released(task))
    options["datasets"]["train"]["pad_small"] = True
    options["network_g"] |= (
        {"width": 4, "middle_blk_num": 1}
        if task in ("sidd", "gau_color_25")
        else {"dim": 24, "num_blocks": [1, 1, 1, 1]}
    )
    assert main(["train", "-opt", write(options)]) == 2
    assert f"pretrained_models/{task}.pth does not exist" in capsys.readouterr().err


def test_at_small_size_it_trains_and_its_mistakes_are_listed(pairs, write, capsys, task):
    options = given_data(deepcopy(released(task)))
    options["path"]["pretrain_network_g"] = None
    options["logger"]["use_tb_logger"] = False
    options["train"]["total_iter"] = 6
    options["train"]["scheduler"]["periods"] = [2, 4]
    options["datasets"]["train"] |= {
        "num_worker_per_gpu": 0,
        "iters": [1] * 6,
        "gt_size": 20,
        "gt_sizes": [8, 8, 12, 16, 16, 20],
    }
    if options["network_g"]["type"] == "KBNet_s":
        small = {"width": 4, "middle_blk_num": 1, "enc_blk_nums": [1], "dec_blk_nums": [1]}
    else:
        small = {"dim": 24, "num_blocks": [1, 1, 1, 1], "num_refinement_blocks": 1, "heads": [1, 1, 2, 2]}
    options["network_g"] |= small
    assert main(["train", "-opt", write(options)]) == 0
    said = capsys.readouterr().out
    assert "iter 6/6" in said
    assert "datasets.train.io_backend petrel was the authors' private storage" in said
    assert "val.max_minibatch has no effect" in said
    assert "num_gpu is 8" in said
    if "sigma_range" in options["datasets"]["train"]:
        assert "sigma_type random with one number is read as 0.." in said
    assert ("[Y, uint8]" if task == "derain" else "[RGB, float]") in said
