"""Draw the tree of folders, and what each imports, from the code into CONTRIBUTING.md."""

from __future__ import annotations

import argparse
import ast
import configparser
import sys
import textwrap
from pathlib import Path

import grimp

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "CONTRIBUTING.md"
PACKAGES = ("tools", "benchmarks", "napari_kbnet", "basicsr_ext", "kbnet_plugin")
BEGIN, END = "<!-- tree: made by tools/house.py -->\n", "<!-- end of the tree -->\n"
EXAMPLES = """examples:
  python tools/house.py            writes the tree into CONTRIBUTING.md
  python tools/house.py --check    exit status 1 where the page differs from the code"""
_WIDTH = 118


def folders() -> list[str]:
    """Packages from the top floor down, each followed by those within it, as .importlinter orders them."""
    rules = configparser.ConfigParser()
    rules.read(ROOT / ".importlinter", encoding="utf-8")
    floors = rules["importlinter:contract:package"]["layers"].replace("|", " ").split()
    found = []
    for package in PACKAGES:
        within = [path.parent.name for path in (ROOT / package).glob("*/__init__.py")]
        found.append(package)
        found += [
            f"{package}.{name}"
            for name in sorted(within, key=lambda n: (floors.index(n) if n in floors else -1, n))
        ]
    return found


def arrows(known: list[str]) -> dict[str, list[str]]:
    """From each folder to those that its modules import when they run, in the order of `known`."""
    graph = grimp.build_graph(*PACKAGES, exclude_type_checking_imports=True, cache_dir=None)
    targets: dict[str, set[str]] = {folder: set() for folder in known}
    for module in graph.modules:
        home = _home(module, known)
        targets[home] |= {_home(name, known) for name in graph.find_modules_directly_imported_by(module)}
    return {folder: [name for name in known if name in targets[folder] - {folder}] for folder in known}


def _home(module: str, known: list[str]) -> str:
    return max((f for f in known if f"{module}.".startswith(f"{f}.")), key=len)


def drawn() -> str:
    """The tree as Markdown: folders, what they are for, their modules and their arrows."""
    known = folders()
    targets = arrows(known)
    lines = []
    for folder in known:
        path = ROOT.joinpath(*folder.split("."))
        margin = "  " * folder.count(".")
        tree = ast.parse((path / "__init__.py").read_text(encoding="utf-8"))
        summary = " ".join((ast.get_docstring(tree) or "").split("\n\n")[0].split())
        modules = sorted(p.stem for p in path.glob("*.py") if not p.stem.startswith("__"))
        outside = [name for name in targets[folder] if not name.startswith(f"{folder}.")]
        lines.append(f"{margin}{path.name}/")
        for text in (summary, ", ".join(modules), f"-> {_short(outside)}" if outside else ""):
            indent = f"{margin}    "
            lines += textwrap.wrap(text, _WIDTH, initial_indent=indent, subsequent_indent=indent)
    return BEGIN + "\n```text\n" + "\n".join(lines) + "\n```\n\n" + END


def _short(names: list[str]) -> str:
    """Names of packages, those of one package together: ``kbnet_plugin (nn, ops)``."""
    groups: dict[str, list[str]] = {}
    for name in names:
        top, _, rest = name.partition(".")
        groups.setdefault(top, []).extend([rest] if rest else [])
    return ", ".join(f"{top} ({', '.join(rest)})" if rest else top for top, rest in groups.items())


def main(argv: list[str] | None = None) -> int:
    """Write the page, or compare it; returns the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, epilog=EXAMPLES
    )
    parser.add_argument("--check", action="store_true", help="compare, and write nothing")
    check = parser.parse_args(argv).check
    sys.path.insert(0, str(ROOT))
    text = PAGE.read_text(encoding="utf-8")
    before, rest = text.split(BEGIN)
    page = before + drawn() + rest.split(END)[1]
    if check:
        if page != text:
            print(f"{PAGE.name}: the tree differs from the code; run python tools/house.py", file=sys.stderr)
        return int(page != text)
    PAGE.write_text(page, encoding="utf-8")
    print(PAGE.relative_to(ROOT))
    return 0


if __name__ == "__main__":
    sys.exit(main())
