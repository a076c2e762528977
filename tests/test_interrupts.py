"""An interrupt at any moment of a command: one line or silence, no torn file, and afterwards the same pixels.

The suite tries a few moments. ``python tests/test_interrupts.py 40 stack models`` tries 40 of each of these
commands, by default of all, and prints a table.
"""

from __future__ import annotations

import contextlib
import functools
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import textwrap
import time
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple
from unittest.mock import Mock

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image

import kbnet_plugin
from kbnet_plugin import KBNet_s, cli, save_network
from kbnet_plugin.selfsup.config import FitConfig

ROOT = str(Path(kbnet_plugin.__file__).parents[1])
# As the console script, after telling that Python itself is up: what it prints before is not ours.
SCRIPT = """\
import os, sys
os.write(int(sys.argv.pop()), b"!")
from kbnet_plugin.cli import main
sys.exit(main())
"""
RESTORE = "--model tiny.pth --device cpu"
COMMANDS = {
    "picture": f"restore a.png -o out.png {RESTORE}",
    "stack": f"restore a.tif -o out.zarr {RESTORE} --tile 48 --halo 8 --window 16",
    "pth": "export tiny.pth -o out.pth",
    "safetensors": "export tiny.pth -o out.safetensors",
    "inspect": "inspect a.png",
    "info": "info tiny.pth",
    "models": "models",
    "options": "options",
    "help": "fit --help",
    "version": "--version",
}
GROWING = re.compile(r"\.?out\.zarr[^/]+/")  # the folder of an unfinished stack
SIGNALS = ([signal.SIGINT], [signal.SIGINT], [signal.SIGINT] * 2, [signal.SIGTERM])


class Ended(NamedTuple):
    """How a process ended: its exit status, what it wrote to standard error, seconds since Python was up."""

    status: int
    said: str
    seconds: float


def prepare(folder):
    """Write the inputs of the commands."""
    folder.mkdir(exist_ok=True)
    generator = np.random.default_rng(0)
    torch.manual_seed(0)
    network = KBNet_s(width=8, middle_blk_num=1, enc_blk_nums=[1, 1], dec_blk_nums=[1, 1])
    save_network(network, folder / "tiny.pth")
    Image.fromarray(generator.integers(0, 255, (40, 50, 3), np.uint8)).save(folder / "a.png")
    stack = generator.integers(0, 65535, (2, 64, 64), np.uint16)
    tifffile.imwrite(folder / "a.tif", stack, metadata={"axes": "ZYX"}, photometric="minisblack")


def heed():
    """Let a new process heed signals that the caller of this one, such as a shell's &, ignores."""
    for number in {signal.SIGINT, signal.SIGTERM}:
        signal.signal(number, signal.SIG_DFL)


def start(folder, arguments, after=None, signals=()):
    """Run a command, and send it the signals some seconds after Python is up."""
    reader, writer = os.pipe()
    environment = os.environ | {"PYTHONPATH": ROOT, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        [sys.executable, "-c", SCRIPT, *arguments.split(), str(writer)],
        cwd=folder,
        env=environment,
        pass_fds=[writer],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        preexec_fn=heed,
    ) as process:
        os.close(writer)
        os.read(reader, 1)
        os.close(reader)
        began = time.perf_counter()
        if after is not None:
            time.sleep(after)
            for number in signals:
                process.send_signal(number)
        said = process.communicate(timeout=120)[1].decode()
    said = re.sub(r"[^\n]*\r", "", said)  # bars
    return Ended(process.returncode, said, time.perf_counter() - began)


def content(folder):
    """What every file holds, by name."""
    return {str(p.relative_to(folder)): _bytes(p) for p in folder.rglob("*") if p.is_file()}


def _bytes(path):
    if path.suffix != ".pth":
        return path.read_bytes()
    tensors = torch.load(path, weights_only=True)["params"]  # in an archive that has a random name
    return b"".join(tensor.numpy().tobytes() for tensor in tensors.values())


def finish(folder, arguments):
    """Run a command in this process."""
    with contextlib.chdir(folder), contextlib.redirect_stdout(None):
        assert cli.main(arguments.split()) == 0


def check(folder, arguments, expected, after, signals):
    """Interrupt a command, check what it leaves, run it again, and compare; returns how it ended."""
    before = content(folder)
    ended = start(folder, arguments, after, signals)
    where = f"{arguments!r}, {signals} after {after:.4f} s: {ended}"
    if ended.status == -signals[0]:
        assert ", in main" not in ended.said, where  # its import was not complete
    else:
        assert ended.status in (0, 128 + signals[0]), where
        assert ended.said == "" or re.fullmatch("kbnet: interrupted.*\n", ended.said), where
    left = {name: held for name, held in content(folder).items() if not GROWING.match(name)}
    assert left in (before, expected), f"{where}: left {sorted(left)}"
    if ended.status == 0:
        assert left == expected, where
    if left != expected:
        finish(folder, f"{arguments} --resume" if arguments.startswith("restore") else arguments)
    assert content(folder) == expected, where
    return ended


def moments(seconds, count, seed):
    """Random moments of a command's life, each with the signals to send."""
    generator = random.Random(seed)
    return [(generator.uniform(0, seconds), generator.choice(SIGNALS)) for _ in range(count)]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Return what the folder of a command holds after it, by the command's name."""

    @functools.cache
    def run(name):
        folder = tmp_path_factory.mktemp(name)
        prepare(folder)
        finish(folder, COMMANDS[name])
        return content(folder)

    return run


@pytest.mark.parametrize("part", range(3))
@pytest.mark.parametrize(("name", "seconds"), [("stack", 4), ("pth", 3), ("models", 0.3)])
def test_an_interrupt_at_any_moment_leaves_nothing_torn(whole, tmp_path, name, seconds, part):
    prepare(tmp_path)
    ((after, signals),) = moments(seconds / 3, 1, f"{name} {part}")
    check(tmp_path, COMMANDS[name], whole(name), after + part * seconds / 3, signals)


def process(code, *, folder=None):
    """Run a command of Python's, as the process of `kbnet`."""
    program = (
        "import atexit, gc, os, signal, sys, time, weakref\n"
        "from pathlib import Path\n"
        "from kbnet_plugin import files, process\n"
        "def interrupt(number=signal.SIGINT): os.kill(os.getpid(), number)\n"
        f"def command():\n{textwrap.indent(textwrap.dedent(code), '    ')}\n    return 0\n"
        "sys.exit(process.run('kbnet', command))\n"
    )
    return subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        check=False,
        cwd=folder,
        env=os.environ | {"PYTHONPATH": ROOT},
        timeout=60,
        preexec_fn=heed,
    )


@pytest.mark.parametrize(
    "code",
    [
        "interrupt()",
        "interrupt(); interrupt()",
        "try:\n    interrupt()\nexcept BaseException:\n    pass\ntime.sleep(60)",
        "with process.unwinding():\n    interrupt()",
        "with process.unwinding():\n"
        "    try:\n        interrupt()\n    except BaseException:\n        raise RuntimeError('failed')",
        "process._PATIENCE = 0.1\nwith process.unwinding():\n"
        "    try:\n        interrupt()\n    except BaseException:\n        time.sleep(60)",
        "class A: pass\na = A()\nreference = weakref.ref(a, lambda _: interrupt())\n"
        "with process.unwinding():\n    del a\ntime.sleep(60)",
    ],
    ids=["plain", "twice", "swallowed", "raised", "converted", "swallowed while unwinding", "in a callback"],
)
def test_an_interrupt_is_one_line_whatever_libraries_make_of_it(code):
    ended = process(code)
    assert (ended.returncode, ended.stderr) == (130, "kbnet: interrupted\n")


def test_termination_has_a_status_of_its_own():
    ended = process("interrupt(signal.SIGTERM)")
    assert (ended.returncode, ended.stderr) == (143, "kbnet: interrupted\n")


def test_a_signal_that_the_caller_ignores_stays_ignored():
    script = ["sh", "-c", "trap '' HUP; exec \"$@\"", "sh", sys.executable, "-c"]
    code = "import os, signal; from kbnet_plugin import process\n"
    code += "process.run('kbnet', lambda: os.kill(os.getpid(), signal.SIGHUP) or 0)"
    assert subprocess.run([*script, code], env=os.environ | {"PYTHONPATH": ROOT}, check=False).returncode == 0


@pytest.mark.parametrize("where", ["atexit.register(interrupt)", "sys.modules['x'] = Late()"])
def test_an_interrupt_after_the_end_changes_nothing(where):
    code = f"""
        class Late:
            def __del__(self, kill=os.kill, process=os.getpid()):
                kill(process, 2)
        {where}
    """
    ended = process(code)
    assert (ended.returncode, ended.stderr) == (0, "")


def test_unfinished_files_vanish_but_not_by_a_forked_process(tmp_path):
    code = """
        (Path("old.txt")).write_text("old")
        with files.atomic_path(Path("old.txt")) as temporary:
            temporary.write_text("new")
            if (child := os.fork()) == 0:
                interrupt()
            print(os.waitpid(child, 0)[1] >> 8, temporary.exists(), flush=True)
            interrupt()
    """
    ended = process(code, folder=tmp_path)
    assert (ended.returncode, ended.stdout, ended.stderr) == (130, "130 True\n", "kbnet: interrupted\n")
    assert content(tmp_path) == {"old.txt": b"old"}


def test_ctrl_c_may_stop_what_then_ends_by_itself():
    code = """
        with process.stopping(lambda: print("stopping", flush=True)):
            interrupt()
            print("saving", flush=True)
            interrupt()
    """
    ended = process(code)
    assert (ended.returncode, ended.stdout) == (130, "stopping\nsaving\n")


@pytest.mark.parametrize(("done", "status"), [(0, 130), (5, 0)])
def test_ctrl_c_stops_a_training_and_saves_it(monkeypatch, capsys, done, status):
    model = SimpleNamespace(path="mine.safetensors", name="mine")

    class Fit:
        summary, verdict, iteration, config = "", "", done, FitConfig(source="a", name="mine", method="n2n")
        stop, save = Mock(), Mock(return_value=model)

        def __init__(self, config, overwrite):
            pass

        def run(self):
            signal.raise_signal(signal.SIGINT)
            yield SimpleNamespace(iteration=done, total=9, loss=1.0, gain=None)

    monkeypatch.setattr("kbnet_plugin.selfsup.fit.Fit", Fit)
    before = signal.getsignal(signal.SIGINT)
    assert cli.main(["fit", "a", "--name", "mine"]) == status
    assert Fit.stop.call_count == 1
    assert Fit.save.call_count == (1 if done else 0)
    assert ("stopped" in capsys.readouterr().out) == bool(done)
    assert signal.getsignal(signal.SIGINT) is before


def test_the_package_by_itself_imports_next_to_nothing():
    """Before `process.run`, an interrupt would print a traceback."""
    code = f"import sys; sys.path.append({ROOT!r}); before = set(sys.modules); import kbnet_plugin\n"
    code += "print(sorted(set(sys.modules) - before))"
    done = subprocess.run([sys.executable, "-S", "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "['__future__', 'kbnet_plugin']\n"


def test_what_was_printed_before_an_interrupt_is_not_lost():
    assert process("print('a.png restored'); interrupt()").stdout == "a.png restored\n"


def main():
    """Try random moments of the commands and print a table; returns the exit status."""
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 40
    print(f"{'command':12} {'seconds':>7} {'moments':>7}  exit statuses; lines on standard error; faults")
    faults = 0
    for name in sys.argv[2:] or COMMANDS:
        arguments = COMMANDS[name]
        with tempfile.TemporaryDirectory() as top:
            prepare(inputs := Path(top, "whole"))
            status, said, seconds = start(inputs, arguments)
            assert (status, said) == (0, ""), said
            expected, statuses, lines, failed = content(inputs), Counter(), 0, []
            for after, signals in moments(seconds, count, name):
                prepare(folder := Path(tempfile.mkdtemp(dir=top)))
                try:
                    ended = check(folder, arguments, expected, after, signals)
                except AssertionError as error:
                    failed.append(str(error))
                    continue
                statuses[ended.status] += 1
                lines += ended.said.count("\n")
        shown = ", ".join(f"{number} x {status}" for status, number in sorted(statuses.items()))
        print(f"{name:12} {seconds:7.2f} {count:7}  {shown}; {lines}; {len(failed)}", *failed, sep="\n")
        faults += len(failed)
    return int(faults > 0)


if __name__ == "__main__":
    sys.exit(main())
