"""The planner of adapters by itself: any history ends in the same place, where nothing is due."""

from __future__ import annotations

import copy
import json
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adapter_stage import lora_adapter
from fake_adapter_table import REFUSALS, AdapterTable, Sources, digest_of
from inference_services import inference_service
from octavo_operator.labels import FINALIZER
from octavo_operator.reconcile.adapter_facts import (
    LONGEST_RETRY_S,
    Attempt,
    AttemptKey,
    Failure,
    ListedAdapter,
    failed_attempt,
)
from octavo_operator.reconcile.adapter_world import AdapterWorld
from octavo_operator.reconcile.adapters import AdapterPlan, attempts_in_use, plan_adapters
from octavo_operator.reconcile.worker_pod import worker_pods

NOW = datetime(2026, 1, 1, tzinfo=UTC)
REASONS = {
    "refused": "AdapterRefused",
    "forbidden": "SourceForbidden",
    "missing": "SourceNotFound",
    "unreachable": "SourceUnreachable",
    "late": "LoadTimedOut",
    "broken": "LoadFailed",
}


def pod(number: int, **changes: Any) -> dict[str, Any]:
    """A pod of the service, whose worker is ready."""
    container = {"name": "worker", "containerID": f"c{number}", "ready": True, "started": True}
    spec = {
        "containers": [{"name": "worker", "command": ["octavo", "serve", "m", "--enable-lora"]}],
    }
    return {
        "metadata": {"name": f"p{number}", "uid": f"u{number}", "labels": {}},
        "spec": spec,
        "status": {"podIP": f"10.0.0.{number}", "containerStatuses": [container]},
        **changes,
    }


class Cosmos:
    """Resources, pods and workers, in which plans are carried out at once and without a fault."""

    def __init__(self) -> None:
        self.service: dict[str, Any] | None = inference_service(engine={"lora": {}})
        self.adapters: dict[str, dict[str, Any]] = {}
        self.pods: dict[str, dict[str, Any]] = {}
        self.tables: dict[str, AdapterTable] = {}
        self.sources = Sources()
        self.attempts: dict[AttemptKey, Attempt] = {}
        self.now_s = 0.0
        self.list_: dict[str, Any] | None = None
        self._count = 0

    def add_pod(self) -> None:
        self._count += 1
        self.pods[f"u{self._count}"] = pod(self._count)
        self.tables[f"u{self._count}"] = table = AdapterTable(self.sources)
        for entry in self.wanted():
            table.want(entry)

    def wanted(self) -> list[dict[str, Any]]:
        """What a new pod finds in its list."""
        if self.list_ is None:
            return []
        found: list[dict[str, Any]] = json.loads(self.list_["data"]["wanted.json"])["adapters"]
        return found

    def restart_container(self, uid: str) -> None:
        self._count += 1
        self.pods[uid]["status"]["containerStatuses"][0]["containerID"] = f"c{self._count}"
        self.tables[uid] = AdapterTable(self.sources)

    def remove_pod(self, uid: str) -> None:
        del self.pods[uid], self.tables[uid]

    def put(self, resource: dict[str, Any]) -> None:
        name = resource["metadata"]["name"]
        old = self.adapters.get(name)
        if old is not None and old["spec"]["servedName"] != resource["spec"]["servedName"]:
            return  # The API does not let it change.
        if old is not None and "deletionTimestamp" in old["metadata"]:
            return
        metadata = {"uid": name, "generation": 1, "creationTimestamp": name}
        if old is not None:
            metadata = {**old["metadata"], "generation": old["metadata"]["generation"] + 1}
        status = {"status": old["status"]} if old is not None and "status" in old else {}
        resource["metadata"] = {**resource["metadata"], **metadata}
        self.adapters[name] = {**resource, **status}

    def delete(self, name: str) -> None:
        adapter = self.adapters.get(name)
        if adapter is None:
            return
        if FINALIZER not in adapter["metadata"].get("finalizers", ()):
            del self.adapters[name]
            return
        adapter["metadata"].setdefault("deletionTimestamp", NOW.isoformat())

    def world(self) -> AdapterWorld:
        listings = {}
        for uid, table in self.tables.items():
            entries = table.listing()[1]["data"]
            listings[uid] = {
                item["name"]: ListedAdapter(
                    item["name"],
                    item["path"],
                    item["state"],
                    item["digest"],
                    item["revision"],
                )
                for item in entries
            }
        return AdapterWorld(
            name="chat",
            service=self.service,
            adapters=tuple(copy.deepcopy(list(self.adapters.values()))),
            pods=worker_pods(self.pods.values()),
            listings=listings,
            held=frozenset(uid for uid, table in self.tables.items() if table.is_held),
            silences={},
            attempts=dict(self.attempts),
            busy={},
            now_s=self.now_s,
            now=NOW,
            template=next(iter(worker_pods([pod(0)]))),
            list_=self.list_,
        )

    def step(self) -> AdapterPlan:
        """Plan once, and carry it out."""
        world = self.world()
        plan = plan_adapters(world)
        in_use = attempts_in_use(world)
        self.attempts = {key: each for key, each in self.attempts.items() if key in in_use}
        for load in plan.loads:
            body = {
                "lora_name": load.key.name,
                "lora_path": load.path,
                "revision": load.revision,
                "digest": load.digest,
                "lazy": load.is_lazy,
            }
            status, answer = self.tables[load.pod.uid].load(body)
            if status == 200:
                done = Attempt(1, None, digest=answer["digest"], revision=answer["revision"])
                self.attempts[load.key] = done
                continue
            code = answer["error"]["code"]
            reason = next(
                (REASONS[kind] for kind, what in REFUSALS.items() if what[1] == code),
                "SourceChanged",
            )
            before = self.attempts.get(load.key)
            self.attempts[load.key] = failed_attempt(before, Failure(reason, code), self.now_s)
        for unload in plan.unloads:
            self.tables[unload.pod.uid].unload({"lora_name": unload.key.name})
        for held in plan.holds:
            metadata = self.adapters[held["metadata"]["name"]]["metadata"]
            metadata["finalizers"] = [*metadata.get("finalizers", ()), FINALIZER]
        for report in plan.reports:
            adapter = self.adapters[report.resource["metadata"]["name"]]
            adapter["status"] = {**adapter.get("status", {}), **report.status}
        for departure in plan.releases:
            name = departure.resource["metadata"]["name"]
            self.adapters[name]["metadata"]["finalizers"].remove(FINALIZER)
            if "deletionTimestamp" in self.adapters[name]["metadata"]:
                del self.adapters[name]
        for admitted in plan.admits:
            self.tables[admitted.uid].is_held = False
        if plan.wanted is not None:
            self.list_ = dict(plan.wanted)
        if plan.service_report is not None and self.service is not None:
            self.service["status"] = dict(plan.service_report.status)
        return plan

    def settle(self) -> None:
        """Until nothing is due; the planner must get there in a few steps."""
        for _ in range(12):
            if self.step().is_empty:
                return
        raise AssertionError("the plan does not come to an end")


NAMES = st.sampled_from(["a", "b", "c"])
PATHS = st.sampled_from(["/s/1", "/s/2", "/s/3"])
CONTENTS = st.sampled_from(["v1", "v2", *REFUSALS])


@st.composite
def adapters(draw: st.DrawFn) -> dict[str, Any]:
    return lora_adapter(
        draw(NAMES),
        f"file://{draw(PATHS)}",
        servedName=draw(st.sampled_from(["x", "y", "z"])),
        placement={"replicas": draw(st.sampled_from(["All", 1, 2]))},
        loadPolicy=draw(st.sampled_from(["Eager", "Lazy"])),
    )


EVENTS = st.one_of(
    st.tuples(st.just("put"), adapters()),
    st.tuples(st.just("delete"), NAMES),
    st.tuples(st.just("content"), st.tuples(PATHS, CONTENTS)),
    st.tuples(st.sampled_from(["add", "remove", "restart", "forget", "wait", "step"]), st.none()),
)


def happen(cosmos: Cosmos, event: str, what: Any) -> None:
    match event:
        case "put":
            cosmos.put(copy.deepcopy(what))
        case "delete":
            cosmos.delete(what)
        case "content":
            cosmos.sources.contents[what[0]] = what[1]
        case "add":
            cosmos.add_pod()
        case "remove" if cosmos.pods:
            cosmos.remove_pod(min(cosmos.pods))
        case "restart" if cosmos.pods:
            cosmos.restart_container(max(cosmos.pods))
        case "forget":
            cosmos.attempts.clear()
        case "wait":
            cosmos.now_s += LONGEST_RETRY_S
        case "step":
            cosmos.step()


@settings(max_examples=150, deadline=None)
@given(st.lists(EVENTS, max_size=14))
def test_any_history_ends_where_nothing_is_due_and_the_status_is_true(
    history: list[tuple[str, Any]],
) -> None:
    cosmos = Cosmos()
    cosmos.add_pod()
    for event, what in history:
        happen(cosmos, event, what)
    cosmos.settle()
    check_truth(cosmos)
    check_list(cosmos)
    # All that may be tried again is, once sources are there again and time has passed.
    for path in ("/s/1", "/s/2", "/s/3"):
        cosmos.sources.contents[path] = "good"
    cosmos.now_s += LONGEST_RETRY_S
    for uid in cosmos.pods:
        cosmos.restart_container(uid)
    for adapter in cosmos.adapters.values():
        adapter["metadata"]["annotations"] = {"serving.octavo.dev/resolve": "now"}
    cosmos.settle()
    check_truth(cosmos)
    for adapter in cosmos.adapters.values():
        ready = adapter["status"]["conditions"][-1]
        if ready["reason"] not in ("DuplicateName", "WaitingForPods"):
            assert (ready["status"], adapter["status"]["resolvedDigest"]) == (
                "True",
                digest_of("good"),
            )


def check_truth(cosmos: Cosmos) -> None:
    """What statuses say is what pods have, and pods have nothing else."""
    said: dict[str, set[str]] = {uid: set() for uid in cosmos.pods}
    names = []
    for adapter in cosmos.adapters.values():
        status, name = adapter["status"], adapter["spec"]["servedName"]
        ready = status["conditions"][-1]
        assert (ready["status"] == "True") <= (status["desired"] == status["loaded"] > 0)
        placed = adapter["spec"]["placement"]["replicas"]
        most = len(cosmos.pods) if placed == "All" else min(placed, len(cosmos.pods))
        if ready["reason"] != "DuplicateName":
            names.append(name)
            assert status["desired"] == most
        for entry in status["pods"]:
            listed = cosmos.tables[entry["uid"]].entries.get(name)
            assert entry.get("digest") == (listed or {}).get("digest")
            said[entry["uid"]].add(name)
            assert entry["state"] not in ("Loading", "Unloading")
            if entry["state"] == "Loaded":
                assert listed is not None
                assert listed["digest"] == status["resolvedDigest"]
        is_held = FINALIZER in adapter["metadata"].get("finalizers", ())
        assert is_held == bool(cosmos.pods)
    assert len(names) == len(set(names))
    for uid, table in cosmos.tables.items():
        for name in set(table.entries) - said[uid]:
            # It is not chosen for it, and knows its name.
            (adapter,) = [
                each
                for each in cosmos.adapters.values()
                if each["spec"]["servedName"] == name
                and each["status"]["conditions"][-1]["reason"] != "DuplicateName"
            ]
            assert adapter["spec"]["placement"]["replicas"] != "All"
            assert table.entries[name]["digest"] == adapter["status"]["resolvedDigest"]


def check_list(cosmos: Cosmos) -> None:
    """A pod that comes while nobody is there has by itself what statuses promise of all."""
    table = AdapterTable(cosmos.sources)
    for entry in cosmos.wanted():
        table.want(entry)
    for adapter in cosmos.adapters.values():
        status, spec = adapter["status"], adapter["spec"]
        if status["conditions"][-1]["status"] != "True":
            continue
        listed = table.entries[spec["servedName"]]
        content = cosmos.sources.contents.get(spec["source"]["uri"].removeprefix("file://"), "")
        is_everywhere = spec["placement"]["replicas"] == "All" and spec["loadPolicy"] == "Eager"
        if digest_of(content) == status["resolvedDigest"] or not is_everywhere:
            assert listed["digest"] == status["resolvedDigest"]
            assert listed["state"] == ("ready" if is_everywhere else "known")
        else:
            assert listed["state"] == "failed"  # 503, for the files are there no more
    accepted = {
        adapter["spec"]["servedName"]
        for adapter in cosmos.adapters.values()
        if adapter["status"]["conditions"][-1]["reason"] != "DuplicateName"
    }
    assert set(table.entries) <= accepted


def key(name: str = "a", source: str = "?") -> AttemptKey:
    return AttemptKey("u1", "c1", name, source)


@pytest.mark.parametrize(
    ("attempts", "due_s"),
    [(1, 2.0), (2, 4.0), (3, 8.0), (9, 300.0), (60, 300.0)],
)
def test_pauses_grow_to_a_limit_and_there_is_no_last_attempt(attempts: int, due_s: float) -> None:
    attempt: Attempt | None = None
    for _ in range(attempts):
        attempt = failed_attempt(attempt, Failure("SourceUnreachable", ""), 100.0)
    assert attempt is not None
    assert attempt.retry_at_s == 100.0 + due_s
    assert not attempt.is_due(100.0 + due_s - 0.1)
    assert attempt.is_due(100.0 + due_s)


def test_those_that_have_failed_least_are_tried_first() -> None:
    cosmos = Cosmos()
    cosmos.add_pod()
    for number, name in enumerate("abc"):
        cosmos.sources.contents[f"/s/{number}"] = "unreachable"
        cosmos.put(lora_adapter(name, f"file:///s/{number}"))
        cosmos.step()
        cosmos.now_s += LONGEST_RETRY_S
    loads = plan_adapters(cosmos.world()).loads
    assert [(load.key.name, load.num_failures) for load in loads] == [("c", 1), ("b", 2), ("a", 3)]


def test_pods_are_asked_again_though_nothing_happens() -> None:
    cosmos = Cosmos()
    cosmos.add_pod()
    cosmos.settle()
    assert plan_adapters(cosmos.world()).look_again_s is None
    cosmos.sources.contents["/s/1"] = "v1"
    cosmos.put(lora_adapter("a", "file:///s/1"))
    cosmos.settle()
    assert plan_adapters(cosmos.world()).look_again_s == pytest.approx(60.0)


def test_look_is_due_when_the_next_pause_ends() -> None:
    cosmos = Cosmos()
    cosmos.add_pod()
    cosmos.sources.contents["/s/1"] = "unreachable"
    cosmos.put(lora_adapter("a", "file:///s/1"))
    cosmos.settle()
    assert plan_adapters(cosmos.world()).look_again_s == pytest.approx(2.0)
    cosmos.now_s += 1.5
    assert plan_adapters(cosmos.world()).look_again_s == pytest.approx(0.5)


def test_pod_on_hold_is_asked_often_until_its_adapters_are_there() -> None:
    """It gives up waiting for an operator that does not ask."""
    cosmos = Cosmos()
    cosmos.sources.contents["/s/1"] = "unreachable"
    cosmos.put(lora_adapter("a", "file:///s/1"))
    cosmos.add_pod()
    cosmos.settle()
    cosmos.now_s += 100
    cosmos.step()
    cosmos.step()
    cosmos.now_s -= 100
    plan = plan_adapters(cosmos.world())
    assert (plan.admits, plan.look_again_s) == ((), pytest.approx(5.0))
    cosmos.sources.contents["/s/1"] = "v1"
    cosmos.now_s += LONGEST_RETRY_S
    cosmos.settle()
    assert not cosmos.tables["u1"].is_held


MODULES = [
    (["--lora-modules", "a=/x", "b=/y", "--seed", "1"], {"a", "b"}),
    (["--lora-modules=a=/x", "--seed=1"], {"a"}),
    (["--lora-modules", '{"name": "a", "path": "/x"}'], {"a"}),
    (["--lora-modules", "[" * 1024], {"[" * 1024}),
    (["--seed=1"], set()),
]


@pytest.mark.parametrize(
    ("words", "names"), MODULES, ids=["two", "joined", "json", "nested", "none"]
)
def test_adapters_of_the_command_line_are_known(words: list[str], names: set[str]) -> None:
    value = pod(1)
    value["spec"]["containers"][0]["args"] = words
    (read,) = worker_pods([value])
    assert read.own_adapters == names


def test_secrets_and_volumes_of_a_pod_are_read_off_it() -> None:
    value = pod(1)
    value["spec"]["volumes"] = [
        {"name": "a", "persistentVolumeClaim": {"claimName": "adapters"}},
        {"name": "b", "image": {"reference": "r.io/sql:v1"}},
        {"name": "c", "persistentVolumeClaim": {"claimName": "part"}},
    ]
    value["spec"]["containers"][0] |= {
        "envFrom": [{"secretRef": {"name": "whole"}}, {"configMapRef": {"name": "x"}}],
        "env": [{"name": "T", "valueFrom": {"secretKeyRef": {"name": "single", "key": "t"}}}],
        "volumeMounts": [
            {"name": "a", "mountPath": "/a"},
            {"name": "b", "mountPath": "/b"},
            {"name": "c", "mountPath": "/c", "subPath": "deep"},
        ],
    }
    (read,) = worker_pods([value])
    assert read.secrets == {"whole", "single"}
    assert read.claims == {"adapters": "/a"}
    assert read.images == {"r.io/sql:v1": "/b"}


@pytest.mark.parametrize(
    "changes",
    [
        {"metadata": {"name": "p", "uid": "u", "deletionTimestamp": "2026-01-01T00:00:00Z"}},
        {"status": {"phase": "Failed"}},
    ],
    ids=["stopping", "evicted"],
)
def test_pods_on_their_way_out_do_not_count(changes: dict[str, Any]) -> None:
    assert worker_pods([pod(1, **changes)]) == ()
