from __future__ import annotations

import json
import sys

import pytest

from benchmarks.harness import measure


def test_candidates_take_turns():
    calls = []
    timings = measure.interleave({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, repeats=2)
    assert calls == ["a", "b"] * 3  # one round of warm-up
    assert all(t.calls == 2 and 0 <= t.low <= t.median <= t.high for t in timings.values())


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_peak_memory_sees_what_a_call_frees_again(tmp_path):
    # In a fresh process, as the function requires: here the allocator may reuse pages that it already holds.
    size = 96 * 2**20
    script = tmp_path / "peak.py"
    script.write_text(
        f"import sys; sys.path.insert(0, {str(measure.ROOT)!r})\n"
        "import numpy as np\n"
        "from benchmarks.harness import measure\n"
        f"print(measure.peak_extra_memory(lambda: np.ones({size}, np.uint8).sum()))\n"
    )
    peak = measure.in_fresh_process(str(script))
    assert 0.9 * size < peak < 1.5 * size


def test_json_is_written_whole_or_not_at_all(tmp_path):
    file = tmp_path / "result.json"
    measure.write_json(file, timing=measure.Timing(1.0, 0.9, 1.1, 3))
    assert json.loads(file.read_text())["timing"]["median"] == 1.0
    with pytest.raises(TypeError):
        measure.write_json(file, broken=object())
    assert json.loads(file.read_text())["timing"]["median"] == 1.0


def test_table_is_markdown():
    lines = measure.table(["name", "x"], [["a", "1.5"]]).splitlines()
    assert lines == ["| name | x   |", "|------|-----|", "| a    | 1.5 |"]
