"""Files of models are found where they should be, without torch."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import kbnet_plugin
from kbnet_plugin import zoo
from kbnet_plugin.cli import main
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


def forbid(monkeypatch, folder):
    """Make a folder unreadable, also for root."""
    for name in ("listdir", "scandir"):
        original = getattr(os, name)

        def refuse(path=".", original=original):
            if Path(path) == folder:
                raise PermissionError(13, "Permission denied", str(path))
            return original(path)

        monkeypatch.setattr(os, name, refuse)


@pytest.mark.parametrize("kind", ["forbidden", "a file", "in a file", "a loop", "nobody's"])
def test_a_folder_that_cannot_be_read_stops_nothing(monkeypatch, tmp_path, capsys, checkpoint, kind):
    folder = tmp_path / "models"
    reason = {
        "forbidden": "permission denied",
        "a file": "not a directory",
        "in a file": "not a directory",
        "a loop": "too many levels of symbolic links",
        "nobody's": "no such home folder; set KBNET_MODELS to a folder for models",
    }[kind]
    if kind == "forbidden":
        folder.mkdir()
        forbid(monkeypatch, folder)
    elif kind == "a loop":
        folder.symlink_to(folder)
    elif kind == "nobody's":
        folder = Path("~nobody-has-this-name/models")
    else:
        folder.touch()
        folder = folder / "own" if kind == "in a file" else folder
    monkeypatch.setenv(locations.FOLDER_VARIABLE, str(folder))
    problem = f"{folder}: {reason}"
    assert locations.folder_problem() == problem
    assert [model.shipped for model in zoo.list_models()] == [True] * len(locations.model_paths())
    assert zoo.get_model(zoo.DEFAULT).shipped
    assert zoo.get_model(checkpoint).in_channels == 3
    with pytest.raises(ValueError, match=re.escape(f"your own models are not listed: {problem}")):
        zoo.get_model("mine")
    for arguments in (["models"], ["models", "--json"]):
        assert main(arguments) == 0
        assert capsys.readouterr().err == f"kbnet: your own models are not listed: {problem}\n"
    for arguments in (["models", zoo.DEFAULT], ["info", str(checkpoint)]):
        assert main(arguments) == 0
        assert capsys.readouterr().err == ""


def test_a_folder_that_does_not_exist_is_no_problem(monkeypatch, tmp_path):
    monkeypatch.setenv(locations.FOLDER_VARIABLE, str(tmp_path / "none"))
    assert locations.folder_problem() == ""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="other systems have other folders")
def test_without_a_home_folder_the_shipped_models_are_listed(monkeypatch):
    for name in (locations.FOLDER_VARIABLE, "XDG_DATA_HOME", "HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("pwd.getpwuid", lambda number: {}[number])
    assert next(iter(locations.model_paths())) == zoo.DEFAULT
    with pytest.raises(OSError, match="no such home folder; set KBNET_MODELS"):
        locations.folder()


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
