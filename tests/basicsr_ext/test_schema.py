"""The schema of option files, for people and editors."""

from __future__ import annotations

import inspect
from pathlib import Path

import pytest
import yaml

from basicsr_ext import schema
from basicsr_ext.__main__ import main
from basicsr_ext.schema import BY_TYPE, check, json_text, notes
from kbnet_plugin import KBNet_l, KBNet_s
from kbnet_plugin.cli import main as kbnet

ROOT = Path(__file__).parents[2]


def test_the_shipped_json_schema_is_current():
    shipped = (ROOT / "basicsr_ext" / "options.schema.json").read_text()
    assert shipped == json_text(), "run: basicsr options --json > basicsr_ext/options.schema.json"


def test_editors_find_the_json_schema():
    for path in (ROOT / "options").glob("*.yml"):
        line = path.read_text().splitlines()[0]
        assert line.startswith("# yaml-language-server: $schema=")
        assert (path.parent / line.split("=", 1)[1]).resolve().is_file()


def test_the_json_schema_accepts_our_files_and_finds_mistakes(options):
    jsonschema = pytest.importorskip("jsonschema")
    checker = jsonschema.Draft7Validator(schema.json_schema())
    for path in (ROOT / "options").glob("*.yml"):
        content = yaml.load(path.read_text(), Loader=schema_loader())
        assert not list(checker.iter_errors(content)), path
    assert checker.is_valid(options)
    for section in (options, options["train"], options["network_g"], options["datasets"]["train"]):
        section["mistake"] = 1
        assert not checker.is_valid(options)
        del section["mistake"]


def schema_loader():
    from basicsr_ext import options

    return options._Loader


@pytest.mark.parametrize("command", [main, kbnet])
def test_the_command_lists_every_key_with_its_default(command, capsys):
    assert command(["options"]) == 0
    out = capsys.readouterr().out
    for cls in (schema.OptionFile, schema.Train, schema.Val, schema.Logger, schema.Gaussian):
        for key in cls.model_fields:
            assert f"  {key}:" in out
    assert 'precision:                "fp32"' in out


def test_every_key_has_a_description():
    for cls in (schema.OptionFile, schema.Train, schema.Val, schema.Logger, schema.Path, schema.Mixing):
        assert all(field.description for field in cls.model_fields.values())


@pytest.mark.parametrize(("name", "network"), [("KBNet_s", KBNet_s), ("KBNet_l", KBNet_l)])
def test_the_networks_keys_and_defaults_are_those_of_the_classes(name, network):
    fields = {k: f.default for k, f in BY_TYPE["network"][name].model_fields.items() if k != "type"}
    parameters = inspect.signature(network).parameters
    assert list(fields) == list(parameters)
    for key, default in fields.items():
        expected = parameters[key].default
        assert default == (list(expected) if isinstance(expected, tuple) else expected)


def test_checking_twice_changes_nothing(options):
    once = check(options, "file")
    assert check(once, "file") == once


def test_classes_of_other_packages_keep_their_keys(options):
    options["network_g"] = {"type": "SomebodysNet", "secret": [1, {"a": 2}]}
    options["network_d"] = {"type": "Critic", "depth": 3}
    options["model_type"] = "SomebodysModel"
    options["degradation"] = {"kernel": 7}
    options["train"]["gan_opt"] = {"type": "GANLoss"}
    options["datasets"]["train"] = {"type": "SomebodysDataset", "jpeg_range": [30, 90]}
    options["path"] = {"pretrain_network_d": "d.pth", "strict_load_d": False}
    checked = check(options, "file")
    assert checked["network_g"] == options["network_g"]
    assert checked["network_d"] == options["network_d"]
    assert checked["degradation"] == {"kernel": 7}
    assert checked["train"]["gan_opt"] == {"type": "GANLoss"}
    assert checked["datasets"]["train"] == options["datasets"]["train"]
    assert checked["path"]["pretrain_network_d"] == "d.pth"


def test_settings_without_effect_are_listed(options):
    options["val"]["max_minibatch"] = 8
    options["datasets"]["train"] |= {"prefetch_mode": "cuda", "dataset_enlarge_ratio": 5}
    options["datasets"]["val"]["io_backend"] = {"type": "petrel"}
    options["datasets"]["blind"] = {
        "type": "Dataset_GaussianDenoising",
        "sigma_type": "random",
        "sigma_range": 50,
    }
    options["dist_params"] = {"backend": "nccl", "port": 29500}
    said = "\n".join(notes(check(options, "file")))
    for word in ("max_minibatch", "prefetch_mode", "enlarge_ratio", "petrel", "0..50", "dist_params"):
        assert word in said
