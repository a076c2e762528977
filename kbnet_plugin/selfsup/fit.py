"""A model learned from a noisy stack alone: `Fit` writes an experiment, runs it in a process of its own, and
keeps what it learned as a model in the user's list.

The loop is that of ``basicsr train``, which is started as a command: nothing here imports it.
"""

from __future__ import annotations

import csv
import hashlib
import json
import os
import shutil
import subprocess
import sys
import sysconfig
import time
from collections.abc import Generator
from functools import cached_property
from os import PathLike
from pathlib import Path
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

_WINDOWS = 64  # that the shrinkage is found from
_VISIBLE = "CUDA_VISIBLE_DEVICES"


class Step(NamedTuple):
    """Where a run is: the loss of one batch, now and then."""

    iteration: int
    total: int
    loss: float


class Fit:
    """A training run, new or resumed.

    Parameters
    ----------
    config : FitConfig
    overwrite : bool
        Begin anew where a run of that name was begun, and replace the model of that name.

    Raises
    ------
    FileNotFoundError, ValueError
        If the source cannot be read or does not fit the network, or the configuration cannot work.
    FileExistsError
        If a model of that name is there, or a run of that name was started with another configuration.

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
            raise ValueError(f"iterations must be 1 at least, not {config.iterations}")
        self.config, self.overwrite = config, overwrite
        root = zoo.folder() / "fits"
        self.folder = root / config.name
        self.option_file = root / f"{config.name}.yml"
        self.console = root / f"{config.name}.log"
        self._process: subprocess.Popen[bytes] | None = None
        self._stopped = self._asked = False
        device = find_device(config.device)
        if device.type not in ("cpu", "cuda"):
            device = torch.device("cpu")  # the loop knows no other
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
            planes.pairs(config.pair_axis)  # raises where there are none
        self.options = self._options()
        self.resumes = self._check_former()

    def run(self) -> Generator[Step, None, None]:
        """Train, and say now and then where it is; a run that was begun goes on.

        Closing the generator, or an exception in the loop over it, stops the training as `stop` does.

        Raises
        ------
        ValueError
            If training ended by a fault; one line that says which, as the process did.
        """
        self._write()
        environment = dict(os.environ)
        here = str(Path(__file__).resolve().parent.parent)
        if here != sysconfig.get_path("purelib"):  # a source tree, which another folder would not find
            before = environment.get("PYTHONPATH")
            environment["PYTHONPATH"] = os.pathsep.join([here, *([before] if before else [])])
        if self.device.index is not None:
            environment[_VISIBLE] = visible(self.device.index, environment.get(_VISIBLE))
        command = [sys.executable, "-m", "basicsr_ext", "train", "-opt", str(self.option_file)]
        with self.console.open("wb") as console:
            # A session of its own: Ctrl-C is for us to hear, and we ask the process to save once.
            self._process = process = subprocess.Popen(
                [*command, "--auto_resume", "--parent", str(os.getpid())],
                cwd=self.option_file.parent,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=console,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self._asked = False
        if self._stopped:
            self._ask()
        seen = 0
        try:
            while True:
                running = process.poll() is None  # before reading: what it wrote last is read too
                for step in self._steps(seen):
                    seen = step.iteration
                    yield step
                if not running:
                    break
                time.sleep(0.1)
        finally:
            self._ask()
            process.wait()
        if process.returncode != 0 and not self._stopped:
            raise ValueError(self._complaint(process.returncode))

    def stop(self) -> None:
        """Ask the training to end after its step, from any thread; what it learned is kept."""
        self._stopped = True
        self._ask()

    def _ask(self) -> None:
        if self._process is not None and self._process.poll() is None and not self._asked:
            self._asked = True  # asked twice, it would end without saving
            self._process.terminate()

    @property
    def summary(self) -> str:
        """What is about to be learned from what, for people."""
        (height, width), count = self.planes.size(0), len(self.planes)
        kind = "colour" if self.planes.channels == 3 else "gray"
        init = self.options["path"]["pretrain_network_g"]
        init = Path(init).stem if init else "nothing"
        return (
            f"{count:,} {kind} plane{'s' if count > 1 else ''} of {height} x {width}; "
            f"{self.range[0]:g} to {self.range[1]:g} is 0..1; {self.config.method} from {init} "
            f"on {self.device}" + (f"; going on after {self.iteration:,} steps" if self.resumes else "")
        )

    @property
    def iteration(self) -> int:
        """Of the last checkpoint; 0 where there is none."""
        states = (p for p in (self.folder / "training_states").glob("*.state") if p.stem.isdigit())
        return max((int(p.stem) for p in states), default=0)

    @property
    def checkpoint(self) -> Path:
        """The last one; what `save` makes a model of."""
        return self.folder / "models" / f"net_g_{self.iteration}.pth"

    def save(self) -> zoo.Model:
        """Put what was learned into the user's list of models.

        What was learned from hidden pixels is shrunk with the pixels themselves (see `shrinkage`).

        Raises
        ------
        ValueError
            If nothing was learned yet.
        """
        if not (iteration := self.iteration):
            raise ValueError(f"{self.config.name}: stopped before anything was learned; nothing is kept")
        network = load_network(self.checkpoint)
        shrunk = self.config.shrinkage and self.config.method == "n2v"
        shrinkage = self._shrink(network) if shrunk else None
        return zoo.register_model(
            network.cpu(),
            self.config.name,
            title=f"learned from {self.label} without truth ({self.config.method}, {iteration:,} its)",
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
                    f"{model.name} takes {model.in_channels} channel(s), {self.label} has "
                    f"{self.planes.channels}; start from another model, or from {SCRATCH!r}"
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

    def _check_former(self) -> bool:
        """Whether a run is there to go on with; raise where it would be another one's."""
        name = self.config.name
        if self.overwrite:
            return False
        try:
            former = json.loads(self.option_file.read_text(encoding="utf-8"))
        except FileNotFoundError:
            if any(model.name == name for model in zoo.list_models()):
                raise FileExistsError(
                    f"there is a model called {name} already; choose another name, or overwrite it"
                ) from None
            return False
        except ValueError:
            former = {}
        if changed := _changed(former, self.options):
            raise FileExistsError(
                f"{name} was begun with other settings ({', '.join(changed)}); choose another name, or "
                "overwrite it"
            )
        return self.iteration > 0

    def _write(self) -> None:
        self.option_file.parent.mkdir(parents=True, exist_ok=True)
        if not self.iteration or self.overwrite:
            shutil.rmtree(self.folder, ignore_errors=True)
        self.overwrite = False  # once: another run() of this one goes on
        with atomic_path(self.option_file) as temporary:  # JSON is YAML
            temporary.write_text(json.dumps(self.options, indent=1) + "\n", encoding="utf-8")

    def _steps(self, after: int) -> list[Step]:
        try:
            text = (self.folder / "history.csv").read_text(encoding="utf-8")
        except FileNotFoundError:
            return []
        whole = text[: text.rfind("\n") + 1]
        rows = (row for row in csv.reader(whole.splitlines()) if len(row) == 3 and row[1] == "l_pix")
        total = self.config.iterations
        return [Step(int(i), total, float(loss)) for i, _, loss in rows if int(i) > after]

    def _complaint(self, status: int) -> str:
        lines = self.console.read_text(encoding="utf-8", errors="replace").splitlines()
        said = [line.removeprefix("basicsr: ") for line in lines if line.startswith("basicsr: ")]
        if said:
            return said[-1]
        last = next((line for line in reversed(lines) if line.strip()), f"exit status {status}")
        return f"training ended by a fault ({last}); {self.console} says more"

    @cached_property
    def doubt(self) -> str:
        """What speaks against learning from hidden pixels of this source; empty where nothing does."""
        if self.config.method != "n2v" or not self._windows:
            return ""
        return DOUBT if independence(self._windows) < DOUBTFUL else ""

    @cached_property
    def _windows(self) -> list[NDArray[np.float32]]:
        """Pieces from all over the source, whole ones only, in units of the range."""
        side = min(self.patch * 3 // 2, *(min(self.planes.size(n)) for n in range(len(self.planes))))
        chosen = np.random.default_rng(0)
        scale = Range(self.range[0], self.range[1] - self.range[0])
        windows = []
        for _ in range(_WINDOWS):
            number = int(chosen.integers(len(self.planes)))
            top, left = (int(chosen.integers(n - side + 1)) for n in self.planes.size(number))
            window = slice(top, top + side), slice(left, left + side)
            windows.append(scale.apply(self.planes.read(number, window)))
        return [w for w in windows if np.isfinite(w).all()]

    def _shrink(self, network: KBNet_s | KBNet_l) -> float:
        """Scale the network's correction to the shrinkage that promises the least error; the shrinkage."""
        if not self._windows:
            return 1.0
        pictures = torch.from_numpy(np.stack(self._windows)).permute(0, 3, 1, 2).to(self.device)
        shrinkage = sure_shrinkage(network.to(self.device), pictures, variance_by_brightness(self._windows))
        scale_correction(network, shrinkage)
        return shrinkage

    def _card(self, iteration: int, shrinkage: float | None) -> str:
        config, network = self.config, self.options["network_g"]
        started = self.options["path"]["pretrain_network_g"]
        how = {
            "n2v": f"Noise2Void: {config.masked_pixel_percentage:g} % of the pixels masked, "
            f"strategy {config.strategy}",
            "n2n": "Noise2Noise: pairs of planes that show the same",
        }[config.method]
        settings = ", ".join(f"{key} {value}" for key, value in network.items() if key != "type")
        low, high = self.range
        again = [f"kbnet fit {self.source}", f"--name {config.name}", f"--method {config.method}"]
        again += [f"--axes {config.axes}"] if config.axes else []
        again += [f"--range {low!r},{high!r}", f"--iterations {config.iterations}"]
        fails = WHEN_IT_FAILS if config.method == "n2v" else PAIRS_FAIL
        batch = self.options["datasets"]["train"]["batch_size_per_gpu"]
        return "\n".join(
            (
                f"# {config.name}",
                "",
                f"Removes the noise of recordings like {self.label}; learned from it without truth.",
                "",
                f"- learned from: {self.source}, {len(self.planes):,} plane(s), {self.planes.dtype}",
                f"- by: {how}",
                f"- values from {low:g} to {high:g} are 0..1 for the network; it knows no other exposure",
                f"- {iteration:,} of {config.iterations:,} steps of {batch}"
                f" crops of {self.patch} x {self.patch}, loss {config.norm}, seed {config.seed}",
                f"- network: {network['type']}, {settings}; started from "
                f"{Path(started).stem if started else 'nothing'}",
                *(
                    []
                    if shrinkage is None
                    else [f"- shrinkage: {shrinkage:.2f} of the learned correction, by Stein's estimate"]
                ),
                f"- kbnet {__version__}, torch {torch.__version__}",
                f"- command: `{' '.join(again)}`",
                "",
                "## Where it fails",
                "",
                fails,
                "",
                *([self.doubt, ""] if self.doubt else []),
                "Look at the difference of input and output: structure there means that signal was taken",
                "away. It was compared with no truth, as there is none.",
                "",
            )
        )


def _file(source: Any, folder: Path, name: str) -> Path:
    """Path of a source; an array, which may be lazy, is written under a name that tells its values."""
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
    """``CUDA_VISIBLE_DEVICES`` for a process that is to see one GPU alone.

    Parameters
    ----------
    index : int
        Of the GPU, among those that this process sees.
    listed : str or None
        The variable as this process has it: numbers or UUIDs, in the order in which they are counted.
    """
    if listed is None:
        return str(index)
    return listed.split(",")[index].strip()


def _changed(before: Any, now: Any, where: str = "") -> list[str]:
    """Keys that differ, apart from those that a run may go on with."""
    if where in ("train.total_iter", "train.scheduler", "train.warmup_iter", "train.ema_decay", "logger"):
        return []
    if where in ("num_gpu", "train.precision", "train.compile", "datasets.train.num_worker_per_gpu"):
        return []
    if not (isinstance(before, dict) and isinstance(now, dict)):
        return [] if before == now else [where]
    keys = dict.fromkeys([*now, *before])
    inner = (_changed(before.get(key), now.get(key), f"{where}.{key}" if where else str(key)) for key in keys)
    return [place for places in inner for place in places]
