"""Builds the native operator, ``kbnet_plugin/ops/_kba_native.so``; everything else is in setup.cfg.

The operator is a shared library that ctypes loads, so that one wheel serves every version of Python. It is
optional: if it does not compile, the installation succeeds all the same and writes the compiler's message to
a text file next to the library, which `kbnet info` shows. With ``KBNET_REQUIRE_NATIVE=1`` in the environment
the installation fails instead. On Windows the compiler is clang-cl, with headers and linker of Visual Studio.
"""

from __future__ import annotations

import glob
import os
import platform
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py
from setuptools.errors import CompileError, LinkError, PlatformError

SUFFIX = {"win32": ".dll", "darwin": ".dylib"}.get(sys.platform, ".so")  # as in ops/native.py
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
        return fullname.replace(".", "/") + SUFFIX

    def build_extension(self, ext: Extension) -> None:
        with tempfile.TemporaryFile() as said:
            try:
                with _copied(said.fileno()):
                    self._build(ext)
            except (CompileError, LinkError, PlatformError) as error:
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
        msvc = self.compiler.compiler_type == "msvc"
        if msvc:
            self._take_clang()
        objects = []
        for source in ext.sources:
            flags = FLAGS.get(Path(source).stem, []) if X86 else []
            try:
                objects += self._compile(source, COMMON + flags, msvc)
            except CompileError:
                if not flags:
                    raise
                objects += self._compile(source, COMMON, msvc)
        self.compiler.link_shared_object(
            objects,
            self.get_ext_fullpath(ext.name),
            libraries=["pthread", "dl"] if sys.platform.startswith("linux") else [],
            extra_postargs=[f"/IMPLIB:{Path(self.build_temp, 'unused.lib')}"] if msvc else [],
        )

    def _compile(self, source: str, flags: list[str], msvc: bool) -> list[str]:
        if msvc:
            flags = [f"/clang:{flag}" for flag in flags]
        return self.compiler.compile([source], self.build_temp, extra_postargs=flags)

    def _take_clang(self) -> None:
        """Replace cl.exe, which has no vectors of GCC's kind."""
        if not self.compiler.initialized:
            self.compiler.initialize(self.plat_name)
        clang = shutil.which("clang-cl")
        if clang is None:
            raise CompileError(
                "error: clang-cl is missing; it comes with LLVM and with Visual Studio's C++ Clang tools"
            )
        self.compiler.cc = clang


class BuildPython(build_py):
    """Add the option files, which `basicsr` finds by name; a checkout has them in options/."""

    def run(self) -> None:
        super().run()
        if not self.editable_mode:
            target = Path(self.build_lib, "basicsr_ext", "option_files")
            self.mkpath(str(target))
            for path in glob.glob("options/*.yml"):
                self.copy_file(path, str(target))


class Wheel(bdist_wheel):
    """A wheel for any Python 3 on this platform."""

    def get_tag(self) -> tuple[str, str, str]:
        return "py3", "none", super().get_tag()[2]


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


if sys.platform == "darwin":  # one architecture, as the flags are, also with a universal Python
    os.environ.setdefault("ARCHFLAGS", f"-arch {platform.machine()}")

setup(
    ext_modules=[
        Extension(
            "kbnet_plugin.ops._kba_native",
            sources=sorted(glob.glob(f"{SOURCES}/*.c")),
            depends=sorted(glob.glob(f"{SOURCES}/*.h")),
            optional=os.environ.get("KBNET_REQUIRE_NATIVE") != "1",
        )
    ],
    cmdclass={"bdist_wheel": Wheel, "build_ext": BuildLibrary, "build_py": BuildPython},
)
