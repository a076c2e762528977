"""Check that no test picture is among those that the shipped models are trained on.

Files are compared by their bytes, and pictures by correlation: whole ones and parts of each other, also if
one was scaled or compressed again. For every test set the closest pair is printed; a hit ends the command
with status 1.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from kbnet_plugin.errors import BadInput, one_line

ROOT = Path(__file__).resolve().parent.parent
cv2.utils.logging.setLogLevel(
    cv2.utils.logging.LOG_LEVEL_SILENT
)  # about stacks of floats, which are left out

SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".webp")
SETS = ("test", "micro")
HIT = 0.77
"""Correlation of the details from which two pictures count as the same."""

SIDE, FINE = 16, 40
"""Sides of the thumbnails by which pairs are found, and by which they are compared."""

SHARES = {1.0: 1, 0.8: 5, 0.65: 6, 0.5: 7}
"""Sizes of the parts that are looked for, relative to the whole, and how many places along each side."""

PARTS = [share for share, places in SHARES.items() for _ in range(places**2)]

CANDIDATES, ROUGHLY = 3, 0.5
"""Pairs of each picture that are compared closely, if the thumbnails correlate by so much."""

NOT_FOR = {"photographs.txt": ("test/Rain100L",)}
"""Test sets whose pictures a list may contain, as none of the models trained on it is tested on them."""

PLAIN = 1.0
"""Standard deviation of the details, in 1/255, below which nothing in a picture could be recognized."""

Gray = NDArray[np.uint8]


class Picture(NamedTuple):
    """A picture, reduced to about three times `FINE`, and thumbnails of its parts, the first of the whole."""

    path: Path
    digest: str
    gray: Gray
    parts: NDArray[np.float32]


class Pair(NamedTuple):
    """How alike a test picture is to one of the training pictures."""

    correlation: float
    test: Path
    train: Path


def read(path: Path) -> Picture | None:
    """Read a picture; None for what OpenCV does not take for one, such as a stack of floats."""
    data = path.read_bytes()
    gray = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_GRAYSCALE)
    if gray is None or min(gray.shape) < FINE:
        return None
    factor = 3 * FINE / min(gray.shape)
    if factor < 1:
        gray = cv2.resize(gray, None, fx=factor, fy=factor, interpolation=cv2.INTER_AREA)
    return Picture(path, hashlib.sha256(data).hexdigest(), gray, np.array([*map(thumbnail, windows(gray))]))


def read_all(paths: Sequence[Path]) -> list[Picture]:
    """Read pictures, leaving out what is none."""
    with ThreadPoolExecutor(2) as pool:
        return [picture for picture in pool.map(read, paths) if picture is not None]


def windows(gray: Gray) -> Iterator[Gray]:
    """Return the parts of a picture, in the order of `PARTS`."""
    height, width = gray.shape
    for share, places in SHARES.items():
        h, w = round(share * height), round(share * width)
        for y in np.linspace(0, height - h, places).round().astype(int):
            for x in np.linspace(0, width - w, places).round().astype(int):
                yield gray[y : y + h, x : x + w]


def thumbnail(gray: Gray) -> NDArray[np.float32]:
    """Return a small square picture of mean 0 and norm 1 as a vector."""
    small = cv2.resize(gray, (SIDE, SIDE), interpolation=cv2.INTER_AREA).astype(np.float32).ravel()
    small -= small.mean()
    return small / max(float(np.linalg.norm(small)), 1e-6)


def candidates(wholes: Sequence[Picture], others: Sequence[Picture]) -> list[tuple[int, int, float]]:
    """Return pairs, a whole picture and one that may contain it, and its share of that one's sides."""
    table = np.concatenate([picture.parts for picture in others])
    found = []
    for n, picture in enumerate(wholes):
        alike = table @ picture.parts[0]
        best = np.argsort(alike)[::-1][:CANDIDATES]
        found += [(n, int(i) // len(PARTS), PARTS[int(i) % len(PARTS)]) for i in best if alike[i] >= ROUGHLY]
    return found


def details(gray: Gray) -> NDArray[np.float32]:
    """Return what is smaller than an eighth of a thumbnail: smooth pictures are all alike in the rest."""
    values = gray.astype(np.float32)
    return values - cv2.GaussianBlur(values, (0, 0), FINE / 16)


def correlation(whole: Gray, other: Gray, share: float) -> float:
    """Return how well the middle of a picture fits anywhere in another, of which it is about that share."""
    height, width = whole.shape
    scale = FINE / min(height, width)
    small = cv2.resize(whole, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    h, w = small.shape
    template = details(small)[h // 10 : h - h // 10, w // 10 : w - w // 10]
    if template.std() < PLAIN:
        return 0.0
    best = 0.0
    for factor in (0.88, 0.92, 0.96, 1, 1.04, 1.08, 1.13):
        # Rescaled pictures may have rounded sides, so both are fitted.
        size = [
            max(round(side / share * factor), edge)
            for side, edge in zip((w, h), template.shape[::-1], strict=True)
        ]
        place = cv2.resize(other, size, interpolation=cv2.INTER_AREA)
        best = max(best, float(cv2.matchTemplate(details(place), template, cv2.TM_CCOEFF_NORMED).max()))
    return best


def closest(tests: Sequence[Picture], training: Sequence[Picture]) -> list[Pair]:
    """Return each test picture with the training picture that is most alike, 0 if none is roughly."""
    best = [Pair(0.0, test.path, training[0].path) for test in tests]
    digests = {picture.digest: picture.path for picture in training}
    for n, test in enumerate(tests):
        if test.digest in digests:
            best[n] = Pair(1.0, test.path, digests[test.digest])
    pairs = [(n, m, tests[n], training[m], share) for n, m, share in candidates(tests, training)]
    pairs += [(n, m, training[m], tests[n], share) for m, n, share in candidates(training, tests)]
    for n, m, whole, other, share in pairs:
        if best[n].correlation < 1:
            value = correlation(whole.gray, other.gray, share)
            best[n] = max(best[n], Pair(value, tests[n].path, training[m].path))
    return best


def listed(lists: Sequence[Path], data: Path) -> list[Path]:
    """Return the files that lists name, below ``train`` in the folder of data.

    Raises
    ------
    BadInput
        If one is missing.
    """
    names = sorted({name for path in lists for name in path.read_text(encoding="utf-8").split()})
    paths = [data / "train" / name for name in names]
    if missing := [path for path in paths if not path.is_file()]:
        raise BadInput(f"{len(missing)} of {len(paths)} training pictures are missing, such as {missing[0]}")
    return paths


def sets(data: Path) -> dict[str, list[Path]]:
    """Return the pictures of each test set by the folder's name."""
    found = {}
    for folder in sorted(p for kind in SETS for p in (data / kind).glob("*") if p.is_dir()):
        paths = sorted(p for p in folder.rglob("*") if p.suffix.lower() in SUFFIXES)
        found[f"{folder.parent.name}/{folder.name}"] = paths
    return found


def main(argv: list[str] | None = None) -> int:
    """Run the command; returns its exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "lists",
        nargs="*",
        type=Path,
        metavar="LIST",
        help="files with names below train; default: options/zoo/*.txt",
    )
    parser.add_argument(
        "--data", type=Path, default=os.environ.get("KBNET_DATA"), help="default: $KBNET_DATA"
    )
    args = parser.parse_args(argv)
    try:
        if args.data is None:
            raise BadInput("name the folder of data by --data or KBNET_DATA")
        lists = args.lists or sorted((ROOT / "options" / "zoo").glob("*.txt"))
        names = {path: listed([path], args.data) for path in lists}
        training = {picture.path: picture for picture in read_all(sorted({*chain(*names.values())}))}
        print(f"{len(training)} training pictures")
        tests = {name: read_all(paths) for name, paths in sets(args.data).items()}
        if not any(tests.values()):
            raise BadInput(f"no test pictures in {', '.join(str(args.data / kind) for kind in SETS)}")
        hits = 0
        for name, pictures in tests.items():
            concerned = [path for path in lists if name not in NOT_FOR.get(path.name, ())]
            some = [training[path] for path in sorted({*chain(*(names[path] for path in concerned))})]
            if not pictures or not some:
                continue
            pairs = sorted(closest(pictures, some), reverse=True)
            found = [pair for pair in pairs if pair.correlation >= HIT]
            hits += len(found)
            for pair in found or pairs[:1]:
                what = "HIT" if found else f"{len(pictures)} pictures and {len(some)}, closest"
                test, train = pair.test.relative_to(args.data), pair.train.relative_to(args.data)
                print(f"{name}: {what} {pair.correlation:.3f} {test} {train}", flush=True)
    except (BadInput, OSError) as error:
        print(f"training_images: {one_line(error)}", file=sys.stderr)
        return 2
    print(
        f"{hits} test pictures are among the training pictures" if hits else "no test picture is trained on"
    )
    return int(hits > 0)


if __name__ == "__main__":
    sys.exit(main())
