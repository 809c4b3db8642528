"""From a container of a pod to a process of this machine: program, arguments, environment, folders.

What differs from a cluster, all of it here: hosts and ports name the pod's own loopback address; a
stopping worker waits less long for its endpoint to go, since the proxy drops it at once; mount
paths become folders (emptyDir: a temporary one; the model cache: the user's own, so that nothing
is downloaded twice); HOME stays the user's; Secrets come from the resource file; where the
operator has no way to a pod, nobody is waited for.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from octavo_operator.address import Address
from octavo_operator.errors import LocalError
from octavo_operator.labels import FETCH_CONTAINER, WORKER_CONTAINER
from octavo_operator.local.resource_file import Secrets
from octavo_operator.manifests.worker_command import (
    ADMIN_PORT,
    CACHE_MOUNT,
    LORA_WANTED,
    WORKER_PORT,
)

_TMP_MOUNT: Final = "/tmp"
_SHARED_MEMORY_MOUNT: Final = "/dev/shm"
_SHUTDOWN_DELAY_S: Final = "1"

Programs = Mapping[str, Sequence[str]]
"""What to run for the first word of a container's command."""


@dataclass(frozen=True, slots=True)
class Machine:
    """What a process gets from this machine.

    programs: how to run the commands that containers name.
    environment: inherited by every process.
    cache_folder: the user's model cache, shared by all pods and kept.
    secrets: values for the Secrets that pods refer to.
    """

    programs: Programs
    environment: Mapping[str, str]
    cache_folder: Path
    secrets: Secrets


@dataclass(frozen=True, slots=True)
class LocalContainer:
    """A process to start."""

    command: tuple[str, ...]
    environment: Mapping[str, str]
    folder: Path


def installed_programs() -> Programs:
    """`octavo` as installed beside this Python, or else as a module of it."""
    script = Path(sys.executable).with_name("octavo")
    if script.is_file():
        return {"octavo": (str(script),)}
    return {"octavo": (sys.executable, "-m", "octavo")}


def worker_of(pod: Mapping[str, Any]) -> Mapping[str, Any]:
    """The container that serves the model."""
    for container in pod["spec"]["containers"]:
        if container["name"] == WORKER_CONTAINER:
            return dict(container)
    raise LocalError(f"pod {pod['metadata']['name']} has no container {WORKER_CONTAINER!r}")


def local_container(
    pod: Mapping[str, Any],
    address: Address,
    folder: Path,
    machine: Machine,
    config_maps: Mapping[str, Mapping[str, str]],
) -> LocalContainer:
    """The worker of `pod` as a process; `folder` is the pod's own and is removed with it.

    config_maps: those that the pod mounts and that are there, by name.
    Raises LocalError for what only a cluster can do.
    """
    _check_possible(pod)
    container = worker_of(pod)
    mounts = _mounted_folders(pod, container, folder, machine, config_maps)
    words = [*container.get("command", ()), *container.get("args", ())]
    program = machine.programs.get(words[0], (words[0],))
    arguments = [_translated(word, mounts) for word in words[1:]]
    return LocalContainer(
        command=(*program, *_at_address(arguments, address)),
        environment={
            **machine.environment,
            **_variables(container, mounts, machine),
            "TMPDIR": str(folder / "tmp"),
            "PYTHONUNBUFFERED": "1",
        },
        folder=folder,
    )


def _check_possible(pod: Mapping[str, Any]) -> None:
    spec = pod["spec"]
    others = [item["name"] for item in spec["containers"] if item["name"] != WORKER_CONTAINER]
    # The worker fetches by itself what this one would bring to the volume.
    inits = [item for item in spec.get("initContainers", ()) if item["name"] != FETCH_CONTAINER]
    if others or inits:
        raise LocalError(
            "spec.template adds containers to the pod; local mode runs the worker only, so remove "
            "them or use a cluster"
        )


def _mounted_folders(
    pod: Mapping[str, Any],
    container: Mapping[str, Any],
    folder: Path,
    machine: Machine,
    config_maps: Mapping[str, Mapping[str, str]],
) -> dict[str, Path]:
    """Folder by mount path, longest path first so that the innermost mount wins."""
    volumes = {volume["name"]: volume for volume in pod["spec"].get("volumes", ())}
    mounts: dict[str, Path] = {}
    for mount in container.get("volumeMounts", ()):
        path, volume = mount["mountPath"], volumes.get(mount["name"])
        if volume is None:
            raise LocalError(
                f"{path} is a mount of volume {mount['name']!r}, which the pod does not have; name "
                f"one of spec.template.spec.volumes"
            )
        if path == _SHARED_MEMORY_MOUNT:
            continue
        place = machine.cache_folder if path == CACHE_MOUNT else folder / volume["name"]
        mounts[path] = place
        place.mkdir(parents=True, exist_ok=True)
        if path != CACHE_MOUNT:
            _fill(volume, place, machine.secrets, config_maps)
    return dict(sorted(mounts.items(), key=lambda item: -len(item[0])))


def _fill(
    volume: Mapping[str, Any],
    place: Path,
    secrets: Secrets,
    config_maps: Mapping[str, Mapping[str, str]],
) -> None:
    config_map = volume.get("configMap", {})
    if "emptyDir" in volume:
        return
    if config_map.get("optional") or config_map.get("name") in config_maps:
        for key, value in config_maps.get(config_map["name"], {}).items():
            (place / key).write_text(value, encoding="utf-8")
        return
    if "secret" in volume:
        for key, value in _secret(secrets, volume["secret"]["secretName"]).items():
            (place / key).touch(mode=0o600)
            (place / key).write_text(value, encoding="utf-8")
        return
    source = next((name for name in volume if name != "name"), "nothing")
    raise LocalError(
        f"volume {volume['name']} is a {source}, which only a cluster has; in local mode take "
        "models and adapters from file:///PATH"
    )


def _secret(secrets: Secrets, name: str) -> Mapping[str, str]:
    if name not in secrets:
        raise LocalError(
            f"Secret {name} is not known; in local mode put it into the same file, after a line ---"
        )
    return secrets[name]


def _variables(
    container: Mapping[str, Any], mounts: Mapping[str, Path], machine: Machine
) -> dict[str, str]:
    variables: dict[str, str] = {}
    for source in container.get("envFrom", ()):
        name = _of_secret(source, "secretRef", "envFrom")["name"]
        # A token that the user has set already serves as well as a Secret.
        if name in machine.secrets or "HF_TOKEN" not in machine.environment:
            variables.update(_secret(machine.secrets, name))
    for entry in container.get("env", ()):
        if entry["name"] == "HOME":
            continue
        if not entry.get("valueFrom"):
            variables[entry["name"]] = _translated(entry.get("value", ""), mounts)
            continue
        reference = _of_secret(entry["valueFrom"], "secretKeyRef", f"variable {entry['name']}")
        values = machine.secrets.get(reference["name"], {})
        if reference["key"] in values:
            variables[entry["name"]] = values[reference["key"]]
    return variables


def _of_secret(source: Mapping[str, Any], kind: str, what: str) -> Mapping[str, Any]:
    """Which Secret `what` names; raises LocalError for any other source."""
    if kind in source:
        return dict(source[kind])
    other = next((name for name in source if name != "prefix"), "nothing")
    raise LocalError(
        f"{what} is filled from a {other}, which only a cluster has; in local mode give a value or "
        f"a {kind}"
    )


def _translated(word: str, mounts: Mapping[str, Path]) -> str:
    """A path below a mount as the folder behind it; /tmp is left, for a user's own model."""
    for path, folder in mounts.items():
        if path != _TMP_MOUNT and (word == path or word.startswith(f"{path}/")):
            return str(folder) + word[len(path) :]
    return word


def _at_address(arguments: list[str], address: Address) -> list[str]:
    # Where pods share an address there is no admin port that the operator could know of.
    admin_port = ADMIN_PORT if address.port == WORKER_PORT else 0
    values = {
        "--host": address.host,
        "--port": str(address.port),
        "--admin-host": address.host,
        "--admin-port": str(admin_port),
        "--shutdown-delay": _SHUTDOWN_DELAY_S,
    }
    placed = list(arguments)
    if not admin_port and LORA_WANTED in placed:
        at = placed.index(LORA_WANTED)
        del placed[at : at + 2]
    for index, word in enumerate(placed[:-1]):
        if word in values:
            placed[index + 1] = values[word]
    return placed
