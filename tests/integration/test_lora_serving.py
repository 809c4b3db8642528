"""Adapters over HTTP: chosen by name, loaded, replaced and unloaded while requests run."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from octavo import LLM, LoRARequest, SamplingParams
from served_model import ServedModel, served_model
from tiny_adapters import make_adapter
from tiny_models import make_tiny_model

NUM_CYCLES = int(os.environ.get("OCTAVO_LORA_CYCLES", "12"))
"""Of loading and unloading beside traffic. 1,000 take minutes: not for every run."""
PROMPT = list(range(40, 75))
CLIENT = httpx.Client(timeout=120)
"""One for all: a client of its own for each request costs more than answering it."""
NAMES = ("first", "second", "third", "fourth")


class World:
    def __init__(self, root: Path) -> None:
        self.root = root
        self.model = make_tiny_model("llama", root / "model")
        self.config = json.loads((self.model / "config.json").read_text())
        self.folders = {
            name: make_adapter(root / name, self.config, seed=seed, rank=2 + seed)
            for seed, name in enumerate(NAMES)
        }
        llm = LLM(str(self.model), enable_lora=True, max_model_len=256, num_threads=1)
        self.expected = {None: self._offline(llm, None)}
        for name in NAMES:
            self.expected[name] = self._offline(llm, LoRARequest(name, str(self.folders[name])))
        llm.close()
        assert len({tuple(tokens) for tokens in self.expected.values()}) == len(NAMES) + 1

    def _offline(self, llm: LLM, request: LoRARequest | None) -> list[int]:
        params = SamplingParams(temperature=0, max_tokens=12, ignore_eos=True)
        (output,) = llm.generate(
            {"prompt_token_ids": PROMPT}, params, lora_request=request, use_tqdm=False
        )
        return output.outputs[0].token_ids


@pytest.fixture(scope="module", autouse=True)
def _closed_client() -> Iterator[None]:
    yield
    CLIENT.close()


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return World(tmp_path_factory.mktemp("lora"))


@pytest.fixture(scope="module")
def server(world: World, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServedModel]:
    flags = "--enable-lora --max-loras 2 --max-cpu-loras 3 --lora-wait-timeout 20 "
    flags += "--served-model-name base --max-model-len 256 --lora-modules"
    log = tmp_path_factory.mktemp("log") / "log"
    with pytest.MonkeyPatch.context() as patch:
        # Nobody answers there.
        patch.setenv("HF_ENDPOINT", "http://127.0.0.1:1")
        patch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
        yield from _serve(world, log, flags)


def _serve(world: World, log: Path, flags: str) -> Iterator[ServedModel]:
    with served_model(
        world.model, log, *flags.split(), f"first={world.folders['first']}"
    ) as server:
        yield server


def post(server: ServedModel, route: str, **body: Any) -> httpx.Response:
    return CLIENT.post(f"{server.url}{route}", json=body)


def load(server: ServedModel, name: str, path: Path, **more: Any) -> dict[str, Any]:
    answer = post(server, "/v1/load_lora_adapter", lora_name=name, lora_path=str(path), **more)
    assert answer.status_code == 200, answer.text
    loaded: dict[str, Any] = answer.json()
    return loaded


def unload(server: ServedModel, name: str) -> None:
    answer = post(server, "/v1/unload_lora_adapter", lora_name=name)
    assert answer.status_code == 200, answer.text


def generate(server: ServedModel, model: str, **more: Any) -> httpx.Response:
    fields = {"temperature": 0, "max_tokens": 12, "ignore_eos": True, "return_token_ids": True}
    return post(server, "/v1/completions", model=model, prompt=PROMPT, **{**fields, **more})


def tokens(server: ServedModel, model: str) -> list[int]:
    answer = generate(server, model)
    assert answer.status_code == 200, answer.text
    drawn: list[int] = answer.json()["choices"][0]["token_ids"]
    return drawn


def adapters(server: ServedModel) -> dict[str, dict[str, Any]]:
    listed = CLIENT.get(f"{server.url}/v1/adapters").json()["data"]
    return {entry["id"]: entry for entry in listed}


def test_the_model_field_chooses_an_adapter(server: ServedModel, world: World) -> None:
    assert tokens(server, "base") == world.expected[None]
    assert tokens(server, "first") == world.expected["first"]
    cards = CLIENT.get(f"{server.url}/v1/models").json()["data"]
    parents = {card["id"]: card["parent"] for card in cards}
    assert parents == {"base": None, "first": "base"}
    assert generate(server, "nobody").status_code == 404
    assert generate(server, "first").json()["model"] == "first"


def test_loading_is_idempotent_and_tells_what_was_loaded(server: ServedModel, world: World) -> None:
    once = load(server, "second", world.folders["second"])
    assert (once["state"], once["rank"], once["requests"]) == ("ready", 3, 0)
    assert once["digest"].startswith("sha256:")
    assert once["residency"] == adapters(server)["second"]["residency"] == "host"
    again = load(server, "second", world.folders["second"], load_inplace=True)
    assert (again["generation"], again["digest"]) == (once["generation"], once["digest"])
    assert tokens(server, "second") == world.expected["second"]
    entry = adapters(server)["second"]
    assert entry["residency"] == "device"
    assert entry["slot"] in (0, 1)
    assert server.metric("octavo_lora_loads_total", outcome="unchanged") >= 1
    unload(server, "second")
    assert "second" not in adapters(server)
    assert generate(server, "second").status_code == 404
    refused = post(server, "/v1/unload_lora_adapter", lora_name="second")
    assert (refused.status_code, refused.json()["error"]["param"]) == (404, "lora_name")
    again = post(server, "/v1/unload_lora_adapter", lora_name="second", missing_ok=True)
    assert (again.status_code, again.json()["requests_ended"]) == (200, 0)


def test_names_that_are_no_text_are_told_and_touch_no_other(
    server: ServedModel, world: World, tmp_path: Path
) -> None:
    """JSON can spell half of a surrogate pair, and a folder's name need not be UTF-8."""
    half = "half \ud800"
    base = make_adapter(tmp_path / "base", world.config, base_model_name_or_path=half)
    tensor = make_adapter(tmp_path / "tensor", world.config) / "adapter_model.safetensors"
    header = json.dumps({half: {"dtype": "I8", "shape": [1], "data_offsets": [0, 1]}}).encode()
    tensor.write_bytes(len(header).to_bytes(8, "little") + header + bytes(1))
    above = tmp_path / "above"
    make_adapter(above / os.fsdecode(b"caf\xe9"), world.config)
    for folder, status, said in (
        (base, 400, r"base_model_name_or_path is 'half \ud800'"),
        (tensor.parent, 400, "is stored as 'I8'"),
        (above, 404, r"adapters are in caf\udce9 below it"),
    ):
        answer = post(server, "/v1/load_lora_adapter", lora_name="odd", lora_path=str(folder))
        assert answer.status_code == status, answer.text
        assert said in answer.json()["error"]["message"]
    assert tokens(server, "first") == world.expected["first"]


def test_unloading_ends_late_requests_with_what_they_have(
    server: ServedModel, world: World
) -> None:
    load(server, "late", world.folders["second"])
    body = {"model": "late", "prompt": PROMPT, "max_tokens": 200, "ignore_eos": True}
    body |= {"stream": True, "temperature": 0, "return_token_ids": True}
    events: list[str] = []
    with httpx.stream("POST", f"{server.url}/v1/completions", json=body, timeout=120) as answer:
        for line in answer.iter_lines():
            if not events:
                ended = post(
                    server, "/v1/unload_lora_adapter", lora_name="late", timeout=0.001
                ).json()["requests_ended"]
            if line:
                events.append(line.removeprefix("data: "))
    assert events.pop() == "[DONE]"
    chunks = [json.loads(event) for event in events]
    assert not any("error" in chunk for chunk in chunks)
    assert ended == 1
    assert chunks[-1]["choices"][0]["finish_reason"] == "abort"
    drawn = [token for chunk in chunks for token in chunk["choices"][0]["token_ids"]]
    assert drawn[:12] == world.expected["second"][: len(drawn)]
    assert "late" not in adapters(server)


def test_unloading_waits_for_requests_and_refuses_those_that_wait_for_a_slot(
    server: ServedModel, world: World
) -> None:
    """Both slots are in use: of a third adapter nothing has begun."""
    ends: dict[str, httpx.Response] = {}

    def ask(name: str, **more: Any) -> threading.Thread:
        def work() -> None:
            ends[name] = generate(server, name, **more)

        thread = threading.Thread(target=work)
        thread.start()
        return thread

    def wait_until(name: str, state: str, requests: int) -> None:
        deadline_s = time.monotonic() + 60
        while time.monotonic() < deadline_s:
            entry = adapters(server).get(name, {})
            if (entry.get("state"), entry.get("requests")) == (state, requests):
                return
        raise AssertionError(f"{name} is not {state} with {requests} requests: {entry}")

    for name in ("second", "third"):
        load(server, name, world.folders[name])
    threads = [ask(name, max_tokens=200, n=8, temperature=1) for name in ("first", "second")]
    for name in ("first", "second"):
        wait_until(name, "ready", 1)
    threads.append(ask("third"))
    wait_until("third", "ready", 1)
    ended = post(server, "/v1/unload_lora_adapter", lora_name="third", timeout=0.001)
    drain = threading.Thread(target=unload, args=(server, "second"))
    drain.start()
    threads.append(drain)
    wait_until("second", "draining", 1)
    assert generate(server, "second").status_code == 404
    for thread in threads:
        thread.join()
    assert ended.json()["requests_ended"] == 1
    error = ends["third"].json()["error"]
    assert (ends["third"].status_code, error["code"]) == (503, "request_aborted")
    assert [ends[name].status_code for name in ("first", "second")] == [200, 200]
    assert ends["second"].json()["choices"][0]["finish_reason"] == "length"
    assert set(adapters(server)) == {"first"}


def test_a_digest_that_is_expected_must_be_there(server: ServedModel, world: World) -> None:
    second, third = world.folders["second"], world.folders["third"]
    loaded = load(server, "pinned", second)
    wanted = {"name", "digest", "generation", "state", "revision"}
    assert wanted <= set(loaded)
    assert (loaded["name"], loaded["state"], loaded["revision"]) == ("pinned", "ready", None)
    digest = loaded["digest"]
    assert load(server, "pinned", second, digest=digest)["generation"] == loaded["generation"]
    answer = post(
        server,
        "/v1/load_lora_adapter",
        lora_name="pinned",
        lora_path=str(third),
        digest=digest,
        timeout=60,
    )
    error = answer.json()["error"]
    assert (answer.status_code, error["code"]) == (409, "adapter_changed")
    other = load(server, "other", third)["digest"]
    assert digest in error["message"]
    assert other in error["message"]
    entry = adapters(server)["pinned"]
    assert (entry["state"], entry["digest"], entry["path"]) == ("ready", digest, str(second))
    assert entry["message"] == error["message"]
    assert tokens(server, "pinned") == world.expected["second"]
    unload(server, "pinned")
    unload(server, "other")


def test_kinds_of_failure_are_told_apart(server: ServedModel, world: World, tmp_path: Path) -> None:
    closed = make_adapter(tmp_path / "closed", world.config)
    (closed / "adapter_model.safetensors").chmod(0)
    cases: list[tuple[dict[str, Any], int, str]] = [
        ({"lora_path": "hf://acme/gone"}, 503, "adapter_unreachable"),
        ({"lora_path": "s3://acme/gone"}, 503, "adapter_unreachable"),
        ({"lora_path": "/nowhere"}, 404, "adapter_not_found"),
        ({"lora_path": "hf://a/b@v1", "revision": "v2"}, 400, "adapter_refused"),
        ({"lora_path": "/nowhere", "digest": "sha256:1"}, 400, "invalid_value"),
        ({"lora_path": "/nowhere", "timeout": 0}, 400, "invalid_value"),
    ]
    if os.geteuid():  # root reads what it likes
        cases.append(({"lora_path": str(closed)}, 403, "adapter_forbidden"))
    for body, status, code in cases:
        answer = post(server, "/v1/load_lora_adapter", lora_name="bad", **body)
        assert (answer.status_code, answer.json()["error"]["code"]) == (status, code), answer.text
        assert (status == 503) == ("Retry-After" in answer.headers)
    assert "bad" not in adapters(server)


def test_more_adapters_than_slots_and_host_memory_take_turns(
    server: ServedModel, world: World
) -> None:
    for name in NAMES[1:]:
        load(server, name, world.folders[name])
    for _ in range(2):
        results: dict[str, list[int]] = {}

        def ask(name: str, results: dict[str, list[int]] = results) -> None:
            results[name] = tokens(server, name)

        threads = [threading.Thread(target=ask, args=(name,)) for name in (*NAMES, "base")]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert results == {name: world.expected[name] for name in NAMES} | {
            "base": world.expected[None]
        }
    assert server.metric("octavo_lora_evictions_total", place="device") >= 2
    assert server.metric("octavo_lora_evictions_total", place="host") >= 1
    page = CLIENT.get(f"{server.url}/metrics", timeout=60).text
    assert 'vllm:lora_requests_info{max_lora="2",running_lora_adapters=' in page
    for name in NAMES[1:]:
        unload(server, name)


def test_files_that_are_gone_when_they_are_needed_again_are_told(
    server: ServedModel, world: World, tmp_path: Path
) -> None:
    """aibrix 235: the status says Running though nothing is loaded."""
    folder = make_adapter(tmp_path / "moving", world.config, seed=1, rank=3)
    digest = load(server, "moving", folder)["digest"]
    for name in NAMES[1:]:
        load(server, name, world.folders[name])
    assert adapters(server)["moving"]["residency"] == "disk"
    make_adapter(folder, world.config, seed=2)
    answer = generate(server, "moving")
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "adapter_not_ready")
    entry = adapters(server)["moving"]
    assert (entry["state"], entry["digest"]) == ("failed", digest)
    assert "no longer those that were loaded" in entry["message"]
    path = {"lora_name": "moving", "lora_path": str(folder), "digest": digest}
    assert post(server, "/v1/load_lora_adapter", **path).status_code == 409
    make_adapter(folder, world.config, seed=1, rank=3)
    assert tokens(server, "moving") == world.expected["second"]
    entry = adapters(server)["moving"]
    assert (entry["state"], entry["message"]) == ("ready", None)
    for name in ("moving", *NAMES[1:]):
        unload(server, name)


def test_one_bad_adapter_touches_no_other(server: ServedModel, world: World) -> None:
    wide = make_adapter(world.root / "wide", world.config, rank=64)
    dora = make_adapter(world.root / "dora", world.config, use_dora=True)
    other = make_adapter(world.root / "other", {**world.config, "hidden_size": 48})
    cut = make_adapter(world.root / "cut", world.config)
    weights = cut / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:5000])
    for folder, status, words in [
        (wide, 400, "rank is 64"),
        (dora, 400, "use_dora"),
        (other, 400, "has the shape"),
        (cut, 400, "copy it again"),
        (world.root / "nowhere", 404, "not a folder"),
    ]:
        answer = post(server, "/v1/load_lora_adapter", lora_name="bad", lora_path=str(folder))
        assert answer.status_code == status, answer.text
        assert words in answer.json()["error"]["message"]
        # A name that stands for something goes on doing so.
        answer = post(server, "/v1/load_lora_adapter", lora_name="first", lora_path=str(folder))
        assert answer.status_code == status
        assert tokens(server, "first") == world.expected["first"]
    assert "bad" not in adapters(server)
    load(server, "bad", cut, lazy=True)  # nobody looks before a request does
    answer = generate(server, "bad")
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "adapter_refused")
    assert "copy it again" in answer.json()["error"]["message"]
    assert str(world.root) not in answer.text
    assert "bad" not in CLIENT.get(f"{server.url}/v1/models").text
    assert adapters(server)["bad"]["state"] == "failed"
    unload(server, "bad")
    answer = post(server, "/v1/load_lora_adapter", lora_name="base", lora_path=str(wide))
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "lora_name")


def test_a_lazy_adapter_is_loaded_by_its_first_request(server: ServedModel, world: World) -> None:
    """kubeai 347: a request to an adapter that is not loaded yet hangs."""
    assert load(server, "second", world.folders["second"], lazy=True)["state"] == "known"
    assert tokens(server, "second") == world.expected["second"]
    assert adapters(server)["second"]["state"] == "ready"
    unload(server, "second")
    digest = "sha256:" + 64 * "0"
    load(server, "gone", world.root / "not-yet", lazy=True, digest=digest)
    assert (adapters(server)["gone"]["state"], adapters(server)["gone"]["digest"]) == (
        "known",
        digest,
    )
    load(server, "gone", world.root / "not-yet", lazy=True)
    assert adapters(server)["gone"]["digest"] is None
    answer = generate(server, "gone")
    assert answer.status_code == 503
    assert int(answer.headers["Retry-After"]) >= 1
    assert answer.json()["error"]["code"] == "adapter_not_ready"
    assert adapters(server)["gone"]["state"] == "failed"
    make_adapter(world.root / "not-yet", world.config, seed=1, rank=3)
    assert tokens(server, "gone") == world.expected["second"]
    unload(server, "gone")


def test_replacing_under_load_drops_no_request_and_mixes_no_generation(
    server: ServedModel, world: World
) -> None:
    """vllm 42125: an adapter that is loaded again under its name is served stale prefix blocks."""
    load(server, "swapped", world.folders["second"])
    allowed = [world.expected["second"], world.expected["third"]]
    stop = threading.Event()
    wrong: list[str] = []
    num_answers = 0

    def ask() -> None:
        nonlocal num_answers
        while not stop.is_set():
            answer = generate(server, "swapped")
            drawn = answer.json()["choices"][0]["token_ids"] if answer.is_success else None
            if drawn not in allowed:
                wrong.append(answer.text)
            num_answers += 1

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    generations = []
    for index in range(8):
        folder = world.folders[("third", "second")[index % 2]]
        generations.append(load(server, "swapped", folder)["generation"])
        # What is asked after the answer to a load gets the new generation, always.
        assert tokens(server, "swapped") == allowed[1 - index % 2]
    stop.set()
    for thread in threads:
        thread.join()
    assert not wrong, wrong[:3]
    assert num_answers > 8
    assert len(set(generations)) == 8
    unload(server, "swapped")
    assert set(adapters(server)) == {"first"}


def test_adapters_survive_a_restart_in_place(world: World, tmp_path: Path) -> None:
    """As a container that the kernel kills and the kubelet starts again, its emptyDir kept."""
    state = tmp_path / "state.json"
    flags = ["--enable-lora", "--max-model-len", "256", "--lora-state", str(state)]
    flags += ["--served-model-name", "base", "--lora-modules", f"first={world.folders['first']}"]
    moving = make_adapter(tmp_path / "moving", world.config, seed=2)
    with served_model(world.model, tmp_path / "log", *flags) as server:
        digests = {
            name: load(server, name, path)["digest"]
            for name, path in [("second", world.folders["second"]), ("moving", moving)]
        }
        load(server, "lazy", world.folders["third"], lazy=True)
        load(server, "passing", world.folders["third"])
        unload(server, "passing")
        server.stop(signal.SIGKILL)
    make_adapter(tmp_path / "moving", world.config, seed=3)
    with served_model(world.model, tmp_path / "log", *flags) as server:
        listed = adapters(server)
        assert {name: entry["state"] for name, entry in listed.items()} == {
            "first": "ready",
            "second": "ready",
            "moving": "failed",
            "lazy": "known",
        }
        assert listed["second"]["digest"] == digests["second"]
        assert digests["moving"] in listed["moving"]["message"]
        for name, like in [("first", "first"), ("second", "second"), ("lazy", "third")]:
            assert tokens(server, name) == world.expected[like]
        assert generate(server, "moving").status_code == 503
        assert load(server, "moving", moving)["digest"] != digests["moving"]
        assert generate(server, "moving").status_code == 200


class Traffic:
    """Requests of the base model and of adapters, one after another each, until told to stop."""

    def __init__(self, server: ServedModel, world: World, names: dict[str, str | None]) -> None:
        """``names``: what requests ask for, and what of ``world`` they are to get."""
        self.num_answers = 0
        self.wrong: list[str] = []
        self._is_over = threading.Event()
        self._threads = [
            threading.Thread(target=self._ask, args=(server, name, world.expected[like]))
            for name, like in names.items()
        ]

    def __enter__(self) -> Traffic:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._is_over.set()
        for thread in self._threads:
            thread.join()

    def _ask(self, server: ServedModel, name: str, expected: list[int]) -> None:
        while not self._is_over.is_set():
            answer = generate(server, name)
            if not answer.is_success or answer.json()["choices"][0]["token_ids"] != expected:
                self.wrong.append(answer.text)
            self.num_answers += 1


def test_loading_and_unloading_beside_traffic_leaks_no_slot_and_no_memory(
    server: ServedModel, world: World
) -> None:
    """Now and then more adapters are asked for than there are slots, so that they take turns."""
    processes = psutil.Process(server.process.pid)
    everyone = [processes, *processes.children(recursive=True)]
    load(server, "second", world.folders["second"])

    def cycle(index: int) -> None:
        name = f"cycle-{index}"
        which = NAMES[index % len(NAMES)]
        load(server, name, world.folders[which])
        assert tokens(server, name) == world.expected[which]
        if index % 10 == 0:
            assert tokens(server, "second") == world.expected["second"]
        unload(server, name)

    def resident() -> int:
        return sum(process.memory_info().rss for process in everyone)

    with Traffic(server, world, {"base": None, "first": "first"}) as traffic:
        for index in range(min(NUM_CYCLES // 2, 50)):
            cycle(index)
        before = resident()
        for index in range(NUM_CYCLES):
            cycle(index)
        after = resident()
    print(
        f"{NUM_CYCLES} cycles, {traffic.num_answers} answers beside them: "
        f"{before / 2**20:.2f} MiB resident before, {after / 2**20:.2f} after"
    )
    assert not traffic.wrong, traffic.wrong[:3]
    assert traffic.num_answers > 3
    # A leaked adapter is 100 kB here, and its slots 400.
    assert after - before < max(4 << 20, NUM_CYCLES * 20_000)
    assert set(adapters(server)) == {"first", "second"}
    assert server.metric("octavo_lora_adapters", place="host") <= 3
    # All slots can still be had, by others than before.
    for name in ("third", "fourth"):
        load(server, name, world.folders[name])
        assert tokens(server, name) == world.expected[name]
    assert {adapters(server)[name]["slot"] for name in ("third", "fourth")} == {0, 1}
    for name in NAMES[1:]:
        unload(server, name)
    assert tokens(server, "first") == world.expected["first"]
