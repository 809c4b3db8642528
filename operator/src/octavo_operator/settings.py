"""Settings of the operator itself, read once from flags and environment at the door.

Nobody else reads the environment. Every setting has a flag and a variable; the flag wins.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from octavo_operator import __version__
from octavo_operator.errors import SettingsError
from octavo_operator.worker_peers import NAMESPACE_ONLY, WorkerPeers, parse_peers

DEFAULT_WORKER_IMAGE: Final = f"ghcr.io/octavo-serving/octavo-worker:{__version__}"
_NAMESPACE = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?")
NUM_ACTIVATOR_PORTS: Final = 1000
LOG_LEVELS: Final = ("DEBUG", "INFO", "WARNING", "ERROR")
LOG_FORMATS: Final = ("text", "json")
_EVERYBODY: Final = "everybody"


@dataclass(frozen=True, slots=True)
class OperatorSettings:
    """How the operator behaves.

    namespaces: namespaces to watch; empty means all of them.
    worker_image: image of pods whose InferenceService names none.
    prometheus_url: where KEDA asks for the workers' metrics; empty means an HPA is used instead.
    pod_ip: address of the operator's own pod; empty means that no calls are held, so that no
        service goes to zero.
    pod_name, pod_namespace: who this operator is and where its Lease lies; empty means that there
        is no other operator, so no Lease is needed.
    lease_name: the Lease that tells which of several operators works.
    activator_port: first of 1000 ports on which calls of services without pods are held.
    activator_hold_s: longest time a call is held before it gets an HTTP 503.
    worker_peers: who may reach which port of workers from outside their namespace; None for all.
    admin_key_secret: the Secret in `pod_namespace` that holds the key to workers' admin ports.
    resync_s: every resource is reconciled at least this often, whatever the watches say.
    request_timeout_s: limit of one call to the Kubernetes API.
    probe_port: where `/healthz` answers; 0 turns it off.
    metrics_port: where Prometheus finds the operator's own metrics; 0 turns it off.
    exit_timeout_s: how long a stopping operator may take before it is cut off.
    """

    namespaces: tuple[str, ...] = ()
    worker_image: str = DEFAULT_WORKER_IMAGE
    worker_peers: WorkerPeers | None = NAMESPACE_ONLY
    prometheus_url: str = ""
    pod_ip: str = ""
    pod_name: str = ""
    pod_namespace: str = ""
    lease_name: str = "octavo-operator"
    admin_key_secret: str = "octavo-operator-admin-key"
    activator_port: int = 9000
    activator_hold_s: float = 120.0
    resync_s: float = 600.0
    request_timeout_s: float = 20.0
    probe_port: int = 8081
    metrics_port: int = 8080
    log_level: str = "INFO"
    log_format: str = "text"
    exit_timeout_s: float = 30.0


_DEFAULTS: Final = OperatorSettings()


def operator_settings(
    environment: Mapping[str, str], flags: Mapping[str, str | None] | None = None
) -> OperatorSettings:
    """Settings from `OCTAVO_*` variables and flags; raises SettingsError.

    `flags` maps a setting's name to its text, None where the flag was not given.
    """
    values = _Values(environment, flags or {})
    settings = OperatorSettings(
        namespaces=values.namespaces("namespaces"),
        worker_image=values.text("worker_image"),
        worker_peers=values.peers("worker_peers"),
        prometheus_url=values.text("prometheus_url"),
        pod_ip=values.text("pod_ip"),
        pod_name=values.text("pod_name"),
        pod_namespace=values.text("pod_namespace"),
        lease_name=values.text("lease_name"),
        admin_key_secret=values.text("admin_key_secret"),
        activator_port=values.integer("activator_port", 1024, 64_000),
        activator_hold_s=values.number("activator_hold_s", 1.0, 3600.0),
        resync_s=values.number("resync_s", 10.0, 86_400.0),
        request_timeout_s=values.number("request_timeout_s", 1.0, 300.0),
        probe_port=values.integer("probe_port", 0, 65_535),
        metrics_port=values.integer("metrics_port", 0, 65_535),
        log_level=values.choice("log_level", LOG_LEVELS),
        log_format=values.choice("log_format", LOG_FORMATS),
        exit_timeout_s=values.number("exit_timeout_s", 1.0, 600.0),
    )
    _check_ports(settings)
    return settings


def _check_ports(settings: OperatorSettings) -> None:
    if settings.metrics_port and settings.metrics_port == settings.probe_port:
        raise SettingsError(
            f"--metrics-port and --probe-port are both {settings.probe_port}; choose two, or 0 for "
            f"none"
        )
    first, last = settings.activator_port, settings.activator_port + NUM_ACTIVATOR_PORTS - 1
    for flag, port in (
        ("--metrics-port", settings.metrics_port),
        ("--probe-port", settings.probe_port),
    ):
        if settings.pod_ip and first <= port <= last:
            raise SettingsError(
                f"{flag} is {port}, among the ports {first} to {last} on which calls are held; "
                f"choose another, or another --activator-port"
            )


def variable_name(setting: str) -> str:
    """The environment variable of a setting."""
    return f"OCTAVO_{setting.upper()}"


class _Values:
    def __init__(self, environment: Mapping[str, str], flags: Mapping[str, str | None]) -> None:
        self._environment = environment
        self._flags = flags

    def text(self, setting: str, default: str | None = None) -> str:
        """As it was given; without `default`, that of OperatorSettings."""
        flag = self._flags.get(setting)
        if flag is not None:
            return flag
        given = self._environment.get(variable_name(setting)) or default
        return str(getattr(_DEFAULTS, setting)) if given is None else given

    def number(self, setting: str, minimum: float, maximum: float) -> float:
        text = self.text(setting)
        try:
            number = float(text)
        except ValueError:
            raise self._error(setting, text, "give a number") from None
        if not minimum <= number <= maximum:
            raise self._error(setting, text, f"give a number from {minimum:g} to {maximum:g}")
        return number

    def integer(self, setting: str, minimum: int, maximum: int) -> int:
        number = self.number(setting, minimum, maximum)
        if not number.is_integer():
            raise self._error(setting, self.text(setting), "give a whole number")
        return int(number)

    def choice(self, setting: str, choices: tuple[str, ...]) -> str:
        text = self.text(setting)
        for choice in choices:
            if text.casefold() == choice.casefold():
                return choice
        raise self._error(setting, text, f"give one of {', '.join(choices)}")

    def namespaces(self, setting: str) -> tuple[str, ...]:
        names = [name.strip() for name in self.text(setting, "").split(",") if name.strip()]
        for name in names:
            if len(name) > 63 or not _NAMESPACE.fullmatch(name):
                raise self._error(setting, name, "give names of namespaces, separated by commas")
        return tuple(dict.fromkeys(names))

    def peers(self, setting: str) -> WorkerPeers | None:
        text = self.text(setting, "{}")
        if text == _EVERYBODY:
            return None
        try:
            peers = parse_peers(json.loads(text))
        except ValueError:
            peers = None
        if peers is None:
            raise self._error(
                setting,
                text,
                f'give {{"api": [...], "admin": [...]}} with NetworkPolicy peers, or {_EVERYBODY}',
            )
        return peers

    def _error(self, setting: str, value: str, remedy: str) -> SettingsError:
        flag = f"--{setting.replace('_', '-')}"
        return SettingsError(f"{flag} (or {variable_name(setting)}) is {value!r}; {remedy}")
