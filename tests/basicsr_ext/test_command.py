"""The command as a process: torchrun, signals, unusual folders."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from basicsr_ext.__main__ import main
from basicsr_ext.options import read_options
from kbnet_plugin.zoo.weights import read_state_dict

ROOT = str(Path(__file__).parents[2])


def run(*command, **environment):
    env = os.environ | {"PYTHONPATH": ROOT, "OMP_NUM_THREADS": "1"} | environment
    return subprocess.run([sys.executable, *command], capture_output=True, text=True, env=env, timeout=200)


def test_two_ranks_train_like_one_process_with_the_doubled_batch(pairs, options, write):
    options["train"]["mixing_augs"] = {}
    options["val"]["val_freq"] = 2
    option_file = write(options)
    torchrun = ["-m", "torch.distributed.run", "--nproc_per_node=2", "--master_port=0", "--rdzv_backend=c10d"]
    torchrun += ["--rdzv_endpoint=localhost:0", "-m", "basicsr_ext"]
    done = run(*torchrun, "train", "-opt", option_file, "--launcher", "pytorch")
    assert done.returncode == 0, done.stderr
    assert "Warning" not in done.stderr
    assert "2 process(es)" in done.stdout
    assert done.stdout.count("iter 4/4") == 1
    assert "val, 3 image(s): psnr" in done.stdout
    options["name"] = "single"
    options["datasets"]["train"]["batch_size_per_gpu"] = 4
    assert main(["train", "-opt", write(options)]) == 0
    two, one = (read_state_dict(f"experiments/{n}/models/net_g_4.pth") for n in ("tiny", "single"))
    assert all(torch.allclose(two[k], one[k], atol=1e-5) for k in one)


def test_the_command_works_beside_a_vendored_basicsr(pairs, options, write):
    vendored = Path("basicsr")
    (vendored / "utils").mkdir(parents=True)
    for package in (vendored, vendored / "utils"):
        (package / "__init__.py").write_text("raise RuntimeError('the vendored one')")
    options["datasets"]["train"]["num_worker_per_gpu"] = 1
    option_file = write(options)
    done = run("-m", "basicsr_ext", "train", "-opt", option_file, PYTHONPATH=f"{ROOT}{os.pathsep}.")
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""


def test_a_signal_to_the_whole_group_saves_too(pairs, options, write):
    options["train"]["total_iter"] = 10**6
    options["datasets"]["train"]["num_worker_per_gpu"] = 1
    options["logger"] = {"print_freq": 5, "save_checkpoint_freq": 10**6}
    del options["val"]
    command = [sys.executable, "-u", "-m", "basicsr_ext", "train", "-opt", write(options)]
    env = os.environ | {"PYTHONPATH": ROOT, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, env=env, start_new_session=True
    ) as process:
        assert process.stdout is not None
        next(line for line in process.stdout if "iter 5/" in line)
        os.killpg(process.pid, signal.SIGTERM)
        said = process.stdout.read()
    assert process.returncode == 143
    saved = re.search(r"saved at iter ([\d,]+)", said)
    assert saved is not None
    assert Path(f"experiments/tiny/training_states/{saved[1].replace(',', '')}.state").is_file()


def test_a_run_that_was_killed_and_resumed_ends_with_the_same_weights(pairs, options, write):
    options["datasets"]["train"].update(mini_batch_sizes=[2, 3], iters=[7, 99], gt_sizes=[8, 16])
    options["datasets"]["train"]["num_worker_per_gpu"] = 2
    options["train"]["total_iter"] = 60
    options["train"]["scheduler"]["periods"] = [20, 40]
    options["logger"] = {"print_freq": 1, "save_checkpoint_freq": 5}
    option_file = write(options)
    command = [sys.executable, "-u", "-m", "basicsr_ext", "train", "-opt", option_file]
    env = os.environ | {"PYTHONPATH": ROOT, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, env=env, start_new_session=True
    ) as process:
        assert process.stdout is not None
        next(line for line in process.stdout if "iter 17/" in line)
        os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    assert main(["train", "-opt", option_file, "--auto_resume"]) == 0
    options["name"] = "whole"
    assert main(["train", "-opt", write(options)]) == 0
    for key in ("params", "params_ema"):
        killed, whole = (
            read_state_dict(f"experiments/{n}/models/net_g_60.pth", key=key) for n in ("tiny", "whole")
        )
        assert all(torch.equal(killed[k], whole[k]) for k in whole)


def test_overrides_are_yaml_and_are_never_run(tmp_path):
    path = tmp_path / "o.yml"
    path.write_text("train: {lr: 1e-4, betas: [0.9]}\nname: a\n")
    force = [
        "train:lr=-1e-5",
        "train:betas=[0.9, .99]",
        "train:flag=true",
        "name=__import__('os')",
        "train:n=~",
    ]
    options = read_options(path, force)
    assert options == {
        "train": {"lr": -1e-5, "betas": [0.9, 0.99], "flag": True, "n": None},
        "name": "__import__('os')",
    }
    assert read_options(path)["train"]["lr"] == 1e-4


def test_help_shows_examples(capsys):
    with pytest.raises(SystemExit, match="0"):
        main(["--help"])
    assert "basicsr train -opt kbnet_quickstart" in capsys.readouterr().out


def test_arguments_of_the_old_launcher_are_accepted(pairs, options, write):
    assert main(["train", "-opt", write(options), "--local-rank", "0"]) == 0
    assert main(["test", "-opt", write(options), "--local_rank=0"]) == 0
