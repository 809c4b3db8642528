"""Builds the CPU kernels: one C source, compiled once per instruction set.

The libraries are plain shared objects that need no Python headers; ``octavo.kernels.cpu``
loads the one that fits the machine. ``python setup.py build_ext --inplace`` puts them beside
the sources.
"""

from __future__ import annotations

import platform
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext
from setuptools.errors import CCompilerError, CompileError, ExecError, LinkError, PlatformError

SOURCE_FOLDER = Path("src/octavo/kernels/cpu/csrc")
FLAGS = ["-std=gnu11", "-O3", "-fvisibility=hidden", "-Wall", "-Wextra"]

# Variant -> flags. The names are those of octavo.kernels.cpu.library.VARIANTS.
X86_VARIANTS = {
    "x86_64_v4": ["-march=x86-64-v4", "-mprefer-vector-width=512"],
    "x86_64_v3": ["-march=x86-64-v3"],
    "generic": ["-march=x86-64"],
}
OTHER_VARIANTS: dict[str, list[str]] = {"generic": []}


def variants() -> dict[str, list[str]]:
    """The builds that make sense for the machine compiled on."""
    return X86_VARIANTS if platform.machine() in ("x86_64", "AMD64") else OTHER_VARIANTS


def extensions() -> list[Extension]:
    headers = sorted(str(path) for path in SOURCE_FOLDER.iterdir() if path.suffix in (".c", ".h"))
    return [
        Extension(
            f"octavo.kernels.cpu.liboctavo_cpu_{variant}",
            sources=[str(SOURCE_FOLDER / "octavo_cpu.c")],
            depends=headers,
            extra_compile_args=[*FLAGS, *flags],
            # Py* symbols are left to the process that loads the library.
            extra_link_args=["-lm", "-pthread", "-Wl,-s"],
        )
        for variant, flags in variants().items()
    ]


class BuildKernels(build_ext):
    """Plain libraries (no ABI tag in the name), each variant's objects in a folder of its own."""

    def get_ext_filename(self, fullname: str) -> str:
        return fullname.replace(".", "/") + ".so"

    def build_extension(self, ext: Extension) -> None:
        shared_folder = self.build_temp
        self.build_temp = str(Path(shared_folder) / ext.name.rpartition(".")[2])
        try:
            super().build_extension(ext)
        except (CCompilerError, CompileError, ExecError, LinkError, PlatformError) as error:
            sys.exit(f"octavo's CPU kernels could not be compiled: {self._remedy()} ({error})")
        finally:
            self.build_temp = shared_folder

    def _remedy(self) -> str:
        command = self.compiler.compiler[0]
        try:
            subprocess.run([command, "--version"], check=True, capture_output=True)
        except (OSError, subprocess.CalledProcessError):
            return (
                f"the C compiler '{command}' is not there; install GCC 11 or clang 12, or newer "
                "(Debian: apt install gcc libc6-dev), or name another with CC=..."
            )
        return f"'{command}' refused the source; GCC 11 or clang 12, or newer, is needed"


class PlatformWheel(bdist_wheel):
    """The libraries depend on the machine, not on the Python: one wheel serves every version."""

    def get_tag(self) -> tuple[str, str, str]:
        return "py3", "none", super().get_tag()[2]


setup(
    ext_modules=extensions(),
    cmdclass={"build_ext": BuildKernels, "bdist_wheel": PlatformWheel},
)
