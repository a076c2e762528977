"""An experiment's folder in BasicSR's layout: models, training_states, logs and the option file."""

from __future__ import annotations

import logging
import os
import pickle
import re
import shutil
import sys
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from itertools import chain, count
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout

from kbnet_plugin.errors import BadInput, one_line
from kbnet_plugin.files import replace

from .base_model import ROLLING, read_training_state, read_weights
from .options import Options

logger = logging.getLogger("basicsr")

_UNFINISHED = re.compile(r"\..*\.[0-9a-f]{8}\.(pth|state|rolling|svg)|\.net_.*_(latest|best)\.pth")
"""Names that `atomic_path` and `link` give to files while they write."""


@contextmanager
def locked(options: Options) -> Iterator[None]:
    """Hold an experiment: a second run of its name would move the folder away, or write to it too.

    Raises
    ------
    BadInput
        If another run holds it.
    """
    root = Path(options["path"]["experiments_root"])
    path = root.with_name(f".{root.name}.lock")
    made = not root.parent.exists()
    lock = FileLock(path)
    try:
        root.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=0)
    except Timeout:
        raise BadInput(
            f"{root}: another run of this name is training; wait for it, or choose another name "
            "(--force_yml name=...)"
        ) from None
    except OSError as error:
        raise BadInput(f"cannot write to {root.parent}: {error.strerror}") from error
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
        lock.release()
        if made:
            with suppress(OSError):  # not empty, unless the run has not even begun
                root.parent.rmdir()


def resume_state(options: Options, *, auto_resume: bool) -> dict[str, Any] | None:
    """Return the newest intact training state, if any, and point the options to its weights."""
    path = options["path"]
    if auto_resume:
        states = _states(Path(path["training_states"]))
        candidates = [states[iteration] for iteration in sorted(states, reverse=True)]
        models = Path(path["models"])
    elif path.get("resume_state"):
        candidates = [Path(path["resume_state"])]
        models = candidates[0].parent.parent / "models"
    else:
        return None
    for candidate in candidates:
        try:
            state = read_training_state(candidate)
            # Public files also name networks that their model neither trains nor saves.
            saved = state.get("networks")
            labels = [k.removeprefix("network_") for k in options if k.startswith("network_")]
            labels = [label for label in labels if saved is None or label in saved]
            for label in labels:
                weights = models / f"net_{label}_{state['iter']}.pth"
                read_weights(str(weights), "params")  # must be intact too
        except BadInput as error:
            if not auto_resume:
                raise
            logger.warning("%s; trying the previous one", one_line(error))
            continue
        for label in labels:
            path[f"pretrain_network_{label}"] = str(models / f"net_{label}_{state['iter']}.pth")
            path[f"param_key_{label}"] = "params"
            path[f"strict_load_{label}"] = True
        logger.warning("resuming from %s", candidate)
        if changed := differences(state.get("options"), options["as_given"]):
            logger.warning("options changed since then: %s", "; ".join(changed))
        return state
    if candidates:
        raise BadInput(
            f"no training state in {path['training_states']} can be read; start without --auto_resume"
        )
    return None


def open_experiment(options: Options, option_file: str, *, keep: bool) -> None:
    """Create the folders and copy the option file; unless `keep`, move an existing experiment aside.

    In one that is kept, what a killed run was just writing is deleted.
    """
    root = Path(options["path"]["experiments_root"])
    try:
        if root.exists() and not keep:
            archived = archive_of(root)
            root.rename(archived)
            logger.warning(
                "%s already exists: moved to %s; --auto_resume would have continued it", root, archived
            )
        for folder in (root, Path(options["path"]["models"]), Path(options["path"]["training_states"])):
            for path in folder.glob(".*"):
                if _UNFINISHED.fullmatch(path.name):
                    path.unlink(missing_ok=True)
        for key in ("models", "training_states"):
            os.makedirs(options["path"][key], exist_ok=True)
        command = " ".join(sys.argv)
        text = Path(option_file).read_text(encoding="utf-8")
        (root / Path(option_file).name).write_text(f"# {time.asctime()}: {command}\n{text}", encoding="utf-8")
    except OSError as error:
        raise BadInput(f"cannot write to {root}: {error.strerror}") from error


def archive_of(folder: Path) -> str:
    """Return an unused name to which an older folder can be moved."""
    name = f"{folder}_archived_{time.strftime('%Y%m%d_%H%M%S')}"
    names = chain([name], (f"{name}_{number}" for number in count(2)))
    return next(n for n in names if not os.path.lexists(n))


def differences(before: Any, now: Any, where: str = "") -> list[str]:
    """List the changes between two trees of options, as 'train.total_iter 10 -> 20'."""
    if before is None and not where:
        return []  # stock BasicSR's states contain no options
    if not isinstance(before, dict) or not isinstance(now, dict):
        return [] if before == now else [f"{where} {_short(before)} -> {_short(now)}"]
    found = []
    for key in [*now, *(k for k in before if k not in now)]:
        place = f"{where}.{key}" if where else str(key)
        if key not in before or key not in now:
            found.append(
                f"{place} removed (was {_short(before[key])})"
                if key in before
                else f"{place} added ({_short(now[key])})"
            )
        else:
            found += differences(before[key], now[key], place)
    return found


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def foreign(options: Options) -> set[int]:
    """Find the iterations whose files other programs saved, or that no run could resume from."""
    states = _states(Path(options["path"]["training_states"]))
    ours = {iteration for iteration, path in states.items() if path.suffix == ROLLING or _is_ours(path)}
    numbers = (re.search(r"_(\d+)\.pth$", p.name) for p in Path(options["path"]["models"]).glob("net_*.pth"))
    return ({int(number[1]) for number in numbers if number} | states.keys()) - ours


def _is_ours(path: Path) -> bool:
    try:
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except (OSError, RuntimeError, EOFError, ValueError, KeyError, pickle.UnpicklingError):
        return False
    return isinstance(state, dict) and "seed" in state


def prune(options: Options, keep: int | None, best: int | None, spared: Collection[int] = ()) -> None:
    """Remove checkpoints, states first: all but the last `keep`, that of iteration `best`, and `spared` ones.

    Those that were only to be replaced by the next one go in any case, unless they are the last.
    """
    states = _states(Path(options["path"]["training_states"]))
    ordered = sorted(states)
    rolling = [i for i in ordered[:-1] if states[i].suffix == ROLLING]
    lasting = [i for i in ordered if states[i].suffix != ROLLING and i not in spared]
    models = Path(options["path"]["models"])
    for iteration in [*rolling, *(lasting[:-keep] if keep else [])]:
        if iteration == best:
            continue
        states[iteration].unlink(missing_ok=True)
        for path in models.glob(f"net_*_{iteration}.pth"):
            path.unlink(missing_ok=True)
    for path in Path(options["path"]["training_states"]).glob(f"*{ROLLING}"):
        if path not in states.values():
            path.unlink(missing_ok=True)


def _states(folder: Path) -> dict[int, Path]:
    """Find the training states by iteration; a lasting one counts before one that was to be replaced."""
    found = [p for s in (ROLLING, ".state") for p in folder.glob(f"*{s}") if p.stem.isdigit()]
    return {int(p.stem): p for p in found}


def link(models: Path, iteration: int, name: str) -> None:
    """Give weights a second name, ``net_g_<name>.pth``, without writing them twice."""
    for path in models.glob(f"net_*_{iteration}.pth"):
        latest = path.with_name(path.name.replace(f"_{iteration}.pth", f"_{name}.pth"))
        temporary = latest.with_name(f".{latest.name}")
        try:
            temporary.unlink(missing_ok=True)
            try:
                os.link(path, temporary)
            except OSError:  # a file system without links
                shutil.copyfile(path, temporary)
            replace(temporary, latest)
        except OSError as error:
            raise BadInput(f"cannot write {latest}: {one_line(error)}") from error
