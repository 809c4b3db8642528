"""The adapters that a server starts with."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from adapter_engine import AdapterEngine, run
from octavo.engine.first_adapters import load_first_adapters
from octavo.engine.messages import PhaseFinished, PhaseStarted
from octavo.errors import AdapterError, SourceUnreachableError
from octavo.lora.adapter_source import AdapterSource

NAMES = [f"a{number}" for number in range(40)]
MODULES = [(name, f"/{name}") for name in NAMES]
Told = list[PhaseStarted | PhaseFinished]


def engine_with(*names: str, state: Path | None = None) -> AdapterEngine:
    engine = AdapterEngine(state)
    engine.digests = {f"/{name}": f"sha256:{name}" for name in names}
    return engine


def test_all_are_read_side_by_side_and_each_that_is_there_is_told_of() -> None:
    engine, told = engine_with(*NAMES), Told()

    async def action() -> None:
        engine.is_holding = True
        loading = asyncio.create_task(load_first_adapters(engine.table, MODULES, told.append))
        while len(engine.held) < len(NAMES):
            await asyncio.sleep(0)
        assert told == [PhaseStarted("adapters", "0 of 40", 0.0)]
        engine.release()
        await loading

    run(action)
    assert [entry.name for entry in engine.table.offered()] == NAMES
    started = [message for message in told if isinstance(message, PhaseStarted)]
    assert [message.detail for message in started] == [f"{done} of 40" for done in range(41)]
    assert [message.fraction for message in started] == [done / 40 for done in range(41)]
    assert isinstance(told[-1], PhaseFinished)
    assert {message.name for message in told} == {"adapters"}


def test_the_first_that_cannot_be_loaded_ends_it() -> None:
    engine, told = engine_with(*NAMES[:7], *NAMES[8:]), Told()
    engine.refusals["/a30"] = "Its rank is too large."

    async def action() -> None:
        before = asyncio.all_tasks()
        with pytest.raises(SourceUnreachableError, match=r"^--lora-modules a7=/a7: No answer\.$"):
            await load_first_adapters(engine.table, MODULES, told.append)
        with pytest.raises(AdapterError, match=r"^--lora-modules a30=/a30: Its rank"):
            await load_first_adapters(engine.table, [MODULES[30]], told.append)
        assert asyncio.all_tasks() == before

    run(action)
    assert not any(isinstance(message, PhaseFinished) for message in told)


def test_what_is_remembered_comes_first_and_is_not_loaded_again(tmp_path: Path) -> None:
    before = engine_with("v1", "v2", state=tmp_path / "state")

    async def serve() -> None:
        await before.table.load("one", AdapterSource("/v2"))
        await before.table.load("gone", AdapterSource("/v1"))

    run(serve)
    after, told = engine_with("v1", "v2", "new", state=tmp_path / "state"), Told()
    del after.digests["/v1"]

    async def restart() -> None:
        modules = [("one", "/v1"), ("two", "/new")]
        await load_first_adapters(after.table, modules, told.append)

    run(restart)
    assert [entry.name for entry in after.table.offered()] == ["one", "gone", "two"]
    current = {entry.name: entry.current for entry in after.table.entries()}
    assert current["one"] is not None
    assert current["one"].digest == "sha256:v2"
    assert current["gone"] is None
    assert [message.detail for message in told if isinstance(message, PhaseStarted)] == [
        "0 of 2", "1 of 2", "2 of 2", "2 of 3", "3 of 3",
    ]  # fmt: skip


def test_of_a_load_that_takes_too_long_nothing_is_told_once_it_is_not_waited_for(
    tmp_path: Path,
) -> None:
    before = engine_with("v1", state=tmp_path / "state")
    run(lambda: before.table.load("one", AdapterSource("/v1")))
    after, told = AdapterEngine(tmp_path / "state", wait_s=0.01), Told()
    after.digests = before.digests
    after.is_holding = True

    async def restart() -> None:
        await load_first_adapters(after.table, [], told.append)
        assert [type(message) for message in told] == [PhaseStarted, PhaseFinished]
        after.release()
        while not after.table.offered()[0].current:
            await asyncio.sleep(0)
        await asyncio.sleep(0)

    run(restart)
    assert len(told) == 2


def test_where_there_are_none_nothing_is_told() -> None:
    told = Told()
    run(lambda: load_first_adapters(engine_with().table, [], told.append))
    assert not told
