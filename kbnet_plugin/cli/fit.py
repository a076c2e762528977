"""``kbnet fit``."""

from __future__ import annotations

import argparse
import dataclasses
import sys
import textwrap
from pathlib import Path

from ..selfsup.config import METHODS, PAIRS_FAIL, SCRATCH, WHEN_IT_FAILS, FitConfig
from ._common import AXES_HELP, GOOD, intensity_range

DESCRIPTION = "Learn a denoiser from a noisy stack without truth, and put it into the list of models."
_EXAMPLES = """\
examples:
  kbnet fit noisy.ome.tif --name my-cells                   hides pixels and learns them (Noise2Void)
  kbnet fit frames.tif --name my-cells --method n2n         planes that show the same twice (Noise2Noise)
  kbnet fit frames/ --name my-cells --init scratch --iterations 20000 --device cuda
  kbnet restore noisy.ome.tif -o clean.ome.tif --model my-cells

Ctrl-C stops and keeps what is learned; the same command goes on, with more --iterations too.

"""
EPILOG = _EXAMPLES + "\n".join(textwrap.wrap(WHEN_IT_FAILS, 110))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of the command."""
    parser.add_argument(
        "source", metavar="STACK", type=Path, help="TIFF, OME-Zarr, .npy, PNG or JPEG, or a folder of them"
    )
    parser.add_argument("--name", required=True, help="of the model")
    parser.add_argument("--method", choices=METHODS, default=FitConfig.method, help="n2v by default")
    parser.add_argument("--second", type=Path, help="n2n: another recording of the same, plane for plane")
    parser.add_argument("--pair-axis", choices=tuple("TZC"), help="n2n: planes follow along it; T, or else Z")
    parser.add_argument(
        "--init",
        help=f"a model to start from, or {SCRATCH}; by default the shipped one for gray, or for colour",
    )
    parser.add_argument("--iterations", type=int, default=FitConfig.iterations, help="%(default)s by default")
    parser.add_argument("--axes", help=AXES_HELP)
    parser.add_argument(
        "--range",
        type=intensity_range,
        help="what spans 0..1, once for all planes: dtype, percentile, or LOW,HIGH; by default dtype for "
        "8 bits, else percentile",
    )
    parser.add_argument("--patch", type=int, default=FitConfig.patch, help="side of a crop, %(default)s")
    parser.add_argument("--batch", type=int, help="crops of a step; 8, or 64 on a GPU")
    parser.add_argument("--learning-rate", type=float, help="3e-3 from nothing, 1e-3 from a model")
    parser.add_argument(
        "--no-shrinkage",
        dest="shrinkage",
        action="store_false",
        help="n2v: keep what is cleanest, not what promises the least error",
    )
    parser.add_argument("--device", default="auto", help="auto (default), cpu or cuda")
    parser.add_argument(
        "--overwrite", action="store_true", help="begin anew, and replace a model of that name"
    )


def run(options: argparse.Namespace) -> int:
    """Train, and register the model; returns the exit status."""
    from tqdm import tqdm

    from ..selfsup.fit import Fit

    named = {field.name for field in dataclasses.fields(FitConfig)} & vars(options).keys()
    fit = Fit(
        FitConfig(**{name: getattr(options, name) for name in named}),
        overwrite=options.overwrite,
    )
    print(f"{fit.summary}\n{WHEN_IT_FAILS if fit.config.method == 'n2v' else PAIRS_FAIL}")
    if fit.doubt:
        print(f"kbnet: {fit.doubt}", file=sys.stderr)
    with tqdm(total=fit.config.iterations, unit="it", disable=None, dynamic_ncols=True) as bar:
        try:
            for step in fit.run():
                bar.update(step.iteration - bar.n)
                bar.set_postfix(loss=f"{step.loss:.3e}", refresh=False)
        except KeyboardInterrupt:  # leaving the loop has stopped the training
            bar.write("stopped")
    model = fit.save()
    print(f"{model.path}\nkbnet restore {options.source} -o ... --model {model.name}")
    return GOOD
