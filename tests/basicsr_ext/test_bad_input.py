"""Bad input gives one line on standard error and exit status 2, and leaves nothing behind."""

from __future__ import annotations

import os
from pathlib import Path

import cv2
import pytest
import torch

from basicsr_ext.__main__ import main


@pytest.fixture
def fails(pairs, write, capsys):
    """Run `basicsr train` on options and return its one line of error."""

    def _fails(options, *more, command="train"):
        arguments = ["-opt", write(options)] if isinstance(options, dict) else options
        before = sorted(os.listdir())
        assert main([command, *arguments, *more]) == 2
        said = capsys.readouterr().err
        assert said.count("\n") == 1
        assert said.startswith("basicsr: ")
        assert sorted(os.listdir()) == before
        return said

    return _fails


def test_no_option_file(fails):
    assert "-opt" in fails([])


def test_a_missing_option_file(fails):
    assert "cannot read the option file no.yml" in fails(["-opt", "no.yml"])


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a: [1", "line 1"),
        ("a: 1\na: 2", "line 2: duplicate key 'a'"),
        ("a: !!python/object/apply:os.system ['touch pwned']", "python/object/apply"),
        ("- 1", "contains no options"),
        ("name: x", "'model_type' is missing"),
        (b"\xff\xfe\x00", "not a text file"),
    ],
)
def test_an_unreadable_option_file(fails, text, said):
    Path("bad.yml").write_bytes(text if isinstance(text, bytes) else text.encode())
    assert said in fails(["-opt", "bad.yml"])


@pytest.mark.parametrize(
    ("where", "name", "nearest"),
    [
        (("network_g", "type"), "KBNet_S", "did you mean 'KBNet_s'"),
        (("datasets", "train", "type"), "Dataset_PairedImages", "did you mean 'Dataset_PairedImage'"),
        (("model_type",), "ImageClean", "did you mean 'ImageCleanModel'"),
        (("train", "pixel_opt", "type"), "L1", "did you mean 'L1Loss'"),
        (("train", "optim_g", "type"), "AdmaW", "did you mean 'AdamW'"),
        (("train", "scheduler", "type"), "CosineAnnealingRestartCyclic", "'CosineAnnealingRestartCyclicLR'"),
        (("val", "metrics", "psnr", "type"), "psnr", "did you mean 'calculate_psnr'"),
    ],
)
def test_the_nearest_known_name_is_suggested(fails, options, where, name, nearest):
    *sections, last = where
    at = options
    for section in sections:
        at = at[section]
    at[last] = name
    said = fails(options)
    assert repr(name) in said
    assert nearest in said


@pytest.mark.parametrize(
    ("network", "said"),
    [
        ({"width": 6}, "width must be a multiple of 4"),
        ({"img_channel": 1}, "set in_ch of every set to 1 (gray) or 3 (colour)"),
    ],
)
def test_invalid_network_arguments(fails, options, network, said):
    options["network_g"].update(network)
    line = fails(options)
    assert "network_g (KBNet_s)" in line
    assert said in line


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        ("network_g:witdh=4", "unknown key network_g.witdh; did you mean 'width'?"),
        ("trian={}", "unknown key trian; did you mean 'train'?"),
        ("train:total_itre=4", "unknown key train.total_itre; did you mean 'total_iter'?"),
        ("train:mixing_augs:mixpu=true", "unknown key train.mixing_augs.mixpu; did you mean 'mixup'?"),
        ("datasets:train:gt_sise=8", "unknown key datasets.train.gt_sise; did you mean 'gt_size'?"),
        ("val:metrics:psnr:crop_boarder=4", "unknown key val.metrics.psnr.crop_boarder; did you mean 'crop_"),
        ("path={pretrain_network: a}", "unknown key path.pretrain_network; did you mean 'pretrain_"),
        ("train:use_grad_clip=1", "train.use_grad_clip must be true or false, not 1"),
        ("train:precision=fp8", "train.precision must be 'fp32', 'bf16' or 'fp16', not 'fp8'"),
        ("network_g:width=wide", "network_g.width must be a whole number of at least 1, not 'wide'"),
        (
            "network_g:enc_blk_nums=[1, x]",
            "network_g.enc_blk_nums[1] must be a whole number of at least 0, not 'x'",
        ),
        ("train:total_iter=2.5", "train.total_iter must be a whole number of at least 1, not 2.5"),
        ("train:total_iter=.nan", "train.total_iter must be a whole number of at least 1, not nan"),
        ("train=[]", "train must be a section of keys and values, not []"),
        ("num_gpu=-1", "num_gpu must be 'auto' or a whole number of at least 0, not -1"),
        ("val:tile=0", "val.tile must be a whole number of at least 1, not 0"),
        ("val:grids=true", "unknown key val.grids; known: "),
    ],
)
def test_a_key_or_value_that_is_not_in_the_schema_is_named(fails, options, entry, said):
    assert f"options.yml: {said}" in fails(options, "--force_yml", entry)


def test_a_misspelt_required_key_is_named_with_the_right_one(fails, options):
    options["train"]["total_itre"] = options["train"].pop("total_iter")
    assert "unknown key train.total_itre; did you mean 'total_iter'?" in fails(options)


def test_keys_that_another_model_would_ignore_are_refused(fails, options):
    options["model_type"] = "SRModel"
    del options["train"]["mixing_augs"], options["train"]["use_grad_clip"]
    assert "train.precision: SRModel would ignore it" in fails(options, "--force_yml", "train:precision=bf16")


def test_the_authors_private_storage_is_named(fails, options):
    options["datasets"]["train"]["dataroot_gt"] = "s3://bucket/images"
    assert "s3://bucket/images is the authors' private storage" in fails(options)


def test_a_network_whose_output_has_another_size_than_the_targets(fails, options):
    options["network_g"] = {"type": "SRVGGNetCompact", "num_feat": 4, "num_conv": 1, "upscale": 2}
    assert "(3, 32, 32)" in fails(options)


def test_a_missing_dataset_folder_says_where_to_look_for_it(fails, options):
    options["datasets"]["train"]["dataroot_lq"] = "data/noisy"
    said = fails(options)
    assert "datasets.train.dataroot_lq: data/noisy does not exist; set it to the folder of your data" in said
    path = Path("described.yml")
    path.write_text("# An experiment.\n#\n# Data  from somewhere\n\n" + Path("options.yml").read_text())
    assert "the comments in described.yml say where to get the data" in fails(["-opt", str(path)])


def test_an_unset_variable_in_a_folder(fails, options, monkeypatch):
    monkeypatch.delenv("KBNET_DATA", raising=False)
    options["datasets"]["train"]["dataroot_lq"] = "${KBNET_DATA}/x"
    assert "KBNET_DATA is not set" in fails(options)


def test_an_empty_folder(fails, options, tmp_path):
    (tmp_path / "empty").mkdir()
    options["datasets"]["train"]["dataroot_lq"] = "empty"
    assert "empty contains no images" in fails(options)


def test_pairs_without_a_partner(fails, options, pairs):
    (pairs / "lq" / "1.png").rename(pairs / "lq" / "one.png")
    said = fails(options)
    assert "the pairs do not match" in said
    assert "gt/1.png" in said


def test_pairs_of_different_size(fails, options, pairs, picture):
    cv2.imwrite(str(pairs / "lq" / "2.png"), picture(24, 21))
    said = fails(options)
    assert "the pairs do not match" in said
    assert "2.png is 21x24" in said


def test_an_image_smaller_than_the_largest_crop(fails, options):
    options["datasets"]["train"].update(mini_batch_sizes=[1, 1], iters=[1, 1], gt_sizes=[8, 22])
    said = fails(options)
    assert "0.png is 20x24" in said
    assert "smaller than the crop of 22" in said


def test_stages_of_different_length(fails, options):
    options["datasets"]["train"].update(mini_batch_sizes=[1, 1], iters=[1, 1], gt_sizes=[8])
    assert "gt_sizes must have the same length" in fails(options)


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("content", [b"not a picture", b""])
def test_an_unreadable_training_image_is_named(pairs, options, write, capsys, workers, content):
    # Training finds it at the latest.
    (pairs / "gt" / "2.png").write_bytes(content)
    options["datasets"]["train"]["num_worker_per_gpu"] = workers
    assert main(["train", "-opt", write(options)]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "data/gt/2.png cannot be read as an image" in said
    assert not list(Path().rglob("*.pth"))


def test_wrong_weights_are_never_ignored(fails, options):
    options["path"] = {"pretrain_network_g": "no.pth"}
    assert "no.pth" in fails(options)
    torch.save({"params": {"other.weight": torch.zeros(1)}}, "other.pth")
    options["path"]["pretrain_network_g"] = "other.pth"
    assert "other.pth does not fit KBNet_s" in fails(options)
    options["path"]["strict_load_g"] = False
    assert "other.pth does not fit KBNet_s" in fails(options)
    Path("broken.pth").write_bytes(b"PK\x03\x04")
    options["path"]["pretrain_network_g"] = "broken.pth"
    assert "broken.pth" in fails(options)


def test_testing_without_weights(fails, options):
    assert "pretrain_network_g names no weights" in fails(options, command="test")


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        ("train:total_iter", "section:key=value"),
        ("trian:total_iter=1", "did you mean 'train'"),
        ("train:total_iter:x=1", "a value, not a section"),
        ("train:total_iter=[", "line 1"),
        ("train:total_iter=many", "train.total_iter must be a whole number"),
        ("train:total_iter=0", "train.total_iter must be a whole number"),
        ("name=../escaped", "a valid folder name"),
        ("datasets:train=null", "datasets.train is missing"),
        ("datasets:train:gt_size=null", "batch"),
        ("train:pixel_opt=null", "pixel_opt is missing"),
        ("train:optim_g={type: AdamW}", "optim_g needs type and lr"),
        ("train:optim_g={type: AdamW, lr: 1e-3, speed: 2}", "train.optim_g (AdamW)"),
        ("train:scheduler={type: StepLR}", "train.scheduler (StepLR)"),
        ("datasets=data", "datasets must be a section"),
        ("num_gpu=many", "num_gpu must be"),
    ],
)
def test_invalid_overrides_and_values(fails, options, entry, said):
    options["datasets"]["train"]["gt_size"] = 16
    if entry == "datasets:train:gt_size=null":
        options["datasets"]["train"]["batch_size_per_gpu"] = None
    assert said in fails(options, "--force_yml", entry)


def test_a_launcher_without_torchrun(fails, options, monkeypatch):
    monkeypatch.delenv("RANK", raising=False)
    assert "start with torchrun" in fails(options, "--launcher", "pytorch")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert "--launcher pytorch" in fails(options)


def test_an_unknown_argument(fails, options):
    assert "--auto-resum" in fails(options, "--auto-resum")
