"""Models by name: shipped ones match their cards, and the user's own are listed after them."""

from __future__ import annotations

import os
import re
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from safetensors import safe_open
from skimage import data

from kbnet_plugin import KBNet_s, Restorer, load_network, save_network, zoo
from kbnet_plugin.errors import one_line
from kbnet_plugin.nn.cost import count
from tools import check_recipe as recipe
from tools.cards import read_card, sha256

SHIPPED = [m for m in zoo.list_models() if m.shipped]
ROOT = Path(zoo.__file__).parents[2]

each = pytest.mark.parametrize("model", SHIPPED, ids=lambda m: m.name)


@pytest.fixture(autouse=True)
def own(tmp_path, monkeypatch):
    """Set the folder of the user's models; it does not exist yet."""
    monkeypatch.setenv(zoo.FOLDER_VARIABLE, str(tmp_path / "own"))
    return tmp_path / "own"


def test_the_defaults_ship_and_the_first_is_listed_first():
    assert SHIPPED[0].name == zoo.DEFAULT
    assert zoo.DEFAULT_GRAY in [m.name for m in SHIPPED]
    assert not [m.problem for m in SHIPPED if m.problem]


@each
def test_a_shipped_model_is_small(model):
    assert model.cost().parameters <= 4e6
    assert model.cost().macs_total <= 10e9
    assert model.path.stat().st_size <= 8e6


@each
def test_card_and_file_agree(model):
    facts, text = read_card(model.card)
    network = load_network(model.path)
    cost = count(network)
    assert facts["sha256"] == sha256(model.path)
    assert facts["bytes"] == model.path.stat().st_size
    assert model.cost() == cost  # read from the header, and counted
    assert facts["parameters"] == cost.parameters
    assert facts["macs_256x256"] == {"in_full": cost.macs_total, "as_published": cost.macs_published}
    assert facts["channels"] == network.img_channel == model.in_channels
    assert facts["window"] == model.window
    assert 0.5 <= model.window / facts["patch"] <= 1.5  # means as in training
    assert facts["license"] == model.license.lower()  # as Hugging Face writes it
    for key in ("name", "title", "task", "version"):
        assert facts[key] == getattr(model, key), key
        assert facts[key]
    with safe_open(model.path, framework="pt") as file:
        assert {file.get_slice(name).get_dtype() for name in file.keys()} == {"F16"}  # noqa: SIM118
    assert facts["iterations"] > 0
    assert facts["data"]
    for heading in ("Intended use", "Data and licenses", "Recipe", "Limitations"):
        assert f"\n## {heading}\n" in text


@each
def test_a_card_names_its_recipe_and_no_absolute_path(model):
    facts, text = read_card(model.card)
    options = yaml.safe_load((ROOT / facts["option_file"]).read_text(encoding="utf-8"))
    assert facts["seed"] == options["manual_seed"]
    assert facts["option_file_sha256"] == sha256(ROOT / facts["option_file"])
    if start := facts.get("starts_from"):
        assert start["sha256"] == sha256(ROOT / start["file"])
    absolute = re.findall(r"(?<![\w:/.])/(?!path/to)\w+/\S*", yaml.safe_dump(facts) + text)
    assert not absolute


@each
def test_the_recipe_repeats(model):
    if "KBNET_DATA" not in os.environ:
        pytest.skip("KBNET_DATA names no folder with the training data")
    facts, _ = read_card(model.card)
    known = {i: v for i, v in (facts.get("losses") or {}).items() if i <= 20}
    if not known:
        pytest.skip(f"the card of {model.name} has no losses yet: tools/check_recipe.py --record")
    differences = recipe.compare(known, recipe.train(ROOT / facts["option_file"], 20))
    assert differences
    assert max(differences.values()) <= recipe.LIMIT


@each
def test_a_shipped_model_restores_by_its_name(model):
    shape = (40, 48, 3) if model.in_channels == 3 else (40, 48)
    clean = data.astronaut()[100:140, 100:148] if model.in_channels == 3 else data.camera()[100:140, 100:148]
    noisy = np.clip(clean + np.random.default_rng(0).normal(0, 25, shape), 0, 255).astype(np.uint8)
    restorer = Restorer.from_pretrained(model.name, device="cpu")
    restored = restorer(noisy)
    assert restored.shape == noisy.shape
    assert np.square(restored - clean.astype(float)).mean() < np.square(noisy - clean.astype(float)).mean()


@each
def test_a_shipped_model_leaves_clean_pictures_alone(model):
    pictures = (data.chelsea, data.coffee) if model.in_channels == 3 else (data.camera, data.page)
    restorer = Restorer.from_pretrained(model.name, device="cpu")
    for picture in pictures:
        clean = picture()[:192, :256]
        error = np.square(restorer(clean).astype(float) - clean).mean()
        assert 10 * np.log10(255**2 / error) >= 40, picture.__name__


def test_own_models_are_listed_after_the_shipped_ones_with_their_metadata(own, tiny_s):
    network = tiny_s(img_channel=1)
    added = zoo.register_model(
        network, "cells", title="my cells", task="denoise", window=48, range="percentile", card="# Hi"
    )
    assert [m.name for m in zoo.list_models()] == [m.name for m in SHIPPED] + ["cells"]
    assert zoo.get_model("cells") == zoo.list_models()[-1] == added
    assert (added.title, added.task, added.in_channels) == ("my cells", "denoise", 1)
    assert added.card.read_text() == "# Hi"
    assert not added.shipped
    restorer = Restorer.from_pretrained("cells", device="cpu")
    assert restorer.settings.range == "percentile"
    noisy = np.random.default_rng(0).random((60, 70), np.float32)
    alike = Restorer(network, device="cpu", window=48, range="percentile")(noisy)
    assert np.array_equal(restorer(noisy), alike)
    other = Restorer.from_pretrained("cells", device="cpu", window=8, range=(0, 1))
    assert other.settings.range == (0, 1)
    assert not np.array_equal(other(noisy), alike)


def test_a_model_of_that_name_is_kept_unless_overwritten(own, tiny_s):
    first, second = tiny_s(), tiny_s(width=16)
    own.mkdir()
    save_network(first, own / "a.pth")
    with pytest.raises(FileExistsError, match=r"a.pth: a model of this name exists already"):
        zoo.register_model(second, "a")
    assert [p.name for p in own.iterdir()] == ["a.pth"]
    zoo.register_model(second, "a", overwrite=True)
    assert [p.name for p in own.iterdir()] == ["a.safetensors"]
    assert zoo.get_model("a").load().intro.out_channels == 16
    with pytest.raises(FileExistsError, match="ships with kbnet"):
        zoo.register_model(first, zoo.DEFAULT, overwrite=True)


@pytest.mark.parametrize("name", ["", "../a", "a/b", ".a", "a b"])
def test_a_name_stays_in_the_folder(tiny_s, own, name):
    with pytest.raises(ValueError, match="cannot name a model"):
        zoo.register_model(tiny_s(), name)
    assert not own.exists()


def test_a_failed_addition_leaves_the_old_model(own, tiny_s, monkeypatch):
    zoo.register_model(tiny_s(), "a")
    before = (own / "a.safetensors").read_bytes()

    def half(tensors, path, metadata):
        path.write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr("kbnet_plugin.zoo.weights.save_file", half)
    with pytest.raises(OSError, match="disk full"):
        zoo.register_model(tiny_s(width=16), "a", overwrite=True)
    assert [p.name for p in own.iterdir()] == ["a.safetensors"]
    assert (own / "a.safetensors").read_bytes() == before


def test_a_failed_addition_leaves_the_old_card(own, tiny_s, monkeypatch):
    zoo.register_model(tiny_s(), "a", card="# old")

    def fail(*_arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("kbnet_plugin.zoo.weights.save_file", fail)
    with pytest.raises(OSError, match="No space left") as caught:
        zoo.register_model(tiny_s(width=16), "a", overwrite=True, card="# new")
    assert one_line(caught.value) == f"{own / 'a.safetensors'}: no space left on device"
    assert (own / "a.md").read_text() == "# old"
    assert sorted(p.name for p in own.iterdir()) == ["a.md", "a.safetensors"]


def test_a_card_may_name_a_file_that_is_not_text(own, tiny_s):
    assert zoo.register_model(tiny_s(), "a", card="caf\udce9.tif").card.read_text() == r"caf\udce9.tif"


def test_broken_files_are_listed_with_their_problem(own, tiny_s):
    own.mkdir()
    (own / "junk.safetensors").write_bytes(b"junk")
    (own / "junk2.pth").write_bytes(b"junk")
    zoo.register_model(tiny_s(), "good")
    whole = (own / "good.safetensors").read_bytes()
    (own / "cut.safetensors").write_bytes(whole[:-100])
    state = {n: t for n, t in tiny_s().state_dict().items() if n != "ending.bias"}
    torch.save({"params": state}, own / "part.pth")
    save_network(tiny_s(), own / "denoise-color.pth")
    (own / "notes.txt").touch()
    (own / ".hidden.pth").touch()
    found = {m.path.name: m.problem for m in zoo.list_models() if not m.shipped}
    expected = ["cut.safetensors", "denoise-color.pth", "good.safetensors", "junk.safetensors", "junk2.pth"]
    assert sorted(found) == [*expected, "part.pth"]
    assert found["good.safetensors"] == ""
    assert "truncated" in found["cut.safetensors"]
    assert "its name is taken by" in found["denoise-color.pth"]
    assert "1 missing (ending.bias)" in found["part.pth"]
    assert all("\n" not in problem for problem in found.values())
    assert zoo.get_model("denoise-color").shipped
    with pytest.raises(ValueError, match=r"cut.safetensors: truncated"):
        zoo.get_model("cut")


def test_a_changed_file_is_read_again(own, tiny_s):
    zoo.register_model(tiny_s(), "a", title="first")
    assert zoo.get_model("a").title == "first"
    zoo.register_model(tiny_s(), "a", title="second", overwrite=True)
    assert zoo.get_model("a").title == "second"


def test_invalid_metadata_in_a_file_is_ignored(own, tiny_s):
    own.mkdir()
    save_network(tiny_s(), own / "a.safetensors", {"window": "-3", "range": "9,1", "title": "odd"})
    model = zoo.get_model("a")
    assert (model.window, model.range, model.title) == (None, None, "odd")


def test_files_are_found_by_their_paths(tmp_path, checkpoint, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert zoo.get_model(checkpoint).path == checkpoint
    assert zoo.get_model("tiny.pth").in_channels == 3
    assert isinstance(zoo.get_model("tiny.pth").load(), KBNet_s)


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        ("denoise-colour", ValueError, "no model or file is called 'denoise-colour'; did you mean"),
        (
            "xyz",
            ValueError,
            "no model or file is called 'xyz'; known: denoise-color, denoise-color-fast, denoise-gray",
        ),
        ("xyz.pth", FileNotFoundError, "xyz.pth: no such file"),
        ("a/xyz", FileNotFoundError, "a/xyz: no such file"),
        (".", FileNotFoundError, ".: a folder, not a file"),
        ("", ValueError, "the name of the model is empty"),
        ("x" * 300, OSError, "[Errno 36] File name too long"),
        ("a\0b.pth", FileNotFoundError, "a\0b.pth: no such file"),
    ],
)
def test_a_missing_model_is_named_in_one_line(name, error, message):
    with pytest.raises(error) as caught:
        zoo.get_model(name)
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


def test_the_folder_follows_the_environment(monkeypatch, tmp_path):
    monkeypatch.delenv(zoo.FOLDER_VARIABLE)
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    assert zoo.folder() == tmp_path / "kbnet" / "models"
    monkeypatch.delenv("XDG_DATA_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert zoo.folder() == tmp_path / ".local" / "share" / "kbnet" / "models"
