"""``kbnet models``."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from typing import Any

from .. import zoo
from ..zoo.hub import PREFIX, Address
from ..zoo.locations import folder_problem
from ._common import GOOD, add_json, add_overwrite, as_name, giga

DESCRIPTION = "List the shipped models and your own, print the card of one, or add one."
EPILOG = """\
examples:
  kbnet models                  names, purposes and costs
  kbnet models denoise-color    card of a model: data, training, quality, limits
  kbnet models --json           for programs
  kbnet models --add hf://USER/NAME             download a model from Hugging Face, and keep it as NAME
  kbnet models cells --add net_g_latest.pth     keep a checkpoint as "cells"

Your own models are .safetensors and .pth files in the folder KBNET_MODELS, by default kbnet/models in your
data folder.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    parser.add_argument("name", metavar="MODEL", nargs="?", type=as_name, help="print the card of this model")
    parser.add_argument(
        "--add",
        metavar="SOURCE",
        type=as_name,
        help="copy this model among your own, as MODEL or by its own name: a checkpoint, or "
        "hf://USER/NAME[@REVISION] on Hugging Face",
    )
    add_overwrite(parser, "let --add replace your model of that name")
    add_json(parser)


def run(options: argparse.Namespace) -> int:
    """Print the list or a card, or add a model, and return the exit status."""
    name = options.name
    if options.add is not None:
        added = _add(options.add, name, options.overwrite)
        print(json.dumps([_facts(added)], indent=1) if options.json else f"{added.name}  {added.path}")
        return GOOD
    listed = zoo.list_models() if name is None else [zoo.get_model(name)]
    problem = folder_problem() if name is None else ""
    if problem:
        print(f"kbnet: your own models are not listed: {problem}", file=sys.stderr)
    if options.json:
        print(json.dumps([_facts(model) for model in listed], indent=1))
        return GOOD
    if name is not None:
        if listed[0].card is None:
            from .info import describe

            return describe(name)
        print(listed[0].card.read_text(encoding="utf-8"), end="")
        return GOOD
    rows = []
    for model in listed:
        if model.problem:
            rows.append((model.name, "", "", "", "", f"unusable: {model.problem}"))
            continue
        cost, size = model.cost(), model.path.stat().st_size
        rows.append(
            (
                model.name,
                f"{cost.parameters / 1e6:.2f} M",
                giga(cost.macs_total),
                giga(cost.macs_published),
                f"{size / 1e6:.1f} MB",
                model.title or f"{model.variant}, {model.in_channels} channels",
            )
        )
    rows.insert(0, ("name", "parameters", "MACs in full", "as published", "file", "purpose"))
    widths = [max(len(row[i]) for row in rows) for i in range(5)]
    for row in rows:
        print("  ".join([f"{cell:<{width}}" for cell, width in zip(row, widths, strict=False)] + [row[-1]]))
    print("\nMACs: multiply-accumulates of one 256 x 256 image; papers count convolutions only")
    if not problem:
        print(f"your own models: {zoo.folder()} (set {zoo.FOLDER_VARIABLE} to change this)")
    return GOOD


def _add(source: str, name: str | None, overwrite: bool) -> zoo.Model:
    found = zoo.get_model(source)
    if name is None:
        name = Address.parse(source).name if source.startswith(PREFIX) else found.name
    return zoo.register_model(
        found.path,
        name,
        title=found.title,
        task=found.task,
        window=found.window,
        range=found.range,
        license=found.license,
        card=found.card.read_text(encoding="utf-8") if found.card else "",
        overwrite=overwrite,
    )


def _facts(model: zoo.Model) -> dict[str, Any]:
    facts = dataclasses.asdict(model) | {"path": str(model.path), "card": model.card and str(model.card)}
    if not model.problem:
        cost = model.cost()
        facts |= {
            "parameters": cost.parameters,
            "macs_in_full": cost.macs_total,
            "macs_as_published": cost.macs_published,
            "bytes": model.path.stat().st_size,
        }
    return facts
