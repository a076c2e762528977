"""The documentation: its commands parse, its links lead somewhere, its code and notebooks run."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tools import docs_check, docs_pages


def name(path):
    return str(path.relative_to(docs_check.ROOT))


PAGES = pytest.mark.parametrize("page", docs_check.pages(), ids=name)


@PAGES
def test_commands_parse(page):
    assert docs_check.check_commands(page) == []


@PAGES
def test_links_and_pictures_exist(page):
    assert docs_check.check_links(page) == []


@pytest.mark.parametrize(
    "page",
    [p for p in docs_check.pages() if any(b.language == "python" for b in docs_check.blocks(p))],
    ids=name,
)
def test_python_code_runs(page, tmp_path):
    assert docs_check.run_python(page, tmp_path) == []


@pytest.fixture(scope="module")
def kernel():
    """One process for all notebooks: importing torch takes longer than they do."""
    pytest.importorskip("nbclient", reason="needs nbclient")
    pytest.importorskip("ipykernel", reason="needs ipykernel")
    from jupyter_client import KernelManager

    manager = KernelManager(kernel_name="python3")
    yield manager
    if manager.has_kernel:
        manager.shutdown_kernel(now=True)


@pytest.mark.parametrize("path", docs_check.notebooks(), ids=name)
def test_notebooks_run_and_are_stored_without_outputs(path, tmp_path, kernel):
    assert docs_check.run_notebook(path, tmp_path, kernel) == []


def test_the_site_builds_without_a_warning(tmp_path):
    pytest.importorskip("furo", reason="needs the extra docs")
    # Notebooks have a test of their own.
    options = ["-q", "-W", "--keep-going", "-n", "-D", "nb_execution_mode=off", "-d", str(tmp_path / "trees")]
    done = subprocess.run(
        [sys.executable, "-m", "sphinx", *options, "docs", str(tmp_path / "site")],
        capture_output=True,
        text=True,
        check=False,
        cwd=docs_check.ROOT,
    )
    assert done.returncode == 0, done.stderr
    page = (tmp_path / "site" / "reference" / "restoring.html").read_text(encoding="utf-8")
    assert "restore_into" in page


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("kbnet restore in.png -o out.png --model x.pth", ""),
        ("kbnet restore in.png", "required"),
        ("kbnet restore in.png -o out.png --modell x.pth", "--modell"),
        ("kbnet denoise in.png", "denoise"),
        ("basicsr train -opt options/none.yml", "options/none.yml"),
        ("torchrun --no-python basicsr train -opt options/kbnet_sidd.yml --lancher x", "lancher"),
        ("KBNET_DATA=data python benchmarks/run_all.py --list --nothing", "--nothing"),
        ("make tea", "tea"),
        ('pip install "kbnet[coffee]"', "coffee"),
        ("kbnet models  # all of them", ""),
    ],
)  # fmt: skip
def test_a_wrong_command_is_found(text, problem, tmp_path, monkeypatch):
    page = tmp_path / "page.md"
    page.write_text(f"```sh\n{text}\n```\n")
    monkeypatch.setattr(docs_check, "_place", lambda page, line: str(line))
    found = docs_check.check_commands(page)
    assert (found == []) if not problem else (len(found) == 1 and problem in found[0].partition(text)[2])


def test_wrong_links_and_failing_code_are_found(tmp_path, monkeypatch):
    page = tmp_path / "page.md"
    page.write_text(
        "[here](page.md) [gone](gone.md) ![p](p.png)\n\n```python\nx = 1\n```\n\n"
        "<!-- skip: needs a cluster -->\n```python\n1 / 0\n```\n\n```python\nassert x == 2, x\n```\n"
    )
    monkeypatch.setattr(docs_check, "_place", lambda page, line: str(line))
    assert docs_check.check_links(page) == ["1: gone.md does not exist", "1: p.png does not exist"]
    assert docs_check.run_python(page, tmp_path) == ["13: AssertionError: 1"]


def test_the_reference_names_every_command_and_key():
    commands, options = docs_pages.commands(), docs_pages.options()
    for command in ("kbnet restore", "kbnet fit", "kbnet export", "basicsr train", "basicsr prepare"):
        assert f"## {command}\n" in commands
    assert "`--dry-run`" in commands
    for key in ("total_iter", "pretrain_network_g", "sigma_range", "ffn_scale", "mixup_beta", "val_freq"):
        assert f"| `{key}` |" in options


def test_the_reference_has_a_card_for_every_shipped_model():
    from kbnet_plugin import zoo

    cards = docs_pages.cards()
    assert all(f"## {model.name}\n" in cards for model in zoo.list_models() if model.shipped)
