"""Turn an experiment into a shipped model: write its weights in float16 and the head of its card.

The text of the card and the keys that only people know are kept. To publish a newer checkpoint, run the same
command again.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch

from basicsr_ext.options import read_options
from benchmarks.harness.measure import ROOT
from kbnet_plugin import KBNet_l, KBNet_s, load_network, save_network, zoo
from kbnet_plugin.errors import BadInput, one_line
from kbnet_plugin.nn.cost import count
from kbnet_plugin.zoo.architectures import identify
from kbnet_plugin.zoo.registry import header
from tools.cards import LIBRARY, MODELS, default_tags, missing_fields, read_card, sha256, write_card

WINDOW = 0.5
"""Side of local pooling, in training patches, where a card names no window yet."""

OPTIONAL = ("range", "starts_from")
"""Keys that are not carried over from the card of an older checkpoint."""

TEXT = """
# {title}

## Intended use

## Data and licenses

## Recipe

## Choice of architecture

## Results

## Cost

## Limitations

## Versions
"""


def newest(experiment: Path) -> tuple[Path, int]:
    """Return the last checkpoint of an experiment, and its iteration."""
    found = {
        int(p.stem.removeprefix("net_g_")): p
        for p in (experiment / "models").glob("net_g_*.pth")
        if p.stem.removeprefix("net_g_").isdigit()
    }
    if not found:
        raise FileNotFoundError(
            f"{experiment}: no checkpoint models/net_g_*.pth; name the folder of an experiment"
        )
    iteration = max(found)
    return found[iteration], iteration


def recipe(option_file: Path) -> dict[str, Any]:
    """Return what an option file says about patch, seed, data and the weights that training starts from."""
    options = read_options(option_file)
    dataset = options["datasets"]["train"]
    data = str(dataset["dataroot_gt"]).removeprefix("${KBNET_DATA}/")
    if listing := dataset.get("meta_info_file"):
        data += f" (the files that {listing} lists)"
    facts = {
        "option_file": str(option_file.relative_to(ROOT)),
        "option_file_sha256": sha256(option_file),
        "patch": int(max(dataset.get("gt_sizes") or [dataset["gt_size"]])),
        "seed": int(options.get("manual_seed") or 0),
        "data": data,
    }
    if start := (options.get("path") or {}).get("pretrain_network_g"):
        facts["starts_from"] = {"file": start, "sha256": sha256(ROOT / start)}
    return facts


def differences(experiment: Path, option_file: Path) -> bool:
    """Return whether the experiment ran with other options; the first line of its copy does not count."""
    copies = list(experiment.glob("*.yml"))
    wanted = option_file.read_text(encoding="utf-8").splitlines()
    return not any(c.read_text(encoding="utf-8").splitlines()[1:] == wanted for c in copies)


def _start(facts: dict[str, Any]) -> tuple[Any, Any]:
    """Return what the first losses depend on."""
    return facts.get("option_file_sha256"), facts.get("starts_from")


def half(network: KBNet_s | KBNet_l) -> KBNet_s | KBNet_l:
    """Round the weights to float16.

    Raises
    ------
    ValueError
        If one of them is too large.
    """
    network = network.half()
    for name, tensor in network.state_dict().items():
        if not torch.isfinite(tensor).all():
            raise ValueError(
                f"{name} is not finite in float16; train with weight decay or a lower learning rate"
            )
    return network


def main(argv: list[str] | None = None) -> int:
    """Run the command; returns its exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="example:\n  python tools/publish.py experiments/denoise-color --name denoise-color \\\n"
        "    --title 'Gaussian noise, sRGB colour, sigma 0 to 55' --task denoise --version 1.0 \\\n"
        "    --license MIT --datasets BSDS500",
    )
    parser.add_argument("experiment", type=Path, help="folder of the experiment")
    parser.add_argument("--name", required=True, help="name of the shipped model")
    parser.add_argument(
        "--checkpoint", type=Path, metavar="FILE", help="default: the last one of the experiment"
    )
    parser.add_argument("--iterations", type=int, help="how many --checkpoint was trained for")
    parser.add_argument(
        "--options", type=Path, metavar="FILE", help="option file (default: options/zoo/NAME.yml)"
    )
    for key, text in (
        ("title", "what it is for, on one line"),
        ("task", "such as denoise"),
        ("version", "of the weights"),
        ("license", "of the weights"),
        ("range", "intensity range, if not the default: percentile, or LOW,HIGH"),
    ):
        parser.add_argument(f"--{key}", help=f"{text} (default: as in the card)")
    for key, text in (("datasets", "what it was trained on"), ("metrics", "what the card reports")):
        parser.add_argument(f"--{key}", nargs="+", metavar="NAME", help=f"{text} (default: as in the card)")
    args = parser.parse_args(argv)
    try:
        return publish(args)
    except (BadInput, ValueError, OSError) as error:
        print(f"publish: {one_line(error)}", file=sys.stderr)
        return 2


def publish(args: argparse.Namespace) -> int:
    """Write weights and card; returns the exit status."""
    option_file = (args.options or ROOT / "options" / "zoo" / f"{args.name}.yml").resolve()
    if not option_file.is_relative_to(ROOT):
        raise ValueError(f"{option_file}: not in this repository, so others could not repeat the training")
    if args.checkpoint and args.iterations is None:
        raise ValueError("--checkpoint needs --iterations: how many it was trained for")
    checkpoint, iterations = (
        (args.checkpoint, args.iterations) if args.checkpoint else newest(args.experiment)
    )
    weights, card = (MODELS / f"{args.name}{suffix}" for suffix in (".safetensors", ".md"))
    old, text = read_card(card) if card.is_file() else ({}, None)

    made = recipe(option_file)
    network = load_network(checkpoint)
    stated = {
        key: getattr(args, key) or old.get(key, "")
        for key in ("title", "task", "version", "license", "range")
    }
    listed = {
        "library_name": LIBRARY,
        "tags": old.get("tags") or default_tags(stated["task"]),
        "datasets": args.datasets or old.get("datasets"),
        "metrics": args.metrics or old.get("metrics") or ["psnr"],
    }
    missing = [key for key in ("title", "task", "version") if not stated[key]]
    missing += missing_fields(stated | listed)
    if missing:
        raise ValueError(f"the card names no {missing[0]} yet: use --{missing[0]}")
    chosen_range = stated.pop("range")
    cost = count(network)
    variant, arguments = identify(network.state_dict())
    window = old.get("window") or int(WINDOW * made["patch"])
    metadata = header(**stated, range=chosen_range or None, window=window, cost=cost)
    save_network(half(network), weights, metadata)
    channels = zoo.get_model(weights).in_channels
    facts = {
        "name": args.name,
        **stated | {"license": stated["license"].lower()},  # as Hugging Face writes it
        **listed,
        **({"range": chosen_range} if chosen_range else {}),
        "channels": channels,
        "sha256": sha256(weights),
        "bytes": weights.stat().st_size,
        "network": {"type": variant, **arguments},
        "parameters": cost.parameters,
        "macs_256x256": {"in_full": cost.macs_total, "as_published": cost.macs_published},
        "window": window,
        **made,
        "iterations": iterations,
        # Losses of another recipe say nothing about this one.
        "losses": old.get("losses") or {} if _start(old) == _start(made) else {},
    }
    facts |= {key: value for key, value in old.items() if key not in facts and key not in OPTIONAL}
    write_card(card, facts, TEXT.format(title=stated["title"]) if text is None else text)

    print(f"{weights.relative_to(ROOT)}  {weights.stat().st_size / 1e6:.2f} MB, iteration {iterations:,}")
    print(f"{card.relative_to(ROOT)}  {'text kept' if text is not None else 'text to be written'}")
    if differences(args.experiment, option_file):
        print(f"note: the experiment ran with another option file than {facts['option_file']}")
    if not facts["losses"]:
        print(f"note: record the first losses: python tools/check_recipe.py {args.name} --record")
    return 0


if __name__ == "__main__":
    sys.exit(main())
