"""``kbnet inspect``."""

from __future__ import annotations

import argparse
import dataclasses
import json
from pathlib import Path

from ._common import AXES_HELP, GOOD

DESCRIPTION = "Measure the noise of a picture or stack, and say how it would be restored."
EPILOG = """\
examples:
  kbnet inspect noisy.png
  kbnet inspect stack.ome.tif --json    for programs: a list of channels
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of the command."""
    parser.add_argument("input", metavar="FILE", type=Path, help="a picture or a stack")
    parser.add_argument("--axes", help=AXES_HELP)
    parser.add_argument("--json", action="store_true", help="as JSON")


def run(options: argparse.Namespace) -> int:
    """Print what was measured; returns the exit status."""
    import numpy as np

    from ..arrays.axes import layout
    from ..inference.choose import describe, look, treatment
    from ..io.stacks import open_array

    path = options.input
    with open_array(path, options.axes) as (array, known):
        try:
            arranged = layout(tuple(int(n) for n in array.shape), known, 3)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None
        noises, dtype = look(array, arranged.axes), np.dtype(array.dtype)
    found = treatment(noises, dtype, arranged.channels - arranged.alpha)
    if options.json:
        chosen = {"model": found.model, "settings": dict(found.settings), "kind": found.kind}
        content = {"file": str(path), "shape": arranged.shape, "axes": arranged.axes, "dtype": str(dtype)}
        content |= {"channels": [dataclasses.asdict(noise) for noise in noises]}
        print(json.dumps(content | {"treatment": chosen | {"reason": str(found)}}, indent=1))
        return GOOD
    print(f"{path}\n  pixels    {arranged.axes} {arranged.shape}, {dtype}")
    for number, noise in enumerate(noises):
        if len(noises) > 1:
            print(f" channel {number}")
        print("\n".join(f"  {line}" for line in describe(noise)))
    print(f"  needs     {found}")
    return GOOD
