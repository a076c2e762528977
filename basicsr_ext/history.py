"""A run's history next to its checkpoints: a CSV file for programs, a plot for people."""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping
from pathlib import Path

from kbnet_plugin.errors import BadInput
from kbnet_plugin.files import atomic_path

COLUMNS = ("iteration", "quantity", "value")


class History:
    """``history.csv`` (iteration, quantity, value) and ``history.svg`` in an experiment's folder.

    Parameters
    ----------
    folder : Path
        Of the experiment.
    start : int
        Iteration to resume after; later rows are dropped.
    """

    def __init__(self, folder: Path, start: int) -> None:
        self.folder, self.path = folder, folder / "history.csv"
        self.rows: list[tuple[int, str, float]] = []
        if start and self.path.is_file():
            with self.path.open(newline="", encoding="utf-8") as file:
                for row in csv.reader(file):
                    if len(row) == 3 and row[0].isdigit() and int(row[0]) <= start:
                        self.rows.append((int(row[0]), row[1], float(row[2])))
        self._write(self.rows, "w")

    def add(self, iteration: int, values: Mapping[str, float]) -> None:
        """Append the values of an iteration."""
        new = [(iteration, name, float(value)) for name, value in values.items()]
        self.rows += new
        self._write(new, "a")

    def _write(self, rows: list[tuple[int, str, float]], mode: str) -> None:
        try:
            with self.path.open(mode, newline="", encoding="utf-8") as file:
                writer = csv.writer(file, lineterminator="\n")
                if mode == "w":
                    writer.writerow(COLUMNS)
                writer.writerows((i, name, f"{value:.8g}") for i, name, value in rows)
        except OSError as error:
            raise BadInput(f"cannot write {self.path}: {error.strerror}") from error

    def plot(self) -> None:
        """Draw every quantity over the iterations, one panel each."""
        names = list(dict.fromkeys(name for _, name, _ in self.rows))
        panels = [
            _panel(name, [(i, v) for i, n, v in self.rows if n == name], 300 * (k % 2), 190 * (k // 2))
            for k, name in enumerate(names)
        ]
        height = 190 * ((len(panels) + 1) // 2)
        head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 600 {height}" font-family="sans-serif"'
        text = f'{head} font-size="10">\n<rect width="600" height="{height}" fill="white"/>\n'
        try:
            with atomic_path(self.folder / "history.svg") as temporary:
                temporary.write_text(text + "\n".join(panels) + "\n</svg>\n", encoding="utf-8")
        except OSError as error:
            raise BadInput(f"cannot write {self.folder / 'history.svg'}: {error.strerror}") from error


def _panel(name: str, points: list[tuple[int, float]], left: int, top: int) -> str:
    """Draw labelled axes and a line, 300 x 190 units in all."""
    x0, y0, width, height = left + 55, top + 25, 225, 130
    (first, last), points = (points[0][0], points[-1][0]), [(i, v) for i, v in points if math.isfinite(v)]
    values = [v for _, v in points]
    low, high = (min(values), max(values)) if values else (0.0, 1.0)
    logarithmic = name.startswith("l_") and low > 0
    place = math.log if logarithmic else float
    across, up = max(last - first, 1), (place(high) - place(low)) or 1.0
    line = " ".join(
        f"{x0 + width * (i - first) / across:.1f},{y0 + height * (place(high) - place(v)) / up:.1f}"
        for i, v in points
    )
    label = name.replace("&", "&amp;").replace("<", "&lt;")
    scale = f'<text x="{x0 + width}" y="{y0 - 8}" text-anchor="end">logarithmic</text>'
    return "\n".join(
        (
            f'<path d="M{x0},{y0}v{height}h{width}" fill="none" stroke="gray"/>',
            f'<polyline points="{line}" fill="none" stroke="#1f77b4" stroke-width="1.5"/>',
            f'<text x="{x0}" y="{y0 - 8}" font-weight="bold">{label}</text>',
            *([scale] if logarithmic else []),
            f'<text x="{x0 - 4}" y="{y0 + 8}" text-anchor="end">{high:.4g}</text>',
            f'<text x="{x0 - 4}" y="{y0 + height}" text-anchor="end">{low:.4g}</text>',
            f'<text x="{x0}" y="{y0 + height + 13}">{first:,}</text>',
            f'<text x="{x0 + width}" y="{y0 + height + 13}" text-anchor="end">iteration {last:,}</text>',
        )
    )
