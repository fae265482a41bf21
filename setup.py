"""Builds the CPU kernels, one plain shared library; everything else about the package is in pyproject.toml.

A source's flags follow from its name: `*_avx512.cpp` is compiled for AVX-512, a name without a level for any processor
of the architecture. Without a compiler the package installs without the library and computes with torch alone.
"""

import os
import platform
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

CPU = Path("src/channelwise/runtime/cpu")

SANITIZE_FLAGS = ["-O1", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=undefined"]
"""With $CHANNELWISE_SANITIZE set, as `make sanitize` has it."""

COMMON_FLAGS = ["-O3", "-std=c++17", "-fPIC", "-fopenmp", "-ffp-contract=off", "-fvisibility=hidden", "-w", "-g0"]

AVX2 = ["-mavx2", "-mfma", "-mf16c"]
AVX512 = [
    *AVX2,
    *(f"-mavx512{part}" for part in ("f", "bw", "vl", "dq", "vbmi", "vnni", "bf16")),
    "-mprefer-vector-width=512",
]
AMX = [*AVX512, "-mamx-tile", "-mamx-int8", "-mamx-bf16"]
LEVEL_FLAGS = {"avx2": AVX2, "avx512": AVX512, "amx": AMX}


def level_of(source: str) -> str | None:
    """The level that the file's name ends in; None for code that runs anywhere."""
    last = Path(source).stem.rpartition("_")[2]
    return last if last in LEVEL_FLAGS else None


def sanitized() -> bool:
    """Whether memory accesses and undefined operations are to be watched."""
    return bool(os.environ.get("CHANNELWISE_SANITIZE"))


def kernels() -> Extension:
    """The library's sources for this architecture."""
    x86 = platform.machine().lower() in ("x86_64", "amd64")
    sources = sorted(path.as_posix() for path in (CPU / "source").glob("*.cpp"))
    headers = sorted(path.as_posix() for path in (CPU / "source").glob("*.hpp"))
    return Extension(
        "channelwise.runtime.cpu._kernels",
        [source for source in sources if x86 or level_of(source) is None],
        depends=[*headers, "setup.py"],
        language="c++",
        optional=True,
    )


class BuildKernels(build_ext):
    """Compiles every source with the flags of its name, several at a time, and only those that are out of date."""

    def get_ext_filename(self, fullname: str) -> str:
        """The library belongs to no Python version."""
        return f"{fullname.replace('.', os.sep)}.so"

    def build_extension(self, ext: Extension) -> None:
        """Objects, then the library."""
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            objects = list(pool.map(lambda source: self._object(source, ext.depends), ext.sources))
        flags = ["-fopenmp", *(SANITIZE_FLAGS if sanitized() else [])]
        target = self.get_ext_fullpath(ext.name)
        self.compiler.link_shared_object(objects, target, extra_postargs=flags, target_lang="c++")

    def _object(self, source: str, headers: list[str]) -> str:
        (target,) = self.compiler.object_filenames([source], output_dir=self.build_temp)
        newest = max(os.path.getmtime(path) for path in (source, *headers))
        if self.force or not os.path.exists(target) or os.path.getmtime(target) <= newest:
            flags = [*COMMON_FLAGS, *LEVEL_FLAGS.get(level_of(source) or "", [])]
            flags += SANITIZE_FLAGS if sanitized() else []
            self.compiler.compile([source], output_dir=self.build_temp, extra_postargs=flags)
        return target


setup(ext_modules=[kernels()], cmdclass={"build_ext": BuildKernels})
