"""Which checkpoints are kept, and what protects an experiment's folder."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from basicsr_ext import checkpoints, experiment
from basicsr_ext.__main__ import main
from basicsr_ext.datasets import Dataset_PairedImage
from basicsr_ext.model import ImageCleanModel
from kbnet_plugin.errors import BadInput
from kbnet_plugin.files import atomic_path
from tests.basicsr_ext.checkpoints import same, weights

STOCK = str(Path(__file__).with_name("stock.yml"))
TINY = Path("experiments/tiny")


def states(name="tiny"):
    return {p.name for p in Path(f"experiments/{name}/training_states").iterdir()}


def test_checkpoints_of_basicsr_are_never_deleted(pairs):
    assert main(["train", "-opt", STOCK, "--force_yml", "logger:save_checkpoint_freq=1"]) == 0
    for path in Path("experiments/stock/training_states").iterdir():
        state = torch.load(path, weights_only=True)
        torch.save({k: state[k] for k in ("epoch", "iter", "optimizers", "schedulers")}, path)
    force = ["logger:save_checkpoint_freq=1", "logger:keep_checkpoints=1", "train:total_iter=7"]
    assert main(["train", "-opt", STOCK, "--auto_resume", "--force_yml", *force]) == 0
    kept = {*range(1, 5), 7}
    assert states("stock") == {f"{i}.state" for i in kept}
    assert {f"net_g_{i}.pth" for i in kept} < {p.name for p in Path("experiments/stock/models").iterdir()}


def test_weights_of_networks_that_the_model_does_not_save_are_not_asked_for(tmp_path):
    options = {
        "network_g": {}, "network_d": {}, "as_given": {},
        "path": {"models": str(tmp_path), "training_states": str(tmp_path)},
    }  # fmt: skip
    torch.save({"params": {"weight": torch.ones(1)}}, tmp_path / "net_g_4.pth")
    state = {"iter": 4, "optimizers": [], "schedulers": []}
    torch.save(state | {"networks": ["g", "d"]}, tmp_path / "4.state")
    with pytest.raises(BadInput, match="no training state"):
        experiment.resume_state(options, auto_resume=True)
    torch.save(state | {"networks": ["g", "g_ema"]}, tmp_path / "4.state")
    assert experiment.resume_state(options, auto_resume=True)["iter"] == 4
    assert options["path"]["pretrain_network_g"] == str(tmp_path / "net_g_4.pth")
    assert "pretrain_network_d" not in options["path"]


def test_only_our_option_files_keep_few_without_being_asked():
    asked = {"as_given": {"logger": {"keep_checkpoints": 3}}, "logger": {"keep_checkpoints": 3}}
    default = {"as_given": {}, "logger": {"keep_checkpoints": 5}}
    ours = ImageCleanModel.__new__(ImageCleanModel)
    numbers = [checkpoints.kept_number(o, m) for o in (asked, default) for m in (ours, object())]
    assert numbers == [3, 3, 5, None]


def test_a_second_run_of_a_name_ends_and_leaves_the_first_alone(pairs, options, write, capsys):
    option_file = write(options)
    paths = {"path": {"experiments_root": str(TINY.absolute())}}
    with experiment.locked(paths):
        (TINY / "models").mkdir(parents=True)
        assert main(["train", "-opt", option_file]) == 2
        said = capsys.readouterr().err
        assert "another run of this name is training; wait for it, or choose another name" in said
        assert said.count("\n") == 1
        assert [p.name for p in Path("experiments").iterdir() if p.is_dir()] == ["tiny"]
    # What a killed run leaves locks nothing.
    Path("experiments/.tiny.lock").touch()
    with experiment.locked(paths), pytest.raises(BadInput, match="another run"), experiment.locked(paths):
        pass
    assert not Path("experiments/.tiny.lock").exists()


def test_a_run_that_cannot_begin_leaves_nothing(pairs, options, write, capsys):
    options["network_g"]["img_channel"] = 1
    assert main(["train", "-opt", write(options)]) == 2
    assert not Path("experiments").exists()


def test_what_a_killed_run_was_writing_is_removed(pairs, options, write):
    option_file = write(options)
    assert main(["train", "-opt", option_file]) == 0
    left = []
    for path in (TINY / "models/net_g_3.pth", TINY / "training_states/3.rolling", TINY / "history.svg"):
        with atomic_path(path) as temporary:
            temporary.touch()
            left.append(temporary)
        path.rename(temporary)
    (TINY / "models/.mine").touch()
    assert main(["train", "-opt", option_file, "--auto_resume"]) == 0
    assert not any(path.exists() for path in left)
    assert (TINY / "models/.mine").exists()


def test_an_archive_never_takes_a_name_that_exists(pairs, options, write, monkeypatch):
    monkeypatch.setattr(
        experiment.time, "strftime", lambda *_: "20200101_000000"
    )  # a clock that stands still
    option_file = write(options)
    for number in range(3):
        TINY.mkdir(parents=True)
        (TINY / str(number)).touch()
        paths = {k: str(TINY.absolute() / k) for k in ("models", "training_states")}
        opened = {"path": {**paths, "experiments_root": str(TINY.absolute())}}
        experiment.open_experiment(opened, option_file, keep=False)
        shutil.rmtree(TINY)
    found = {p.name: {c.name for c in p.iterdir()} for p in Path("experiments").iterdir()}
    stem = "tiny_archived_20200101_000000"
    assert found == {stem: {"0"}, f"{stem}_2": {"1"}, f"{stem}_3": {"2"}}


def test_a_bad_image_costs_no_step(pairs, options, write, capsys, monkeypatch):
    options["datasets"]["train"]["device_images"] = False
    options["train"]["total_iter"] = 6
    option_file = write(options)
    assert main(["train", "-opt", option_file]) == 0
    expected = weights()
    options["name"] = "broken"
    option_file = write(options)
    read, step, steps = Dataset_PairedImage.__getitem__, ImageCleanModel.optimize_parameters, []

    def breaking(self, index):
        if len(steps) == 3:
            raise OSError("truncated")
        return read(self, index)

    with monkeypatch.context() as patch:
        patch.setattr(Dataset_PairedImage, "__getitem__", breaking)
        patch.setattr(
            ImageCleanModel, "optimize_parameters", lambda self, i: (steps.append(i), step(self, i))
        )
        assert main(["train", "-opt", option_file]) == 2
    said = capsys.readouterr().err
    assert "truncated; the checkpoint of iter 3 is kept; --auto_resume continues from there" in said
    assert said.count("\n") == 1
    assert main(["train", "-opt", option_file, "--auto_resume"]) == 0
    assert same(weights("broken"), expected)


def test_an_error_of_the_program_costs_no_step_either(pairs, options, write, capsys, monkeypatch):
    def broken(self, i):
        raise AttributeError("a mistake")

    step = ImageCleanModel.optimize_parameters
    monkeypatch.setattr(
        ImageCleanModel, "optimize_parameters", lambda self, i: (step if i < 3 else broken)(self, i)
    )
    with pytest.raises(AttributeError, match="a mistake"):
        main(["train", "-opt", write(options)])
    assert states() == {"2.rolling"}
    assert "the checkpoint of iter 2 is kept" in capsys.readouterr().out


@pytest.fixture
def small_disk(monkeypatch):
    """Let experiments have room for two checkpoints of `options`."""

    def free(folder):
        used = sum(p.stat().st_size for p in folder.parent.rglob("*") if p.suffix in (".pth", ".state"))
        most.append(used)
        return 1_250_000 - used

    most: list[int] = []
    monkeypatch.setattr(checkpoints, "free_bytes", free)
    return most


def test_a_disk_that_is_short_is_pruned_before_saving(pairs, options, write, small_disk):
    options["logger"] = {"save_checkpoint_freq": 1, "keep_checkpoints": 2}
    del options["val"]
    assert main(["train", "-opt", write(options)]) == 0
    assert states() == {"3.state", "4.state"}
    assert max(small_disk) > 800_000


def test_a_disk_that_is_full_ends_the_run_in_one_line_with_what_is_kept(
    pairs, options, write, capsys, small_disk
):
    options["logger"] = {"save_checkpoint_freq": 1, "keep_checkpoints": None}
    assert main(["train", "-opt", write(options)]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "the disk is full: a checkpoint needs" in said
    assert "the checkpoint of iter 2 is kept" in said
    assert states() == {"1.state", "2.state"}
