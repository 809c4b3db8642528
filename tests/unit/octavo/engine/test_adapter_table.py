"""Names of adapters, and what of them outlives a restart."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from adapter_engine import AdapterEngine, run
from octavo.engine.adapter_hold import LIMIT_S, PATIENCE_S, AdapterHold
from octavo.engine.adapter_state import AdapterStateFile, RememberedAdapter
from octavo.engine.adapter_table import AdapterTable
from octavo.engine.messages import AdapterFailed, AdapterOpened
from octavo.errors import (
    AdapterChangedError,
    AdapterError,
    AdapterNotReadyError,
    AdapterRefusedError,
    EngineDeadError,
    InvalidRequestError,
    SourceUnreachableError,
    UnknownModelError,
)
from octavo.lora.adapter_source import AdapterSource


def remembered(state: Path) -> list[dict[str, Any]]:
    document = json.loads(state.read_text())
    assert document["version"] == 1
    entries: list[dict[str, Any]] = document["adapters"]
    return entries


@pytest.mark.parametrize("name", ["", "a,b", ",", " a", "a\n"])
def test_a_name_that_reads_as_others_in_a_list_is_refused(name: str) -> None:
    engine = AdapterEngine()
    engine.digests["/x"] = "d1"

    async def action() -> None:
        with pytest.raises(InvalidRequestError, match="no comma") as refusal:
            await engine.table.load(name, AdapterSource("/x"))
        assert refusal.value.param == "lora_name"
        await engine.table.load("a b/c:d", AdapterSource("/x"))
        assert [entry.name for entry in engine.table.entries()] == ["a b/c:d"]

    run(action)


def test_what_was_loaded_is_remembered_as_it_was_found(tmp_path: Path) -> None:
    engine = AdapterEngine(tmp_path / "state")
    engine.digests |= {"hf://acme/sql@main": "d1", "/adapters/fr": "d2", "/module": "d3"}
    engine.commits["hf://acme/sql@main"] = "c1"

    async def action() -> None:
        table = engine.table
        await table.load("module", AdapterSource("/module"), is_remembered=False)
        await table.load("sql", AdapterSource("hf://acme/sql@main"))
        await table.load("fr", AdapterSource("/adapters/fr"))
        await table.load("later", AdapterSource("/later"), is_lazy=True)
        with pytest.raises(SourceUnreachableError):
            await table.load("gone", AdapterSource("/gone"))
        with pytest.raises(AdapterChangedError):
            await table.load("fr", AdapterSource("/adapters/fr", digest="d9"))
        await table.unload("fr", 1.0)

    run(action)
    nothing = {"revision": None, "digest": None}
    assert remembered(tmp_path / "state") == [
        {"name": "sql", "path": "hf://acme/sql", "revision": "c1", "digest": "d1", "lazy": False},
        {"name": "later", "path": "/later", "lazy": True} | nothing,
    ]
    assert [path.name for path in tmp_path.iterdir()] == ["state"]


def test_a_restart_restores_each_by_its_digest_and_one_failure_keeps_nobody_out(
    tmp_path: Path,
) -> None:
    before, after = AdapterEngine(tmp_path / "state"), AdapterEngine(tmp_path / "state")
    before.digests |= {"/good": "d1", "/moved": "d2", "/away": "d3"}
    after.digests |= {"/good": "d1", "/moved": "d9", "/lazy": "d4"}

    async def first() -> None:
        for name in ("good", "moved", "away"):
            await before.table.load(name, AdapterSource(f"/{name}"))
        await before.table.load("lazy", AdapterSource("/lazy"), is_lazy=True)

    async def second() -> None:
        await after.table.restore()
        entries = {entry.name: entry for entry in after.table.entries()}
        states = {name: str(entry.state) for name, entry in entries.items()}
        assert states == {"good": "ready", "moved": "failed", "away": "failed", "lazy": "known"}
        assert entries["moved"].error == "d9, not d2"
        assert entries["away"].error == "No answer."
        # A request makes another attempt; the state file still has all.
        after.digests["/away"] = "d3"
        after.table.release(await after.table.acquire("away"))
        after.table.release(await after.table.acquire("lazy"))

    run(first)
    run(second)
    found = [(one["name"], one["digest"], one["lazy"]) for one in remembered(tmp_path / "state")]
    assert found == [
        ("good", "d1", False),
        ("moved", "d2", False),
        ("away", "d3", False),
        ("lazy", "d4", True),
    ]


def test_restoring_waits_no_longer_than_a_request(tmp_path: Path) -> None:
    before, after = (
        AdapterEngine(tmp_path / "state"),
        AdapterEngine(tmp_path / "state", wait_s=0.05),
    )
    before.digests["/slow"] = after.digests["/slow"] = "d1"
    after.is_holding = True

    async def second() -> None:
        await after.table.restore()
        (entry,) = after.table.entries()
        assert str(entry.state) == "loading"
        after.release()
        while str(entry.state) != "ready":
            await asyncio.sleep(0)

    run(lambda: before.table.load("slow", AdapterSource("/slow")))
    run(second)


@pytest.mark.parametrize("content", [b"", b"{", b'{"version": 2, "adapters": []}'], ids=repr)
def test_a_state_file_that_cannot_be_understood_keeps_nobody_out(
    content: bytes, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    state = tmp_path / "state"
    state.write_bytes(content)
    engine = AdapterEngine(state)
    engine.digests["/good"] = "d1"
    run(engine.table.restore)
    assert "no adapter is restored" in caplog.text
    run(lambda: engine.table.load("good", AdapterSource("/good")))
    assert [one["name"] for one in remembered(state)] == ["good"]


def test_a_state_file_that_cannot_be_looked_at_keeps_nobody_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    engine = AdapterEngine(tmp_path / ("x" * 300), wanted=tmp_path / "wanted")
    run(engine.table.restore)
    assert "cannot be written" in caplog.text


def test_a_name_that_reads_as_others_is_not_restored(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    state = tmp_path / "adapters.json"
    names = ["a,b", "", " x ", "sql"]
    adapters = [{"name": name, "path": "/sql", "lazy": True} for name in names]
    state.write_text(json.dumps({"version": 1, "adapters": adapters}))
    engine = AdapterEngine(state)

    async def action() -> None:
        await engine.table.restore()
        assert [entry.name for entry in engine.table.entries()] == ["sql"]

    run(action)
    assert "'a,b'" in caplog.text


def test_what_may_yet_fail_is_not_remembered(tmp_path: Path) -> None:
    state = tmp_path / "adapters.json"
    engine = AdapterEngine(state)
    engine.is_holding = True

    async def action() -> None:
        load = asyncio.create_task(engine.table.load("gone", AdapterSource("/gone")))
        await asyncio.sleep(0.01)
        await engine.table.load("sql", AdapterSource("/sql"), is_lazy=True)
        assert [entry["name"] for entry in remembered(state)] == ["sql"]
        engine.release()
        with pytest.raises(SourceUnreachableError):
            await load

    run(action)


class SlowFile(AdapterStateFile):
    """On a disk that takes as long as it is told to."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.may_write = threading.Event()
        self.num_writes = 0

    def write(self, adapters: Sequence[RememberedAdapter]) -> None:
        assert self.may_write.wait(10)
        self.num_writes += 1
        super().write(adapters)


def test_a_slow_disk_holds_up_who_is_to_be_remembered_and_nobody_else(tmp_path: Path) -> None:
    file = SlowFile(tmp_path / "adapters.json")
    engine = AdapterEngine()
    engine.digests["/sql"] = "d1"
    table = engine.table = AdapterTable(engine._take, is_enabled=True, wait_s=60, state_file=file)

    async def action() -> None:
        names = [f"sql-{number}" for number in range(5)]
        source = AdapterSource("/sql")
        loads = [asyncio.create_task(table.load(name, source)) for name in names]
        async with asyncio.timeout(5):
            while sum(entry.current is not None for entry in table.entries()) < len(names):
                await asyncio.sleep(0.001)
        table.release(await table.acquire("sql-0"))
        assert not any(load.done() for load in loads), "told before it was remembered"
        file.may_write.set()
        await asyncio.gather(*loads)

    run(action)
    assert len(remembered(tmp_path / "adapters.json")) == 5
    assert file.num_writes == 2, "all that came while one was written are written at once"


def test_a_load_is_told_what_it_has_loaded_whatever_comes_next(tmp_path: Path) -> None:
    file = SlowFile(tmp_path / "adapters.json")
    engine = AdapterEngine()
    engine.digests |= {"/one": "d1", "/two": "d2"}
    table = engine.table = AdapterTable(engine._take, is_enabled=True, wait_s=60, state_file=file)

    async def action() -> None:
        sources = (AdapterSource("/one"), AdapterSource("/one", digest="d1"), AdapterSource("/two"))
        loads = []
        for source in sources:
            loads.append(asyncio.create_task(table.load("sql", source)))
            await asyncio.sleep(0.01)  # to where it waits to be remembered
        (entry,) = table.entries()
        assert entry.source.path == "/two"
        file.may_write.set()
        for answer, path, digest in zip(
            await asyncio.gather(*loads), ("/one", "/one", "/two"), ("d1", "d1", "d2"), strict=True
        ):
            assert answer.current is not None
            assert (answer.source.path, answer.current.digest) == (path, digest)
            assert str(answer.state) == "ready"

    run(action)


def test_a_state_file_that_cannot_be_written_is_told_in_the_log(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    engine = AdapterEngine(tmp_path / "nowhere" / "state")
    engine.digests["/good"] = "d1"
    run(lambda: engine.table.load("good", AdapterSource("/good")))
    assert "cannot be written" in caplog.text


def test_what_is_there_by_its_digest_is_not_read_again() -> None:
    engine = AdapterEngine()
    engine.digests["/good"] = "d1"

    async def action() -> None:
        await engine.table.load("good", AdapterSource("/good"))
        for digest, num_reads in [("d1", 1), (None, 2)]:
            await engine.table.load("good", AdapterSource("/good", digest=digest))
            assert len(engine.opened) == num_reads
        # Known lazily, that is how it stays until what is asked for is something else.
        await engine.table.load("good", AdapterSource("/good"), is_lazy=True)
        assert len(engine.opened) == 2
        engine.digests["/better"] = "d2"
        entry = await engine.table.load("good", AdapterSource("/better"), is_lazy=True)
        assert entry.current is not None
        assert entry.current.digest == "d2"

    run(action)


def test_a_load_that_takes_too_long_goes_on() -> None:
    engine = AdapterEngine()
    engine.digests["/slow"] = "d1"
    engine.is_holding = True

    async def action() -> None:
        with pytest.raises(AdapterNotReadyError, match="loading goes on"):
            await engine.table.load("slow", AdapterSource("/slow"), 0.01)
        again = asyncio.create_task(engine.table.load("slow", AdapterSource("/slow", digest="d1")))
        await asyncio.sleep(0)
        engine.release()
        entry = await again
        assert str(entry.state) == "ready"

    run(action)


def test_a_load_that_waits_too_long_for_its_turn_keeps_it() -> None:
    engine = AdapterEngine()
    engine.digests |= {"/one": "d1", "/two": "d2"}
    engine.is_holding = True

    async def action() -> None:
        first = asyncio.create_task(engine.table.load("sql", AdapterSource("/one")))
        await asyncio.sleep(0.01)
        with pytest.raises(AdapterNotReadyError, match="loading goes on"):
            await engine.table.load("sql", AdapterSource("/two"), 0.01)
        engine.release()
        await first
        (entry,) = engine.table.entries()
        while entry.load is not None:
            await asyncio.wait([entry.load])
        assert entry.current is not None
        assert (entry.current.digest, entry.source.path) == ("d2", "/two")

    run(action)


def test_unloading_ends_a_load_under_way() -> None:
    engine = AdapterEngine()
    engine.digests["/slow"] = "d1"
    engine.is_holding = True

    async def action() -> None:
        load = asyncio.create_task(engine.table.load("slow", AdapterSource("/slow")))
        await asyncio.sleep(0.01)
        waiting = asyncio.create_task(engine.table.acquire("slow"))
        await asyncio.sleep(0.01)
        assert await engine.table.unload("slow", 1.0) == 0
        with pytest.raises(UnknownModelError, match="unloaded meanwhile"):
            await waiting  # not for the load
        engine.release()
        with pytest.raises(UnknownModelError, match="unloaded meanwhile"):
            await load
        assert engine.closed == [1]
        assert not engine.table.entries()

    run(action)


def test_unloading_ends_requests_of_replaced_versions_too() -> None:
    engine = AdapterEngine()
    engine.digests |= {"/one": "d1", "/two": "d2"}

    async def action() -> None:
        table = engine.table
        await table.load("sql", AdapterSource("/one"))
        late, soon = await table.acquire("sql"), await table.acquire("sql")
        await table.load("sql", AdapterSource("/two"))
        current = await table.acquire("sql")
        assert [one.num_open for _, one in table.draining()] == [2]
        unload = asyncio.create_task(table.unload("sql", 0.05))
        await asyncio.sleep(0)
        table.release(soon)
        assert await unload == 2
        assert sorted(engine.closed) == [1, 2]
        assert not table.draining()
        for adapter in (late, current):  # as their requests have heard of it
            table.release(adapter)

        # Nor do those of one name wait for those who had it before.
        await table.load("sql", AdapterSource("/one"))
        await table.acquire("sql")
        first = asyncio.create_task(table.unload("sql", 60))
        await asyncio.sleep(0)
        await table.load("sql", AdapterSource("/two"))
        assert await table.unload("sql", 60) == 0
        assert [one.num_open for _, one in table.draining()] == [1]
        first.cancel()

    run(action)


def test_a_failed_load_takes_nothing_from_who_waits_its_turn() -> None:
    engine = AdapterEngine()
    engine.digests["/good"] = "d1"
    engine.is_holding = True

    async def action() -> None:
        paths = ("/gone", "/good", "/good", "/gone")
        loads = [engine.table.load("sql", AdapterSource(path)) for path in paths]
        tasks = [asyncio.create_task(load) for load in loads]
        await asyncio.sleep(0.01)
        engine.release()
        ends = await asyncio.gather(*tasks, return_exceptions=True)
        kinds = [type(end).__name__ for end in ends]
        assert kinds == [
            "SourceUnreachableError",
            "AdapterEntry",
            "AdapterEntry",
            "SourceUnreachableError",
        ]
        (entry,) = engine.table.entries()
        assert (str(entry.state), entry.source.path) == ("ready", "/good")

    run(action)


def test_sources_far_away_leave_room_for_what_is_here() -> None:
    """gateway-api-inference-extension 584: one bad adapter blocks the others."""
    engine = AdapterEngine()
    paths = [f"hf://acme/{number}" for number in range(5)]
    engine.digests |= dict.fromkeys([*paths, "/here"], "d1")
    engine.is_holding = True

    async def action() -> None:
        loads = [
            asyncio.create_task(engine.table.load(path, AdapterSource(path)))
            for path in [*paths, "/here"]
        ]
        await asyncio.sleep(0.01)
        held = [message.source.path for message in engine.held]
        assert held == [*paths[:3], "/here"]
        await engine.table.unload(paths[4], 1.0)
        engine.release()
        ends = await asyncio.gather(*loads, return_exceptions=True)
        assert [type(end).__name__ for end in ends] == [
            *["AdapterEntry"] * 4,
            "UnknownModelError",
            "AdapterEntry",
        ]
        assert paths[4] not in [source.path for source in engine.opened]

    run(action)


def test_loads_that_wait_for_others_end_with_the_engine() -> None:
    engine = AdapterEngine()
    engine.is_holding = True

    async def action() -> None:
        loads = [
            asyncio.create_task(engine.table.load(str(number), AdapterSource(f"s3://b/{number}")))
            for number in range(5)
        ]
        await asyncio.sleep(0.01)
        engine.table.engine_died(EngineDeadError("gone"))
        ends = await asyncio.gather(*loads, return_exceptions=True)
        assert [type(end) for end in ends] == [EngineDeadError] * 5

    run(action)


def test_of_loads_that_all_fail_no_name_is_left() -> None:
    engine = AdapterEngine()

    async def action() -> None:
        loads = [engine.table.load("sql", AdapterSource("/gone")) for _ in range(3)]
        ends = await asyncio.gather(*loads, return_exceptions=True)
        assert {type(end) for end in ends} == {SourceUnreachableError}
        assert not engine.table.entries()

    run(action)


def test_who_waited_for_an_adapter_that_went_as_it_came_gets_none() -> None:
    engine = AdapterEngine()
    engine.digests["/slow"] = "d1"
    engine.is_holding = True

    async def action() -> None:
        await engine.table.load("slow", AdapterSource("/slow"), is_lazy=True)
        (entry,) = engine.table.entries()
        waiting = asyncio.create_task(engine.table.acquire("slow"))
        await asyncio.sleep(0.01)
        engine.release()
        while entry.current is None:
            await asyncio.sleep(0)
        await engine.table.unload("slow", 1.0)
        with pytest.raises(UnknownModelError, match="unloaded meanwhile"):
            await waiting
        assert engine.closed == [1]

    run(action)


@pytest.mark.parametrize(("path", "num_attempts"), [("hf://acme/sql", 1), ("/sql", 3)])
def test_requests_for_what_cannot_be_loaded_do_not_call_a_hub_each(
    path: str, num_attempts: int
) -> None:
    engine = AdapterEngine()

    async def action() -> None:
        await engine.table.load("sql", AdapterSource(path), is_lazy=True)
        (entry,) = engine.table.entries()
        for _ in range(3):
            with pytest.raises(AdapterNotReadyError, match="cannot be loaded now") as caught:
                await engine.table.acquire("sql")
            assert "No answer" not in str(caught.value), "why is for administrators"
            assert entry.error == "No answer."
            assert 0 < caught.value.retry_after_s <= 5.0
        assert len(engine.opened) == num_attempts
        engine.digests[path] = "d1"
        entry.retry_at_s = 0.0  # as after that time
        engine.table.release(await engine.table.acquire("sql"))
        assert len(engine.opened) == num_attempts + 1

    run(action)


@pytest.mark.parametrize("path", ["hf://acme/wide", "/wide"])
def test_a_name_whose_files_are_refused_is_not_offered(path: str) -> None:
    engine = AdapterEngine()
    engine.refusals[path] = "Its rank is 64."
    source = AdapterSource(path, digest="d1")

    async def action() -> None:
        await engine.table.load("wide", source, is_lazy=True)
        (entry,) = engine.table.entries()
        assert engine.table.offered() == [entry]  # nobody has looked yet
        engine.table.check_offered("wide")
        for _ in range(3):
            with pytest.raises(AdapterRefusedError, match=r"'wide' cannot be .*: Its rank is 64\."):
                await engine.table.acquire("wide")
        assert len(engine.opened) == 1  # a file that will not do is not read for each request
        assert engine.table.offered() == []
        with pytest.raises(AdapterRefusedError):
            engine.table.check_offered("wide")
        # Whoever looks after the server sees it as before.
        assert (str(entry.state), entry.message) == ("failed", "Its rank is 64.")
        # Other files, found by a later request, or brought by a load, will do.
        del engine.refusals[path]
        engine.digests[path] = "d1"
        entry.retry_at_s = 0.0
        engine.table.release(await engine.table.acquire("wide"))
        assert engine.table.offered() == [entry]

    run(action)


def test_a_load_that_may_do_takes_a_refusal_back() -> None:
    engine = AdapterEngine()
    engine.refusals["/wide"] = "Its rank is 64."

    async def action() -> None:
        await engine.table.load("sql", AdapterSource("/wide"), is_lazy=True)
        (entry,) = engine.table.entries()
        with pytest.raises(AdapterRefusedError):
            await engine.table.acquire("sql")
        await engine.table.load("sql", AdapterSource("/narrow"), is_lazy=True)
        assert (str(entry.state), engine.table.offered()) == ("known", [entry])
        with pytest.raises(AdapterNotReadyError):  # it is not there: another thing
            await engine.table.acquire("sql")
        assert engine.table.offered() == [entry]

    run(action)


def test_a_refused_version_takes_nothing_from_the_one_that_serves() -> None:
    engine = AdapterEngine()
    engine.digests["/sql"] = "d1"
    engine.refusals["/wide"] = "Its rank is 64."

    async def action() -> None:
        await engine.table.load("sql", AdapterSource("/sql"))
        (entry,) = engine.table.entries()
        with pytest.raises(AdapterError):
            await engine.table.load("sql", AdapterSource("/wide"))
        assert engine.table.offered() == [entry]
        engine.table.release(await engine.table.acquire("sql"))

    run(action)


def test_a_refused_version_takes_nothing_from_a_name_that_is_loaded_when_asked_for() -> None:
    engine = AdapterEngine()
    engine.digests["/sql"] = "d1"
    engine.refusals["/wide"] = engine.refusals["hf://acme/wide"] = "Its rank is 64."

    async def action() -> None:
        await engine.table.load("sql", AdapterSource("/sql"), is_lazy=True)
        (entry,) = engine.table.entries()
        for path in ("/wide", "hf://acme/wide"):
            with pytest.raises(AdapterError):
                await engine.table.load("sql", AdapterSource(path))
            assert engine.table.offered() == [entry]
            assert entry.message == "Its rank is 64."
        engine.table.release(await engine.table.acquire("sql"))
        assert (str(entry.state), entry.message) == ("ready", None)

    run(action)


def test_an_adapter_that_cannot_be_read_again_is_not_said_to_be_ready() -> None:
    """aibrix 235: the status says Running though nothing is loaded."""
    engine = AdapterEngine()
    engine.digests["/sql"] = "d1"
    source = AdapterSource("/sql", digest="d1")

    async def action() -> None:
        await engine.table.load("sql", source)
        (entry,) = engine.table.entries()
        gone = AdapterFailed(1, "AdapterChangedError", "no longer those that were loaded")
        engine.table.heard(gone)
        assert (str(entry.state), entry.message) == ("failed", gone.message)
        # Requests go on making attempts, and one that works ends it.
        engine.table.release(await engine.table.acquire("sql"))
        engine.table.heard(AdapterOpened(1, "d1", 0, 0, 0.0, is_known=True))
        assert (str(entry.state), entry.message) == ("ready", None)
        # To load what is said to be there is to look.
        for is_there in (False, True):
            engine.table.heard(gone)
            engine.digests["/sql"] = "d1" if is_there else "d2"
            if is_there:
                await engine.table.load("sql", source)
            else:
                with pytest.raises(AdapterChangedError):
                    await engine.table.load("sql", source)
            assert str(entry.state) == ("ready" if is_there else "failed")
        assert len(engine.opened) == 3

    run(action)


def wanted_file(folder: Path) -> Path:
    """As an operator writes it, with fields that this version need not know."""
    entries = [
        {"name": "sql", "path": "hf://acme/sql", "revision": "c1", "digest": "d1"},
        {"name": "moved", "path": "/moved", "digest": "d2"},
        {"name": "later", "path": "/later", "digest": "d3", "lazy": True, "since": "v9"},
    ]
    file = folder / "wanted.json"
    file.write_text(json.dumps({"version": 1, "adapters": entries}))
    return file


def test_new_server_loads_what_is_wanted_and_is_on_hold(tmp_path: Path) -> None:
    state = tmp_path / "state"
    engine = AdapterEngine(state, wanted=wanted_file(tmp_path))
    engine.digests |= {"hf://acme/sql": "d1", "/moved": "d9", "/later": "d3"}

    async def action() -> None:
        await engine.table.restore()
        found = {entry.name: entry.state for entry in engine.table.entries()}
        assert found == {"sql": "ready", "moved": "failed", "later": "known"}
        assert engine.opened[0] == AdapterSource("hf://acme/sql", "c1", "d1")
        assert engine.table.hold.is_on
        # Others have it, so it is no name that nobody knows.
        with pytest.raises(AdapterNotReadyError, match="cannot be loaded now"):
            await engine.table.acquire("moved")

    run(action)
    assert [entry["name"] for entry in remembered(state)] == ["sql", "moved", "later"]


def test_server_started_again_goes_by_its_own_memory(tmp_path: Path) -> None:
    state, wanted = tmp_path / "state", wanted_file(tmp_path)
    state.write_text(json.dumps({"version": 1, "adapters": [{"name": "sql", "path": "/new"}]}))
    engine = AdapterEngine(state, wanted=wanted)
    engine.digests["/new"] = "d7"

    async def action() -> None:
        await engine.table.restore()
        (entry,) = engine.table.entries()
        assert entry.current is not None
        assert entry.current.digest == "d7"
        assert not engine.table.hold.is_on

    run(action)


@pytest.mark.parametrize("content", [None, "", "{", '{"version": 2, "adapters": []}'])
def test_new_server_without_a_list_of_what_is_wanted_waits_to_be_told(
    tmp_path: Path, content: str | None
) -> None:
    wanted, state = tmp_path / "wanted.json", tmp_path / "state"
    if content is not None:
        wanted.write_text(content)
    engine = AdapterEngine(state, wanted=wanted)

    async def action() -> None:
        await engine.table.restore()
        assert engine.table.hold.is_on
        assert engine.table.entries() == []

    run(action)
    # Once is enough: it is not new any more when it is started again.
    assert remembered(state) == []


def test_load_of_a_known_digest_that_fails_leaves_a_name_to_try_again(tmp_path: Path) -> None:
    engine = AdapterEngine()

    async def action() -> None:
        with pytest.raises(SourceUnreachableError):
            await engine.table.load("sql", AdapterSource("/sql", digest="d1"))
        with pytest.raises(AdapterNotReadyError):
            await engine.table.acquire("sql")
        with pytest.raises(SourceUnreachableError):
            await engine.table.load("who", AdapterSource("/who"))
        with pytest.raises(UnknownModelError):
            await engine.table.acquire("who")
        engine.digests["/sql"] = "d1"
        await engine.table.acquire("sql")

    run(action)


class Clock:
    now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


def test_hold_ends_by_word_by_silence_or_by_its_limit() -> None:
    clock = Clock()
    hold = AdapterHold(clock)
    assert not hold.is_on
    hold.begin()
    assert hold.is_on
    hold.end()
    assert not hold.is_on
    hold.begin()
    clock.now_s += PATIENCE_S - 0.1
    assert hold.is_on
    clock.now_s += 0.1
    assert not hold.is_on
    hold.heard()
    assert not hold.is_on  # it has ended for good
    hold.begin()
    began_s = clock.now_s
    while hold.is_on:
        clock.now_s += PATIENCE_S / 4
        hold.heard()
    assert clock.now_s - began_s == LIMIT_S
