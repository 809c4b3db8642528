"""Builds, while the image is built, the one C module that Triton would build when it starts.

Triton writes GPU code itself (LLVM inside its wheel, then the wheel's own ptxas), but its glue to
the CUDA driver comes as C source and is compiled at the first launch: `cuda_utils`, the same for
every kernel since Triton 3.7. That would put a compiler, Python's headers and libc's into the last
stage. Instead, this script lets Triton ask for the build, does it, and stores the result under the
digest of its source, where `prebuilt-cc` finds it. Knows Triton's build hook; refuses to know
what is inside the source.

Usage: prebuild_triton.py FOLDER
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path


class Built(Exception):
    """Thrown out of Triton once the module is stored: it cannot be loaded without a driver."""


def main(folder: Path) -> None:
    """Stores `<sha256 of the source>.so` in `folder`; exits with 1 when Triton asks for nothing."""
    with tempfile.TemporaryDirectory() as scratch:
        os.environ["TRITON_CACHE_DIR"] = f"{scratch}/cache"
        os.environ["TRITON_LIBCUDA_PATH"] = str(_driver_stub(Path(scratch)))
        # Only now, because Triton reads the environment.
        import triton
        from triton.backends.nvidia.driver import CudaUtils
        from triton.runtime import build

        compile_for_triton = build._build

        def store(
            name: str,
            source: str,
            source_folder: str,
            library_folders: list[str],
            include_folders: list[str],
            libraries: list[str],
        ) -> str:
            triton.knobs.build.impl = None
            # Named once more, or a linker that drops libraries whose symbols nobody uses (Ubuntu's
            # default) would drop the empty driver, and the module would not find the real one.
            keep = ["-Wl,--no-as-needed", *(f"-l:{library}" for library in libraries)]
            built = compile_for_triton(
                name, source, source_folder, library_folders, include_folders, libraries, keep
            )
            digest = hashlib.sha256(Path(source).read_bytes()).hexdigest()
            folder.mkdir(parents=True, exist_ok=True)
            shutil.copy(built, folder / f"{digest}.so")
            print(f"stored {name} of Triton {triton.__version__} as {digest}.so")
            raise Built

        triton.knobs.build.impl = store
        try:
            CudaUtils()
        except Built:
            return
        sys.exit(f"Triton {triton.__version__} built nothing; prebuild_triton.py is out of date")


def _driver_stub(scratch: Path) -> Path:
    """A folder with an empty libcuda.so.1 to link against; the real one comes with the node."""
    stub = scratch / "stub"
    stub.mkdir()
    source = scratch / "empty.c"
    source.write_text("")
    compiler = os.environ.get("CC", "gcc")
    name = "libcuda.so.1"
    subprocess.run(
        [compiler, "-shared", f"-Wl,-soname,{name}", "-o", str(stub / name), str(source)],
        check=True,
    )
    return stub


if __name__ == "__main__":
    main(Path(sys.argv[1]))
