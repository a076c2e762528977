"""``kbnet export``."""

from __future__ import annotations

import argparse
import sys

from .. import zoo
from ..zoo.locations import EXPORT_FORMATS
from ._common import GOOD, add_overwrite, as_name, as_path

DESCRIPTION = (
    "Convert a model to safetensors, to BasicSR's .pth or to ONNX. ONNX files are checked against torch."
)
EPILOG = """\
examples:
  kbnet export denoise-color -o denoise-color.pth     for BasicSR, spandrel or the authors' code
  kbnet export net_g_latest.pth -o mine.onnx          for ONNX Runtime and programs that use it

ONNX files accept any batch size, height and width; values are float32 in 0..1. Their network averages over
its whole input, so cut large pictures into tiles of about the pooling window (see kbnet info MODEL).
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    parser.add_argument("model", metavar="MODEL", type=as_name, help="name of a model, or a checkpoint")
    parser.add_argument("-o", "--output", metavar="FILE", required=True, type=as_path, help="file to write")
    parser.add_argument("--format", choices=EXPORT_FORMATS, help="by default the suffix of FILE")
    add_overwrite(parser, "replace an existing file")


def run(options: argparse.Namespace) -> int:
    """Write the file, and return the exit status."""
    from ..zoo.export import export

    output, wanted = options.output, options.format
    if wanted and output.suffix.lower() != f".{wanted}":
        raise ValueError(f"{output}: --format {wanted} requires a name that ends in .{wanted}")
    if output.exists() and not options.overwrite:
        raise FileExistsError(f"{output}: exists; --overwrite replaces it")
    model = zoo.get_model(options.model)
    if output.suffix.lower() == ".onnx" and sys.stderr.isatty():
        print("building the ONNX graph, which takes a minute or more ...", file=sys.stderr)
    differences = export(model, output)
    print(f"{output}  {output.stat().st_size / 1e6:.2f} MB")
    for size, difference in differences.items():
        print(f"  {size}: largest difference from torch {difference:.1e} for values in 0..1")
    return GOOD
