"""The training loop behind ``basicsr train``.

It replaces BasicSR's ``train_pipeline``, which ends before total_iter, cannot resume or run distributed on
CPU, and repeats the same crops every epoch. Registries, folder layout and option files are BasicSR's.
"""

from __future__ import annotations

import logging
import os
import re
import signal
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from traceback import extract_tb
from typing import Any

import cv2
import torch
from basicsr.data import build_dataset
from torch.utils.data import DataLoader
from tqdm import tqdm

from kbnet_plugin.errors import BadInput, one_line

from . import costs, dist, logs
from .base_model import unwrap
from .experiment import link, open_experiment, prune, resume_state
from .history import History
from .model import NotFiniteError
from .options import Options
from .registry import build_model, version
from .sampler import Failure, Reproducible, StageBatchSampler, Stages, Ticket, collate, seed_everything

logger = logging.getLogger("basicsr")

WARM_UP = 5
"""Steps after which their speed is representative."""


def train(options: Options, option_file: str, *, auto_resume: bool, parent: int | None = None) -> int:
    """Run an experiment to its end, or until its parent process, if given, has ended.

    Returns
    -------
    int
        0, or 128 + the number of the signal that stopped it, after saving.

    Raises
    ------
    BadInput
        If the options, the data or the weights are invalid, in which case nothing has been written, or if
        training fails.
    """
    rank, world, seed = options["rank"], options["world_size"], options["manual_seed"]
    # torch warns if the first step is skipped, as on_nan and fp16 may do.
    warnings.filterwarnings("ignore", "Detected call of `lr_scheduler.step")
    choose_device(options)
    accumulate = options["train"]["accumulate"]
    stages = Stages.from_options(options["datasets"]["train"], accumulate=accumulate)
    train_set, val_sets = _datasets(options)
    state = resume_state(options, auto_resume=auto_resume)
    seed_everything(seed)
    model = build_model(options)
    if state is not None:
        model.resume_training(state)
    start = int(state["iter"]) if state is not None else 0
    total = options["train"]["total_iter"]
    activations = _check_network(model, train_set, stages)
    dist.wait()  # all have read what open_experiment may move away
    if rank == 0:
        open_experiment(options, option_file, keep=state is not None)
    dist.wait()
    logs.to_file(options, "train")
    if keep := options["logger"]["keep_checkpoints"]:
        logger.info("keeping the last %d checkpoints and the best (logger.keep_checkpoints)", keep)
    for note in options["notes"]:
        logger.info("note: %s", note)
    logger.info("%s, torch %s, %s, %d process(es)", version(), torch.__version__, model.device, world)
    costs.log_network(model, stages, activations)
    costs.log_batch(model, stages, world, accumulate)
    logger.info("%d training images, iterations %s..%s", len(train_set), f"{start:,}", f"{total:,}")
    dataset = options["datasets"]["train"]
    sampler = StageBatchSampler(
        len(train_set),
        stages,
        total,
        start=start,
        samples=model.samples,
        rank=rank,
        world=world,
        seed=seed,
        shuffle=dataset.get("use_shuffle") is not False,
    )
    loader: DataLoader[Any] = DataLoader(
        train_set,
        batch_sampler=sampler,
        num_workers=int(dataset.get("num_worker_per_gpu") or 0),
        collate_fn=collate,
        worker_init_fn=_quiet_worker,
        pin_memory=model.device.type == "cuda",
    )
    run = _Run(options, model, val_sets, stages, len(train_set), start)
    try:
        with _signals() as received, run.one_line_errors(received):
            for batch in loader:
                if isinstance(batch, Failure):
                    raise BadInput(batch.message)
                run.step(batch)
                if parent is not None and os.getppid() != parent:
                    received.append(signal.SIGTERM)
                if dist.any_rank(bool(received)):
                    run.finish(interrupted=True)
                    return 128 + (received[0] if received else signal.SIGTERM)
            run.finish()
        return 0
    finally:
        run.bar.close()


class _Run:
    """A running experiment."""

    def __init__(
        self, options: Options, model: Any, val_sets: list[Any], stages: Stages, images: int, start: int
    ) -> None:
        self.options, self.model, self.val_sets = options, model, val_sets
        self.stages, self.images, self.iteration = stages, images, start
        self.start, self.total = start, options["train"]["total_iter"]
        self.world, self.rank = options["world_size"], options["rank"]
        self.saved = self.validated = start if start else None
        self.tensorboard = logs.tensorboard(options)
        self.bar = tqdm(
            total=self.total,
            initial=start,
            unit="it",
            disable=None if self.rank == 0 else True,
            dynamic_ncols=True,
        )
        self.clock = time.monotonic()
        self.clock_at, self.seen = start, model.samples
        self.speed = self.images_per_second = 0.0
        self.history = None
        if self.rank == 0:
            self.history = History(Path(options["path"]["experiments_root"]), start)

    def step(self, batch: Any) -> None:
        """Make one iteration, then log, save and validate as due."""
        self.iteration += 1
        i, model, every = self.iteration, self.model, self.options["logger"]
        # Mixup and dropout use the global generators: seeded per step, a resumed run draws the same numbers.
        seed_everything(self.options["manual_seed"], i, self.rank)
        model.update_learning_rate(i, warmup_iter=int(self.options["train"].get("warmup_iter") or -1))
        model.feed_data(batch)
        model.optimize_parameters(i)
        model.samples += self.stages.at(i)[0] * self.world
        self.bar.update()
        if i == self.start + WARM_UP:
            self._print(record=False)
        elif i % every["print_freq"] == 0 or i in (self.start + 1, self.total):
            self._print()
        if i % every["save_checkpoint_freq"] == 0:
            self._save()
        if self.options.get("val") and i % self.options["val"]["val_freq"] == 0:
            self._validate()

    def _print(self, *, record: bool = True) -> None:
        i, log, now = self.iteration, self.model.get_current_log(), time.monotonic()
        if i > self.clock_at:
            self.speed = (i - self.clock_at) / max(now - self.clock, 1e-9)
            self.images_per_second = (self.model.samples - self.seen) / max(now - self.clock, 1e-9)
        if i > self.start + 1:  # the first step also starts the workers
            left = f"{1 / max(self.speed, 1e-9):.3g} s/it, {self.images_per_second:.3g} images/s, "
            left += f"ETA {_duration((self.total - i) / max(self.speed, 1e-9))}, "
            left += costs.peak_memory(self.model.device)
        else:
            left = "first step"
        self.clock, self.clock_at, self.seen = now, i, self.model.samples
        rate = self.model.get_current_learning_rate()[0]
        losses = " ".join(f"{name} {value:.4e}" for name, value in log.items())
        epoch = self.model.samples // self.images
        logger.info(
            "iter %s/%s  epoch %d  lr %.3e  %s  %s", f"{i:,}", f"{self.total:,}", epoch, rate, losses, left
        )
        shown = {k: f"{v:.3e}" for k, v in log.items()} | {"lr": f"{rate:.2e}"}
        if i > self.start + 1:
            shown |= {"img/s": f"{self.images_per_second:.3g}", "mem": costs.peak_memory(self.model.device)}
        self.bar.set_postfix(shown, refresh=False)
        if self.history and record:
            self.history.add(i, {**log, "lr": rate})
        if self.tensorboard:
            for name, value in {**log, "lr": rate}.items():
                self.tensorboard.add_scalar(f"losses/{name}" if name.startswith("l_") else name, value, i)

    def _save(self) -> None:
        if self.saved == self.iteration:
            return
        self.model.save(self.model.samples // self.images, self.iteration)
        self.saved = self.iteration
        if self.rank == 0:
            prune(self.options, self.options["logger"]["keep_checkpoints"], self._best())
            if self.history:
                self.history.plot()

    def _best(self) -> int | None:
        """Return the iteration with the best value so far of the first metric on the first set."""
        found: dict[str, Any] = getattr(self.model, "best_metric_results", {})
        first: dict[str, Any] = next(iter(found.values()), {})
        return next((entry.get("iter") for entry in first.values()), None)

    def _validate(self) -> None:
        if self.validated == self.iteration or not self.options.get("val"):
            return
        for loader in self.val_sets:
            results = self.model.validation(
                loader, self.iteration, self.tensorboard, self.options["val"]["save_img"]
            )
            if self.history and results:
                name = loader.dataset.opt["name"]
                self.history.add(self.iteration, {f"{name} {k}": v for k, v in results.items()})
        self.validated = self.iteration
        best = torch.tensor([self._best() == self.iteration if self.rank == 0 else False])
        if dist.any_rank(bool(best)):
            self.saved = None  # save again: the state now contains the best result
            self._save()
            if self.rank == 0:
                link(Path(self.options["path"]["models"]), self.iteration, "best")
        if self.history:
            self.history.plot()
        # Validation does not count as training time.
        self.clock, self.clock_at = time.monotonic(), self.iteration
        self.seen = self.model.samples

    @contextmanager
    def one_line_errors(self, received: list[int]) -> Iterator[None]:
        """Turn errors into one line: what stopped training, what is saved, and what may help."""
        try:
            yield
        except NotFiniteError as error:
            raise BadInput(
                f"{one_line(error)}; {self._kept()}; check these images, lower train.optim_g.lr, "
                "use train.precision: fp32, or skip such batches with train.on_nan: skip"
            ) from error
        except (RuntimeError, MemoryError) as error:
            if (message := self._explain(error, bool(received))) is None:
                raise
            raise BadInput(message) from error
        except (ConnectionError, EOFError) as error:
            if not any("multiprocessing" in frame.filename for frame in extract_tb(error.__traceback__)):
                raise
            # The pipe of a dead worker broke before torch noticed, whose own error may follow.
            with suppress(RuntimeError):
                time.sleep(0.2)
            raise BadInput(self._worker_died(one_line(error))) from error

    def _worker_died(self, text: str) -> str:
        return (
            f"a data worker died ({text}), perhaps for lack of memory; lower "
            f"datasets.train.num_worker_per_gpu; {self._kept()}"
        )

    def _explain(self, error: BaseException, stopping: bool) -> str | None:
        text = one_line(error)
        # A lost process shows up in DDP's backward pass or in our own exchanges.
        lost = isinstance(error, dist.PeerLostError) or re.search(r"gloo|NCCL|[Cc]onnection", text)
        if self.world > 1 and lost:
            if stopping:
                return f"stopped at iter {self.iteration:,}; {self._kept()}"
            return (
                f"another process of the job stopped at iter {self.iteration:,}; its own message says why; "
                f"{self._kept()} ({text})"
            )
        if "DataLoader worker" in text:
            return self._worker_died(text)
        # By module name: importing torch._dynamo for its error classes takes seconds.
        if type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
            return (
                f"train.compile: {text.split(' Set TORCHDYNAMO')[0]}; on a CPU it requires a C++ compiler "
                f"(g++): install one, or set train.compile: false; {self._kept()}"
            )
        if isinstance(error, (torch.OutOfMemoryError, MemoryError)) or "can't allocate memory" in text:
            i = max(self.iteration, 1)
            batch, crop = self.stages.at(i)
            staged = self.options["datasets"]["train"].get("mini_batch_sizes")
            keys = ("mini_batch_sizes", "gt_sizes") if staged else ("batch_size_per_gpu", "gt_size")
            requested = re.search(r"[Tt]ried to allocate ([\d.]+ ?\w+)", text)
            more = f", which requested {requested[1]} more" if requested else ""
            return (
                f"out of memory on {self.model.device} at iter {i:,}, a step of {batch} images "
                f"with a crop of {crop}{more}; lower datasets.train.{keys[0]} (and raise train.accumulate "
                f"in proportion) or {keys[1]}, set train.activation_checkpointing: true "
                f"or train.precision: bf16; {self._kept()}"
            )
        return None

    def _kept(self) -> str:
        if self.saved is None:
            return "no checkpoint has been saved yet"
        return f"the checkpoint of iter {self.saved:,} is kept; --auto_resume continues from there"

    def finish(self, *, interrupted: bool = False) -> None:
        """Save; unless interrupted, also validate and link the last weights as ``net_*_latest.pth``."""
        self._save()
        if interrupted:
            logger.info(
                "interrupted: saved at iter %s; --auto_resume continues from there", f"{self.iteration:,}"
            )
        else:
            self._validate()
            if self.rank == 0:
                link(Path(self.options["path"]["models"]), self.iteration, "latest")
            logger.info("done: %s", self.options["path"]["models"])
        if self.tensorboard:
            self.tensorboard.close()
        dist.wait()


def choose_device(options: Options) -> None:
    """Choose the one device of this process; for more GPUs, torchrun starts more processes."""
    if options["deterministic"]:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when CUDA starts
    torch.use_deterministic_algorithms(options["deterministic"])
    torch.backends.cudnn.benchmark = not options["deterministic"]
    setting = options.get("num_gpu", "auto")
    available = torch.cuda.device_count()
    requested = 1 if setting == "auto" else setting
    options["num_gpu"] = min(1, available, requested)
    if setting != "auto" and requested > available:
        used = "the GPU" if options["num_gpu"] else "the CPU"
        logger.warning("num_gpu is %d but %d are available; running on %s", requested, available, used)
    elif requested > 1 and not options["dist"]:
        logger.warning("num_gpu is %d: one process uses one GPU; start with torchrun to use more", requested)


def make_dataset(label: str, options: Options) -> Any:
    """Build a dataset; its errors become one line."""
    try:
        return build_dataset(options)
    except BadInput as error:
        raise BadInput(f"datasets.{label}: {one_line(error)}") from error
    except (AssertionError, OSError, KeyError, TypeError, ValueError) as error:
        what = "missing key:" if isinstance(error, KeyError) else f"{type(error).__name__}:"
        raise BadInput(f"datasets.{label} ({options['type']}): {what} {one_line(error)}") from error


def _datasets(options: Options) -> tuple[Reproducible, list[Any]]:
    train_set, val_sets = None, []
    for label, dataset in options["datasets"].items():
        built = make_dataset(label, dataset)
        if len(built) == 0:
            raise BadInput(f"datasets.{label} contains no images")
        if dataset["phase"] == "train":
            train_set = Reproducible(built, f"datasets.{label}")
        else:
            val_sets.append(DataLoader(built))
    assert train_set is not None  # prepare_options has checked it
    return train_set, val_sets


def _check_network(model: Any, train_set: Reproducible, stages: Stages) -> float | None:
    """Run the network on one crop, to find a mismatch with the data before anything is written.

    Returns
    -------
    float or None
        Bytes that a training step keeps per input pixel, if they can be counted.
    """
    sample = train_set[Ticket(0, stages.at(1)[1], (0, 0))]
    if isinstance(sample, Failure):
        raise BadInput(sample.message)
    if (
        not hasattr(model, "net_g")
        or not isinstance(sample, dict)
        or "lq" not in sample
        or sample["lq"].ndim != 3
    ):
        return None
    network = unwrap(model.net_g)
    name = type(network).__name__
    kept: dict[int, int] = {}
    weights = {p.untyped_storage().data_ptr() for p in network.parameters()}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    mixed = model.autocast() if hasattr(model, "autocast") else nullcontext()
    try:
        # Not through __call__, which would compile for a batch size that is never used.
        with mixed, torch.autograd.graph.saved_tensors_hooks(note, lambda t: t):
            output = network.forward(sample["lq"][None].to(model.device))
    except (torch.OutOfMemoryError, MemoryError) as error:
        raise BadInput(
            f"out of memory on {model.device} for one crop of {sample['lq'].shape[-1]}; "
            "lower datasets.train.gt_size"
        ) from error
    except (RuntimeError, ValueError, TypeError) as error:
        channels = sample["lq"].shape[0]
        raise BadInput(
            f"network_g ({name}) cannot process the {channels}-channel images of {train_set.label}: "
            f"{one_line(error)}"
        ) from error
    output = output[-1] if isinstance(output, (list, tuple)) else output
    if "gt" in sample and output.shape[1:] != sample["gt"].shape:
        raise BadInput(
            f"network_g ({name}) turns {tuple(sample['lq'].shape)} into {tuple(output.shape[1:])}, "
            f"but the targets of {train_set.label} are {tuple(sample['gt'].shape)} (channels, height, width)"
        )
    return sum(kept.values()) / sample["lq"][0].numel()


@contextmanager
def _signals() -> Iterator[list[int]]:
    """Collect SIGINT and SIGTERM, so that a step can finish and be saved; a second one stops at once."""
    received: list[int] = []

    def note(number: int, _: Any) -> None:
        if received:
            raise KeyboardInterrupt
        received.append(number)
        logger.warning("stopping after this step; a second signal stops at once, without saving")

    previous = {}
    with suppress(ValueError):  # not the main thread, which alone may set handlers
        for number in (signal.SIGINT, signal.SIGTERM):
            previous[number] = signal.signal(number, note)
    try:
        yield received
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _quiet_worker(_: int) -> None:
    """Leave signals to the main process, and keep OpenCV's threads from competing for cores."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    cv2.setNumThreads(0)


def _duration(seconds: float) -> str:
    minutes, second = divmod(int(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{second:02d}"
