"""The features of the training loop, and its messages when something breaks."""

from __future__ import annotations

import csv
import os
import re
import resource
import signal
import socket
import subprocess
import sys
import time
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest
import torch
import yaml

from basicsr_ext.__main__ import main
from basicsr_ext.base_model import read_training_state
from basicsr_ext.experiment import differences
from basicsr_ext.model import ImageCleanModel
from tests.basicsr_ext.checkpoints import same, weights

ROOT = str(Path(__file__).parents[2])


def close(first, second, tolerance):
    return all(torch.allclose(first[k], second[k], atol=tolerance) for k in first)


@pytest.fixture
def train(pairs, options, write, capsys):
    """Train under a name with some options changed; returns the output."""

    def _train(name, *force, expected=0, **changes):
        for section, values in changes.items():
            options.setdefault(section, {}).update(values)
        options["name"] = name
        assert (
            main(["train", "-opt", write(options), *(["--force_yml", *force] if force else [])]) == expected
        )
        said = capsys.readouterr()
        return said.out + said.err

    return _train


def states(name="tiny"):
    return {int(p.stem) for p in Path(f"experiments/{name}/training_states").glob("*.state")}


def test_accumulation_is_the_larger_batch(train, options):
    options["datasets"]["train"]["batch_size_per_gpu"] = 4
    train("whole")
    options["datasets"]["train"]["batch_size_per_gpu"] = 2
    said = train("parts", train={"accumulate": 2})
    assert "effective batch 4 = 2 x 1 process(es) x 2 accumulated" in said
    assert close(weights("whole"), weights("parts"), 1e-5)


@pytest.mark.parametrize("change", [{"activation_checkpointing": True}, {"channels_last": True}])
def test_saving_memory_or_time_does_not_change_the_result(train, change):
    train("plain")
    train("changed", train=change)
    assert close(weights("plain"), weights("changed"), 1e-5)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_trains_and_saves_float32(train, precision, monkeypatch):
    monkeypatch.setattr("basicsr_ext.model.has_bf16_products", lambda: True)
    train("full")
    train("half", train={"precision": precision})
    full, half = weights("full"), weights("half")
    assert {t.dtype for t in half.values()} == {torch.float32}
    assert not same(full, half)
    assert close(full, half, 2e-2)
    scaler = read_training_state("experiments/half/training_states/4.state")["scaler"]
    assert ("scale" in scaler) == (precision == "fp16")


def test_a_processor_without_bf16_products_computes_in_float32(train, monkeypatch):
    monkeypatch.setattr("basicsr_ext.model.has_bf16_products", lambda: False)
    train("full")
    assert "bf16 is slower than fp32 on this processor" in train("half", train={"precision": "bf16"})
    assert same(weights("full"), weights("half"))


def test_compilation_keeps_the_names_of_the_weights(train, monkeypatch):
    compiled = []
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self, **_: compiled.append(self))
    train("compiled", train={"compile": True})
    assert len(compiled) == 1
    assert not any("_orig_mod" in name for name in weights("compiled"))


def test_on_a_cpu_nothing_is_compiled_that_has_faster_kernels(train, options, monkeypatch):
    compiled = []
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self, **_: compiled.append(self))
    options["network_g"]["width"] = 16
    assert "kernels of KBNet_s are faster: not compiled" in train("tiny", train={"compile": True})
    assert not compiled


def test_deterministic_mode_is_on_only_when_set(train):
    train("repeatable", "deterministic=true")
    assert torch.are_deterministic_algorithms_enabled()
    train("free")
    assert not torch.are_deterministic_algorithms_enabled()


def test_a_second_loss_is_added(train):
    said = train("two", train={"frequency_opt": {"type": "FrequencyLoss", "loss_weight": 0.05}})
    assert re.search(r"l_pix [\d.e-]+ l_freq [\d.e-]+", said)
    train("one", train={"frequency_opt": None})
    assert not same(weights("one"), weights("two"))


def test_the_best_and_the_last_checkpoints_are_kept(train, monkeypatch):
    values = iter([10.0, 30.0, 20.0, 25.0, 21.0, 22.0])

    def validation(self, *_):
        self._report("val", {"psnr": next(values)}, 3, self.current, None)

    step = ImageCleanModel.optimize_parameters

    def counted(self, i):
        self.current, self.output = i, self.lq
        step(self, i)

    monkeypatch.setattr(ImageCleanModel, "optimize_parameters", counted)
    monkeypatch.setattr(ImageCleanModel, "validation", validation)
    train("tiny", val={"val_freq": 1}, logger={"save_checkpoint_freq": 1, "keep_checkpoints": 2},
          train={"total_iter": 6})  # fmt: skip
    assert states() == {2, 5, 6}
    assert same(weights(label="best"), weights(label=2))
    assert {p.name for p in Path("experiments/tiny/models").iterdir()} == {
        *(f"net_g_{n}.pth" for n in (2, 5, 6, "best", "latest"))
    }


def test_the_cost_is_logged_before_the_first_step(train):
    said = train("tiny")
    count = sum(t.numel() for t in weights().values())
    before = said.split("iter 1/4")[0]
    assert f"KBNet_s: {count:,} parameters" in before
    assert re.search(r"GMACs at 16 x 16 with kernel basis attention \([\d.e-]+ as counted in papers", before)
    assert re.search(r"a step of the largest stage needs about [\d.]+ [MG]B", before)
    assert "effective batch 2, learning rate 1.000e-03" in before


def test_the_history_is_kept_as_a_table_and_a_plot(train, options, write):
    train("tiny", logger={"print_freq": 1, "save_checkpoint_freq": 2}, val={"val_freq": 2})
    folder = Path("experiments/tiny")
    with (folder / "history.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [int(r["iteration"]) for r in rows if r["quantity"] == "l_pix"] == [1, 2, 3, 4]
    assert [int(r["iteration"]) for r in rows if r["quantity"] == "val psnr"] == [2, 4]
    plot = ElementTree.parse(folder / "history.svg").getroot()
    shown = {t.text for t in plot.iter() if t.tag.endswith("text")}
    assert {"l_pix", "lr", "val psnr"} <= shown
    # A resumed run continues it, without the rows of lost iterations.
    (folder / "training_states" / "4.state").unlink()
    assert main(["train", "-opt", write(options), "--auto_resume"]) == 0
    with (folder / "history.csv").open() as file:
        again = list(csv.DictReader(file))
    assert [r for r in again if r["quantity"] != "lr"] == [r for r in rows if r["quantity"] != "lr"]


def test_sample_pictures_show_input_output_and_target(train):
    import cv2

    train("tiny", val={"samples": 1})
    pictures = list(Path("experiments/tiny/visualization/samples").iterdir())
    assert [p.name for p in pictures] == ["val_0.png"]
    assert cv2.imread(str(pictures[0])).shape == (24, 60, 3)


def test_the_protocol_of_a_metric_is_named(train):
    assert "[RGB, uint8]" in train("tiny")
    metrics = {"psnr": {"type": "calculate_psnr", "test_y_channel": True, "crop_border": 2}}
    assert "[Y, float, border 2]" in train("luma", val={"metrics": metrics, "use_image": False})


def test_tiles_of_an_image_are_put_together_where_they_belong(train, options, write, capsys, monkeypatch):
    # Its receptive field is 2 pixels around, so tiles cannot differ from the whole.
    options["network_g"] = {"type": "SRVGGNetCompact", "num_feat": 4, "num_conv": 0, "upscale": 1}
    option_file = write(options)
    assert main(["train", "-opt", option_file]) == 0
    capsys.readouterr()
    sizes: list[int] = []
    convolve = torch.nn.Conv2d.forward

    def noted(self, x):
        sizes.append(max(x.shape[-2:]))
        return convolve(self, x)

    monkeypatch.setattr(torch.nn.Conv2d, "forward", noted)
    found = []
    for tile in ("null", "20"):
        sizes.clear()
        force = ["--force_yml", f"val:tile={tile}", "val:tile_overlap=2"]
        assert main(["test", "-opt", option_file, *force]) == 0
        found.append((re.findall(r"psnr ([\d.]+)", capsys.readouterr().out), max(sizes)))
    assert found[0][0] == found[1][0]
    assert found[1][1] <= 20 < found[0][1]


# What breaks.


def nan_at(monkeypatch, *iterations):
    step = ImageCleanModel.optimize_parameters

    def broken(self, i):
        if i in iterations:
            self.lq = self.lq * float("nan")
        step(self, i)

    monkeypatch.setattr(ImageCleanModel, "optimize_parameters", broken)


def test_a_loss_that_is_nan_stops_names_the_images_and_keeps_the_last_checkpoint(train, monkeypatch):
    nan_at(monkeypatch, 3)
    said = train("tiny", expected=2, logger={"save_checkpoint_freq": 2})
    last = said.splitlines()[-1]
    assert re.search(r"not finite at iter 3 \(images data/lq/\d.png, data/lq/\d.png\)", last)
    assert "the checkpoint of iter 3 is kept; --auto_resume continues from there" in last
    assert "train.on_nan: skip" in last
    assert states() == {2}
    assert same(weights(label=3), weights(label=2))  # the step changed nothing


def test_a_loss_that_is_nan_is_skipped_on_request(train, monkeypatch):
    nan_at(monkeypatch, 3)
    said = train("tiny", train={"on_nan": "skip"})
    assert re.search(r"iter 3: the loss is not finite; batch skipped \(images data/lq", said)
    assert all(t.isfinite().all() for t in weights().values())


def test_a_loss_that_stays_nan_stops_even_so(train, monkeypatch):
    nan_at(monkeypatch, *range(1, 100))
    assert "not finite at iter 20" in train("tiny", expected=2, train={"on_nan": "skip", "total_iter": 50})


def test_a_full_disk_leaves_the_last_checkpoint_and_nothing_half_written(pairs, options, write):
    options["logger"] = {"save_checkpoint_freq": 2, "print_freq": 1}
    assert main(["train", "-opt", write(options)]) == 0
    size = Path("experiments/tiny/models/net_g_4.pth").stat().st_size
    expected = sorted(p.name for p in Path("experiments/tiny/models").iterdir())
    options["train"]["total_iter"] = 6
    command = [sys.executable, "-m", "basicsr_ext", "train", "-opt", write(options), "--auto_resume"]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": ROOT, "OMP_NUM_THREADS": "1"},
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size // 2, size // 2)),
    )
    assert done.returncode == 2, done.stderr
    assert done.stderr.count("\n") == 1
    assert "cannot save" in done.stderr
    assert "net_g_6.pth" in done.stderr
    assert sorted(p.name for p in Path("experiments/tiny/models").iterdir()) == expected
    assert states() == {2, 4}


@pytest.mark.parametrize("damaged", ["training_states/4.state", "models/net_g_4.pth"])
def test_a_damaged_checkpoint_falls_back_to_the_one_before(train, options, write, capsys, damaged):
    train("tiny", logger={"save_checkpoint_freq": 2})
    expected = weights()
    path = Path("experiments/tiny", damaged)
    path.write_bytes(path.read_bytes()[:1000])
    assert main(["train", "-opt", write(options), "--auto_resume"]) == 0
    out = capsys.readouterr().out
    assert path.name in out
    assert "trying the previous one" in out
    assert re.search(r"resuming from .*2\.state", out)
    assert same(weights(), expected)


def test_options_that_changed_since_the_checkpoint_are_listed(train, options, write, capsys):
    train("tiny")
    options["train"]["total_iter"] = 5
    options["train"]["optim_g"].update(lr=5e-4, weight_decay=0.1)
    options["train"]["scheduler"]["eta_mins"] = [5e-4, 2e-4]
    del options["train"]["use_grad_clip"]
    assert main(["train", "-opt", write(options), "--auto_resume"]) == 0
    out = capsys.readouterr().out
    assert "train.total_iter 4 -> 5" in out
    assert "train.optim_g.weight_decay added (0.1)" in out
    assert "train.use_grad_clip removed (was True)" in out
    # And they count.
    group = read_training_state("experiments/tiny/training_states/5.state")["optimizers"][0]["param_groups"][
        0
    ]
    assert group["weight_decay"] == 0.1
    assert group["initial_lr"] == 5e-4
    assert group["lr"] == pytest.approx(2e-4)
    options["train"]["optim_g"] = {"type": "SGD", "lr": 1e-3, "momentum": 0.9}
    assert main(["train", "-opt", write(options), "--auto_resume"]) == 2
    assert "the training state is of another optimizer: SGD needs momentum_buffer" in capsys.readouterr().err


def test_what_did_not_change_is_not_listed():
    tree = {"a": {"b": [1, 2]}, "c": None}
    assert differences(tree, yaml.safe_load(yaml.safe_dump(tree))) == []


def test_a_port_in_use_is_named(pairs, options, write, capsys, monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        for key, value in {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "2", "MASTER_PORT": port}.items():
            monkeypatch.setenv(key, value)
        monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
        assert main(["train", "-opt", write(options), "--launcher", "pytorch"]) == 2
    said = capsys.readouterr().err
    assert f"port {port} is in use by another program" in said
    assert said.count("\n") == 1


def test_compilation_without_a_compiler_ends_the_run_in_one_line(train, monkeypatch, tmp_path):
    import torch._inductor.config

    monkeypatch.setattr(torch._inductor.config.cpp, "cxx", (None, "no-such-compiler"))
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "compiled"))  # nothing of an earlier run
    said = train("compiled", train={"compile": True}, expected=2).splitlines()[-1]
    assert said.startswith("basicsr: train.compile: ")
    assert "no-such-compiler" in said
    assert "install one, or set train.compile: false; no checkpoint has been saved yet" in said
    assert "TORCHDYNAMO_VERBOSE" not in said


def test_a_killed_worker_ends_the_run_in_one_line(pairs, options, write, capfd, monkeypatch):
    import multiprocessing

    options["datasets"]["train"].update(num_worker_per_gpu=1, device_images=False)
    options["train"]["total_iter"] = 10**6
    step = ImageCleanModel.optimize_parameters

    def killing(self, i):
        if i == 3:
            multiprocessing.active_children()[0].kill()
        step(self, i)

    monkeypatch.setattr(ImageCleanModel, "optimize_parameters", killing)
    assert main(["train", "-opt", write(options)]) == 2
    said = capfd.readouterr().err
    assert "a data worker died" in said
    assert "num_worker_per_gpu" in said
    assert said.count("\n") == 1


@pytest.mark.filterwarnings("error::pytest.PytestUnraisableExceptionWarning")
def test_workers_that_die_while_they_are_stopped_are_not_mentioned(pairs, options, write, capfd, monkeypatch):
    from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter as Iterator

    options["datasets"]["train"].update(num_worker_per_gpu=1, device_images=False)
    stop = Iterator._shutdown_workers

    def killing(self):
        if not self._shutdown:
            self._workers[0].kill()
            time.sleep(0.3)  # for torch's handler of SIGCHLD
        stop(self)

    monkeypatch.setattr(Iterator, "_shutdown_workers", killing)
    assert main(["train", "-opt", write(options)]) == 0
    assert capfd.readouterr().err == ""


def test_a_worker_whose_pipe_breaks_first_ends_the_run_in_one_line(train, monkeypatch):
    import multiprocessing

    def broken(self, i):
        ours, theirs = multiprocessing.Pipe()
        theirs.close()
        ours.recv()

    monkeypatch.setattr(ImageCleanModel, "optimize_parameters", broken)
    assert "a data worker died (EOFError), perhaps" in train("tiny", expected=2).splitlines()[-1]


def test_out_of_memory_says_what_was_requested_and_what_to_lower(train, options, monkeypatch):
    options["datasets"]["train"].update(mini_batch_sizes=[2, 3], iters=[2, 2], gt_sizes=[8, 16])

    step = ImageCleanModel.optimize_parameters

    def full(self, i):
        step(self, i)
        if i == 3:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.50 GiB. GPU 0 has ...")

    monkeypatch.setattr(ImageCleanModel, "optimize_parameters", full)
    last = train("tiny", expected=2).splitlines()[-1]
    assert "a step of 3 images with a crop of 16, which requested 2.50 GiB more" in last
    for key in ("mini_batch_sizes", "gt_sizes", "accumulate", "activation_checkpointing", "bf16"):
        assert key in last


def test_the_end_of_one_rank_ends_the_job_with_the_reason(pairs, options, write):
    """Rank 1 is killed while rank 0 trains, which must not wait for it."""
    options["train"]["total_iter"] = 10**6
    script = Path("dies.py")
    script.write_text(
        "import os, signal\n"
        "from basicsr_ext import registry\n"
        "from basicsr_ext.model import ImageCleanModel as M\n"
        "from basicsr_ext.__main__ import main\n"
        "step = M.optimize_parameters\n"
        "def dying(self, i):\n"
        "    if i == 3 and os.environ['RANK'] == '1':\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "    step(self, i)\n"
        "M.optimize_parameters = dying\n"
        "raise SystemExit(main())\n"
    )
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = str(free.getsockname()[1])
    env = os.environ | {"PYTHONPATH": ROOT, "OMP_NUM_THREADS": "1", "WORLD_SIZE": "2"}
    env |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    command = [sys.executable, str(script), "train", "-opt", write(options), "--launcher", "pytorch"]
    # Without torchrun, which would end the survivor itself.
    ranks = [
        subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=env | {"RANK": r, "LOCAL_RANK": r})
        for r in ("0", "1")
    ]
    said = ranks[0].communicate(timeout=100)[1]
    ranks[1].communicate(timeout=100)
    assert ranks[1].returncode == -signal.SIGKILL
    assert ranks[0].returncode == 2, said
    assert "another process of the job stopped" in said
    assert "Traceback" not in said
