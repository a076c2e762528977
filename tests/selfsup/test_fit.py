"""Training on noisy pictures alone, with `basicsr train` in a separate process."""

import io
import json
import re
import signal
import subprocess
import sys
import threading
import time
from contextlib import redirect_stderr
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from kbnet_plugin import Restorer, cli, load_network, zoo
from kbnet_plugin.selfsup import fit, training, watch
from kbnet_plugin.selfsup.choice import Judge
from kbnet_plugin.selfsup.config import FitConfig
from kbnet_plugin.selfsup.fit import Fit
from kbnet_plugin.selfsup.planes import Planes

pytestmark = pytest.mark.skipif(not fit.can_train(), reason="training needs the extra train")

ROOT = Path(__file__).parents[2]
TINY = {"width": 4, "middle_blk_num": 1, "enc_blk_nums": [1], "dec_blk_nums": [1]}


@pytest.fixture(autouse=True)
def _own_models(tmp_path, monkeypatch):
    monkeypatch.setenv("KBNET_MODELS", str(tmp_path / "models"))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


def noisy_ramp(path):
    noise = np.random.default_rng(0).normal(0, 60, (3, 40, 44))
    np.save(path, (noise + np.linspace(400, 3000, 44)).clip(0).astype(np.uint16))
    return path


@pytest.fixture
def stack(tmp_path):
    return noisy_ramp(tmp_path / "noisy.npy")


def config(source, **settings):
    own = {"name": "mine", "axes": "ZYX", "init": "scratch", "network": TINY, "patch": 16, "batch": 2}
    return FitConfig(**{"source": source, "iterations": 4, "device": "cpu", **own, **settings})


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The folder of a run of four steps, its stack, and its steps."""
    root = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KBNET_MODELS", str(root / "models"))
        patch.setenv("OMP_NUM_THREADS", "1")
        source = noisy_ramp(root / "noisy.npy")
        return root / "models", source, list(Fit(config(source)).run(pictures=True))


def test_a_model_is_trained_and_listed_with_its_range_and_card(trained, monkeypatch):
    models, stack, steps = trained
    monkeypatch.setenv("KBNET_MODELS", str(models))
    run = Fit(config(stack))
    assert sorted({s.iteration for s in steps}) == [1, 2, 3, 4]
    assert all(s.total == 4 and np.isfinite(s.loss) for s in steps)
    assert np.isfinite(steps[-1].gain)
    model = run.save()
    assert zoo.get_model("mine") == model
    assert model.range == pytest.approx(np.percentile(np.load(stack), (0.1, 99.9)))
    assert (model.window, model.in_channels) == (24, 1)
    before, after = [s.picture for s in steps if s.picture is not None][-1]
    assert before.shape == (40, 44, 1)
    low, high = model.range
    np.testing.assert_allclose(before[..., 0] * (high - low) + low, np.load(stack)[1], atol=1e-2)
    network = run.files.weights(4)
    with torch.inference_mode():
        expected = load_network(network)(torch.from_numpy(before).permute(2, 0, 1)[None])
    np.testing.assert_allclose(after, expected[0].permute(1, 2, 0), atol=1e-5)
    restored = Restorer.from_pretrained("mine", device="cpu")(np.load(stack), "ZYX")
    assert restored.dtype == np.uint16
    card = model.card.read_text()
    assert "independent from pixel to pixel" in card
    assert f"`kbnet fit {stack} --name mine --method r2r --range=" in card
    assert "--iterations 4 --init scratch --axes ZYX --patch 16 --batch 2`" in card
    assert "below the noise" in run.verdict
    assert run.verdict in card
    shrinkage = float(card.split("- SURE shrinkage: ")[1].split()[0])
    weights = [load_network(p).ending.weight.detach() for p in (run.files.best, run.checkpoint)]
    kept = model.load().ending.weight.detach()
    assert any(torch.allclose(kept, shrinkage * w, rtol=0.01) for w in weights)


def test_a_run_resumes_until_another_thread_stops_it_and_refuses_other_settings(trained, monkeypatch):
    models, stack, _ = trained
    monkeypatch.setenv("KBNET_MODELS", str(models))
    longer = Fit(config(stack, iterations=100_000))
    assert longer.resumes
    seen = []
    for step in longer.run():
        seen.append(step.iteration)
        if len(seen) == 5:
            threading.Thread(target=longer.stop).start()
    assert seen[:5] == [1, 2, 3, 4, 5]
    assert 4 < longer.iteration < 100_000
    title = longer.save().title
    assert title == f"removes noise from images like noisy.npy (r2r, {fit.plural(longer.iteration, 'step')})"
    with pytest.raises(FileExistsError, match=r"different settings \(datasets.train.gt_size\)"):
        Fit(config(stack, patch=20))
    assert not Fit(config(stack, patch=20), overwrite=True).resumes


@pytest.fixture(scope="module")
def planes():
    """Planes from memory, with the noise of ten photons."""
    clean = 10 + 8 * np.sin(np.add.outer(np.arange(96), np.arange(96)) / 9)
    noisy = np.random.default_rng(0).poisson(clean, (3, 96, 96)).astype(np.uint16)
    return noisy


def judge(planes, tmp_path, start, pairs=None):
    np.save(tmp_path / "planes.npy", planes)
    opened = Planes(tmp_path / "planes.npy", "ZYX")
    cpu = torch.device("cpu")
    return Judge(
        opened, (0.0, 30.0), 48, denoiser=start, start=start, name="the start", pairs=pairs, device=cpu
    )


class Smoother(torch.nn.Module):
    """A stand-in for a network that blurs as much as its one weight says."""

    def __init__(self, weight, spoilt=0.0):
        super().__init__()
        self.ending = torch.nn.Conv2d(1, 1, 1, bias=False)
        self.ending.weight.data.fill_(weight)
        self.spoilt = spoilt

    def forward(self, x):
        padded = torch.nn.functional.pad(x, (2, 2, 2, 2), "reflect")
        blurred = torch.nn.functional.avg_pool2d(padded, 5, 1)
        return x + self.ending(blurred - x) + self.spoilt


@pytest.mark.parametrize("pairs", [None, [(0, 1), (1, 2)]])
def test_a_model_that_training_made_worse_is_not_kept(planes, tmp_path, pairs, monkeypatch):
    monkeypatch.setattr("kbnet_plugin.selfsup.choice.scale_correction", lambda network, factor: None)
    start = Smoother(0.9)
    kept = judge(planes, tmp_path, start, pairs).choose({"last": Smoother(0.9, spoilt=0.1)})
    assert (kept.share, kept.gain) == (0, 0)
    assert "not clearly better than the start (-" in kept.said
    assert torch.equal(kept.network.ending.weight, start.ending.weight)
    chosen = judge(planes, tmp_path, Smoother(0.7), pairs).choose({"last": Smoother(0.95)})
    assert chosen.share > 0
    assert chosen.gain > 2
    assert f"is {chosen.gain:.2f} dB better than the start" in chosen.said


def test_noise_that_is_shared_along_rows_is_masked_in_lines_and_nothing_is_measured(tmp_path):
    generator = np.random.default_rng(0)
    noise = np.repeat(generator.normal(0, 60, (3, 60, 30)), 2, axis=2)
    np.save(tmp_path / "lines.npy", (noise + 1000).astype(np.uint16))
    with pytest.raises(ValueError, match="mask lines"):
        Fit(config(tmp_path / "lines.npy", method="n2v"))
    with pytest.raises(ValueError, match="only method n2v"):
        Fit(config(tmp_path / "lines.npy", correlated="horizontal"))
    run = Fit(config(tmp_path / "lines.npy", method="n2v", correlated="horizontal"))
    steps = list(run.run())
    assert steps[-1].gain is None
    assert "n2v" in run.save().title
    assert run.verdict == "not measured: the noise is correlated"
    assert "--correlated horizontal" in run.save().card.read_text()


def test_a_gain_within_the_error_of_the_measure_is_not_believed(planes, tmp_path, monkeypatch):
    monkeypatch.setattr("kbnet_plugin.selfsup.choice.scale_correction", lambda network, factor: None)
    measured = judge(planes, tmp_path, Smoother(0.96))
    kept = measured.choose({"last": Smoother(0.975)})
    assert kept.share == 0
    assert "not clearly better than the start (+" in kept.said


def test_the_measured_gain_is_the_true_one(planes, tmp_path):
    clean = 10 + 8 * np.sin(np.add.outer(np.arange(96), np.arange(96)) / 9)
    noisy, truth = (torch.from_numpy(p / 30).float() for p in (planes[:, None], clean))
    start, trained = Smoother(0.7), Smoother(0.95)
    with torch.no_grad():
        before, after = ((network(noisy) - truth).square().mean() for network in (start, trained))
    gain = judge(planes, tmp_path, start).gain(trained)
    assert gain == pytest.approx(10 * float(torch.log10(before / after)), abs=1)


def test_channels_of_a_stack_have_their_own_noise(tmp_path):
    noisy = np.random.default_rng(0).normal(500, [[[[10]], [[40]]]], (4, 2, 64, 64)).astype(np.float32)
    np.save(tmp_path / "two.npy", noisy)
    run = Fit(config(tmp_path / "two.npy", axes="TCYX", range=(0.0, 1000.0)))
    one, other = (np.mean(curve.variances) ** 0.5 * 1000 for curve in run._judge.noise)
    assert (one, other) == (pytest.approx(10, rel=0.1), pytest.approx(40, rel=0.1))


def test_the_best_checkpoint_is_kept(stack, monkeypatch):
    run = Fit(config(stack, iterations=10))
    gains = dict(enumerate([0.3, 0.2, 0.1, 0.2, 0.9, 0.5, 0.5, 0.8, 0.7], 1))
    (run.files.folder / "models").mkdir(parents=True)
    monkeypatch.setattr(watch, "load_network", lambda file: int(file.read_text()))
    monkeypatch.setattr(watch, "_SHARE", 1e9)
    watched = watch.Watch(run.files, SimpleNamespace(gain=lambda network: gains[network]))
    for iteration in gains:
        monkeypatch.setattr(training.RunFiles, "iteration", iteration)
        run.checkpoint.write_text(str(iteration))
        watched.check()
        assert watched.gain == gains[iteration]
    assert run.files.best.read_text() == "5"


def test_measuring_takes_a_small_share_of_the_time(stack, monkeypatch):
    run = Fit(config(stack, iterations=1000))
    (run.files.folder / "models").mkdir(parents=True)
    monkeypatch.setattr(watch, "load_network", lambda file: None)
    clock = [0.0]
    monkeypatch.setattr(watch, "time", SimpleNamespace(monotonic=lambda: clock[0]))
    measured = []

    def gain(network):
        clock[0] += 5
        measured.append(network)
        return 0.0

    watched = watch.Watch(run.files, SimpleNamespace(gain=gain))
    for iteration in range(1, 201):
        clock[0] += 1
        monkeypatch.setattr(training.RunFiles, "iteration", iteration)
        run.checkpoint.write_text("")
        watched.check()
    assert 3 < len(measured) < 6  # of 200 checkpoints; each took 5 s


def test_training_ends_with_the_process_that_started_it(stack):
    code = f"""
from kbnet_plugin.selfsup.fit import Fit
from kbnet_plugin.selfsup.config import FitConfig
import os, signal
many = {{"iterations": 10**6, "init": "scratch", "network": {TINY}}}
run = Fit(FitConfig(source={str(stack)!r}, name="mine", axes="ZYX", patch=16, batch=2, device="cpu", **many))
for step in run.run():
    print(run._training.process.pid, flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""
    died = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    pid = int(died.stdout)
    deadline = time.monotonic() + 60
    while Path(f"/proc/{pid}").exists() and "Z" not in Path(f"/proc/{pid}/stat").read_text().split()[2]:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert Fit(config(stack), overwrite=True).iteration > 0  # it saved a checkpoint


def test_a_run_stopped_before_its_first_step_leaves_no_model(stack):
    run = Fit(config(stack))
    run.stop()
    assert list(run.run()) == []
    with pytest.raises(ValueError, match="stopped before its first step; nothing to save"):
        run.save()
    assert zoo.list_models()[-1].name != "mine"


def test_an_error_in_training_is_reported_in_its_own_words(stack, monkeypatch):
    run = Fit(config(stack))
    run.options["network_g"]["width"] = 6

    def inside(command, stdout, **options):
        """Train in this process, which is faster."""
        from basicsr_ext.__main__ import main

        words = io.StringIO()
        with redirect_stderr(words):
            status = main(command[command.index("train") :])
        stdout.write(words.getvalue().encode())
        return SimpleNamespace(poll=lambda: status, wait=lambda: status)

    monkeypatch.setattr(training.subprocess, "Popen", inside)
    with pytest.raises(ValueError, match="width must be a multiple of 4"):
        list(run.run())
    run.files.console.write_text("Traceback\nSegmentation fault\n")
    assert run.files.failure(-11) == f"training failed (Segmentation fault); see {run.files.console}"


@pytest.mark.parametrize(
    ("index", "listed", "expected"),
    [(0, None, "0"), (2, None, "2"), (0, "3", "3"), (1, "4,2", "2"), (1, "GPU-1a, GPU-2b,0", "GPU-2b")],
)
def test_the_training_sees_the_gpu_that_was_chosen_among_the_visible_ones(
    stack, monkeypatch, index, listed, expected
):
    if listed is None:
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    else:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", listed)
    run = Fit(config(stack))
    run.device = torch.device("cuda", index)  # need not exist

    def start(command, env, **options):
        assert env["CUDA_VISIBLE_DEVICES"] == expected
        raise KeyboardInterrupt

    monkeypatch.setattr(training.subprocess, "Popen", start)
    with pytest.raises(KeyboardInterrupt):
        next(run.run())


def test_a_second_recording_and_an_array_are_files_of_the_experiment(stack, tmp_path):
    np.save(tmp_path / "again.npy", np.load(stack)[::-1])
    second = Fit(config(stack, method="n2n", second=tmp_path / "again.npy", name="two"))
    assert second.options["datasets"]["train"]["dataroot_gt"] == str(tmp_path / "again.npy")
    picture = np.random.default_rng(0).random((40, 44), np.float32)
    run = Fit(config(picture, axes=None, init=None, network=None))
    written = json.loads(json.dumps(run.options))
    assert np.array_equal(np.load(written["datasets"]["train"]["dataroot_lq"]), picture)
    assert written["path"]["pretrain_network_g"].endswith("micro.safetensors")
    assert written["datasets"]["train"]["denoiser"] == written["path"]["pretrain_network_g"]
    assert "denoiser" not in Fit(config(picture, axes=None, name="other")).options["datasets"]["train"]


@pytest.mark.parametrize(("share", "total"), [(0.25, 400), (1.5, 100)])
def test_with_a_time_limit_the_number_of_steps_is_estimated_by_the_speed(stack, monkeypatch, share, total):
    run = Fit(config(stack, iterations=None, minutes=2))
    assert "from scratch, 2 minutes on cpu" in run.summary
    run.files.console.parent.mkdir(parents=True)
    commands = []

    def start(command, **options):
        commands.append(command)
        return SimpleNamespace(poll=lambda: None)

    clock = [1000.0]
    monkeypatch.setattr(training.subprocess, "Popen", start)
    monkeypatch.setattr(training, "time", SimpleNamespace(monotonic=lambda: clock[0]))
    monkeypatch.setattr(training.RunFiles, "seconds", lambda self: 10.0)
    process = training.Training(run.files, torch.device("cpu"), 2)
    assert commands[0][-2:] == ["--minutes", "2"]
    clock[0] += 120 * share - 10
    assert process.steps(100, 7) == total


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"name": "../x"}, "cannot name a model"),
        ({"name": "denoise-gray"}, "ships with kbnet"),
        ({"init": "denoise-color"}, r"takes 3 channel\(s\), but noisy.npy has 1"),
        ({"init": "nothing-such"}, "no model or file is called"),
        ({"method": "n2n", "pair_axis": "T"}, "no axis 'T'"),
        ({"method": "n3v"}, "r2r or n2v or n2n"),
        ({"norm": "l1"}, "r2r needs norm l2"),
        ({"iterations": 0}, "at least 1"),
        ({"minutes": 2}, "give one of them"),
        ({"iterations": None, "minutes": -1}, "minutes must be above 0"),
        ({"axes": "YX"}, "the array has 3"),
        ({"range": (3.0, 1.0)}, "lower to a higher"),
        ({"device": "cuda:99"}, "not available"),
    ],
)
def test_bad_settings_are_refused_before_anything_runs(stack, settings, message):
    with pytest.raises((ValueError, FileExistsError), match=message):
        Fit(config(stack, **settings))
    assert not (zoo.folder() / "fits").exists()


def test_correlated_noise_is_refused_before_anything_runs(stack, tmp_path):
    white = np.load(stack).astype(float)
    rows = white[:, 1:] + white[:, :-1]
    np.save(tmp_path / "moved.npy", rows[..., 1:] + rows[..., :-1])
    for method in ("r2r", "n2v"):
        with pytest.raises(ValueError, match=r"moved.npy: neighbouring pixels share their noise.*\(n2n\)"):
            Fit(config(tmp_path / "moved.npy", method=method))
    Fit(config(tmp_path / "moved.npy", method="n2n"))


def test_without_the_extra_it_says_what_to_install(stack, monkeypatch):
    monkeypatch.setattr(fit, "can_train", lambda: False)
    with pytest.raises(ValueError, match=r"pip install 'kbnet\[train\]'"):
        Fit(config(stack))


def test_an_interrupt_stops_the_command_keeps_the_model_and_says_how_to_use_it(stack, capsys, monkeypatch):
    monkeypatch.setattr("kbnet_plugin.cli.fit._PERIOD", 0)
    steps = Fit.run

    def interrupted(self):
        run = steps(self)
        yield next(run)
        signal.raise_signal(signal.SIGINT)
        yield from run

    monkeypatch.setattr(Fit, "run", interrupted)
    command = ["fit", str(stack), "--name", "mine", "--axes", "ZYX", "--device", "cpu", "--method", "n2n"]
    assert cli.main([*command, "--patch", "16", "--batch", "1", "--minutes", "3"]) == 0
    out = capsys.readouterr().out
    assert "starting from denoise-micro, 3 minutes on cpu" in out
    assert "moves" in out
    assert "measured without truth: " in out
    assert re.search(r"^step 1 of [1-9][\d,]*, loss ", out, re.M)  # a line a period, as there is no terminal
    assert "\nstopped\n" in out
    assert "--model mine" in out
    model = zoo.get_model("mine")
    assert model.in_channels == 1
    card = model.card.read_text()
    assert "moves" in card
    assert "--minutes 3.0" in card
    assert cli.main([*command, "--patch", "24"]) == 2
    assert "started with different settings" in capsys.readouterr().err
