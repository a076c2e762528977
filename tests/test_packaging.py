"""The distribution: what wheel and sdist contain, and what an installed `basicsr` command finds."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ELSEWHERE = (
    ".git",
    ".venv",
    ".*_cache",
    "build",
    "dist",
    "*.egg-info",
    "experiments",
    "__pycache__",
    "*.so",
    "*.safetensors",
)


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """Names in the sdist and in the wheel of a copy of the checkout, without models, and the wheel's own."""
    folder = tmp_path_factory.mktemp("packaging")
    shutil.copytree(ROOT, folder / "kbnet", ignore=shutil.ignore_patterns(*ELSEWHERE))
    compiler = folder / "cc"
    nothing = 'for a; do [ "$last" = -o ] && : > "$a"; last=$a; done'
    compiler.write_text(f"#!/bin/sh\n{nothing}\n", encoding="utf-8")
    compiler.chmod(0o755)
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "setup.py", "-q", "sdist", "bdist_wheel", "--dist-dir", "dist"],
        cwd=folder / "kbnet",
        env=os.environ | {"CC": str(compiler)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    (wheel,) = (folder / "kbnet" / "dist").glob("*.whl")
    (sdist,) = (folder / "kbnet" / "dist").glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        source = {name.partition("/")[2] for name in archive.getnames()}
    return source, set(zipfile.ZipFile(wheel).namelist()), wheel.name


@pytest.mark.skipif(os.name == "nt", reason="the compiler is a shell script")
def test_one_wheel_serves_every_python_of_a_platform_and_has_the_option_files(built):
    _, names, wheel = built
    assert wheel.split("-")[2:4] == ["py3", "none"]
    assert "any" not in wheel.split("-")[4]
    assert any(name.startswith("kbnet_plugin/ops/_kba_native.") for name in names)
    assert "kbnet_plugin/zoo/data/LICENSE" in names
    options = {name for name in names if name.endswith(".yml")}
    assert options == {f"basicsr_ext/option_files/{path.name}" for path in (ROOT / "options").glob("*.yml")}
    assert not any(name.startswith(("tests/", "options/", "build/")) for name in names)


@pytest.mark.skipif(os.name == "nt", reason="the compiler is a shell script")
def test_the_sdist_has_all_that_the_suite_reads(built):
    source, *_ = built
    parts = ("tests", "options", "tools", "benchmarks", "docs", "basicsr_ext", "kbnet_plugin", "napari_kbnet")
    wanted = {path for part in parts for path in (ROOT / part).rglob("*") if path.is_file()}
    single = ("CHANGELOG.md", "CITATION.cff", "Makefile", "constraints.txt", "ruff.toml", ".importlinter")
    wanted |= {ROOT / name for name in single}
    left = ("__pycache__", ".pyc", ".so", ".safetensors", "_kba_native.txt")
    names = {str(path.relative_to(ROOT).as_posix()) for path in wanted if not str(path).endswith(left)}
    assert not {name for name in names if "__pycache__" not in name} - source


def test_a_shipped_option_file_is_found_by_name(tmp_path, monkeypatch):
    options = pytest.importorskip("basicsr_ext.options")
    monkeypatch.chdir(tmp_path)
    assert Path(options.find_options("kbnet_sidd")).samefile(ROOT / "options" / "kbnet_sidd.yml")
    with pytest.raises(options.BadInput, match="did you mean 'kbnet_sidd'"):
        options.find_options("kbnet_sid")
    for path in ("kbnet_sidd.yml", "folder/kbnet_sidd"):
        assert options.find_options(path) == path
    (tmp_path / "kbnet_sidd").touch()
    assert options.find_options("kbnet_sidd") == "kbnet_sidd"


def test_the_basicsr_command_says_what_it_needs(monkeypatch, capsys):
    from basicsr_ext.__main__ import main

    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "basicsr" else find(name))
    assert main(["train", "-opt", "x.yml"]) == 2
    assert capsys.readouterr().err == "basicsr: BasicSR is not installed: pip install 'kbnet[train]'\n"
