"""Option files through train, kill -9, resume, validate and test, shrunken to seconds."""

from __future__ import annotations

import subprocess
import sys
import warnings

import pytest
import yaml

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # BasicSR's own use of deprecated names
    from tools import option_files
    from tools.option_data import make_data
    from tools.option_shrink import for_testing, shrink

METRICS = {"psnr": {"type": "calculate_psnr", "crop_border": 0, "test_y_channel": False}}
VIDEO = {
    "name": "EDVR_M",
    "model_type": "EDVRModel",
    "scale": 4,
    "num_gpu": 8,
    "datasets": {
        "train": {
            "type": "REDSDataset",
            "dataroot_gt": "datasets/REDS/train_sharp",
            "dataroot_lq": "datasets/REDS/train_sharp_bicubic",
            "dataroot_flow": None,
            "meta_info_file": "basicsr/data/meta_info/meta_info_REDS_GT.txt",
            "val_partition": "REDS4",
            "io_backend": {"type": "disk"},
            "num_frame": 5,
            "gt_size": 256,
            "interval_list": [1],
            "random_reverse": False,
            "use_hflip": True,
            "use_rot": True,
            "batch_size_per_gpu": 4,
            "num_worker_per_gpu": 3,
            "dataset_enlarge_ratio": 200,
        },
        "val": {
            "name": "REDS4",
            "type": "VideoTestDataset",
            "dataroot_gt": "datasets/REDS4/GT",
            "dataroot_lq": "datasets/REDS4/sharp_bicubic",
            "io_backend": {"type": "disk"},
            "cache_data": False,
            "num_frame": 5,
            "padding": "reflection_circle",
        },
    },
    "network_g": {
        "type": "EDVR", "num_feat": 64, "num_frame": 5, "deformable_groups": 8, "num_extract_block": 5,
        "num_reconstruct_block": 10, "with_tsa": True,
    },
    "path": {"pretrain_network_g": "experiments/woTSA/net_g_600000.pth", "strict_load_g": False},
    "train": {
        "total_iter": 600000,
        "tsa_iter": 50000,
        "optim_g": {"type": "Adam", "lr": 4e-4, "betas": [0.9, 0.99]},
        "scheduler": {"type": "CosineAnnealingRestartLR", "periods": [600000], "restart_weights": [1]},
        "pixel_opt": {"type": "CharbonnierLoss", "reduction": "sum"},
    },
    "val": {"val_freq": 5000, "save_img": False, "metrics": METRICS},
    "logger": {"print_freq": 100, "save_checkpoint_freq": 5000, "use_tb_logger": True},
}  # fmt: skip


@pytest.fixture
def files(tmp_path):
    """A video model's file, one to test a network that does not exist, and one that is not YAML."""
    missing = {k: v for k, v in VIDEO.items() if k != "train"} | {"network_g": {"type": "EDVRR"}}
    missing["datasets"] = {"test": VIDEO["datasets"]["val"]}
    for name, text in (
        ("edvr", yaml.safe_dump(VIDEO)),
        ("missing", yaml.safe_dump(missing)),
        ("broken", "name: [1"),
    ):
        (tmp_path / "options").mkdir(exist_ok=True)
        (tmp_path / "options" / f"{name}.yml").write_text(text, encoding="utf-8")
    return tmp_path / "options"


def test_files_of_a_folder_become_a_table(files):
    # In a process of its own: the tool forks, which autograd forbids once it has run in this one.
    command = [sys.executable, option_files.__file__, str(files)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1, done.stderr
    head, _, *rows = done.stdout.splitlines()
    assert head == "| file | train | resume | test | figures | seconds |"
    cells = {cell[1]: cell[2:-1] for row in rows if (cell := [c.strip() for c in row.split("|")])}
    train, resume, test, figures, _ = cells["edvr"]
    assert train.startswith("ok (")
    assert resume.startswith("ok, bit for bit (")
    assert test.startswith("ok (")
    assert figures.startswith("REDS4 psnr ")
    assert "unknown name 'EDVRR'; did you mean 'EDVR'?" in cells["missing"][2]
    assert "traceback" not in cells["missing"][2]
    assert "line 1" in cells["broken"][0]


def test_no_file_of_that_name_is_an_error(tmp_path, capsys):
    assert option_files.main([str(tmp_path), "--only", "train_*"]) == 2
    assert "train_*.yml" in capsys.readouterr().err


def test_shrinking_keeps_classes_and_sections(tmp_path):
    small = shrink(VIDEO, tmp_path)
    assert small["network_g"]["type"] == "EDVR"
    assert small["network_g"]["num_frame"] == small["datasets"]["train"]["num_frame"] == 5
    assert small["network_g"]["num_feat"] < 64
    assert sum(small["train"]["scheduler"]["periods"]) == small["train"]["total_iter"] < 10
    assert VIDEO["train"]["total_iter"] == 600000
    test = for_testing(small, "weights.pth")
    assert test["datasets"].keys() == {"val"}
    assert test["path"]["pretrain_network_g"] == "weights.pth"
    assert "train" not in test


@pytest.mark.parametrize("backend", ["disk", "lmdb"])
def test_pairs_have_the_names_that_the_section_asks_for(tmp_path, backend):
    section = {
        "type": "PairedImageDataset",
        "dataroot_gt": "x",
        "dataroot_lq": "y",
        "filename_tmpl": "{}x2",
        "io_backend": {"type": backend},
    }
    made = make_data(section, tmp_path, 2, 32)
    assert [p.stem for p in sorted((tmp_path / "lq").iterdir())] == [f"picture{i}x2" for i in range(4)]
    assert made["dataroot_lq"].endswith("lq.lmdb" if backend == "lmdb" else "lq")
