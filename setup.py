"""Builds the native operator, ``kbnet_plugin/ops/_kba_native.so``; everything else is in setup.cfg.

The operator is a shared library that ctypes loads, and optional: if it does not compile, the installation
succeeds all the same and writes the compiler's message to a text file next to the library, which `kbnet info`
shows. With ``KBNET_REQUIRE_NATIVE=1`` in the environment the installation fails instead.
"""

from __future__ import annotations

import glob
import os
import platform
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.errors import CompileError, LinkError

X86 = platform.machine().lower() in ("x86_64", "amd64")
SOURCES = "kbnet_plugin/ops/csrc"
COMMON = ["-O3", "-g0", "-std=gnu11", "-fvisibility=hidden", "-ffp-contract=fast", "-fno-math-errno"]
AVX512 = ["-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mfma"]
# One file per instruction set, chosen at run time; compiled without these flags, a file is empty.
FLAGS = {
    "isa_avx2": ["-mavx2", "-mfma"],
    "isa_avx512": AVX512,
    "isa_amx": [*AVX512, "-mavx512bf16", "-mamx-tile", "-mamx-bf16"],
}


class BuildLibrary(build_ext):
    """Compile each source with its own flags, and give the library a name without tags, for ctypes."""

    complaint = ""

    def get_ext_filename(self, fullname: str) -> str:
        return fullname.replace(".", "/") + ".so"

    def build_extension(self, ext: Extension) -> None:
        with tempfile.TemporaryFile() as said:
            try:
                with _copied(said.fileno()):
                    self._build(ext)
            except (CompileError, LinkError) as error:
                said.seek(0)
                text = said.read().decode(errors="replace")
                lines = [line.strip() for line in text.splitlines() if line.strip()]
                errors = [line for line in lines if "error" in line.lower()]
                self.complaint = (errors or lines or [str(error)])[-1]
                raise
            finally:
                self._note(Path(self.get_ext_fullpath(ext.name)))

    def copy_extensions_to_source(self) -> None:
        super().copy_extensions_to_source()
        for ext in self.extensions:
            self._note(Path(self.get_ext_fullpath(ext.name)))

    def _note(self, library: Path) -> None:
        note = library.with_suffix(".txt")
        if self.complaint:
            note.parent.mkdir(parents=True, exist_ok=True)
            note.write_text(self.complaint + "\n", encoding="utf-8")
        else:
            note.unlink(missing_ok=True)

    def _build(self, ext: Extension) -> None:
        objects = []
        for source in ext.sources:
            flags = FLAGS.get(Path(source).stem, []) if X86 else []
            try:
                objects += self.compiler.compile([source], self.build_temp, extra_postargs=COMMON + flags)
            except CompileError:
                if not flags:
                    raise
                objects += self.compiler.compile([source], self.build_temp, extra_postargs=COMMON)
        libraries = ["pthread", "dl"] if sys.platform.startswith("linux") else []
        self.compiler.link_shared_object(objects, self.get_ext_fullpath(ext.name), libraries=libraries)


@contextmanager
def _copied(target: int) -> Iterator[None]:
    """Copy standard error of this process, and of the compilers that it starts, to a file."""
    sys.stderr.flush()
    shown = os.dup(2)
    os.dup2(target, 2)
    try:
        yield
    finally:
        sys.stderr.flush()
        os.dup2(shown, 2)
        os.close(shown)
        os.lseek(target, 0, os.SEEK_SET)
        while part := os.read(target, 1 << 16):
            os.write(2, part)


setup(
    ext_modules=[
        Extension(
            "kbnet_plugin.ops._kba_native",
            sources=sorted(glob.glob(f"{SOURCES}/*.c")),
            depends=sorted(glob.glob(f"{SOURCES}/*.h")),
            optional=os.environ.get("KBNET_REQUIRE_NATIVE") != "1",
        )
    ],
    cmdclass={"build_ext": BuildLibrary},
)
