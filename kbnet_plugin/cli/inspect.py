"""``kbnet inspect``."""

from __future__ import annotations

import argparse
import dataclasses
import json

from ._common import GOOD, add_axes, add_json, as_path

DESCRIPTION = "Measure the noise of a picture or stack, and recommend a model and settings."
EPILOG = """\
examples:
  kbnet inspect noisy.png
  kbnet inspect stack.ome.tif --json    for programs, with a list of channels
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    parser.add_argument("input", metavar="FILE", type=as_path, help="a picture or a stack")
    add_axes(parser)
    add_json(parser)


def run(options: argparse.Namespace) -> int:
    """Print the measurements, and return the exit status."""
    import numpy as np

    from ..arrays.axes import layout
    from ..inference.choose import choose_treatment, describe_noise, measure_channels
    from ..io.images import open_image

    path = options.input
    with open_image(path) as image:
        array, known = image.array, options.axes or image.metadata.axes
        try:
            arranged = layout(tuple(int(n) for n in array.shape), known, 3)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None
        noises, dtype = measure_channels(array, arranged.axes), np.dtype(array.dtype)
    found = choose_treatment(noises, dtype, arranged.colours)
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
        print("\n".join(f"  {line}" for line in describe_noise(noise)))
    print(f"  needs     {found}")
    return GOOD
