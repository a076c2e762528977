"""``kbnet fit``."""

from __future__ import annotations

import argparse
import dataclasses
import textwrap
import time
from typing import TYPE_CHECKING

from ..selfsup.config import METHODS, PAIRS_FAIL, SCRATCH, WHEN_IT_FAILS, FitConfig
from ..selfsup.masking import DIRECTIONS
from ._common import (
    GOOD,
    INTERRUPTED,
    add_axes,
    add_device,
    add_overwrite,
    add_range,
    as_name,
    as_path,
    fail,
)

if TYPE_CHECKING:
    from ..selfsup.fit import Step

_PERIOD = 10  # seconds between lines where there is no terminal

DESCRIPTION = "Train a denoiser on a noisy stack, without clean pictures, and add it to the list of models."
_EXAMPLES = """\
examples:
  kbnet fit noisy.ome.tif --name my-cells               learn from single planes
  kbnet fit frames.tif --name my-cells --method n2n     learn from pairs of planes of one scene (Noise2Noise)
  kbnet fit frames/ --name my-cells --init scratch --iterations 20000 --device cuda
  kbnet restore noisy.ome.tif -o clean.ome.tif --model my-cells

The error is measured without clean pictures. The model to start from is kept unless training makes it better.
Ctrl-C stops and saves the model. The same command resumes the training, also with more --iterations.

"""
EPILOG = _EXAMPLES + "\n".join(textwrap.wrap(WHEN_IT_FAILS, 110))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    parser.add_argument(
        "source",
        metavar="STACK",
        type=as_path,
        help="TIFF, OME-Zarr, .npy, PNG or JPEG, or a folder of them",
    )
    parser.add_argument("--name", required=True, help="name of the new model")
    parser.add_argument(
        "--method",
        choices=METHODS,
        default=FitConfig.method,
        help="r2r (Recorrupted2Recorrupted, default), n2v (Noise2Void) or n2n (Noise2Noise)",
    )
    parser.add_argument("--second", type=as_path, help="for n2n: a second recording of the same planes")
    parser.add_argument(
        "--pair-axis",
        choices=tuple("TZC"),
        help="for n2n: axis along which neighbouring planes are pairs; default: T, or Z without T",
    )
    parser.add_argument(
        "--correlated",
        choices=DIRECTIONS,
        help="for n2v: direction in which neighbouring pixels share their noise, as in line scanners",
    )
    parser.add_argument(
        "--init",
        type=as_name,
        help=f"a model to start from, or {SCRATCH} for random weights; default: the shipped model for the "
        "number of channels",
    )
    length = parser.add_mutually_exclusive_group()
    length.add_argument("--iterations", type=int, help="default: as the number of pixels requires")
    length.add_argument("--minutes", type=float, help="train that long, instead of a number of iterations")
    add_axes(parser)
    add_range(parser, ", in all planes", "dtype, percentile", "dtype for 8-bit data, else percentile")
    parser.add_argument(
        "--patch", type=int, default=FitConfig.patch, help="side of a crop in pixels, default: %(default)s"
    )
    parser.add_argument("--batch", type=int, help="crops per iteration, default: 8, or 64 on a GPU")
    parser.add_argument(
        "--learning-rate", type=float, help="default: 3e-3 from scratch; from a model 1e-3 for r2r, else 3e-4"
    )
    add_device(parser, "cpu or cuda")
    add_overwrite(parser, "start again, and replace a model of the same name")


def run(options: argparse.Namespace) -> int:
    """Train and register the model, and return the exit status."""
    from tqdm import tqdm

    from .. import process
    from ..selfsup.fit import Fit

    named = {field.name for field in dataclasses.fields(FitConfig)} & vars(options).keys()
    fit = Fit(
        FitConfig(**{name: getattr(options, name) for name in named}),
        overwrite=options.overwrite,
    )
    print(f"{fit.summary}\n{PAIRS_FAIL if fit.config.method == 'n2n' else WHEN_IT_FAILS}", flush=True)
    stopped = False

    def stop() -> None:
        nonlocal stopped
        stopped = True
        fit.stop()

    reported = time.monotonic()
    with process.stopping(stop), tqdm(unit="it", disable=None, dynamic_ncols=True) as bar:
        for step in fit.run():
            bar.total = step.total
            bar.update(step.iteration - bar.n)
            bar.set_postfix_str(_measured(step), refresh=False)
            if bar.disable and time.monotonic() - reported >= _PERIOD:
                reported = time.monotonic()
                print(f"step {step.iteration:,} of {step.total:,}, {_measured(step)}", flush=True)
    if stopped and not fit.iteration:
        return fail("interrupted before the first step; the same command starts again", INTERRUPTED)
    if stopped:
        print("stopped")
    model = fit.save()
    print(f"{fit.verdict}\n{model.path}\nkbnet restore {options.source} -o ... --model {model.name}")
    return GOOD


def _measured(step: Step) -> str:
    gain = "" if step.gain is None else f", measured {step.gain:+.2f} dB"
    return f"loss {step.loss:.3e}{gain}"
