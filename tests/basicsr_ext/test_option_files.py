"""The option files in options/, and files like those that Restormer and KBNet released."""

from __future__ import annotations

import re
from pathlib import Path

import cv2
import pytest
import torch
import yaml
from basicsr.archs import build_network

from basicsr_ext.__main__ import main
from basicsr_ext.options import prepare_options, read_options
from basicsr_ext.registry import check_names
from basicsr_ext.sampler import Stages
from kbnet_plugin import load_network

FOLDER = Path(__file__).parents[2] / "options"
FILES = sorted(FOLDER.rglob("*.yml"))
NAMES = {f"kbnet_{n}" for n in ("sidd", "sensenoise", "derain", "defocus", "quickstart", "quickstart_nafnet")}
NAMES |= {
    "derain",
    *(f"denoise-{n}" for n in ("color", "color-fast", "photo", "gray", "micro")),
}
NAMES |= {f"kbnet_gaussian_{c}_{s}" for c in ("color", "gray") for s in (15, 25, 50)}


def test_every_experiment_has_one():
    assert {f.stem for f in FILES} == NAMES


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
def test_it_is_complete(path, monkeypatch, tmp_path):
    options = read_options(path)
    assert options["name"] == path.stem
    for dataset in options["datasets"].values():
        for key in dataset:
            if key.startswith("dataroot"):
                dataset[key] = str(tmp_path)  # all but the data is checked
    options = prepare_options(options, path, train=True)
    check_names(options, path)
    train, total = options["train"], options["train"]["total_iter"]
    assert sum(train["scheduler"]["periods"]) == total
    stages = Stages.from_options(options["datasets"]["train"])
    assert len(stages.ends) == 1 or stages.ends[-1] == total
    with torch.device("meta"):
        build_network(options["network_g"])
    head = path.read_text().split("\nname:")[0]
    command = f"basicsr train -opt options/{path.relative_to(FOLDER)}"
    for word in ("# Data ", "# Memory ", "# Command  ", command):
        assert word in head


@pytest.mark.parametrize(
    "path", [f for f in FILES if f.parent == FOLDER and "quickstart" not in f.stem], ids=lambda p: p.stem
)
def test_without_its_data_it_says_where_to_get_it(path, monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["train", "-opt", str(path)]) == 2
    said = capsys.readouterr().err
    assert re.fullmatch(
        rf"basicsr: .*datasets/.* does not exist; the comments in {path} say where .*\n", said
    )
    assert not list(tmp_path.iterdir())


def test_sidd_trains_and_tests_at_small_size(monkeypatch, tmp_path, make_pairs, capsys):
    monkeypatch.chdir(tmp_path)
    for part in ("train", "val"):
        make_pairs(tmp_path / part)
        for role, name in (("gt", "target_crops"), ("lq", "input_crops")):
            (tmp_path / "datasets/sidd" / part).mkdir(parents=True, exist_ok=True)
            (tmp_path / part / role).rename(tmp_path / "datasets/sidd" / part / name)
    small = ["network_g:width=4", "network_g:enc_blk_nums=[1]", "network_g:dec_blk_nums=[1]"]
    small += ["network_g:middle_blk_num=1", "train:total_iter=3", "datasets:train:iters=[1, 1, 1]"]
    small += ["datasets:train:gt_sizes=[8, 12, 16]", "datasets:train:mini_batch_sizes=[3, 2, 1]"]
    small += ["datasets:train:num_worker_per_gpu=0", "logger:use_tb_logger=false"]
    option_file = str(FOLDER / "kbnet_sidd.yml")
    assert main(["train", "-opt", option_file, "--force_yml", *small]) == 0
    trained = re.findall(r"sidd-val, 3 .*psnr ([\d.]+)", capsys.readouterr().out)
    assert main(["test", "-opt", option_file, "--force_yml", *small]) == 0
    assert re.findall(r"sidd-val, 3 .*psnr ([\d.]+)", capsys.readouterr().out) == trained[-1:]
    assert load_network("experiments/kbnet_sidd/models/net_g_latest.pth").img_channel == 3


RELEASED = """
# Keys and values of the released Gaussian file, whose noise range is one number.
name: GaussianColor
model_type: ImageCleanModel
scale: 1
num_gpu: 8
manual_seed: 100
datasets:
  train:
    name: TrainSet
    type: Dataset_GaussianDenoising
    sigma_type: random
    sigma_range: 50
    in_ch: 3
    dataroot_gt: clean
    dataroot_lq: none
    geometric_augs: true
    filename_tmpl: '{}'
    io_backend: {type: disk}
    use_shuffle: true
    num_worker_per_gpu: 0
    batch_size_per_gpu: 8
    mini_batch_sizes: [8, 5, 3, 2, 1, 1]
    iters: [2, 1, 1, 1, 1, 1]
    gt_size: 24
    gt_sizes: [8, 10, 12, 16, 20, 24]
    dataset_enlarge_ratio: 1
    prefetch_mode: ~
  val:
    name: ValSet
    type: Dataset_GaussianDenoising
    sigma_test: 50
    in_ch: 3
    dataroot_gt: clean
    io_backend: {type: disk}
network_g: {type: KBNet_s, width: 4, enc_blk_nums: [1], middle_blk_num: 1, dec_blk_nums: [1]}
path:
  pretrain_network_g: ~
  strict_load_g: true
  resume_state: ~
train:
  total_iter: 7
  warmup_iter: -1
  use_grad_clip: true
  scheduler:
    type: CosineAnnealingRestartCyclicLR
    periods: [3, 4]
    restart_weights: [1, 1]
    eta_mins: [0.0003, 0.000001]
  mixing_augs: {mixup: true, mixup_beta: 1.2, use_identity: true}
  optim_g: {type: AdamW, lr: !!float 3e-4, weight_decay: !!float 1e-4, betas: [0.9, 0.999]}
  pixel_opt: {type: L1Loss, loss_weight: 1, reduction: mean}
val:
  window_size: 8
  val_freq: !!float 4e3
  save_img: false
  rgb2bgr: true
  use_image: false
  max_minibatch: 8
  metrics:
    psnr: {type: calculate_psnr, crop_border: 0, test_y_channel: false}
logger:
  print_freq: 1000
  save_checkpoint_freq: !!float 4e3
  use_tb_logger: false
  wandb: {project: ~, resume_id: ~}
dist_params: {backend: nccl, port: 29500}
"""


def test_a_file_as_released_trains(monkeypatch, tmp_path, picture, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "clean").mkdir()
    cv2.imwrite("clean/a.png", picture(32, 40))
    (tmp_path / "released.yml").write_text(RELEASED)
    assert yaml.safe_load(RELEASED)["datasets"]["train"]["dataroot_lq"] == "none"
    assert main(["train", "-opt", "released.yml"]) == 0
    out = capsys.readouterr().out
    assert "ValSet, 1 image(s): psnr" in out
    assert "num_gpu is 8" in out
