"""``kbnet export``."""

from __future__ import annotations

import argparse
import sys

from .. import zoo
from ..zoo.locations import EXPORT_FORMATS
from ._common import GOOD, MODEL, add_overwrite, as_name, as_path

DESCRIPTION = (
    "Convert a model for other programs: safetensors, BasicSR's .pth, ONNX, a package for bioimage.io or a "
    "repository for Hugging Face. ONNX files are checked against torch."
)
EPILOG = """\
examples:
  kbnet export denoise-color -o denoise-color.pth     for BasicSR, spandrel or the authors' code
  kbnet export net_g_latest.pth -o mine.onnx          for ONNX Runtime and programs that use it
  kbnet export denoise-micro -o denoise-micro.zip     for bioimage.io
  kbnet export my-cells -o my-cells --format hf       a folder to upload to Hugging Face

ONNX files accept any batch size, height and width; values are float32 in 0..1. Their network averages over
its whole input, so cut large pictures into tiles of about the pooling window (see kbnet info MODEL). Packages
for bioimage.io contain such a file, test images, the card, and which values and tiles to use.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    parser.add_argument("model", metavar="MODEL", type=as_name, help=MODEL)
    parser.add_argument(
        "-o", "--output", metavar="FILE", required=True, type=as_path, help="file to write; for hf, a folder"
    )
    parser.add_argument("--format", choices=EXPORT_FORMATS, help="by default the suffix of FILE decides")
    add_overwrite(parser, "replace existing files")


def run(options: argparse.Namespace) -> int:
    """Write the file, and return the exit status."""
    from ..zoo.export import export, find_format

    output = options.output
    format = find_format(output, options.format)
    if output.exists() and not options.overwrite:
        raise FileExistsError(f"{output}: exists; --overwrite replaces it")
    model = zoo.get_model(options.model)
    if format in ("onnx", "bioimageio") and sys.stderr.isatty():
        print("building the ONNX graph, which takes a minute or more ...", file=sys.stderr)
    differences = export(model, output, format)
    if output.is_dir():
        print(f"{output}  a repository for Hugging Face: hf upload USER/NAME {output}")
    else:
        print(f"{output}  {output.stat().st_size / 1e6:.2f} MB")
    for size, difference in differences.items():
        print(f"  {size}: largest difference from torch {difference:.1e} for values in 0..1")
    return GOOD
