"""Recorded steps are on disk, and finished steps are soon recorded."""

from __future__ import annotations

import pytest

from kbnet_plugin.inference import journal as module
from kbnet_plugin.inference.journal import Journal


@pytest.fixture
def clock(monkeypatch):
    """Replace the time that journals see by the one item of a list."""
    now = [0.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    return now


@pytest.fixture
def disk(tmp_path):
    """Path of a journal, its content at every sync, and the function that syncs."""
    path, said = tmp_path / "journal", []
    return path, said, lambda: said.append(recorded(path))


def recorded(path):
    return path.read_text().splitlines()[1:]


def test_no_step_is_recorded_before_its_data_are_on_disk(disk, clock):
    path, said, sync = disk
    with Journal(path, {}, sync=sync) as journal:
        for step in range(2 * module._STEPS + 3):
            journal.add(step, 99)
            assert len(recorded(path)) == len(said) * module._STEPS  # no line without its sync
    assert [len(lines) for lines in said] == [0, module._STEPS, 2 * module._STEPS]
    assert recorded(path) == [f"{step} 99" for step in range(2 * module._STEPS + 3)]


def test_slow_steps_are_recorded_one_by_one(disk, clock):
    path, said, sync = disk
    with Journal(path, {}, sync=sync) as journal:
        for step in range(3):
            clock[0] += module._SECONDS
            journal.add(step, 99)
            assert len(recorded(path)) == len(said) == step + 1


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError])
def test_an_error_loses_no_finished_step(disk, clock, error):
    path, said, sync = disk

    def run():
        with Journal(path, {}, sync=sync) as journal:
            journal.add(4, 99)
            journal.add(2, 99)
            raise error

    with pytest.raises(error):
        run()
    assert said == [[]]
    assert recorded(path) == ["4 99", "2 99"]


def test_steps_that_cannot_be_synced_are_not_recorded(disk, clock):
    path, _, _ = disk

    def full():
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left"), Journal(path, {}, sync=full) as journal:
        journal.add(1, 99)
    assert recorded(path) == []


def test_steps_count_as_done_at_once(disk, clock):
    path, _, sync = disk
    with Journal(path, {}, sync=sync) as journal:
        journal.add(7, 99)
        assert journal.done == {7: 99}
