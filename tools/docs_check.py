"""Check README.md and the pages in docs: commands, links, Python code and notebooks."""

from __future__ import annotations

import argparse
import configparser
import contextlib
import os
import re
import shlex
import sys
import tempfile
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any
from unittest import mock

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tools.docs_pages import BASICSR, KBNET, PARTS, parse

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
SHELLS = ("sh", "bash", "console")
TIMEOUT = 120
"""Seconds for a cell of a notebook."""

_FENCE = re.compile(r"^(\s*)(`{3,}|:{3,})\s*(\{?[\w.+-]*\}?)(.*)$")
_SKIP = re.compile(r"^\s*<!-- skip: (.+?) -->\s*$")
_INLINE = re.compile(
    r"(?<!`)`((?:kbnet|basicsr|make|pip install|python (?:benchmarks|tools)/[^\s`]+)(?=\s|`)[^`]*)`(?!`)"
)
_LINK = re.compile(
    r"!?\[[^]]*\]\(([^)\s]+)\)|<img[^>]* src=\"([^\"]+)\"|^[`:]{3,}\{(?:figure|image)\} (\S+)", re.MULTILINE
)


@dataclass(frozen=True)
class Block:
    """Fenced lines of a page.

    Attributes
    ----------
    line : int
        Of the first line inside, from 1.
    language : str
        Such as ``"python"``; ``"{name}"`` of a directive.
    text : str
    skip : str
        Why it cannot be run; empty where it can.
    """

    line: int
    language: str
    text: str
    skip: str


def pages() -> list[Path]:
    """List README.md and the Markdown pages."""
    return [ROOT / "README.md", *sorted(DOCS.rglob("*.md"))]


def notebooks() -> list[Path]:
    """List the notebooks."""
    return sorted((DOCS / "notebooks").glob("*.ipynb"))


def blocks(page: Path) -> list[Block]:
    """List the fenced blocks of a page, those inside directives too."""
    return _blocks(page.read_text(encoding="utf-8").splitlines(), 1)


def _blocks(lines: Sequence[str], first: int) -> list[Block]:
    found: list[Block] = []
    skip, number = "", 0
    while number < len(lines):
        line = lines[number]
        number += 1
        if opened := _FENCE.match(line):
            indent, fence, language, _ = opened.groups()
            inside = number
            while number < len(lines) and not re.match(
                rf"^\s*{fence[0]}{{{len(fence)},}}\s*$", lines[number]
            ):
                number += 1
            content = [each.removeprefix(indent) for each in lines[inside:number]]
            found.append(Block(first + inside, language, "\n".join(content), skip))
            if language.startswith("{"):
                found += _blocks(content, first + inside)
            number += 1
            skip = ""
        elif stated := _SKIP.match(line):
            skip = stated[1]
        elif line.strip():
            skip = ""
    return found


def commands(page: Path) -> Iterator[tuple[int, str, bool]]:
    """Yield the commands of a page: line, text, and whether it is in a sentence and may lack arguments."""
    for block in blocks(page):
        if block.language in SHELLS:
            at = block.line
            for line in re.sub(r"\\\n", "\\\\\0", block.text).split("\n"):
                command = line.replace("\\\0", " ").strip()
                if command and not command.startswith("#"):
                    yield at, command, False
                at += 1 + line.count("\0")
    text = page.read_text(encoding="utf-8")
    for found in _INLINE.finditer(text):
        yield text.count("\n", 0, found.start()) + 1, " ".join(found[1].split()), True


def check_commands(page: Path) -> list[str]:
    """Parse every command of a page with the parser of its program; return the problems."""
    found = ((line, command, _check(command, partial)) for line, command, partial in commands(page))
    return [f"{_place(page, line)}: {command}: {problem}" for line, command, problem in found if problem]


def _check(command: str, partial: bool) -> str:
    try:
        words = shlex.split(command, comments=True)
    except ValueError as error:
        return str(error)
    parts: list[list[str]] = [[]]
    for word in words:
        if word in ("&&", "|"):
            parts.append([])
        else:
            parts[-1].append(word)
    return next((problem for part in parts if (problem := _check_words(part, partial))), "")


def _check_words(words: list[str], partial: bool) -> str:
    while words and re.match(r"^[A-Z_]+=", words[0]):
        words = words[1:]
    if not words:
        return ""
    program, arguments = words[0].rpartition("/")[2], words[1:]
    if missing := next((w for w in words if _is_ours(w) and not (ROOT / w).exists()), None):
        return f"there is no {missing}"
    if program == "kbnet":
        return _check_arguments(KBNET, arguments, partial)
    if program == "basicsr":
        return _check_arguments(BASICSR, arguments, partial)
    if program.startswith("python"):
        return _check_python(arguments, partial)
    if program == "torchrun":
        started = next((i for i, w in enumerate(arguments) if w == "basicsr" or w.endswith(".py")), None)
        if started is None:
            return "it starts no program"
        rest = arguments[started:]
        return _check_words(rest if rest[0] == "basicsr" else ["python", *rest], partial)
    if program == "make":
        return next((f"there is no target {w}" for w in arguments if w not in _targets()), "")
    if program == "pip":
        return _check_pip(arguments)
    if program.endswith(".sh"):
        return ""
    known = program in ("bioimageio", "cd", "dask", "git", "hf", "napari", "sudo")
    return "" if known else f"{program} is not known here"


def _is_ours(word: str) -> bool:
    return bool(re.match(r"^(options|benchmarks|tools|tests|docs|kbnet_plugin|basicsr_ext)/[\w./-]+$", word))


def _check_python(arguments: list[str], partial: bool) -> str:
    if arguments[:1] == ["-m"]:
        return _check_pip(arguments[2:]) if arguments[1:2] == ["pip"] else ""
    script = arguments[0] if arguments else ""
    if not re.match(r"^(benchmarks|tools)/\w+\.py$", script):
        return f"{script} is not known here"
    return _check_arguments(script.removesuffix(".py").replace("/", "."), arguments[1:], partial)


def _check_arguments(module: str, arguments: list[str], partial: bool) -> str:
    if "..." in arguments:
        arguments, partial = [a for a in arguments if a != "..."], True
    try:
        parsed = parse(module, arguments, partial=partial)
    except ValueError as error:
        return str(error)
    return f"unknown: {' '.join(parsed.unknown)}" if parsed.unknown else ""


def _check_pip(arguments: list[str]) -> str:
    wanted = {extra for a in arguments for found in re.findall(r"\[(.*)\]", a) for extra in found.split(",")}
    ours = any(re.match(r"^(kbnet|\.)\[", a) for a in arguments)
    wanted -= {"pyqt6", "pyside6"}  # napari's
    return next((f"there is no extra {e}" for e in sorted(wanted) if ours and e not in _extras()), "")


@cache
def _targets() -> set[str]:
    return set(re.findall(r"(?m)^([\w-]+):", (ROOT / "Makefile").read_text(encoding="utf-8")))


@cache
def _extras() -> set[str]:
    settings = configparser.ConfigParser()
    settings.read(ROOT / "setup.cfg", encoding="utf-8")
    return set(settings["options.extras_require"])


def check_links(page: Path) -> list[str]:
    """Look up every relative link and picture of a page, and what it asks to be generated."""
    text = page.read_text(encoding="utf-8")
    text = re.sub(r"(?ms)^(```+)(?!\{).*?^\1", lambda code: "\n" * code[0].count("\n"), text)
    problems = []
    for found in _LINK.finditer(text):
        target = next(filter(None, found.groups()))
        path = target.partition("#")[0]
        if not re.match(r"^(\w+:|<)", target) and path and not (page.parent / path).exists():
            line = text.count("\n", 0, found.start()) + 1
            problems.append(f"{_place(page, line)}: {target} does not exist")
    requests = re.findall(r"<!-- generate: (\w+) -->", text)
    return problems + [
        f"{_place(page, 1)}: nothing generates {each}" for each in requests if each not in PARTS
    ]


def run_python(page: Path, folder: Path) -> list[str]:
    """Run the Python blocks of a page in order, in a folder of its own; return the first problem."""
    names: dict[str, object] = {"__name__": "__page__"}
    with _inside(folder), warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of packages that the pages import
        for block in blocks(page):
            if block.language != "python" or block.skip:
                continue
            code = compile("\n" * (block.line - 1) + block.text, str(page), "exec")
            try:
                exec(code, names)
            except Exception as error:
                line = traceback.extract_tb(error.__traceback__)[1].lineno
                return [f"{_place(page, line)}: {type(error).__name__}: {error}"]
    return []


def run_notebook(path: Path, folder: Path, kernel: Any = None) -> list[str]:
    """Run a notebook in a folder of its own, and check that it is stored without outputs.

    Parameters
    ----------
    path, folder : path
    kernel : jupyter_client.KernelManager, optional
        Where it runs; names that an earlier notebook left there are removed. By default in a new process.

    Raises
    ------
    ImportError
        If nbclient is not installed.
    """
    import nbclient
    import nbformat

    notebook = nbformat.read(path, as_version=4)
    problems = [
        f"{_place(path, number)}: cell is stored with its output; clear it"
        for number, cell in enumerate(notebook.cells, start=1)
        if cell.get("outputs") or cell.get("execution_count")
    ]
    if kernel is not None and kernel.has_kernel:
        notebook.cells.insert(0, nbformat.v4.new_code_cell("%reset -f"))
    client = nbclient.NotebookClient(
        notebook,
        km=kernel,
        timeout=TIMEOUT,
        kernel_name="python3",
        resources={"metadata": {"path": str(folder)}},
    )
    with _inside(folder):
        try:
            client.execute()
        except nbclient.exceptions.CellExecutionError as error:
            problems.append(f"{_place(path, 0)}: {error.ename}: {error.evalue}")
        finally:
            if kernel is not None and client.kc is not None:  # nbclient closes only its own
                client.kc.stop_channels()
    return problems


@contextlib.contextmanager
def _inside(folder: Path) -> Iterator[None]:
    """Work in a folder, which keeps the models too."""
    search = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    changed = {"KBNET_MODELS": str(folder / "models"), "PYTHONPATH": search, "MPLBACKEND": "agg"}
    with mock.patch.dict(os.environ, changed), contextlib.chdir(folder):
        yield


def _place(page: Path, line: int) -> str:
    return f"{page.relative_to(ROOT)}:{line}"


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("pages", nargs="*", type=Path, help="pages and notebooks (default: all)")
    parser.add_argument("--no-run", action="store_true", help="check commands and links only")
    options = parser.parse_args(argv)
    wanted = [path.resolve() for path in options.pages] or [*pages(), *notebooks()]
    problems = [p for page in wanted for p in _check_page(page, run=not options.no_run)]
    print("\n".join(problems) or f"{len(wanted)} pages and notebooks: no problem found")
    return 1 if problems else 0


def _check_page(path: Path, *, run: bool) -> list[str]:
    checks: list[Callable[[Path], list[str]]] = []
    runner: Callable[[Path, Path], list[str]] = run_python
    if path.suffix == ".ipynb":
        runner = run_notebook
    else:
        checks = [check_commands, check_links]
    problems = [problem for check in checks for problem in check(path)]
    if run:
        with tempfile.TemporaryDirectory() as folder:
            problems += runner(path, Path(folder))
    return problems


if __name__ == "__main__":
    sys.exit(main())
