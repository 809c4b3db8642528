"""Settings of the operator, and the commands that read them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from inference_services import inference_service
from octavo_operator.cli import main
from octavo_operator.errors import SettingsError
from octavo_operator.settings import DEFAULT_WORKER_IMAGE, OperatorSettings, operator_settings
from octavo_operator.worker_peers import WorkerPeers


def test_nothing_said_gives_the_defaults() -> None:
    assert operator_settings({}) == OperatorSettings()


def test_variables_are_those_of_the_chart_and_flags_win() -> None:
    environment = {
        "OCTAVO_NAMESPACES": "a, b,a",
        "OCTAVO_WORKER_IMAGE": "worker:2",
        "OCTAVO_LOG_LEVEL": "debug",
        "OCTAVO_METRICS_PORT": "9000",
        "OCTAVO_PROBE_PORT": "0",
    }
    settings = operator_settings(environment, {"worker_image": "worker:3", "resync_s": None})
    assert settings.namespaces == ("a", "b")
    assert settings.worker_image == "worker:3"
    assert settings.log_level == "DEBUG"
    assert (settings.metrics_port, settings.probe_port) == (9000, 0)


def test_ports_that_are_off_may_be_the_same() -> None:
    settings = operator_settings({"OCTAVO_METRICS_PORT": "0", "OCTAVO_PROBE_PORT": "0"})
    assert (settings.metrics_port, settings.probe_port) == (0, 0)


@pytest.mark.parametrize("content", ["x: [", None], ids=["no-yaml", "a-folder"])
def test_kubeconfig_that_cannot_be_read_is_one_sentence(
    tmp_path: Path,
    content: str | None,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    path = tmp_path / "config"
    if content is None:
        path.mkdir()
    else:
        path.write_text(content)
    monkeypatch.setenv("KUBECONFIG", str(path))
    assert main(["retire", "--namespaces", "a"]) == 2
    told = capsys.readouterr().err
    assert told.splitlines()[-1].startswith("octavo-operator: no way to a cluster: ")
    assert "Traceback" not in told


def test_peers_of_workers_are_network_policy_peers() -> None:
    peer = {"namespaceSelector": {"matchLabels": {"team": "web"}}}
    told = operator_settings({"OCTAVO_WORKER_PEERS": json.dumps({"api": [peer]})})
    assert told.worker_peers == WorkerPeers(api=(peer,))
    told = operator_settings({"OCTAVO_WORKER_PEERS": json.dumps({"admin": [peer]})})
    assert told.worker_peers == WorkerPeers(admin=(peer,))
    assert operator_settings({"OCTAVO_WORKER_PEERS": "everybody"}).worker_peers is None


NO_LISTS_OF_PEERS = ["nobody", "{}", "[{}]", '["a"]', '[{"podSelectors": {}}]', '"everybody"']


@pytest.mark.parametrize(
    "text",
    [
        *("nobody", "[]", "[{}]", '"everybody"', '{"metrics": []}'),
        *(f'{{"api": {peers}}}' for peers in NO_LISTS_OF_PEERS),
        *(f'{{"admin": {peers}}}' for peers in NO_LISTS_OF_PEERS),
    ],
)
def test_what_is_no_peer_is_refused(text: str) -> None:
    with pytest.raises(SettingsError, match="with NetworkPolicy peers"):
        operator_settings({"OCTAVO_WORKER_PEERS": text})


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        ({"resync_s": "soon"}, r"--resync-s \(or OCTAVO_RESYNC_S\) is 'soon'; give a number"),
        ({"resync_s": "1"}, "give a number from 10 to 86400"),
        ({"namespaces": "A"}, "is 'A'; give names of namespaces"),
        ({"log_level": "LOUD"}, "give one of DEBUG, INFO, WARNING, ERROR"),
        ({"probe_port": "8081.5"}, "is '8081.5'; give a whole number"),
        ({"metrics_port": "8081"}, "--metrics-port and --probe-port are both 8081; choose two"),
        (
            {"pod_ip": "10.0.0.1", "metrics_port": "9999"},
            "--metrics-port is 9999, among the ports 9000 to 9999 on which calls are held",
        ),
        (
            {"pod_ip": "10.0.0.1", "activator_port": "8081"},
            "--probe-port is 8081, among the ports 8081 to 9080 on which calls are held",
        ),
    ],
)
def test_wrong_setting_is_named(flags: dict[str, str], sentence: str) -> None:
    with pytest.raises(SettingsError, match=sentence):
        operator_settings({}, flags)


def test_run_without_a_cluster_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    absent = str(tmp_path / "absent")
    monkeypatch.setenv("KUBECONFIG", absent)
    monkeypatch.setattr("kubernetes.aio.config.kube_config.KUBE_CONFIG_DEFAULT_LOCATION", absent)
    assert main(["run", "--metrics-port", "0", "--probe-port", "0"]) == 2
    assert "no way to a cluster" in capsys.readouterr().err


def test_render_prints_manifests(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "service.yaml"
    path.write_text(yaml.safe_dump(inference_service()))
    assert main(["render", "-f", str(path)]) == 0
    manifests = list(yaml.safe_load_all(capsys.readouterr().out))
    assert [item["kind"] for item in manifests][:3] == ["ServiceAccount", "Service", "Deployment"]
    assert DEFAULT_WORKER_IMAGE in str(manifests[2])


def test_render_of_what_cannot_run_says_why(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "service.yaml"
    taken_away = {"spec": {"containers": [{"name": "worker", "$patch": "delete"}]}}
    path.write_text(yaml.safe_dump(inference_service(template=taken_away)))
    assert main(["render", "-f", str(path)]) == 2
    assert "takes away the container 'worker'" in capsys.readouterr().err
