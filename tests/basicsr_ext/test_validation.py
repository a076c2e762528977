"""Validation: what is measured on which set, what is shown, and what ends the run before it starts."""

from __future__ import annotations

import csv
import os
import re
import socket
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import cv2
import numpy as np
import pytest
import yaml
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from basicsr_ext.__main__ import main
from basicsr_ext.options import prepare_options
from kbnet_plugin.errors import BadInput

ROOT = str(Path(__file__).parents[2])
STOCK = Path(__file__).with_name("stock.yml")
NIQE = {"type": "calculate_niqe", "crop_border": 0}


def use(options, model):
    """Train another model, without the keys that it lacks."""
    options["model_type"] = model
    if model != "ImageCleanModel":
        del options["train"]["mixing_augs"], options["train"]["use_grad_clip"]


@pytest.fixture
def train(pairs, options, write, capsys):
    """Train one step, with some options changed; returns the output."""

    def _train(*force, expected=0):
        options["train"]["total_iter"] = 1
        arguments = ["-opt", write(options), *(["--force_yml", *force] if force else [])]
        before = sorted(os.listdir())
        assert main(["train", *arguments]) == expected
        said = capsys.readouterr()
        if expected:
            assert said.err.count("\n") == 1
            assert sorted(os.listdir()) == before
        return said.out + said.err

    return _train


@pytest.fixture
def unclean(pairs, options, picture):
    """Images without ground truth, as a validation set."""
    (pairs / "real").mkdir()
    cv2.imwrite(str(pairs / "real" / "photo.png"), picture(200, 210))
    return {"type": "SingleImageDataset", "dataroot_lq": "data/real"}


@pytest.mark.parametrize("model", ["ImageCleanModel", "SRModel"])
def test_metrics_without_reference_need_no_ground_truth(train, options, unclean, picture, pairs, model):
    for role in ("gt", "lq"):
        cv2.imwrite(str(pairs / role / "large.png"), picture(200, 200))
        for number in range(3):
            (pairs / role / f"{number}.png").unlink()
    options["datasets"]["val_2"] = unclean
    options["val"]["metrics"]["niqe"] = NIQE
    use(options, model)
    said = train()
    assert re.search(r"datasets.val_2 without ground truth: no psnr", said)
    with Path("experiments/tiny/history.csv").open() as file:
        rows = {row["quantity"]: float(row["value"]) for row in csv.DictReader(file)}
    assert rows["val_2 niqe"] > 1
    assert {"val psnr", "val niqe", "val_2 niqe"} <= set(rows)
    assert "val_2 psnr" not in rows
    del options["datasets"]["val"]
    said = train(expected=2)
    assert "val.metrics.psnr (calculate_psnr) needs ground truth, which datasets.val_2 lacks" in said


@pytest.mark.parametrize(
    ("metric", "said"),
    [
        ("{type: calculate_psnr, crop_border: 12}", r"val.metrics.m.crop_border: 12 leaves nothing of 20x24"),
        ("{type: calculate_niqe}", r"val.metrics.m \(calculate_niqe\), tried on 20x24 pixels"),
        (
            "{type: calculate_niqe, convert: y}",
            "unknown key val.metrics.m.convert; did you mean 'convert_to'",
        ),
        ("{type: calculate_mine, border: 4}", r"val.metrics.m \(calculate_mine\), .* argument 'border'"),
    ],
)
def test_metrics_are_tried_before_the_start(train, monkeypatch, metric, said):
    from basicsr.utils.registry import METRIC_REGISTRY

    def calculate_mine(img, img2, crop_border=0):
        return 1.0

    monkeypatch.setitem(METRIC_REGISTRY._obj_map, "calculate_mine", calculate_mine)
    assert re.search(said, train(f"val:metrics:m={metric}", expected=2))


def test_metrics_have_their_defaults(options):
    options["val"]["metrics"] = {"p": {"type": "calculate_psnr"}, "n": {"type": "calculate_niqe"}}
    for name in ("gt", "lq"):
        for dataset in options["datasets"].values():
            dataset[f"dataroot_{name}"] = "."
    metrics = prepare_options(options, "x.yml", train=True)["val"]["metrics"]
    assert metrics["p"]["crop_border"] == 0
    assert metrics["n"]["better"] == "lower"


@pytest.mark.parametrize("model", ["ImageCleanModel", "SRModel"])
def test_an_image_with_nan_is_named(options, pairs, capsys, write, model):
    for role in ("gt", "lq"):
        (pairs / "val" / role).mkdir(parents=True)
        image = np.full((24, 24, 3), 0.5, np.float32)
        cv2.imwrite(str(pairs / "val" / role / "fine.tif"), image)
        image[3, 4] = float("nan")
        cv2.imwrite(str(pairs / "val" / role / "holes.tif"), image)
        options["datasets"]["val"][f"dataroot_{role}"] = f"data/val/{role}"
    options["train"]["total_iter"] = 1
    use(options, model)
    assert main(["train", "-opt", write(options)]) == 2
    said = capsys.readouterr().err
    assert re.search(r"datasets val: data/val/lq/holes.tif contains NaN or infinite values", said)
    assert said.count("\n") == 1


@pytest.mark.parametrize("model", ["ImageCleanModel", "SRModel"])
def test_sets_of_one_name_and_images_of_one_name_are_told_apart(
    train, options, pairs, make_pairs, picture, model
):
    for role in ("gt", "lq"):
        (pairs / role / "sub").mkdir()
        cv2.imwrite(str(pairs / role / "sub" / "0.png"), picture(seed=9))
    make_pairs(pairs / "other", 1)
    options["datasets"]["val"]["name"] = "Set"
    options["datasets"]["val_2"] = {
        "type": "Dataset_PairedImage",
        "name": "Set",
        "dataroot_gt": "data/other/gt",
        "dataroot_lq": "data/other/lq",
    }
    options["val"] |= {"save_img": True, "samples": 1}
    options["logger"] = {"use_tb_logger": True}
    use(options, model)
    said = train()
    assert "datasets.val_2 has the name of datasets.val, Set: shown as Set-val_2" in said
    events = EventAccumulator("tb_logger/tiny").Reload()
    figures = [events.Scalars(f"metrics/{name}/psnr")[0].value for name in ("Set", "Set-val_2")]
    assert figures[0] != figures[1]
    pictures = Path("experiments/tiny/visualization")
    saved = sorted(str(p.relative_to(pictures)) for p in pictures.rglob("*.png"))
    names = ["Set__0", "Set__1", "Set__2", "Set__sub__0", "Set-val_2__0"]
    samples = ["samples/Set__0.png", "samples/Set-val_2__0.png"]
    assert saved == sorted([*(f"{n}/{n}_1.png" for n in names), *samples])
    assert main(["test", "-opt", "options.yml"]) == 0
    results = Path("results/tiny/visualization")
    assert sorted(str(p.relative_to(results)) for p in results.rglob("*.png")) == sorted(
        [*(f"Set/{n}_tiny.png" for n in ("0", "1", "2", "sub__0")), "Set-val_2/0_tiny.png"]
    )


def test_tensorboard_shows_pictures_and_images_a_second(options, write, picture, pairs):
    for role in ("gt", "lq"):
        cv2.imwrite(str(pairs / role / "0.png"), picture(24, 400))
    options["logger"] = {"use_tb_logger": True, "print_freq": 1}
    options["val"]["samples"] = 1
    options["train"]["total_iter"] = 2
    assert main(["train", "-opt", write(options)]) == 0
    events = EventAccumulator("tb_logger/tiny").Reload()
    (shown,) = events.Images("samples/val_0")
    assert (shown.height, shown.width) == (15, 768)
    assert events.Scalars("speed/images per second")[0].value > 0


def test_the_labels_of_sets(pairs, options):
    options["datasets"]["test0"] = options["datasets"]["val"]
    options["datasets"]["val_Set 5"] = options["datasets"]["val"] | {}
    assert set(prepare_options(options, "x.yml", train=True)["datasets"]) == {"train", "val", "val_Set 5"}
    for label in ("train_2", "valid", "testing", "gt"):
        with pytest.raises(BadInput, match=rf"x.yml: datasets.{label}: a set is called train, val or test"):
            prepare_options(options | {"datasets": options["datasets"] | {label: None}}, "x.yml", train=True)


def test_two_processes_validate_one_image(pairs, make_pairs, options, write):
    """From the start and resumed, our model and one of BasicSR."""
    make_pairs(pairs / "one", 1)
    for role in ("gt", "lq"):
        options["datasets"]["val"][f"dataroot_{role}"] = f"data/one/{role}"
    options["train"]["total_iter"] = 1
    first = write(options)
    stock = yaml.safe_load(STOCK.read_text())
    for role in ("gt", "lq"):
        stock["datasets"]["val"][f"dataroot_{role}"] = f"data/one/{role}"
    stock["datasets"]["train"]["num_worker_per_gpu"] = 0
    stock["train"]["total_iter"] = 1
    second = write(stock, "stock.yml")
    script = Path("both.py")
    script.write_text(
        "import os, torch\n"
        "torch.set_num_threads(1)\n"
        "from basicsr_ext.__main__ import main\n"
        "def run(port, *arguments):\n"
        "    os.environ['MASTER_PORT'] = port\n"
        "    assert main(['train', '--launcher', 'pytorch', '-opt', *arguments]) == 0\n"
        "ports = os.environ['PORTS'].split()\n"
        f"run(ports[0], {first!r})\n"
        f"run(ports[1], {first!r}, '--auto_resume', '--force_yml', 'train:total_iter=2')\n"
        f"run(ports[2], {second!r})\n"
    )
    with ExitStack() as stack:
        servers = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(3)]
        ports = " ".join(str(server.getsockname()[1]) for server in servers)
    env = os.environ | {"PYTHONPATH": ROOT, "OMP_NUM_THREADS": "1", "WORLD_SIZE": "2"}
    env |= {"MASTER_ADDR": "127.0.0.1", "PORTS": ports}
    ranks = [
        subprocess.Popen(
            [sys.executable, str(script)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=env | {"RANK": r, "LOCAL_RANK": r},
        )
        for r in ("0", "1")
    ]
    try:
        said = [rank.communicate(timeout=400)[0] for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
    assert [rank.returncode for rank in ranks] == [0, 0], said
    assert len(re.findall(r"val, 1 image\(s\): psnr", said[0])) == 2
    assert len(re.findall(r"# psnr: ", said[0])) == 1
