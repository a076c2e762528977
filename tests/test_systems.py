"""What differs between Linux, macOS and Windows, as far as one system can show it."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

from kbnet_plugin import files
from kbnet_plugin.inference import pairing


@pytest.mark.parametrize("system", ["win32", "linux"])
def test_a_file_that_somebody_reads_is_replaced_on_windows_after_a_moment(tmp_path, monkeypatch, system):
    old, new, attempts = tmp_path / "old", tmp_path / "new", []
    old.write_bytes(b"old")
    new.write_bytes(b"new")
    replace = Path.replace

    def busy(path, target):
        attempts.append(path)
        if len(attempts) < 3:
            raise PermissionError(13, "used by another process")
        return replace(path, target)

    monkeypatch.setattr(Path, "replace", busy)
    monkeypatch.setattr(files.sys, "platform", system)
    if system == "win32":
        files.replace(new, old)
        assert old.read_bytes() == b"new"
    else:  # permissions do not change by waiting
        with pytest.raises(PermissionError):
            files.replace(new, old)


def test_results_whose_names_differ_only_in_case_are_kept_apart(tmp_path):
    (tmp_path / "in").mkdir()
    for name in ("Leaf.webp", "leaf.jxl"):
        (tmp_path / "in" / name).touch()
    jobs = pairing.pair([tmp_path / "in"], tmp_path / "out")
    assert len({str(job.target).casefold() for job in jobs}) == 2


def test_a_process_is_known_to_have_ended_also_before_its_status_is_read():
    train = pytest.importorskip("basicsr_ext.train")
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    assert not train._has_ended(process.pid)
    process.stdin.close()
    for _ in range(200):
        if train._has_ended(process.pid):
            break
        time.sleep(0.05)
    assert train._has_ended(process.pid)
    process.wait()
    assert train._has_ended(process.pid)
