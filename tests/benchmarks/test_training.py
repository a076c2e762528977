"""The comparison of training loops gives both the same task."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from basicsr_ext.options import parse_yaml
from basicsr_ext.schema import check

PATH = Path(__file__).parents[2] / "benchmarks" / "training.py"


@pytest.fixture(scope="module")
def training():
    spec = importlib.util.spec_from_file_location("training", PATH)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_cases_differ_in_loop_and_precision_alone(training):
    checked = []
    for loop, model, enlarge, more in training.CASES.values():
        text = training.OPTIONS.format(name=loop, model=model, gpus=0, enlarge=enlarge, steps=20, more=more)
        checked.append(check(parse_yaml(text), "options"))
    for options in checked:
        del options["name"], options["model_type"], options["train"]["precision"]
        del options["datasets"]["train"]["dataset_enlarge_ratio"]
    assert all(options == checked[0] for options in checked)
