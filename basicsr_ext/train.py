"""The training loop behind ``basicsr train``.

It replaces BasicSR's ``train_pipeline``, which ends before total_iter, cannot resume or run distributed on
CPU, and repeats the same crops every epoch. Registries, folder layout and option files are BasicSR's.
"""

from __future__ import annotations

import ctypes
import logging
import os
import signal
import warnings
from collections.abc import Generator, Iterator
from contextlib import ExitStack, closing, contextmanager, nullcontext, suppress
from typing import Any

import cv2
import psutil
import torch
from basicsr.data import build_dataset
from torch.utils.data import DataLoader
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter

from kbnet_plugin.errors import BadInput, one_line
from kbnet_plugin.process import INTERRUPTS

from . import costs, dist, logs
from .base_model import unwrap
from .checkpoints import kept_number
from .clock import Schedule
from .experiment import locked, open_experiment, resume_state
from .failures import one_line_errors
from .options import Options
from .registry import build_model, version
from .resident import Resident, open_resident
from .run import Run
from .sampler import Failure, Reproducible, StageBatchSampler, Stages, Ticket, collate, seed_everything
from .val_sets import check_sets

logger = logging.getLogger("basicsr")

NEVER = 2**62
"""Iterations of a run that ends by the clock."""


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
    try:
        with ExitStack() as stack:
            with dist.together():
                if options["rank"] == 0:
                    stack.enter_context(locked(options))
            return _train(options, option_file, auto_resume, parent)
    except dist.PeerLostError as error:
        raise BadInput("another process of the job stopped; its own message says why") from error


def _train(options: Options, option_file: str, auto_resume: bool, parent: int | None) -> int:
    rank, world, seed = options["rank"], options["world_size"], options["manual_seed"]
    # torch warns if the first step is skipped, as on_nan and fp16 may do.
    warnings.filterwarnings("ignore", "Detected call of `lr_scheduler.step")
    choose_device(options)
    accumulate = options["train"]["accumulate"]
    stages = Stages.from_options(options["datasets"]["train"], accumulate=accumulate)
    train_set, val_sets = _datasets(options)
    check_sets(options, val_sets, train_set.dataset)
    state = resume_state(options, auto_resume=auto_resume)
    seed_everything(seed)
    model = build_model(options)
    if model.device.type == "cpu":
        _keep_freed_memory()
    if state is not None:
        model.resume_training(state)
    start = int(state["iter"]) if state is not None else 0
    total = options["train"]["total_iter"]
    activations = _check_network(model, train_set, stages)
    resident, reading = open_resident(train_set.dataset, model.device, train_set.label)
    dist.wait()  # all have read what open_experiment may move away
    with dist.together():
        if rank == 0:
            open_experiment(options, option_file, keep=state is not None)
    logs.to_file(options, "train")
    if keep := kept_number(options, model):
        logger.info("keeping the last %d checkpoints and the best (logger.keep_checkpoints)", keep)
    for note in options["notes"]:
        logger.info("note: %s", note)
    logger.info("%s, torch %s, %s, %d process(es)", version(), torch.__version__, model.device, world)
    costs.log_network(model, stages, activations)
    costs.log_batch(model, stages, world, accumulate)
    minutes = options.get("minutes")
    until = f"iterations {start:,}..{total:,}" if minutes is None else f"{minutes:g} minutes in all"
    logger.info("%s; %s", until, reading)
    dataset = options["datasets"]["train"]
    schedule = _schedule(options, state)
    sampler = StageBatchSampler(
        len(train_set),
        stages,
        NEVER if schedule.by_clock else total,
        start=start,
        samples=model.samples,
        rank=rank,
        world=world,
        seed=seed,
        shuffle=dataset.get("use_shuffle") is not False,
        place=schedule.at,
    )
    run = Run(options, model, val_sets, stages, sampler, schedule, start)
    try:
        with (
            _signals() as received,
            one_line_errors(run, received),
            closing(_batches(train_set, resident, sampler, model, dataset)) as batches,
        ):
            for batch in batches:
                run.step(batch)
                if parent is not None and _has_ended(parent):
                    received.append(signal.SIGTERM)
                if run.agree(bool(received)):
                    run.finish(interrupted=True)
                    return 128 + (received[0] if received else signal.SIGTERM)
                if run.over:
                    break
            run.finish()
        return 0
    finally:
        run.close()


def _has_ended(process: int) -> bool:
    """Return whether a process has ended.

    Not by getppid: on Windows, Python in a virtual environment is the child of another Python.
    """
    try:
        return bool(psutil.Process(process).status() == psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return True


def _schedule(options: Options, state: dict[str, Any] | None) -> Schedule:
    total, state = options["train"]["total_iter"], state or {}
    reached = state.get("position")
    return Schedule(
        total,
        options.get("minutes"),
        began=options.get("began"),
        seconds=state.get("seconds", 0.0),
        start=min(total, state.get("iter", 0)) if reached is None else reached,
    )


def _batches(
    train_set: Reproducible,
    resident: Resident | None,
    sampler: StageBatchSampler,
    model: Any,
    dataset: Options,
) -> Generator[Any]:
    if resident is not None:
        yield from map(resident.batch, sampler)
        return
    loader: DataLoader[Any] = DataLoader(
        train_set,
        batch_sampler=sampler,
        num_workers=int(dataset.get("num_worker_per_gpu") or 0),
        collate_fn=collate,
        worker_init_fn=_quiet_worker,
        pin_memory=model.device.type == "cuda",
    )
    batches = iter(loader)
    try:
        for batch in batches:
            if isinstance(batch, Failure):
                raise BadInput(batch.message)
            yield batch
    finally:
        if isinstance(batches, _MultiProcessingDataLoaderIter):
            _end_workers(batches)


def _end_workers(batches: _MultiProcessingDataLoaderIter) -> None:
    """End the workers where an error can be caught: the iterator does so when it is deleted, where none can.

    If one of them dies by a signal meanwhile, torch's handler of SIGCHLD raises, at whatever line it is.
    """
    before = None
    with suppress(ValueError, AttributeError):  # not the main thread; Windows
        before = signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    try:
        batches._shutdown_workers()
    finally:
        if before is not None:
            signal.signal(signal.SIGCHLD, before)


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


def _keep_freed_memory() -> None:
    """Let the C library reuse memory instead of returning it: fresh pages cost 5 % of a step."""
    mmap_threshold, trim_threshold = -3, -1  # numbers of glibc, which no header gives to Python
    with suppress(AttributeError, OSError, TypeError):  # other libraries
        library = ctypes.CDLL(None)
        library.mallopt(mmap_threshold, 32 << 20)
        library.mallopt(trim_threshold, 2**31 - 1)


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
    advice = ""
    if hasattr(train_set.dataset, "channels"):
        advice = "; set in_ch of every set to 1 (gray) or 3 (colour), as the network has"
    kept: dict[int, int] = {}
    weights = {p.untyped_storage().data_ptr() for p in network.parameters()}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    mixed = model.autocast() if hasattr(model, "autocast") else nullcontext()
    # In training mode, running statistics would take the crop in.
    buffers = [(buffer, buffer.clone()) for buffer in network.buffers()]
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
            f"{one_line(error)}{advice}"
        ) from error
    finally:
        for buffer, value in buffers:
            buffer.copy_(value)
    output = output[-1] if isinstance(output, (list, tuple)) else output
    if "gt" in sample and output.shape[1:] != sample["gt"].shape:
        raise BadInput(
            f"network_g ({name}) turns {tuple(sample['lq'].shape)} into {tuple(output.shape[1:])}, "
            f"but the targets of {train_set.label} are {tuple(sample['gt'].shape)} (channels, height, width)"
            f"{advice if output.shape[1] != sample['gt'].shape[0] else ''}"
        )
    return sum(kept.values()) / sample["lq"][0].numel()


@contextmanager
def _signals() -> Iterator[list[int]]:
    """Collect requests to end, so that a step can finish and be saved; a second one stops at once."""
    received: list[int] = []
    previous: dict[int, Any] = {}
    process = os.getpid()

    def note(number: int, frame: Any) -> None:
        if os.getpid() != process:  # a worker that has not begun to ignore signals
            return
        if not received:
            received.append(number)
            # Not by the logger, whose streams may be in use at this very line.
            with suppress(OSError):
                os.write(1, b"stopping after this step; a second signal stops at once, without saving\n")
        elif callable(previous[number]):
            previous[number](number, frame)
        else:
            raise KeyboardInterrupt

    with suppress(ValueError):  # not the main thread, which alone may set handlers
        for number in INTERRUPTS:
            previous[number] = signal.signal(number, note)
    try:
        yield received
    finally:
        for known, handler in previous.items():
            signal.signal(known, handler)


def _quiet_worker(_: int) -> None:
    """Leave signals to the main process, and keep OpenCV's threads from competing for cores."""
    for number in INTERRUPTS:
        signal.signal(number, signal.SIG_IGN)
    cv2.setNumThreads(0)
