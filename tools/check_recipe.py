"""Repeat the first training iterations of a shipped model, and compare the losses with its card."""

from __future__ import annotations

import argparse
import csv
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from statistics import median

import yaml

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from basicsr_ext.options import read_options
from benchmarks.harness import measure
from benchmarks.harness.measure import ROOT
from kbnet_plugin import zoo
from kbnet_plugin.errors import BadInput, one_line
from tools.cards import MODELS, read_card, write_card

ITERATIONS, EVERY = 200, 20
LIMIT = 1e-3
"""Median relative difference up to which losses count as equal.

Other processors sum in another order, and training amplifies that: the last losses may differ by a percent.
"""


def train(option_file: Path, iterations: int) -> dict[int, float]:
    """Train on the CPU in float32 and return the losses of the first iterations.

    Raises
    ------
    ValueError
        If training fails; the message is its last line.
    """
    options = read_options(option_file)
    for section in ("path", "datasets", "train"):
        options[section] = dict(options.get(section) or {})
    # Learning rates and crops do not depend on total_iter, so this is the start of the whole run.
    options["train"] |= {"total_iter": iterations, "precision": "fp32", "compile": False}
    options["datasets"] = {"train": options["datasets"].get("train")}
    options |= {"name": "recipe", "num_gpu": 0, "val": None}
    options["logger"] = {"print_freq": 1, "save_checkpoint_freq": iterations}
    with tempfile.TemporaryDirectory() as folder:
        options["path"]["experiments_root"] = folder
        shortened = Path(folder) / option_file.name
        shortened.write_text(yaml.safe_dump(options), encoding="utf-8")
        command = [sys.executable, "-m", "basicsr_ext", "train", "-opt", str(shortened)]
        # With several threads, the order of sums varies.
        environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        # Relative paths in option files start at the repository.
        ended = subprocess.run(
            command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
        )
        if ended.returncode:
            lines = ended.stderr.decode(errors="replace").strip().splitlines()
            raise ValueError(lines[-1] if lines else f"training ended with status {ended.returncode}")
        return read_history(Path(folder) / "recipe" / "history.csv")


def read_history(path: Path) -> dict[int, float]:
    """Read the training losses by iteration from an experiment's ``history.csv``."""
    with path.open(newline="", encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row["quantity"] == "l_pix"]
    if not rows:
        raise ValueError(f"{path}: contains no losses (l_pix)")
    return {int(row["iteration"]): float(row["value"]) for row in rows}


def compare(card: Mapping[int, float], found: Mapping[int, float]) -> dict[int, float]:
    """Return the relative differences at the iterations that both have."""
    return {i: abs((found[i] - loss) / loss) for i, loss in card.items() if i in found}


def main(argv: list[str] | None = None) -> int:
    """Run the command; returns its exit status: 1 if the losses differ."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="examples:\n"
        "  KBNET_DATA=/path/to/data python tools/check_recipe.py denoise-color\n"
        "  KBNET_DATA=/path/to/data python tools/check_recipe.py denoise-color --iterations 20\n"
        "  KBNET_DATA=/path/to/data python tools/check_recipe.py denoise-color --record",
    )
    parser.add_argument("model", help="name of a shipped model")
    parser.add_argument("--iterations", type=int, default=ITERATIONS, help="default: %(default)s")
    parser.add_argument(
        "--history",
        type=Path,
        metavar="CSV",
        help="read the losses from this history.csv instead of training",
    )
    parser.add_argument(
        "--record", action="store_true", help="write the losses into the card instead of comparing"
    )
    args = parser.parse_args(argv)
    try:
        model = zoo.get_model(args.model)
        if model.card is None or model.path.parent != MODELS:
            raise ValueError(f"{model.name}: not a shipped model; only those have a recipe")
        facts, _ = read_card(model.card)
        if args.history:
            found = read_history(args.history)
        else:
            print(
                f"{args.iterations} iterations of {facts['option_file']}, on the CPU in float32", flush=True
            )
            found = train(ROOT / facts["option_file"], args.iterations)
    except (BadInput, ValueError, OSError) as error:
        print(f"recipe: {one_line(error)}", file=sys.stderr)
        return 2
    if args.record:
        facts, text = read_card(model.card)  # again, because training takes long enough to edit it
        facts["losses"] = {i: v for i, v in found.items() if i <= ITERATIONS and i % EVERY == 0}
        write_card(model.card, facts, text)
        print(f"{len(facts['losses'])} losses written to {model.card.relative_to(ROOT)}")
        return 0
    known = facts.get("losses") or {}
    differences = compare(known, found)
    if not differences:
        print("recipe: the card has no losses for these iterations; --record writes them", file=sys.stderr)
        return 2
    rows = [[str(i), f"{known[i]:.8g}", f"{found[i]:.8g}", f"{d:.1e}"] for i, d in differences.items()]
    print(measure.table(["iteration", "card", "now", "relative difference"], rows))
    middle = median(differences.values())
    same = middle <= LIMIT
    verdict = "the recipe is reproducible" if same else "THE RECIPE IS NOT REPRODUCED"
    print(f"{verdict}: median difference {middle:.1e} (limit {LIMIT:.0e})")
    return 0 if same else 1


if __name__ == "__main__":
    sys.exit(main())
