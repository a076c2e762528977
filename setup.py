"""Builds the native operator, ``kbnet_plugin/ops/_kba_native.so``; everything else is in setup.cfg.

It is a plain shared library, loaded by ctypes, and optional: the install succeeds where it does not compile.
"""

from __future__ import annotations

import glob
import platform
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.errors import CompileError

X86 = platform.machine().lower() in ("x86_64", "amd64")
SOURCES = "kbnet_plugin/ops/csrc"
COMMON = ["-O3", "-g0", "-std=gnu11", "-fvisibility=hidden", "-ffp-contract=fast"]
AVX512 = ["-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mfma"]
# Each instruction set in a file of its own, chosen at run time; without its flags a file compiles to nothing.
FLAGS = {
    "isa_avx2": ["-mavx2", "-mfma"],
    "isa_avx512": AVX512,
    "isa_amx": [*AVX512, "-mavx512bf16", "-mamx-tile", "-mamx-bf16"],
}


class BuildLibrary(build_ext):
    """Compile each source with its own flags and give the library a name that ctypes can know."""

    def get_ext_filename(self, fullname: str) -> str:
        return fullname.replace(".", "/") + ".so"

    def build_extension(self, ext: Extension) -> None:
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


setup(
    ext_modules=[
        Extension(
            "kbnet_plugin.ops._kba_native",
            sources=sorted(glob.glob(f"{SOURCES}/*.c")),
            depends=sorted(glob.glob(f"{SOURCES}/*.h")),
            optional=True,
        )
    ],
    cmdclass={"build_ext": BuildLibrary},
)
