"""Local mode end to end, with real processes of a fake worker."""

from __future__ import annotations

import asyncio
import io
import json
import os
import signal
import socket
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from eventually import eventually
from inference_services import conditions, inference_service
from octavo_operator.address import Address
from octavo_operator.errors import LocalError, PortInUseError, WorkerFailedError
from octavo_operator.local.addresses import AddressPool
from octavo_operator.local.container import Machine, local_container
from octavo_operator.local.resource_file import read_resource_file
from octavo_operator.local.session import LocalOptions, LocalSession
from octavo_operator.manifests.kinds import INFERENCE_SERVICE, POD
from octavo_operator.manifests.pod_template import pod_template
from octavo_operator.resources.inference_service import parse_inference_service
from serving_session import serving

SUPPORT = Path(__file__).parents[3] / "support"
WORKER = str(SUPPORT / "fake_octavo_worker.py")


def write(tmp_path: Path, *documents: dict[str, Any]) -> Path:
    path = tmp_path / "service.yaml"
    path.write_text(yaml.safe_dump_all(documents))
    return path


def options(path: Path, tmp_path: Path, port: int = 0, **environment: str) -> LocalOptions:
    content = read_resource_file(path)
    return LocalOptions(
        file=path,
        content=content,
        host="127.0.0.1",
        port=port,
        machine=Machine(
            programs={"octavo": (sys.executable, WORKER)},
            environment={"PATH": os.environ["PATH"], **environment},
            cache_folder=tmp_path / "cache",
            secrets=content.secrets,
        ),
    )


def entries(folder: Path) -> list[Path]:
    return list(folder.iterdir())


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


async def ask(client: httpx.AsyncClient, url: str) -> dict[str, Any]:
    response = await client.post(f"{url}/v1/chat/completions", json={"stream": False})
    response.raise_for_status()
    return dict(response.json())


async def test_resource_is_served_through_the_proxy_and_leaves_nothing(
    tmp_path: Path, own_temporary_folder: Path
) -> None:
    path = write(tmp_path, inference_service(model={"uri": "hf://org/name", "servedName": "fine"}))
    log = io.StringIO()
    chosen = options(path, tmp_path, FAKE_DOWNLOAD="weights.bin")
    async with serving(chosen, log) as session, httpx.AsyncClient() as client:
        answer = await ask(client, session.base_url)
        assert answer["model"] == "fine"
        seen = (await client.get(f"{session.base_url}/")).json()
        assert entries(own_temporary_folder)
    assert not is_alive(answer["pid"])
    assert entries(own_temporary_folder) == []
    arguments = seen["argv"]
    assert arguments[arguments.index("--host") + 1].startswith("127.")
    assert arguments[arguments.index("--download-dir") + 1] == str(tmp_path / "cache")
    assert (tmp_path / "cache" / "weights.bin").exists()
    assert "INFO loading weights" in log.getvalue()
    assert "Serving: 1 of 1 pods answer requests" in log.getvalue()


async def test_update_replaces_pods_without_a_failed_request(
    tmp_path: Path, patient_shutdown: None
) -> None:
    """production-stack 601: traffic to terminating pods."""
    service = inference_service(replicas=2, accelerator={"resource": "none"})
    path = write(tmp_path, service)
    log = io.StringIO()
    chosen = options(path, tmp_path, FAKE_ANSWER_S="0.1")
    async with serving(chosen, log) as session, httpx.AsyncClient() as client:
        await eventually(lambda: len(session._endpoints()) == 2)
        answers: list[dict[str, Any]] = []
        updated = asyncio.Event()

        async def keep_asking() -> None:
            while not updated.is_set():
                answers.append(await ask(client, session.base_url))

        askers = [asyncio.create_task(keep_asking()) for _ in range(4)]
        await eventually(lambda: len({answer["pid"] for answer in answers}) == 2)
        old = {answer["pid"] for answer in answers}
        service["spec"]["engine"] = {"maxModelLen": 4096}
        await session.apply(service)
        await eventually(
            lambda: (
                len({answer["pid"] for answer in answers} - old) == 2
                and not any(map(is_alive, old))
            )
        )
        updated.set()
        await asyncio.gather(*askers)
        seen = (await client.get(f"{session.base_url}/")).json()
    assert seen["argv"][seen["argv"].index("--max-model-len") + 1] == "4096"


async def test_service_sleeps_when_nobody_calls_and_wakes_for_the_next_call(
    tmp_path: Path,
) -> None:
    scaling = {"minReplicas": 0, "maxReplicas": 2, "cooldown": "10s"}
    path = write(tmp_path, inference_service(replicas=None, scaling=scaling))
    log = io.StringIO()
    chosen = options(path, tmp_path, FAKE_IDLE_S="10")
    async with (
        serving(chosen, log) as session,
        httpx.AsyncClient(timeout=60) as client,
    ):
        first = (await ask(client, session.base_url))["pid"]
        await eventually(lambda: not is_alive(first))
        await eventually(lambda: "Sleeping: no pod runs" in log.getvalue())
        askers = [asyncio.create_task(ask(client, session.base_url)) for _ in range(3)]
        pids = {(await asker)["pid"] for asker in askers}
        assert first not in pids


async def answers_by(client: httpx.AsyncClient, url: str, length: str) -> bool:
    """Whether the pod that answers was started with that --max-model-len."""
    arguments = (await client.get(f"{url}/")).json()["argv"]
    return length in arguments


async def pod_names(session: LocalSession) -> set[str]:
    listed = await session._store.list_objects(POD, None, {})
    return {pod["metadata"]["name"] for pod in listed.items}


async def test_update_without_a_spare_gpu_goes_on_in_place(
    tmp_path: Path, patient_shutdown: None
) -> None:
    service = inference_service(replicas=2)
    path = write(tmp_path, service)
    log = io.StringIO()
    chosen = replace(options(path, tmp_path), num_devices=2)
    async with serving(chosen, log) as session, httpx.AsyncClient() as client:
        await eventually(lambda: len(session._endpoints()) == 2)
        old = await pod_names(session)
        service["spec"]["engine"] = {"maxModelLen": 64}
        await session.apply(service)

        async def is_updated() -> bool:
            now = await pod_names(session)
            await ask(client, session.base_url)
            return len(session._endpoints()) == 2 and not now & old and len(now) == 2

        await eventually(is_updated)
        assert await answers_by(client, session.base_url, "64")


async def test_change_that_does_not_come_up_is_rolled_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The deadline is thirty minutes; here every second of waiting counts as an hour."""
    monkeypatch.setattr(
        "octavo_operator.local.deployment_controller.seconds", lambda: time.monotonic() * 3600
    )
    service = inference_service()
    path = write(tmp_path, service)
    chosen = options(path, tmp_path, FAKE_CRASH_WITH="--seed=13")
    async with serving(chosen, io.StringIO()) as session, httpx.AsyncClient() as client:
        pid = (await ask(client, session.base_url))["pid"]
        service["spec"]["engine"] = {"args": ["--seed=13"]}
        await session.apply(service)

        async def is_rolled_back() -> bool:
            live = await session._store.get(INFERENCE_SERVICE, "models", "chat")
            return conditions(live)["Progressing"] == ("False", "RolledBack")

        await eventually(is_rolled_back)
        await eventually(lambda: len(session._runtime._pods) == 1)
        assert (await ask(client, session.base_url))["pid"] == pid


async def test_paused_change_waits_and_more_pods_come_at_once(tmp_path: Path) -> None:
    service = inference_service(rollout={"paused": True})
    path = write(tmp_path, service)
    async with serving(options(path, tmp_path), io.StringIO()) as session:
        old = await pod_names(session)
        service["spec"]["engine"] = {"maxModelLen": 64}
        await session.apply(service)

        async def is_held() -> bool:
            live = await session._store.get(INFERENCE_SERVICE, "models", "chat")
            return conditions(live)["Progressing"] == ("False", "RolloutPaused")

        await eventually(is_held)
        assert await pod_names(session) == old
        service["spec"].update(rollout={"paused": False}, replicas=3)
        await session.apply(service)
        await eventually(lambda: len(session._endpoints()) == 3)

        async def is_gone() -> bool:
            return not old & await pod_names(session)

        await eventually(is_gone)


async def test_change_of_the_file_is_applied(tmp_path: Path) -> None:
    service = inference_service()
    path = write(tmp_path, service)
    log = io.StringIO()
    async with serving(options(path, tmp_path), log) as session, httpx.AsyncClient() as client:
        first = (await ask(client, session.base_url))["pid"]
        path.write_text("kind: [")
        await eventually(lambda: "is not valid YAML" in log.getvalue())
        service["spec"]["engine"] = {"maxModelLen": 64}
        write(tmp_path, service)
        await eventually(lambda: not is_alive(first))
        assert (await ask(client, session.base_url))["pid"] != first
        await eventually(lambda: "Complete: all pods run" in log.getvalue())
    assert log.getvalue().count("Complete: ") == 1, "the first start is told by what it serves"


async def test_stop_lets_the_request_in_flight_finish(tmp_path: Path) -> None:
    path = write(tmp_path, inference_service())
    chosen = options(path, tmp_path, FAKE_ANSWER_S="0.5")
    async with httpx.AsyncClient() as client:
        async with serving(chosen, io.StringIO()) as session:
            asking = asyncio.create_task(ask(client, session.base_url))
            await eventually(lambda: len(session._proxy._connections) == 1)
            await asyncio.sleep(0.1)
        assert (await asking)["model"] == "chat"


async def test_kill_ends_a_worker_that_ignores_sigterm(tmp_path: Path) -> None:
    path = write(tmp_path, inference_service())
    chosen = options(path, tmp_path, FAKE_IGNORE_SIGTERM="1")
    async with serving(chosen, io.StringIO()) as session, httpx.AsyncClient() as client:
        pid = (await ask(client, session.base_url))["pid"]
        session.stop()
        session.kill()
    assert not is_alive(pid)


async def test_crashed_pod_is_started_again(tmp_path: Path) -> None:
    path = write(tmp_path, inference_service())
    log = io.StringIO()
    async with serving(options(path, tmp_path), log) as session, httpx.AsyncClient() as client:
        pid = (await ask(client, session.base_url))["pid"]
        os.kill(pid, signal.SIGKILL)
        await eventually(lambda: "it is started again" in log.getvalue())
        await eventually(lambda: session._endpoints() != ())

        async def is_answered() -> bool:
            response = await client.post(f"{session.base_url}/v1/completions", json={})
            return response.status_code == 200 and response.json()["pid"] != pid

        await eventually(is_answered)


async def test_worker_that_cannot_start_ends_the_run_with_its_last_lines(
    tmp_path: Path, own_temporary_folder: Path
) -> None:
    path = write(tmp_path, inference_service())
    chosen = options(path, tmp_path, FAKE_CRASH="ConfigError: no such model")
    with pytest.raises(WorkerFailedError, match="ended with exit code 3") as caught:
        async with serving(chosen, io.StringIO()):
            pass
    assert caught.value.last_lines[-1] == "ConfigError: no such model"
    assert entries(own_temporary_folder) == []


async def test_port_in_use_is_said_in_one_sentence(tmp_path: Path) -> None:
    path = write(tmp_path, inference_service())
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(PortInUseError, match=f"127.0.0.1:{port} is already in use"):
            async with serving(options(path, tmp_path, port=port), io.StringIO()):
                pass


@pytest.mark.parametrize(
    ("spec", "sentence"),
    [
        ({"parallelism": {"tensor": "Auto"}}, "only a cluster can work out: give a number"),
        ({"replicas": 0}, "no pod is wanted"),
    ],
)
async def test_service_that_never_serves_ends_the_run(
    tmp_path: Path, spec: dict[str, Any], sentence: str
) -> None:
    path = write(tmp_path, inference_service(**spec))
    with pytest.raises(LocalError, match=sentence):
        async with serving(options(path, tmp_path), io.StringIO()):
            pass


async def test_volume_that_only_a_cluster_has_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path, inference_service(model={"uri": "pvc://claim/model"}))
    with pytest.raises(
        WorkerFailedError, match=r"persistentVolumeClaim, which only .* models and adapters from"
    ):
        async with serving(options(path, tmp_path), io.StringIO()):
            pass


MOUNT = {"name": "data", "mountPath": "/data"}
POD_NAME = {"name": "POD", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}


@pytest.mark.parametrize(
    ("worker", "sentence"),
    [
        ({"volumeMounts": [MOUNT]}, "/data is a mount of volume 'data', which the pod does not"),
        ({"env": [POD_NAME]}, "variable POD is filled from a fieldRef, which only a cluster has"),
        (
            {"envFrom": [{"configMapRef": {"name": "settings"}}]},
            "envFrom is filled from a configMapRef, which only a cluster has",
        ),
    ],
    ids=["mount-without-a-volume", "field", "config-map"],
)
def test_template_that_only_a_cluster_can_follow_is_refused_in_words(
    worker: dict[str, Any], sentence: str, tmp_path: Path
) -> None:
    template = {"spec": {"containers": [{"name": "worker", **worker}]}}
    service = parse_inference_service(inference_service(template=template))
    pod = {"metadata": {"name": "chat-1"}, **pod_template(service, "worker:1", "0" * 64)}
    machine = Machine({"octavo": ("octavo",)}, {}, tmp_path, {})
    with pytest.raises(LocalError, match=sentence):
        local_container(pod, Address("127.0.0.1", 4711), tmp_path, machine, {})


async def test_secrets_of_the_file_reach_the_worker(tmp_path: Path) -> None:
    secret = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "hub"}}
    secret["stringData"] = {"token": "hf_123"}
    keys = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "keys"}}
    keys["data"] = {"one": "c2VzYW1l"}
    service = inference_service(
        model={"uri": "hf://org/name", "secretRef": {"name": "hub"}},
        auth={"apiKeySecretRefs": [{"name": "keys"}]},
    )
    path = write(tmp_path, service, secret, keys)
    async with (
        serving(options(path, tmp_path), io.StringIO()) as session,
        httpx.AsyncClient() as client,
    ):
        seen = (await client.get(f"{session.base_url}/")).json()
        folder = Path(seen["argv"][seen["argv"].index("--api-key-file") + 1])
        assert (folder / "one").read_text() == "sesame"
    assert seen["environment"]["HF_TOKEN"] == "hf_123"


async def test_secret_that_an_edit_brings_reaches_the_pods_that_need_it(tmp_path: Path) -> None:
    """Even where it comes later than what needs it."""
    service = inference_service()
    secret = {"kind": "Secret", "metadata": {"name": "keys"}, "stringData": {"one": "sesame"}}
    path, log = write(tmp_path, service), io.StringIO()
    async with serving(options(path, tmp_path), log) as session, httpx.AsyncClient() as client:

        def edit(*documents: dict[str, Any]) -> None:
            before = path.stat().st_mtime_ns
            write(tmp_path, *documents)
            os.utime(path, ns=(before + 1, before + 1))

        async def argv() -> list[str]:
            return list((await client.get(f"{session.base_url}/")).json()["argv"])

        service["spec"]["auth"] = {"apiKeySecretRefs": [{"name": "keys"}]}
        edit(service)
        await eventually(lambda: "Secret keys is not known" in log.getvalue())
        edit(service, secret)
        async with asyncio.timeout(60):
            while "--api-key-file" not in (words := await argv()):
                await asyncio.sleep(0.05)
        folder = Path(words[words.index("--api-key-file") + 1])
        assert (folder / "one").read_text() == "sesame"


@pytest.mark.parametrize(
    ("address", "admin_port"),
    [(Address("127.42.0.1", 8000), "8001"), (Address("127.0.0.1", 4711), "0")],
    ids=["own", "shared"],
)
def test_pods_that_share_an_address_do_not_fight_for_one_admin_port(
    address: Address, admin_port: str, tmp_path: Path
) -> None:
    """As where only 127.0.0.1 is local, or another program has the port; nor wait for a word that
    cannot come."""
    service = parse_inference_service(
        inference_service(accelerator={"resource": "none"}, engine={"lora": {}})
    )
    pod = {"metadata": {"name": "chat-1"}, **pod_template(service, "worker:1", "0" * 64)}
    machine = Machine({"octavo": ("octavo",)}, {}, tmp_path, {})
    command = local_container(pod, address, tmp_path, machine, {}).command
    placed = [command[command.index(flag) + 1] for flag in ("--host", "--port", "--admin-host")]
    assert placed == [address.host, str(address.port), address.host]
    assert command[command.index("--admin-port") + 1] == admin_port
    assert ("--lora-wanted" in command) is (admin_port != "0")


def test_address_whose_admin_port_is_taken_is_passed_over() -> None:
    with socket.socket() as other:
        other.bind(("127.43.0.1", 0))
        other.listen(1)
        taken = other.getsockname()[1]
        with socket.socket() as probe:
            probe.bind(("127.43.0.1", 0))
            free = probe.getsockname()[1]
        assert AddressPool("127.43.0").take(free, taken) == Address("127.43.0.2", free)


RunCommand = Callable[..., subprocess.Popen[str]]


@pytest.fixture
def run_command() -> Iterator[RunCommand]:
    """Starts `octavo-operator` with the arguments and variables given; ended with the test."""
    started: list[subprocess.Popen[str]] = []

    def start(*arguments: str, **environment: str) -> subprocess.Popen[str]:
        command = subprocess.Popen(
            [sys.executable, str(SUPPORT / "local_with_fake_worker.py"), *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, **environment},
        )
        started.append(command)
        return command

    yield start
    for command in started:
        command.kill()
        command.communicate()


def test_command_prints_a_curl_line_and_ctrl_c_leaves_nothing(
    tmp_path: Path, run_command: RunCommand
) -> None:
    path = write(tmp_path, inference_service())
    pods = tmp_path / "pods"
    pods.mkdir()
    command = run_command(
        "local", "-f", str(path), "--port", "0", "--cache-dir", str(tmp_path), TMPDIR=str(pods)
    )
    assert command.stdout is not None
    lines = iter(command.stdout.readline, "")
    curl = next(line for line in lines if line.startswith("curl "))
    url = curl.split()[1]
    body = json.loads(curl[curl.index("-d '") + 4 : -2])
    assert body["temperature"] == 0
    assert body["max_tokens"] <= 100  # or the first answer that anyone sees takes its time
    answer = httpx.post(url, json=body, timeout=20).json()
    assert answer["echo"]["messages"][0]["role"] == "user"
    command.send_signal(signal.SIGINT)
    _, errors = command.communicate(timeout=30)
    assert command.returncode == 0, errors
    assert not is_alive(answer["pid"])
    assert list(pods.iterdir()) == []


@pytest.mark.parametrize(
    ("text", "code", "sentence"),
    [
        (None, 2, "cannot be read: No such file or directory"),
        ("a: b: c", 2, "is not valid YAML"),
        ("kind: Pod", 2, "holds 0 InferenceServices"),
    ],
    ids=["absent", "broken", "other-kind"],
)
def test_command_refuses_a_wrong_file(
    tmp_path: Path, text: str | None, code: int, sentence: str, run_command: RunCommand
) -> None:
    path = tmp_path / "service.yaml"
    if text is not None:
        path.write_text(text)
    command = run_command("local", "-f", str(path))
    output, errors = command.communicate(timeout=30)
    assert (command.returncode, output) == (code, "")
    assert sentence in errors
    assert len(errors.strip().splitlines()) == 1


@pytest.mark.parametrize(
    ("address", "url"),
    [
        (Address("127.0.0.1", 80), "http://127.0.0.1:80"),
        (Address("::1", 80), "http://[::1]:80"),
    ],
)
def test_url_of_an_address_is_one_that_clients_read(address: Address, url: str) -> None:
    assert address.url == url


def test_help_shows_a_file_with_an_adapter_that_is_one(
    tmp_path: Path, run_command: RunCommand
) -> None:
    output, _ = run_command("local", "--help").communicate(timeout=30)
    lines = output[output.index("  apiVersion") : output.index("\n\nThe file is read")]
    path = tmp_path / "shown.yaml"
    path.write_text(textwrap.dedent(lines))
    content = read_resource_file(path)
    assert [adapter["metadata"]["name"] for adapter in content.adapters] == ["sql"]
    assert content.ignored == ()
    (sentence,) = [line for line in output.splitlines() if "--file" in line and "  -f" in line]
    assert "LoRAAdapters" in output[output.index(sentence) : output.index("--host HOST  ")]


def test_command_names_a_misspelt_field(tmp_path: Path, run_command: RunCommand) -> None:
    path = write(tmp_path, inference_service(engine={"maxModelLength": 5}))
    command = run_command("local", "-f", str(path))
    _, errors = command.communicate(timeout=30)
    assert command.returncode == 2
    assert "spec.engine.maxModelLength (did you mean maxModelLen?) is not a field" in errors


def test_command_shows_why_the_worker_died(tmp_path: Path, run_command: RunCommand) -> None:
    path = write(tmp_path, inference_service())
    command = run_command(
        "local", "-f", str(path), "--port", "0", "--cache-dir", str(tmp_path), FAKE_CRASH="boom"
    )
    _, errors = command.communicate(timeout=30)
    assert command.returncode == 1
    assert errors.rstrip().endswith("  boom")


def test_local_mode_imports_neither_kopf_nor_the_kubernetes_client() -> None:
    code = (
        "import sys, octavo_operator.cli, octavo_operator.local.session;"
        "heavy = ('kopf', 'kubernetes', 'aiohttp', 'torch');"
        "print([name for name in heavy if name in sys.modules])"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=os.environ
    )
    assert result.stdout.strip() == "[]"


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a child of its parent's end")
def test_worker_ends_when_the_command_is_killed(
    tmp_path: Path, run_command: RunCommand, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SIGKILL leaves no chance to clean up; the kernel then ends the worker."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))  # the pod's folder stays behind
    path = write(tmp_path, inference_service())
    command = run_command("local", "-f", str(path), "--port", "0", "--cache-dir", str(tmp_path))
    assert command.stdout is not None
    curl = next(line for line in iter(command.stdout.readline, "") if line.startswith("curl "))
    answer = httpx.post(curl.split()[1], json={}, timeout=20).json()
    command.kill()
    command.communicate(timeout=30)
    limit = time.monotonic() + 30
    while is_alive(answer["pid"]) and time.monotonic() < limit:
        time.sleep(0.02)
    assert not is_alive(answer["pid"])


async def test_program_that_is_not_installed_is_one_sentence(tmp_path: Path) -> None:
    path = write(tmp_path, inference_service())
    chosen = options(path, tmp_path)
    machine = replace(chosen.machine, programs={"octavo": ("/absent/octavo",)})
    with pytest.raises(WorkerFailedError, match="/absent/octavo is not a program"):
        async with serving(replace(chosen, machine=machine), io.StringIO()):
            pass
