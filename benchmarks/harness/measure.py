"""Time and memory for fair comparison: timings interleaved in one run, memory in a fresh process."""

from __future__ import annotations

import datetime
import json
import os
import platform
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from kbnet_plugin.files import atomic_path

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Timing:
    """Seconds of a call: median and quartiles over `calls` calls."""

    median: float
    low: float
    high: float
    calls: int

    def __str__(self) -> str:
        scale, unit = (1e3, "ms") if self.median < 1 else (1, "s")
        return f"{self.median * scale:.3g} {unit} ({self.low * scale:.3g}-{self.high * scale:.3g})"


def interleave(
    candidates: Mapping[str, Callable[[], Any]], repeats: int, device: str = "cpu", warm_up: int = 1
) -> dict[str, Timing]:
    """Time all candidates in rounds, so that disturbances affect them alike."""
    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    for turn in range(warm_up + repeats):
        for name, call in candidates.items():
            _synchronize(device)
            start = time.perf_counter()
            call()
            _synchronize(device)
            if turn >= warm_up:
                seconds[name].append(time.perf_counter() - start)
            show(f"round {turn + 1}/{warm_up + repeats}: {name}")
    show("")
    return {name: summary(s) for name, s in seconds.items()}


def summary(seconds: list[float]) -> Timing:
    """Return the median and the quartiles of the seconds that calls took."""
    low, _, high = statistics.quantiles(seconds, n=4) if len(seconds) > 1 else (seconds[0],) * 3
    return Timing(statistics.median(seconds), low, high, len(seconds))


def _synchronize(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize()


def peak_extra_memory(call: Callable[[], Any], device: str = "cpu") -> int:
    """Measure the bytes that `call` needs at its peak beyond what the process held before.

    Run it in a fresh process: an allocator may reuse memory that it already holds.
    """
    if device.startswith("cuda"):
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        _synchronize(device)
        return torch.cuda.max_memory_allocated() - before
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")  # resets VmHWM to what is resident now
    before = _status("VmHWM")
    call()
    return max(0, _status("VmHWM") - before)


def _status(field: str) -> int:
    for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"/proc/self/status has no {field}: memory is measured on Linux")


def in_fresh_process(script: str, *arguments: str) -> Any:
    """Run a script, or ``-m`` and a module, in a new interpreter; return the JSON in its last line.

    Raises
    ------
    RuntimeError
        If it fails.
    """
    done = subprocess.run(
        [sys.executable, script, *arguments], capture_output=True, text=True, check=False, cwd=ROOT
    )
    if done.returncode:
        raise RuntimeError(
            f"{Path(script).name} {' '.join(arguments)}: {done.stderr.strip().splitlines()[-1:]}"
        )
    return json.loads(done.stdout.strip().splitlines()[-1])


def provenance(device: str = "cpu") -> dict[str, Any]:
    """Describe when, where and with what the numbers were measured."""
    return {
        "command": " ".join(
            ["python", *(os.path.relpath(a, ROOT) if a.endswith(".py") else a for a in sys.argv)]
        ),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "device": torch.cuda.get_device_name() if device.startswith("cuda") else _cpu_name(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


def origin(about: Mapping[str, Any]) -> str:
    """Format what `provenance` returned, in two lines."""
    return "{command}\n{date}, {device}, {threads} threads, torch {torch}".format_map(about)


def _cpu_name() -> str:
    features = [name for name, has in _cpu_features().items() if has]
    for line in _cpu_info().splitlines():
        if line.startswith("model name"):
            return f"{line.split(':', 1)[1].strip()} ({', '.join(features)})"
    return platform.processor() or platform.machine()


def _cpu_features() -> dict[str, bool]:
    flags = _cpu_info()
    return {"AMX": "amx_bf16" in flags, "AVX-512": "avx512f" in flags, "AVX2": "avx2" in flags}


def _cpu_info() -> str:
    """What Linux says about the processor; empty on other systems."""
    try:
        return Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except FileNotFoundError:
        return ""


def write_json(path: Path, **content: Any) -> None:
    """Write JSON, whole or not at all; dataclasses become objects."""
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(content, indent=1, default=asdict) + "\n", encoding="utf-8")


def show(line: str) -> None:
    """Show a line of progress on a terminal; the next one overwrites it."""
    if sys.stderr.isatty() and threading.current_thread() is threading.main_thread():
        sys.stderr.write(f"\r\033[K{line}")
        sys.stderr.flush()


def table(header: list[str], rows: list[list[str]]) -> str:
    """Format a Markdown table with padded columns."""
    widths = [max(len(r[i]) for r in [header, *rows]) for i in range(len(header))]
    lines = [
        "| " + " | ".join(c.ljust(w) for c, w in zip(r, widths, strict=True)) + " |" for r in [header, *rows]
    ]
    lines.insert(1, "|" + "|".join("-" * (w + 2) for w in widths) + "|")
    return "\n".join(lines)
