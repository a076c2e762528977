"""The card of a trained model: data, settings, limits."""

from __future__ import annotations

import shlex
from pathlib import Path
from textwrap import fill
from typing import TYPE_CHECKING

import torch

from .._version import __version__
from .choice import Choice
from .config import PAIRS_FAIL, WHEN_IT_FAILS, FitConfig

if TYPE_CHECKING:
    from .fit import Fit

METHODS = {"r2r": "Recorrupted2Recorrupted", "n2v": "Noise2Void", "n2n": "Noise2Noise"}

_LINE = 110  # characters of a card


def card(fit: Fit, iteration: int, choice: Choice) -> str:
    """Write the card of the model that was chosen after some steps."""
    config, network, train = fit.config, fit.options["network_g"], fit.options["train"]
    settings = ", ".join(f"{key} {value}" for key, value in network.items() if key != "type")
    low, high = fit.range
    batch = fit.options["datasets"]["train"]["batch_size_per_gpu"]
    length = f"of {plural(train['total_iter'], 'step')}"
    if config.minutes is not None:
        length = f"steps in {config.minutes:g} minutes"
    method = METHODS[config.method]
    if config.method == "n2v":
        method += f", {config.masked_pixel_percentage:g} % masked pixels, strategy {config.strategy}"
        method += f", {config.correlated} lines" if config.correlated else ""
    facts = [
        f"data: {fit.source}, {plural(len(fit.planes), 'plane')}, {fit.planes.dtype}",
        f"method: {method}",
        f"range: {low:g} to {high:g} become 0 to 1; use it on images of the same exposure",
        f"training: {iteration:,} {length}, each with {batch} crops of "
        f"{fit.patch} x {fit.patch} pixels, {train['pixel_opt']['norm']} loss, seed {config.seed}",
        f"network: {network['type']}, {settings}; {started(fit.options['path']['pretrain_network_g'])}",
        choice.said,
        f"weights: {choice.share:.0%} trained, the rest from the start",
        f"SURE shrinkage: {choice.shrinkage:.2f} of the correction",
        f"versions: kbnet {__version__}, torch {torch.__version__}",
        f"command: `{_command(fit)}`",
    ]
    lines = [
        f"# {config.name}",
        "",
        f"Removes noise from images like {fit.label}. Trained on them, without clean images.",
        "",
        *(f"- {fact}" for fact in facts),
        "",
        "## Limitations",
        "",
        fill(PAIRS_FAIL if config.method == "n2n" else WHEN_IT_FAILS, _LINE),
        "",
        "Look at the difference between input and output: structure visible there means that signal was",
        "removed. The result has not been compared with clean images, because there are none.",
    ]
    return "\n".join(lines) + "\n"


def started(weights: str | None) -> str:
    """Say what training starts from."""
    return f"starting from {Path(weights).stem}" if weights else "from scratch"


def plural(count: int, noun: str) -> str:
    """Return a number and its noun."""
    return f"{count:,} {noun}{'s' if count != 1 else ''}"


def _command(fit: Fit) -> str:
    """Return the command line that repeats a run."""
    config, (low, high) = fit.config, fit.range
    second = fit.options["datasets"]["train"].get("dataroot_gt")
    optional = {
        "--second": second,
        "--pair-axis": config.pair_axis,
        "--init": config.init,
        "--correlated": config.correlated,
        "--axes": config.axes,
        "--patch": config.patch if config.patch != FitConfig.patch else None,
        "--batch": config.batch,
        "--learning-rate": config.learning_rate,
    }
    words = ["kbnet", "fit", fit.source, "--name", config.name, "--method", config.method]
    # = as it may be negative
    words += [f"--range={low!r},{high!r}"]
    if config.minutes is None:
        words += ["--iterations", fit.options["train"]["total_iter"]]
    else:
        words += ["--minutes", config.minutes]
    words += [word for pair in optional.items() if pair[1] is not None for word in pair]
    return shlex.join(map(str, words))
