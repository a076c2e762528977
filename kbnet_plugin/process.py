"""The process of a command: interrupts at any moment, and standard streams that nobody reads.

An interrupt deletes unfinished files and ends the process on the spot. It is not raised as KeyboardInterrupt,
which libraries swallow or turn into other errors, and which Python can only print in some places, most of all
during imports. Only inside `unwinding`, where a result grows, is it raised; then too the process ends soon.
"""

from __future__ import annotations

import atexit
import errno
import io
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

unfinished: set[str] = set()
"""Files that an interrupt deletes."""

INTERRUPTS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGBREAK") if hasattr(signal, name)]
"""Signals that ask a process to end. On Windows, a process can send only SIGBREAK to another."""

_SIGNALS = [*INTERRUPTS, *([signal.SIGHUP] if hasattr(signal, "SIGHUP") else [])]
_PATIENCE = 5.0  # seconds for unwinding
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class _State:
    """What an interrupt finds."""

    process = 0  # that was taken over; those forked from it have no files of their own
    name = ""
    kept = ""
    raising = False
    interrupted = 0  # exit status after an interrupt
    finished: int | None = None  # exit status of the command
    lost: OSError | None = None  # why standard output is incomplete


def run(name: str, command: Callable[[], int], kept: str = "") -> int:
    """Run the command of this process, and return its exit status.

    An interrupt prints one line and ends the process with 128 + the number of the signal.

    Parameters
    ----------
    name : str
        Of the program, for its messages; empty for silence.
    command : callable
        Returns the exit status.
    kept : str
        What to add to the message that it was interrupted.
    """
    handlers = {number: signal.getsignal(number) for number in _SIGNALS}
    hook = sys.unraisablehook
    _State.process, _State.name, _State.kept = os.getpid(), name, kept
    for number, handler in handlers.items():
        if handler not in (signal.SIG_IGN, None):  # as nohup, or a shell's &, has it
            signal.signal(number, _interrupt)
    sys.unraisablehook = lambda unraisable: _lost(unraisable, hook)
    try:
        _take_streams()
        status = command()
    except BaseException:
        leave_if_interrupted()
        sys.unraisablehook = hook
        for number, handler in handlers.items():
            signal.signal(number, handler)
        raise
    return _finish(status)


def leave_if_interrupted() -> None:
    """End the process if an interrupt is what led here, whatever a library made of it."""
    if _State.interrupted and _State.finished is None:
        _leave()


@contextmanager
def unwinding() -> Iterator[None]:
    """Raise KeyboardInterrupt within the block when interrupted, so that its `finally` clauses run."""
    _State.raising = True
    try:
        yield
    finally:
        _State.raising = False


@contextmanager
def stopping(stop: Callable[[], object]) -> Iterator[None]:
    """Call `stop` the first time that Ctrl-C is pressed within the block; the block then ends by itself."""
    before = signal.getsignal(signal.SIGINT)

    def first(_number: int, _frame: Any) -> None:
        signal.signal(signal.SIGINT, before)
        stop()

    if before != signal.SIG_IGN:
        signal.signal(signal.SIGINT, first)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _interrupt(number: int, _frame: Any) -> None:
    if _State.interrupted:  # once is enough
        return
    _State.interrupted = 128 + number
    if not _State.raising:
        _leave()
    if hasattr(signal, "setitimer"):
        signal.signal(signal.SIGALRM, lambda *_: _leave())
        signal.setitimer(signal.ITIMER_REAL, _PATIENCE)
    raise KeyboardInterrupt


def _lost(unraisable: Any, hook: Callable[[Any], object]) -> None:
    """Leave if Python cannot raise a KeyboardInterrupt, as in a callback of the garbage collector."""
    if issubclass(unraisable.exc_type, KeyboardInterrupt):
        leave_if_interrupted()
    hook(unraisable)


def _leave() -> None:
    if os.getpid() == _State.process:
        for path in list(unfinished):
            with suppress(OSError):
                os.unlink(path)
        with suppress(Exception):  # it may be writing
            sys.stdout.flush()
        if _State.finished is None and _State.name:
            before = "\n" if os.isatty(2) else ""  # after ^C and a bar
            with suppress(OSError):
                os.write(2, f"{before}{_State.name}: interrupted{_State.kept}\n".encode())
    os._exit(_State.interrupted if _State.finished is None else _State.finished)


def _finish(status: int) -> int:
    """Flush what was printed, and return the final status, which a late interrupt does not change."""
    with suppress(OSError):
        sys.stdout.flush()
    lost = _State.lost
    if lost is not None and lost.errno in _FULL:  # not if its reader has gone
        reason = os.strerror(lost.errno).lower()
        print(f"{_State.name}: standard output is incomplete: {reason}", file=sys.stderr)
        status = status or 2
    with suppress(OSError):
        sys.stderr.flush()
    _State.finished = status
    if _State.interrupted and hasattr(signal, "setitimer"):
        signal.setitimer(signal.ITIMER_REAL, 0)
    atexit.register(_ignore)
    return status


def _ignore() -> None:
    """Ignore signals while Python takes its modules apart, where it would restore their default actions."""
    for number in _SIGNALS:
        signal.signal(number, signal.SIG_IGN)


class _Stream(io.FileIO):
    """A standard stream that goes on when nothing can be written, as results are in files."""

    def write(self, content: Any, /) -> int:
        try:
            return super().write(content)
        except OSError as error:
            if self.fileno() == 1:
                _State.lost = error
            return memoryview(content).nbytes


def _take_streams() -> None:
    """Let prints escape what the encoding lacks, and never fail."""
    while (number := os.open(os.devnull, os.O_RDWR)) <= 2:  # was closed; the next file would get its number
        os.set_inheritable(number, True)
    os.close(number)
    for name, number in (("stdout", 1), ("stderr", 2)):
        stream = getattr(sys, name)
        if stream is not getattr(sys, f"__{name}__"):
            continue  # replaced within Python
        raw: Any = _Stream(number, "w", closefd=False)
        if stream is None:
            setattr(sys, name, io.TextIOWrapper(io.BufferedWriter(raw), "utf-8", "backslashreplace"))
            continue
        unbuffered = isinstance(stream.buffer, io.RawIOBase)
        if not isinstance(stream.buffer if unbuffered else stream.buffer.raw, io.FileIO):
            continue  # a console of Windows
        replaced = io.TextIOWrapper(
            raw if unbuffered else io.BufferedWriter(raw),
            stream.encoding,
            "backslashreplace",
            line_buffering=stream.line_buffering,
            write_through=stream.write_through,
        )
        setattr(sys, name, replaced)
