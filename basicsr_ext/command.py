"""The parser of the ``basicsr`` command, and its exit statuses."""

from __future__ import annotations

import argparse
import os
import sys
import time
from typing import NoReturn

from kbnet_plugin import process
from kbnet_plugin.errors import BadInput, one_line

from .tasks import TASKS

DESCRIPTION = "Train or test a network that a YAML option file describes."
EXAMPLES = """examples:
  basicsr train -opt kbnet_quickstart
  basicsr train -opt kbnet_sidd --auto_resume
  basicsr train -opt my.yml --force_yml train:total_iter=1000 network_g:width=32
  basicsr train -opt kbnet_quickstart --minutes 10
  basicsr test -opt kbnet_quickstart
  basicsr options
  torchrun --nproc_per_node=8 --no-python basicsr train -opt my.yml --launcher pytorch
"""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise BadInput(f"{message} (see {self.prog} --help)")


def _filled(text: str) -> str:
    if not text:
        raise argparse.ArgumentTypeError("must not be empty")
    return text


def _minutes(text: str) -> float:
    try:
        minutes = float(text)
    except ValueError:
        minutes = 0.0
    if not 0 < minutes < float("inf"):
        raise argparse.ArgumentTypeError(f"must be a number of minutes above 0, not {text!r}")
    return minutes


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="basicsr",
        description=DESCRIPTION,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="train|test|options|prepare")
    for name, text in (("train", "train, validate and save"), ("test", "evaluate trained weights")):
        command = commands.add_parser(name, help=text, description=text, allow_abbrev=False)
        command.add_argument(
            "-opt",
            required=True,
            metavar="FILE",
            type=_filled,
            help="option file, or the name of one that ships: kbnet_sidd",
        )
        command.add_argument(
            "--launcher",
            choices=("none", "pytorch"),
            default="none",
            help="pytorch: started by torchrun",
        )
        command.add_argument(
            "--force_yml",
            nargs="+",
            default=[],
            action="extend",
            metavar="A:B=VALUE",
            help="override options; the value is YAML",
        )
        # torch.distributed.launch passes one of these; the environment contains the same number.
        command.add_argument("--local_rank", "--local-rank", type=int, help=argparse.SUPPRESS)
        if name == "train":
            command.add_argument("--auto_resume", action="store_true", help="resume from the last checkpoint")
            command.add_argument(
                "--minutes",
                type=_minutes,
                metavar="N",
                help="end after N minutes, whatever the speed: learning rates and stages follow the clock",
            )
            command.add_argument(
                "--parent",
                type=int,
                metavar="PID",
                help="save and stop when this parent process has ended",
            )
    listing = commands.add_parser(
        "options", help="list the keys of option files", description="Print every key and its default."
    )
    listing.add_argument("--json", action="store_true", help="print a JSON schema for editors")
    cutting = commands.add_parser(
        "prepare",
        help="cut a dataset into crops for training",
        description="Cut the pictures of a dataset into overlapping crops, which load much faster.",
        epilog="\n".join(f"{task:9} {text}" for task, text in TASKS.items()),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    cutting.add_argument("task", choices=sorted(TASKS))
    cutting.add_argument("source", metavar="SRC", type=_filled, help="the unpacked dataset")
    cutting.add_argument("target", metavar="DST", type=_filled, help="folder for the crops")
    cutting.add_argument("--crop", type=int, default=512, help="side of a crop in pixels (default: 512)")
    cutting.add_argument("--step", type=int, help="distance between crops (default: 3/4 of --crop)")
    cutting.add_argument("--lmdb", action="store_true", help="also write the crops to lmdb databases")
    return parser


def run(arguments: list[str]) -> int:
    """Run the command, and return the exit status."""
    try:
        return _run(_parser().parse_args(arguments))
    except BadInput as error:
        process.leave_if_interrupted()
        rank = os.environ.get("RANK", "0")
        print(f"basicsr{'' if rank == '0' else f' (rank {rank})'}: {one_line(error)}", file=sys.stderr)
        return 2


def _run(args: argparse.Namespace) -> int:
    if args.command == "options":
        from . import schema

        print(schema.json_text() if args.json else schema.describe(), end="")
        return 0
    if args.command == "prepare":
        from .prepare import prepare

        print(prepare(args.task, args.source, args.target, crop=args.crop, step=args.step, lmdb=args.lmdb))
        return 0
    began = time.monotonic()
    from .options import find_options, prepare_options, read_options

    args.opt = find_options(args.opt)
    # Check whatever needs no torch first: importing it takes seconds.
    options = prepare_options(read_options(args.opt, args.force_yml), args.opt, train=args.command == "train")

    from . import registry  # first: it silences BasicSR's import warnings
    from . import dist, evaluate, logs, train  # isort: skip

    try:
        options["rank"], options["world_size"] = dist.start(args.launcher)
        options["dist"] = options["world_size"] > 1
        logs.to_console(options["rank"])
        registry.register()
        registry.check_names(options, args.opt)
        if args.command == "train":
            options |= {"minutes": args.minutes, "began": began}
            return train.train(options, args.opt, auto_resume=args.auto_resume, parent=args.parent)
        return evaluate.test(options)
    finally:
        logs.stop()
        dist.stop()
