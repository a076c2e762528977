"""Find the files to restore, and name the results, none of which may overwrite a source."""

from __future__ import annotations

import glob
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..errors import BadInput
from ..io.formats import FORMATS, find_format
from ..io.ome_zarr import is_zarr


@dataclass(frozen=True, slots=True)
class Job:
    """A file to restore, and the file to write."""

    source: Path
    target: Path


def pair(
    inputs: Sequence[Path],
    output: Path,
    *,
    recursive: bool = False,
    make: bool = True,
    report: Callable[[str], object] | None = None,
) -> list[Job]:
    """Pair every file with the file to write.

    Parameters
    ----------
    inputs : sequence of path
        Pictures, stacks, folders of them, and patterns such as ``*.png``.
    output : path
        A file for one picture, otherwise a folder.
    recursive : bool
        Include the folders inside folders; results keep their places in them.
    make : bool
        Create the folders of the results if they do not exist.
    report : callable, optional
        Called with one line about what each folder contains besides.

    Raises
    ------
    FileNotFoundError
        If an input, or the folder of an output file, does not exist.
    ValueError
        If a folder contains no pictures, several files have the same target, or a result would replace,
        contain or lie inside a source.
    """
    inputs = [found for path in inputs for found in _expand(path)]
    found: list[tuple[Path, Path]] = []  # each with its place in the output folder
    for path in inputs:
        if path.is_dir() and not is_zarr(path):
            inside = _Folder(path, recursive)
            if inside.skipped and report is not None:
                report(f"{path}: {inside.skipped}")
            if not inside.files:
                known = ", ".join(f.suffixes[0] for f in FORMATS)
                raise BadInput(f"{path}: no pictures in this folder ({inside.skipped or known})")
            found += [(file, file.relative_to(path)) for file in inside.files]
        elif path.exists():
            found.append((path, Path(path.name)))
        else:
            raise FileNotFoundError(f"{path}: no such file or folder")
    known_suffix = find_format(output) is not None
    file_like = bool(output.suffix) and (is_zarr(output) or not output.is_dir())
    one_file = len(inputs) == 1 and [source for source, _ in found] == inputs and file_like
    if not one_file and not output.is_dir() and (output.exists() or known_suffix):
        raise BadInput(f"{output}: not a folder, and several pictures need one; name a folder")
    jobs = [Job(found[0][0], output)] if one_file else list(_named(found, output))
    _check_overlap(jobs)
    if one_file and not output.parent.is_dir():
        raise FileNotFoundError(f"{output.parent}: no such folder to write {output.name} to; create it first")
    if not one_file and make:
        for folder in {job.target.parent for job in jobs} | {output}:
            folder.mkdir(parents=True, exist_ok=True)
    return jobs


class _Folder:
    """What a folder contains: files to restore, and a line about what else."""

    def __init__(self, folder: Path, recursive: bool) -> None:
        self.files: list[Path] = []
        self._other: Counter[str] = Counter()
        self._missing: Counter[tuple[str, str]] = Counter()
        self._folders = 0
        self._look(folder, recursive)

    def _look(self, folder: Path, recursive: bool) -> None:
        for path in sorted(folder.iterdir()):
            if path.name.startswith("."):
                continue
            known = find_format(path)
            if path.is_dir() and not is_zarr(path):
                if recursive and not path.is_symlink():  # a link may lead back
                    self._look(path, recursive)
                elif not path.name.endswith(".partial"):
                    self._folders += 1
            elif known is None and not is_zarr(path):
                self._other[path.suffix.lower() or "no suffix"] += 1
            elif known is not None and not known.readable:
                self._missing[known.suffixes[0], known.extra] += 1
            elif path.exists():
                self.files.append(path)

    @property
    def skipped(self) -> str:
        """What was left out, in one line; empty if nothing was."""
        parts = [
            f"{count} {suffix} (pip install 'kbnet[{extra}]')"
            for (suffix, extra), count in sorted(self._missing.items())
        ]
        if other := self._other.total():
            kinds = ", ".join(sorted(self._other)[:5])
            parts.append(f"{other} other file{'s' if other > 1 else ''} ({kinds})")
        if self._folders:
            parts.append(
                f"{self._folders} folder{'s' if self._folders > 1 else ''} (--recursive includes them)"
            )
        return f"skipped {', '.join(parts)}" if parts else ""


def _named(found: Sequence[tuple[Path, Path]], output: Path) -> Iterator[Job]:
    """Name the results in a folder: as their sources, with the suffix of the format that is written."""
    taken: dict[Path, Path] = {}
    folded: set[str] = set()  # without case, as many systems compare names
    for source, place in found:
        known = find_format(source)
        target = output / place
        if known is not None and known.writes:
            target = target.with_name(target.stem + known.writes)
            if str(target).casefold() in folded:
                target = target.with_name(place.name + known.writes)
        folded.add(str(target).casefold())
        other = taken.setdefault(target, source)
        if other != source:
            raise BadInput(
                f"{other} and {source} would both go to {target}; restore them into different folders"
            )
        yield Job(source, target)


def _check_overlap(jobs: Sequence[Job]) -> None:
    """Raise BadInput if a target is, contains or is inside of any source, also through links."""
    sources = {job.source.resolve(): job.source for job in jobs}
    above = {parent: source for path, source in sources.items() for parent in path.parents}
    same = {_identity(job.source): job.source for job in jobs}
    for job in jobs:
        target = job.target.resolve()
        if (source := sources.get(target)) is None and job.target.exists():
            source = same.get(_identity(job.target))  # a hard link
        if source is not None:
            raise BadInput(f"{source}: would be replaced by a result; choose another output")
        if (source := above.get(target)) is not None:
            raise BadInput(
                f"{source}: is inside of {job.target}, which would be replaced; choose another output"
            )
        if source := next((sources[parent] for parent in target.parents if parent in sources), None):
            raise BadInput(f"{job.target}: is inside of {source}, which is restored; choose another output")


def _identity(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_dev, status.st_ino


def _expand(path: Path) -> list[Path]:
    """Expand a pattern that the shell has not expanded."""
    if path.exists() or not glob.has_magic(str(path)):
        return [path]
    return [Path(p) for p in sorted(glob.glob(str(path), recursive=True))] or [path]
