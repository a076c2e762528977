"""Files of models are found where they should be, without torch."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import kbnet_plugin
from kbnet_plugin import zoo
from kbnet_plugin.zoo import locations


def test_model_paths_match_the_list_of_models(monkeypatch, tmp_path, tiny_s):
    monkeypatch.setenv(locations.FOLDER_VARIABLE, str(tmp_path))
    zoo.register_model(tiny_s(), "mine")
    (tmp_path / "denoise-gray.pth").write_bytes(b"a name that is taken")
    usable = {model.name: model.path for model in zoo.list_models() if not model.problem}
    assert locations.model_paths() == usable
    assert "mine" in usable


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="other systems have other folders")
@pytest.mark.parametrize("data", [None, "", "relative/data", "{}/data"])
def test_models_are_in_the_data_folder_of_the_user(monkeypatch, tmp_path, data):
    monkeypatch.delenv(locations.FOLDER_VARIABLE, raising=False)
    monkeypatch.delenv("XDG_DATA_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    if data is not None:
        monkeypatch.setenv("XDG_DATA_HOME", data.format(tmp_path))
    absolute = data is not None and data.startswith("{}")
    expected = tmp_path / ("data" if absolute else ".local/share") / "kbnet" / "models"
    assert locations.folder() == expected


def test_models_are_where_the_system_keeps_data(monkeypatch):
    monkeypatch.delenv(locations.FOLDER_VARIABLE, raising=False)
    monkeypatch.setattr(locations, "user_data_path", lambda name, appauthor: Path("/Users/me/Library") / name)
    assert locations.folder() == Path("/Users/me/Library/kbnet/models")


def test_models_are_found_without_torch():
    program = """
import sys, kbnet_plugin
from kbnet_plugin import arrays, io, zoo
from kbnet_plugin.zoo import locations
locations.model_paths()
print("torch" in sys.modules)
kbnet_plugin.Restorer
print("torch" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "True"]


def test_the_package_provides_what_it_lists_and_nothing_else():
    for name in kbnet_plugin.__all__:
        assert getattr(kbnet_plugin, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'Restore'"):
        kbnet_plugin.Restore  # noqa: B018
