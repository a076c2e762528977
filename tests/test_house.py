"""The house: who imports whom, what stays light, and the tree that newcomers read."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LINT = shutil.which("lint-imports", path=str(Path(sys.executable).parent))


def python(code: str, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
        env=os.environ | environment,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def lint(folder: Path) -> subprocess.CompletedProcess[str]:
    if LINT is None:
        pytest.skip("import-linter is not installed")
    return subprocess.run(
        [LINT, ".importlinter", "--no-cache"],
        capture_output=True,
        text=True,
        check=False,
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(folder)},
    )


def test_each_floor_imports_only_what_stands_below_it():
    done = lint(ROOT)
    assert done.returncode == 0, done.stdout


def test_a_reader_that_imports_torch_is_found(tmp_path):
    for package in ("kbnet_plugin", "basicsr_ext", "napari_kbnet", "benchmarks", "tools"):
        for path in (ROOT / package).rglob("*.py"):
            copy = tmp_path / path.relative_to(ROOT)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, copy)
    shutil.copy(ROOT / ".importlinter", tmp_path)
    with (tmp_path / "kbnet_plugin" / "io" / "images.py").open("a", encoding="utf-8") as reader:
        reader.write("\nimport torch\n\nfrom ..inference import restorer\n")
    said = lint(tmp_path).stdout
    assert "Contracts: 2 kept, 2 broken" in said
    assert "kbnet_plugin.io.images -> torch" in said
    assert "kbnet_plugin.io is not allowed to import kbnet_plugin.inference" in said


@pytest.mark.parametrize(
    "code",
    [
        "import kbnet_plugin",
        "import kbnet_plugin.arrays.noise, kbnet_plugin.arrays.tiling, kbnet_plugin.arrays.degradations",
        "import kbnet_plugin.io, kbnet_plugin.inference.pairing",
        "from kbnet_plugin import zoo; zoo.list_models(); zoo.get_model(zoo.DEFAULT).cost()",
        "import kbnet_plugin.inference.settings, kbnet_plugin.inference.choose, kbnet_plugin.selfsup.config",
        "from kbnet_plugin.cli import main; main(['--version'])",
        "from kbnet_plugin.cli import main; main(['--help'])",
        "from kbnet_plugin.cli import main; main(['restore', '--help'])",
        "from kbnet_plugin.cli import main; main(['fit', '--help'])",
        "from kbnet_plugin.cli import main; main(['models'])",
    ],
)
def test_what_needs_no_network_imports_no_torch(code, tmp_path):
    said = python(f"import sys\n{code}\nprint('torch' in sys.modules)", KBNET_MODELS=str(tmp_path))
    assert said.splitlines()[-1] == "False"


def test_the_network_does_import_torch():
    assert python("import sys, kbnet_plugin\nkbnet_plugin.KBNet_s\nprint('torch' in sys.modules)") == "True\n"


def test_the_tree_for_newcomers_is_that_of_the_code():
    pytest.importorskip("grimp")
    done = subprocess.run(
        [sys.executable, "tools/house.py", "--check"], capture_output=True, text=True, check=False, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr
