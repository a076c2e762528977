"""Train a model on a noisy stack alone, and add it to the user's models.

`Fit` writes the options of an experiment and runs ``basicsr train`` with them in a separate process; nothing
here imports BasicSR.
"""

from __future__ import annotations

import csv
import hashlib
import json
import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
import time
from collections.abc import Generator
from functools import cached_property
from os import PathLike
from pathlib import Path
from textwrap import fill
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from .. import zoo
from .._version import __version__
from ..arrays.intensity import Range
from ..files import atomic_path
from ..inference.device import find_device
from ..nn import KBNet_l, KBNet_s
from ..zoo.architectures import identify
from ..zoo.locations import check_name
from ..zoo.weights import load_network, read_state_dict
from .config import DOUBT, METHODS, NETWORK, PAIRS_FAIL, SCRATCH, WHEN_IT_FAILS, FitConfig, can_train
from .planes import KEPT, Planes
from .sure import DOUBTFUL, independence, scale_correction, sure_shrinkage, variance_by_brightness

_WINDOWS = 64  # number of crops that noise and shrinkage are measured on
_LINE = 110  # characters of a card
_VISIBLE = "CUDA_VISIBLE_DEVICES"
_METHODS = {"n2v": "Noise2Void", "n2n": "Noise2Noise"}
_RESUMABLE = (  # options that may differ between a run and its continuation
    "train.total_iter",
    "train.scheduler",
    "train.warmup_iter",
    "train.ema_decay",
    "train.precision",
    "train.compile",
    "datasets.train.num_worker_per_gpu",
    "num_gpu",
    "logger",
)


class Step(NamedTuple):
    """Progress of a run.

    Attributes
    ----------
    iteration : int
        Step that was finished, from 1.
    total : int
        Number of steps of the run.
    loss : float
        Loss of this step's batch.
    """

    iteration: int
    total: int
    loss: float


class Fit:
    """A training run, new or resumed.

    Parameters
    ----------
    config : FitConfig
        A run of the same name that was interrupted, or that had fewer iterations, is resumed.
    overwrite : bool
        Start over, and replace any run and model of this name.

    Attributes
    ----------
    config : FitConfig
    planes : Planes
        What is trained on.
    range : (float, float)
        Values that become 0 and 1.
    patch : int
        Side of the training crops in pixels; smaller than configured if the planes are.
    device : torch.device
    options : dict
        Options of the experiment, as for ``basicsr train``.
    resumes : bool
        Whether the run continues an earlier one.

    Raises
    ------
    FileNotFoundError, ValueError
        If the source cannot be read or does not fit the network, a setting is invalid, or BasicSR is missing.
    FileExistsError
        If a model of this name exists, or a run of this name was started with different settings.

    Examples
    --------
    >>> fit = Fit(FitConfig(source="stack.tif", name="my-cells"))  # doctest: +SKIP
    >>> for iteration, total, loss in fit.run():  # doctest: +SKIP
    ...     print(iteration, total, loss)
    >>> model = fit.save()  # doctest: +SKIP
    """

    def __init__(self, config: FitConfig, *, overwrite: bool = False) -> None:
        if not can_train():
            raise ValueError("training needs BasicSR, which is not installed: pip install 'kbnet[train]'")
        check_name(config.name)
        if config.method not in METHODS:
            raise ValueError(f"method must be {' or '.join(METHODS)}, not {config.method!r}")
        if config.iterations < 1:
            raise ValueError(f"iterations must be at least 1, not {config.iterations}")
        self.config, self.overwrite = config, overwrite
        root = zoo.folder() / "fits"
        self.folder = root / config.name
        self.option_file = root / f"{config.name}.yml"
        self.console = root / f"{config.name}.log"
        self._process: subprocess.Popen[bytes] | None = None
        self._stopped = self._terminated = False
        device = find_device(config.device)
        if device.type not in ("cpu", "cuda"):
            device = torch.device("cpu")  # BasicSR supports no other
        self.device = device
        self.source = _file(config.source, root, config.name)
        self.label = self.source.name if isinstance(config.source, str | PathLike) else config.name
        self._second = None if config.second is None else _file(config.second, root, f"{config.name}-second")
        planes = Planes(self.source, config.axes)
        self.planes = planes
        self.range = planes.range(config.range)
        smallest = min(min(planes.size(n)) for n in range(len(planes)))
        self.patch = min(config.patch, smallest)
        if config.method == "n2n" and config.second is None:
            planes.pairs(config.pair_axis)  # raises if there are none
        self.options = self._options()
        self.resumes = self._check_earlier_run()

    def run(self) -> Generator[Step, None, None]:
        """Train, or resume training.

        Closing the generator, or raising an exception while iterating over it, stops training like `stop`.

        Yields
        ------
        Step
            From time to time.

        Raises
        ------
        ValueError
            If training fails; one line with the error of the process.
        """
        self._write()
        environment = dict(os.environ)
        root = str(Path(__file__).resolve().parents[2])
        if root != sysconfig.get_path("purelib"):  # a source tree, which is not found from another folder
            before = environment.get("PYTHONPATH")
            environment["PYTHONPATH"] = os.pathsep.join([root, *([before] if before else [])])
        if self.device.index is not None:
            environment[_VISIBLE] = visible(self.device.index, environment.get(_VISIBLE))
        command = [sys.executable, "-m", "basicsr_ext", "train", "-opt", str(self.option_file)]
        with self.console.open("wb") as console:
            # In a new session, so that Ctrl-C reaches only this process, which terminates the other once.
            self._process = process = subprocess.Popen(
                [*command, "--auto_resume", "--parent", str(os.getpid())],
                cwd=self.option_file.parent,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=console,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self._terminated = False
        if self._stopped:
            self._terminate()
        seen = 0
        try:
            while True:
                running = process.poll() is None  # before reading, so that the last steps are read, too
                for step in self._steps(seen):
                    seen = step.iteration
                    yield step
                if not running:
                    break
                time.sleep(0.1)
        finally:
            self._terminate()
            process.wait()
        if process.returncode != 0 and not self._stopped:
            raise ValueError(self._failure(process.returncode))

    def stop(self) -> None:
        """Stop training after the current step and save a checkpoint; may be called from any thread."""
        self._stopped = True
        self._terminate()

    def _terminate(self) -> None:
        if self._process is not None and self._process.poll() is None and not self._terminated:
            self._terminated = True  # a second signal would end it without saving
            self._process.terminate()

    @property
    def summary(self) -> str:
        """One line about what is trained on what, for users."""
        (height, width), (low, high) = self.planes.size(0), self.range
        colour = "colour" if self.planes.channels == 3 else "gray"
        parts = [
            f"{_METHODS[self.config.method]}, {self._init}, on {self.device}",
            f"{_plural(len(self.planes), f'{colour} plane')} of {height} x {width} pixels",
            f"intensities {low:g} to {high:g} become 0 to 1",
        ]
        if self.resumes:
            parts.append(f"resumes after {_plural(self.iteration, 'step')}")
        return "; ".join(parts)

    @property
    def _init(self) -> str:
        weights = self.options["path"]["pretrain_network_g"]
        return f"starting from {Path(weights).stem}" if weights else "from scratch"

    @property
    def iteration(self) -> int:
        """Step of the last checkpoint; 0 if there is none."""
        states = (p for p in (self.folder / "training_states").glob("*") if p.stem.isdigit())
        return max((int(p.stem) for p in states), default=0)

    @property
    def checkpoint(self) -> Path:
        """File of the last checkpoint, which `save` turns into a model."""
        return self.folder / "models" / f"net_g_{self.iteration}.pth"

    def save(self) -> zoo.Model:
        """Add the trained model to the user's list, with SURE shrinkage if it is configured.

        Returns
        -------
        Model

        Raises
        ------
        ValueError
            If there is no checkpoint yet.
        """
        if not (iteration := self.iteration):
            raise ValueError(f"{self.config.name}: training stopped before its first step; nothing to save")
        network = load_network(self.checkpoint)
        shrinks = self.config.shrinkage and self.config.method == "n2v"
        shrinkage = self._shrink(network) if shrinks else None
        return zoo.register_model(
            network.cpu(),
            self.config.name,
            title=f"removes noise from images like {self.label} ({self.config.method}, "
            f"{_plural(iteration, 'step')})",
            task="denoise",
            window=self.patch * 3 // 2,
            range=self.range,
            card=self._card(iteration, shrinkage),
            overwrite=True,
        )

    def _options(self) -> dict[str, Any]:
        config, cuda = self.config, self.device.type == "cuda"
        init = config.init
        if init is None:
            init = "denoise-micro" if self.planes.channels == 1 else zoo.DEFAULT
        weights = None
        if init == SCRATCH:
            network = {**NETWORK, **(config.network or {}), "img_channel": self.planes.channels}
        else:
            model = zoo.get_model(init)
            if model.in_channels != self.planes.channels:
                raise ValueError(
                    f"{model.name} takes {model.in_channels} channel(s), but {self.label} has "
                    f"{self.planes.channels}; start from another model or from {SCRATCH}"
                )
            weights = str(model.path.absolute())
            variant, arguments = identify(read_state_dict(model.path))
            network = {"type": variant, **arguments}
        train: dict[str, Any] = {
            "type": "Dataset_BlindSpot" if config.method == "n2v" else "Dataset_PlanePairs",
            "dataroot_lq": str(self.source),
            "in_ch": self.planes.channels,
            "range": list(self.range),
            "gt_size": self.patch,
            "batch_size_per_gpu": config.batch or (64 if cuda else 8),
            "num_worker_per_gpu": (min(8, os.cpu_count() or 1) if cuda else 0)
            if config.workers is None
            else config.workers,
            "geometric_augs": True,
            "cache_images": self.planes.nbytes <= KEPT,
        }
        if config.axes:
            train["axes"] = config.axes
        if config.method == "n2v":
            train |= {
                "masked_pixel_percentage": config.masked_pixel_percentage,
                "strategy": config.strategy,
            }
        else:
            if self._second is not None:
                train["dataroot_gt"] = str(self._second)
            if config.pair_axis:
                train["pair_axis"] = config.pair_axis
        bf16 = cuda and torch.cuda.is_bf16_supported()
        rate = config.learning_rate or (3e-3 if weights is None else 1e-3)
        total = config.iterations
        return {
            "name": config.name,
            "model_type": "ImageCleanModel",
            "num_gpu": "auto" if cuda else 0,
            "manual_seed": config.seed,
            "datasets": {"train": train},
            "network_g": network,
            "path": {"experiments_root": str(self.folder.parent), "pretrain_network_g": weights},
            "train": {
                "total_iter": total,
                "precision": config.precision or ("bf16" if bf16 else "fp32"),
                "compile": config.compile,
                "optim_g": {"type": "AdamW", "lr": rate, "weight_decay": 1e-4, "betas": [0.9, 0.99]},
                "scheduler": {
                    "type": "CosineAnnealingRestartCyclicLR",
                    "periods": [total],
                    "restart_weights": [1],
                    "eta_mins": [1e-6],
                },
                "warmup_iter": min(50, max(1, total // 10)),
                "ema_decay": 0.99 if total < 3000 else 0.999,
                "pixel_opt": {"type": "BlindSpotLoss", "norm": config.norm},
                "grad_clip": 0.1,
            },
            "logger": {
                "print_freq": max(1, min(20, total // 50)),
                "save_checkpoint_freq": max(1, min(500, total // 4)),
                "keep_checkpoints": 2,
            },
        }

    def _check_earlier_run(self) -> bool:
        """Tell whether there is a run to resume; raise if it has different settings."""
        name = self.config.name
        if self.overwrite:
            return False
        try:
            earlier = json.loads(self.option_file.read_text(encoding="utf-8"))
        except FileNotFoundError:
            if any(model.name == name for model in zoo.list_models()):
                raise FileExistsError(
                    f"a model called {name} exists already; choose another name or overwrite it"
                ) from None
            return False
        except ValueError:
            earlier = {}
        if changed := _changed(earlier, self.options):
            raise FileExistsError(
                f"{name} was started with different settings ({', '.join(changed)}); choose another name or "
                "overwrite it"
            )
        return self.iteration > 0

    def _write(self) -> None:
        self.option_file.parent.mkdir(parents=True, exist_ok=True)
        if not self.iteration or self.overwrite:
            shutil.rmtree(self.folder, ignore_errors=True)
        self.overwrite = False  # only once: another run() resumes this one
        with atomic_path(self.option_file) as temporary:  # JSON is YAML
            temporary.write_text(json.dumps(self.options, indent=1) + "\n", encoding="utf-8")

    def _steps(self, after: int) -> list[Step]:
        try:
            text = (self.folder / "history.csv").read_text(encoding="utf-8")
        except FileNotFoundError:
            return []
        complete = text[: text.rfind("\n") + 1]
        rows = (row for row in csv.reader(complete.splitlines()) if len(row) == 3 and row[1] == "l_pix")
        total = self.config.iterations
        return [Step(int(i), total, float(loss)) for i, _, loss in rows if int(i) > after]

    def _failure(self, status: int) -> str:
        lines = self.console.read_text(encoding="utf-8", errors="replace").splitlines()
        errors = [line.removeprefix("basicsr: ") for line in lines if line.startswith("basicsr: ")]
        if errors:
            return errors[-1]
        last = next((line for line in reversed(lines) if line.strip()), f"exit status {status}")
        return f"training failed ({last}); see {self.console}"

    @cached_property
    def doubt(self) -> str:
        """Warning that training on masked pixels of this source may gain little; empty if it should work."""
        if self.config.method != "n2v" or not self._windows:
            return ""
        return DOUBT if independence(self._windows) < DOUBTFUL else ""

    @cached_property
    def _windows(self) -> list[NDArray[np.float32]]:
        """Crops from all over the source without missing values, in 0..1."""
        side = min(self.patch * 3 // 2, *(min(self.planes.size(n)) for n in range(len(self.planes))))
        generator = np.random.default_rng(0)
        scale = Range(self.range[0], self.range[1] - self.range[0])
        windows = []
        for _ in range(_WINDOWS):
            number = int(generator.integers(len(self.planes)))
            top, left = (int(generator.integers(n - side + 1)) for n in self.planes.size(number))
            window = slice(top, top + side), slice(left, left + side)
            windows.append(scale.apply(self.planes.read(number, window)))
        return [w for w in windows if np.isfinite(w).all()]

    def _shrink(self, network: KBNet_s | KBNet_l) -> float:
        """Scale the network's correction to the smallest expected error, and return the factor."""
        if not self._windows:
            return 1.0
        pictures = torch.from_numpy(np.stack(self._windows)).permute(0, 3, 1, 2).to(self.device)
        shrinkage = sure_shrinkage(network.to(self.device), pictures, variance_by_brightness(self._windows))
        scale_correction(network, shrinkage)
        return shrinkage

    def _card(self, iteration: int, shrinkage: float | None) -> str:
        config, network = self.config, self.options["network_g"]
        settings = ", ".join(f"{key} {value}" for key, value in network.items() if key != "type")
        low, high = self.range
        batch = self.options["datasets"]["train"]["batch_size_per_gpu"]
        method, limits = _METHODS[config.method], PAIRS_FAIL
        if config.method == "n2v":
            limits = WHEN_IT_FAILS
            method += f", {config.masked_pixel_percentage:g} % masked pixels, strategy {config.strategy}"
        facts = [
            f"data: {self.source}, {_plural(len(self.planes), 'plane')}, {self.planes.dtype}",
            f"method: {method}",
            f"range: {low:g} to {high:g} become 0 to 1; use it on images of the same exposure",
            f"training: {iteration:,} of {_plural(config.iterations, 'step')}, each with {batch} crops of "
            f"{self.patch} x {self.patch} pixels, {config.norm} loss, seed {config.seed}",
            f"network: {network['type']}, {settings}; {self._init}",
        ]
        if shrinkage is not None:
            facts.append(f"SURE shrinkage: {shrinkage:.2f} of the learned correction")
        facts += [
            f"versions: kbnet {__version__}, torch {torch.__version__}",
            f"command: `{self._command()}`",
        ]
        lines = [
            f"# {config.name}",
            "",
            f"Removes noise from images like {self.label}. Trained on them, without clean images.",
            "",
            *(f"- {fact}" for fact in facts),
            "",
            "## Limitations",
            "",
            fill(limits, _LINE),
            "",
            *([fill(self.doubt, _LINE), ""] if self.doubt else []),
            "Look at the difference between input and output: structure visible there means that signal was",
            "removed. The result has not been compared with clean images, because there are none.",
        ]
        return "\n".join(lines) + "\n"

    def _command(self) -> str:
        """Return the command line that repeats this run."""
        config, (low, high) = self.config, self.range
        optional = {
            "--second": self._second,
            "--pair-axis": config.pair_axis,
            "--init": config.init,
            "--axes": config.axes,
            "--patch": config.patch if config.patch != FitConfig.patch else None,
            "--batch": config.batch,
            "--learning-rate": config.learning_rate,
        }
        words = ["kbnet", "fit", self.source, "--name", config.name, "--method", config.method]
        words += [f"--range={low!r},{high!r}", "--iterations", config.iterations]  # = as it may be negative
        words += [word for pair in optional.items() if pair[1] is not None for word in pair]
        words += [] if config.shrinkage else ["--no-shrinkage"]
        return shlex.join(map(str, words))


def _plural(count: int, noun: str) -> str:
    return f"{count:,} {noun}{'s' if count != 1 else ''}"


def _file(source: Any, folder: Path, name: str) -> Path:
    """Return the path of a source. An array, which may be lazy, is saved under a name with its digest."""
    if isinstance(source, str | PathLike):
        return Path(source).absolute()
    folder.mkdir(parents=True, exist_ok=True)
    digest = hashlib.sha256()
    with atomic_path(folder / f"{name}.npy") as temporary:
        copy = np.lib.format.open_memmap(temporary, "w+", np.dtype(source.dtype), tuple(source.shape))
        for part in range(copy.shape[0]) if copy.ndim > 2 else [slice(None)]:
            copy[part] = np.asarray(source[part])
            digest.update(copy[part].tobytes())
        copy.flush()
        del copy
    path = folder / f"{name}-{digest.hexdigest()[:12]}.npy"
    (folder / f"{name}.npy").replace(path)
    return path


def visible(index: int, listed: str | None) -> str:
    """Return ``CUDA_VISIBLE_DEVICES`` for a process that should see only one GPU.

    Parameters
    ----------
    index : int
        Index of the GPU among those that this process sees.
    listed : str or None
        Value of the variable in this process: numbers or UUIDs; None if it is not set.
    """
    if listed is None:
        return str(index)
    return listed.split(",")[index].strip()


def _changed(before: Any, now: Any, where: str = "") -> list[str]:
    """List the keys that differ, except those that may change when a run is resumed."""
    if where in _RESUMABLE:
        return []
    if not (isinstance(before, dict) and isinstance(now, dict)):
        return [] if before == now else [where]
    keys = dict.fromkeys([*now, *before])
    inner = (_changed(before.get(key), now.get(key), f"{where}.{key}" if where else str(key)) for key in keys)
    return [place for places in inner for place in places]
