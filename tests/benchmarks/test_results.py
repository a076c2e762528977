from __future__ import annotations

import pytest

from benchmarks.harness.results import Cell, Column, Measured, Published, Row, Table, from_json, to_json


def test_tables_survive_json():
    cell = Cell(
        Published(31.21, "X", "read off a figure"),
        Measured("measured", 31.2, 0.1, "", {"seconds": 1.5}),
        0.02,
    )
    bare = Cell(None, Measured("not measured", reason="needs weights: a.pth"))
    columns = (
        Column("a", "σ 25", "CBSD68", "dB", 2, "higher"),
        Column("b", "params", unit="M"),
    )
    table = Table("t", "T", "text", columns, (Row("KBNet", "n", True, {"a": cell, "b": bare}),), {"X": "x"})
    assert from_json(to_json([table])) == [table]


@pytest.mark.parametrize(("found", "flagged"), [(31.23, False), (31.19, False), (31.24, True), (None, False)])
def test_a_difference_above_the_tolerance_is_flagged(found, flagged):
    measured = Measured("measured" if found else "failed", found)
    assert Cell(Published(31.21, "X"), measured, 0.02).differs is flagged
