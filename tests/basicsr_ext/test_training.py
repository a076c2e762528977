"""`basicsr train` and `basicsr test`, in this process."""

from __future__ import annotations

import re
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from basicsr.utils import registry as registries
from torch import nn

from basicsr_ext import train as loop
from basicsr_ext.__main__ import main
from basicsr_ext.model import ImageCleanModel
from kbnet_plugin import load_network
from tests.basicsr_ext.checkpoints import same, weights


def psnr(text, name="val"):
    return re.findall(rf"{name}, \d+ image\(s\): psnr ([\d.]+)", text)[-1]


def test_a_run_trains_validates_saves_and_its_weights_test_to_the_same_psnr(pairs, options, write, capsys):
    options["val"]["val_freq"] = 2
    option_file = write(options)
    assert main(["train", "-opt", option_file]) == 0
    trained = capsys.readouterr()
    assert trained.err == ""
    assert "iter 4/4" in trained.out
    names = {str(p.relative_to("experiments/tiny")) for p in Path("experiments/tiny").rglob("*.*")}
    assert {
        "models/net_g_4.pth",
        "models/net_g_latest.pth",
        "training_states/4.state",
        "options.yml",
    } <= names
    assert not any("/." in name for name in names)
    assert main(["test", "-opt", option_file]) == 0
    assert psnr(capsys.readouterr().out) == psnr(trained.out)
    network = load_network("experiments/tiny/models/net_g_latest.pth")
    assert network(torch.rand(1, 3, 9, 7)).shape == (1, 3, 9, 7)


def test_training_learns(pairs, options, write, capsys):
    options["train"].update(total_iter=60, ema_decay=0, scheduler={"type": "ConstantLR", "factor": 1})
    options["train"]["optim_g"]["lr"] = 1e-2
    options["val"]["val_freq"] = 10
    assert main(["train", "-opt", write(options)]) == 0
    values = [float(v) for v in re.findall(r"psnr ([\d.]+)", capsys.readouterr().out)]
    assert values[-1] > values[0] + 3


@pytest.mark.parametrize(("images", "batch", "workers"), [(7, 4, 0), (2, 5, 2)])
def test_every_iteration_runs_whatever_the_size_of_the_dataset(
    pairs, make_pairs, options, write, monkeypatch, images, batch, workers
):
    make_pairs(pairs, images)
    options["train"]["total_iter"] = 20
    options["train"]["scheduler"].update(periods=[20], restart_weights=[1], eta_mins=[1e-5])
    options["datasets"]["train"].update(batch_size_per_gpu=batch, num_worker_per_gpu=workers)
    del options["val"]
    steps = []
    step = ImageCleanModel.optimize_parameters

    def counted(self, i):
        steps.append((i, len(self.lq), self.optimizer_g.param_groups[0]["lr"]))
        step(self, i)

    monkeypatch.setattr(ImageCleanModel, "optimize_parameters", counted)
    assert main(["train", "-opt", write(options)]) == 0
    assert [s[:2] for s in steps] == [(i, batch) for i in range(1, 21)]
    assert steps[-1][2] == pytest.approx(1e-5 + (1e-3 - 1e-5) * (1 + np.cos(np.pi * 19 / 20)) / 2)
    assert Path("experiments/tiny/models/net_g_20.pth").is_file()


def test_progressive_stages_have_their_batch_and_crop(pairs, options, write, monkeypatch):
    options["datasets"]["train"].update(
        mini_batch_sizes=[3, 1], iters=[2, 100], gt_sizes=[8, 20], gt_size=20, num_worker_per_gpu=1
    )
    del options["val"]
    seen = []
    feed = ImageCleanModel.feed_data
    monkeypatch.setattr(
        ImageCleanModel,
        "feed_data",
        lambda self, data: (seen.append(tuple(data["lq"].shape)), feed(self, data)),
    )
    assert main(["train", "-opt", write(options)]) == 0
    assert seen == [(3, 3, 8, 8)] * 2 + [(1, 3, 20, 20)] * 2


def test_a_resumed_run_ends_with_the_weights_of_an_uninterrupted_one(pairs, options, write, capsys):
    options["datasets"]["train"].update(mini_batch_sizes=[2, 3], iters=[3, 9], gt_sizes=[8, 16])
    options["train"]["total_iter"] = 6
    options["train"]["scheduler"]["periods"] = [2, 4]
    options["logger"] = {"save_checkpoint_freq": 2}
    del options["val"]
    option_file = write(options)
    assert main(["train", "-opt", option_file]) == 0
    options["name"] = "resumed"
    options["train"]["total_iter"] = 2
    options["datasets"]["train"]["num_worker_per_gpu"] = 2  # neither the workers nor the plan may matter
    options["train"]["scheduler"]["periods"] = [2, 1]
    assert main(["train", "-opt", write(options)]) == 0
    options["train"]["total_iter"] = 6
    options["train"]["scheduler"]["periods"] = [2, 4]
    assert main(["train", "-opt", write(options), "--auto_resume"]) == 0
    assert "resuming from" in capsys.readouterr().out
    for key in ("params", "params_ema"):
        assert same(weights(key=key), weights("resumed", key=key))


def test_a_restart_keeps_the_old_experiment_and_says_so(pairs, options, write, capsys):
    options["train"]["total_iter"] = 1
    for _ in range(2):
        assert main(["train", "-opt", write(options)]) == 0
    assert "--auto_resume would have continued it" in capsys.readouterr().out
    assert len(list(Path("experiments").glob("tiny_archived_*/models/net_g_1.pth"))) == 1


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_the_step_and_saves(pairs, options, write, capsys, monkeypatch, number, code):
    options["train"]["total_iter"] = 1000
    step = ImageCleanModel.optimize_parameters

    def interrupted(self, i):
        if i == 3:
            signal.raise_signal(number)
        step(self, i)

    monkeypatch.setattr(ImageCleanModel, "optimize_parameters", interrupted)
    before = signal.getsignal(number)
    assert main(["train", "-opt", write(options)]) == code
    assert "saved at iter 3" in capsys.readouterr().out
    assert Path("experiments/tiny/training_states/3.state").is_file()
    assert signal.getsignal(number) is before


def test_a_stock_option_file_runs(pairs, capsys):
    stock = Path(__file__).with_name("stock.yml")
    assert main(["train", "-opt", str(stock)]) == 0
    assert psnr_stock(capsys.readouterr().out) > 0
    saved = torch.load("experiments/stock/models/net_g_latest.pth", weights_only=True)
    assert set(saved) == {"params", "params_ema"}
    assert main(["train", "-opt", str(stock), "--auto_resume", "--force_yml", "train:total_iter=5"]) == 0
    assert main(["train", "-opt", str(stock), "--force_yml", "train:total_iter=5", "name=whole"]) == 0
    assert same(weights("stock", 5), weights("whole", 5))
    force = ["--force_yml", "path:param_key_g=params_ema", "datasets:train=null"]
    assert main(["test", "-opt", str(stock), *force]) == 0
    assert psnr_stock(capsys.readouterr().out) > 0


def psnr_stock(text):
    return float(re.findall(r"# psnr: ([\d.]+)", text)[-1])


def test_gray_pairs_train_a_gray_network(pairs, make_pairs, options, write):
    make_pairs(pairs, channels=1)
    for dataset in options["datasets"].values():
        dataset["in_ch"] = 1
    options["network_g"]["img_channel"] = 1
    assert main(["train", "-opt", write(options)]) == 0


def test_other_optimizers_losses_and_schedulers_have_their_torch_names(pairs, options, write):
    options["train"].update(
        optim_g={"type": "RMSprop", "lr": 1e-4},
        scheduler={"type": "OneCycleLR", "max_lr": 1e-3, "total_steps": 10},
        pixel_opt={"type": "PSNRLoss"},
    )
    assert main(["train", "-opt", write(options)]) == 0


def test_pretrained_weights_of_any_layout_are_used(pairs, options, write, capsys):
    options["train"]["total_iter"] = 1
    options["train"]["optim_g"]["lr"] = 0.0
    options["train"]["scheduler"] = {"type": "ConstantLR", "factor": 1}
    assert main(["train", "-opt", write(options)]) == 0
    expected = {k: v + 1 for k, v in weights().items()}
    torch.save({"net": {f"module.{k}": v for k, v in expected.items()}}, "given.pth")
    options["path"] = {"pretrain_network_g": "given.pth"}
    assert main(["train", "-opt", write(options)]) == 0
    assert same(weights(), expected)
    assert same(weights(key="params_ema"), expected)


def test_running_statistics_are_averaged_and_kept(pairs, options, write):
    """The trial crop must not count in them, nor may a resumed run have others."""

    class BatchNormNet(nn.Sequential):
        def __init__(self, width):
            super().__init__(
                nn.Conv2d(3, width, 3, 1, 1), nn.BatchNorm2d(width), nn.Conv2d(width, 3, 3, 1, 1)
            )

    registry = registries.ARCH_REGISTRY._obj_map
    registry["BatchNormNet"] = BatchNormNet
    try:
        options["network_g"] = {"type": "BatchNormNet", "width": 4}
        options["logger"] = {"save_checkpoint_freq": 2}
        option_file = write(options)
        assert main(["train", "-opt", option_file]) == 0
        whole = {key: weights(key=key) for key in ("params", "params_ema")}
        Path("experiments/tiny/training_states/4.state").unlink()
        assert main(["train", "-opt", option_file, "--auto_resume"]) == 0
        for key, expected in whole.items():
            assert expected["1.num_batches_tracked"] == 4
            assert expected["1.running_mean"].abs().min() > 0
            assert same(weights(key=key), expected)
    finally:
        del registry["BatchNormNet"]


def test_the_average_of_a_short_run_forgets_its_start(pairs, options, write):
    options["train"].update(total_iter=12, ema_decay=0.9999, scheduler={"type": "ConstantLR", "factor": 1})
    found = {}
    for rate in (0.0, 1e-3):
        options["train"]["optim_g"]["lr"] = rate
        assert main(["train", "-opt", write(options)]) == 0
        found[rate] = weights()
    average = weights(key="params_ema")

    def apart(one, other):
        return sum(float((one[k] - other[k]).abs().sum()) for k in one)

    assert 0 < apart(found[1e-3], average) < 0.7 * apart(found[1e-3], found[0.0])


def test_metrics_see_clamped_images(pairs, options, write, capsys, monkeypatch):
    options["val"]["use_image"] = False
    options["val"]["metrics"]["ours"] = {"type": "calculate_psnr_clamped"}
    options["datasets"]["val"]["dataroot_lq"] = "data/gt"
    monkeypatch.setattr(loop, "_check_network", lambda *_: None)
    option_file = write(options)
    assert main(["train", "-opt", option_file]) == 0
    zero = {k: torch.zeros_like(v) for k, v in weights().items()}
    zero["ending.bias"] += 0.5  # the output is the input + 0.5
    torch.save({"params": zero}, "bright.pth")
    capsys.readouterr()
    force = ["--force_yml", "path={pretrain_network_g: bright.pth}"]
    assert main(["test", "-opt", option_file, *force]) == 0
    stock, ours = re.findall(r"(?:psnr|ours) ([\d.]+)", capsys.readouterr().out)
    from basicsr_ext.files import decode, to_unit

    values = []
    for path in sorted(pairs.glob("gt/*.png")):
        clean = to_unit(decode(path.read_bytes(), str(path), 3))
        values.append(-10 * np.log10(np.mean((np.clip(clean + 0.5, 0, 1) - clean) ** 2)))
    assert float(stock) == pytest.approx(np.mean(values), abs=1e-3)
    assert float(ours) == pytest.approx(np.mean(values), abs=1e-3)


def test_pictures_are_saved_on_request(pairs, options, write):
    options["val"]["save_img"] = True
    option_file = write(options)
    assert main(["train", "-opt", option_file]) == 0
    assert Path("experiments/tiny/visualization/0/0_4.png").is_file()
    assert main(["test", "-opt", option_file]) == 0
    assert Path("results/tiny/visualization/val/0_tiny.png").is_file()


def test_validation_pads_to_the_window_and_crops_back(pairs, options, write):
    options["val"]["window_size"] = 32  # more than the images have, so they cannot be reflected
    assert main(["train", "-opt", write(options)]) == 0


def test_the_experiment_goes_where_the_options_say(pairs, options, write, tmp_path):
    options["path"] = {"experiments_root": str(tmp_path / "elsewhere")}
    options["logger"] = {"use_tb_logger": True, "print_freq": 2}
    assert main(["train", "-opt", write(options)]) == 0
    assert (tmp_path / "elsewhere" / "tiny" / "models" / "net_g_4.pth").is_file()
    assert list(tmp_path.glob("tb_logger/tiny/events*"))
    copied = (tmp_path / "elsewhere" / "tiny" / "options.yml").read_text()
    assert yaml.safe_load(copied)["name"] == "tiny"
