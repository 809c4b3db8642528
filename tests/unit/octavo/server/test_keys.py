"""Keys and their files: what a line means, what changes when a file does, what a key may use."""

from __future__ import annotations

import hashlib
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from fake_engine import FakeEngine
from octavo.config import ServerConfig
from octavo.errors import ConfigError
from octavo.request import Tenant
from octavo.server.app import create_app
from octavo.server.keys import KeyRing, parse_key
from octavo.server.requests import Outcome, RequestRecord
from octavo.server.token_budget import TokenBudget
from octavo.server.usage import Usage

CHAT = "/v1/chat/completions"
BODY: dict[str, Any] = {"messages": [{"role": "user", "content": "x"}], "max_tokens": 3}


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


# ---- Lines -----------------------------------------------------------------------------------


def test_line_names_and_limits_a_key() -> None:
    key = parse_key(
        "sk-1 name=team-a max-running=4 max-queued=9 tokens-per-minute=600 priority=-2 admin", "f"
    )
    assert key.tenant == Tenant("team-a", 4, 9)
    assert (key.tokens_per_minute, key.priority, key.is_admin) == (600, -2, True)


def test_key_without_a_name_is_named_after_its_hash_and_may_be_given_as_one() -> None:
    digest = hashlib.sha256(b"sk-1").hexdigest()
    plain, hashed = parse_key("sk-1", "f"), parse_key(f"sha256:{digest}", "f")
    assert plain == hashed
    assert plain.name == f"key-{digest[:8]}"
    assert "sk-1" not in repr(plain)


@pytest.mark.parametrize(
    "line",
    [
        "secret-key frobnicate=1",
        "secret-key max-running=0",
        "secret-key max-running=x",
        "secret-key tokens-per-minute=-5",
        "secret-key name=a/b",
        "secret-k\u00e9y",
    ],
)
def test_line_that_makes_no_sense_is_refused_without_showing_the_key(line: str) -> None:
    with pytest.raises(ConfigError) as refused:
        parse_key(line, "keys.txt")
    assert "keys.txt" in str(refused.value)
    assert "secret" not in str(refused.value)


def test_keys_of_a_mounted_secret_are_named_after_their_files(tmp_path: Path) -> None:
    (tmp_path / "team-a").write_text("sk-a\nsk-a2  # the next one\n")
    (tmp_path / "team-b").write_text("sk-b name=other\n")
    ring = KeyRing(paths=[str(tmp_path)])
    names = {token: ring.find(token) for token in (b"sk-a", b"sk-a2", b"sk-b")}
    assert {token: key and key.name for token, key in names.items()} == {
        b"sk-a": "team-a",
        b"sk-a2": "team-a",
        b"sk-b": "other",
    }


# ---- Changes ---------------------------------------------------------------------------------


def test_changed_file_is_read_again(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text("old\n")
    ring = KeyRing(lines=["fixed"], paths=[str(file)])
    ring.reload_if_changed()
    assert ring.find(b"old")
    fresh = tmp_path / "fresh"
    fresh.write_text("new\n")
    os.replace(fresh, file)
    ring.reload_if_changed()
    assert (ring.find(b"old"), bool(ring.find(b"new")), bool(ring.find(b"fixed"))) == (
        None,
        True,
        True,
    )


def test_swapped_folder_of_a_secret_is_read_again(tmp_path: Path) -> None:
    """As the kubelet does it: files are links into ..data, which is a link that is replaced."""
    for version, key in (("v1", "old"), ("v2", "new")):
        (tmp_path / version).mkdir()
        (tmp_path / version / "key").write_text(key)
    (tmp_path / "mount").mkdir()
    data = tmp_path / "mount" / "..data"
    data.symlink_to(tmp_path / "v1")
    (tmp_path / "mount" / "key").symlink_to(data / "key")
    ring = KeyRing(paths=[str(tmp_path / "mount")])
    assert ring.find(b"old")
    (tmp_path / "mount" / "..new").symlink_to(tmp_path / "v2")
    os.replace(tmp_path / "mount" / "..new", data)
    ring.reload_if_changed()
    assert (ring.find(b"old"), bool(ring.find(b"new"))) == (None, True)


def test_file_that_breaks_changes_nothing_and_one_that_goes_takes_its_keys_along(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "keys"
    file.write_text("one\n")
    ring = KeyRing(paths=[str(file)])
    file.write_text("two nonsense=1\n")
    ring.reload_if_changed()
    assert ring.find(b"one")
    assert "the old ones stay" in caplog.text
    assert "two" not in caplog.text
    file.unlink()
    ring.reload_if_changed()
    assert ring.find(b"one") is None
    assert not ring.is_empty  # the door stays locked


# ---- What a key may use ----------------------------------------------------------------------


def test_budget_lets_in_what_it_can_and_says_when_to_come_back() -> None:
    budget = TokenBudget(600, now_s=0.0)
    record = RequestRecord("r", CHAT)
    assert budget.enter(record, 0.0) == 0.0
    record.usage = Usage(prompt_tokens=400, completion_tokens=100)
    other = RequestRecord("s", CHAT)
    assert budget.enter(other, 0.0) == 0.0  # 100 are left
    record.usage.completion_tokens = 500  # it went on: 900 in all
    record.outcome = Outcome.FINISHED
    assert budget.enter(RequestRecord("t", CHAT), 0.0) == pytest.approx(30.1)
    assert budget.enter(RequestRecord("u", CHAT), 30.0) == pytest.approx(0.1)
    assert budget.enter(RequestRecord("u", CHAT), 30.2) == 0.0


@pytest.fixture
async def engine() -> FakeEngine:
    return FakeEngine()


@pytest.fixture
async def client(engine: FakeEngine) -> AsyncIterator[httpx.AsyncClient]:
    lines = (
        "sk-a name=team-a max-running=2 max-queued=5",
        "sk-low name=low priority=3",
        "sk-poor name=poor tokens-per-minute=10",
    )
    app = create_app(engine, ServerConfig(api_keys=lines))
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://octavo") as client:
        yield client


async def test_requests_run_on_behalf_of_their_key(
    client: httpx.AsyncClient, engine: FakeEngine
) -> None:
    assert (await client.post(CHAT, json=BODY, headers=bearer("sk-a"))).status_code == 200
    assert engine.seen[-1][2].tenant == Tenant("team-a", 2, 5)


async def test_key_has_a_priority_and_may_ask_for_a_worse_one_only(
    client: httpx.AsyncClient, engine: FakeEngine
) -> None:
    for asked, got in (({}, 3), ({"priority": 7}, 7)):
        response = await client.post(CHAT, json=BODY | asked, headers=bearer("sk-low"))
        assert response.status_code == 200
        assert engine.seen[-1][2].priority == got
    refused = await client.post(CHAT, json=BODY | {"priority": 0}, headers=bearer("sk-low"))
    assert refused.status_code == 403
    assert refused.json()["error"]["code"] == "priority_not_allowed"
    free = await client.post(CHAT, json=BODY | {"priority": -9}, headers=bearer("sk-a"))
    assert free.status_code == 200


async def test_key_that_has_used_its_tokens_is_told_when_to_come_back(
    client: httpx.AsyncClient,
) -> None:
    first = await client.post(CHAT, json=BODY | {"max_tokens": 20}, headers=bearer("sk-poor"))
    assert first.status_code == 200
    second = await client.post(CHAT, json=BODY, headers=bearer("sk-poor"))
    assert second.status_code == 429
    assert second.json()["error"]["code"] == "rate_limit_exceeded"
    assert int(second.headers["retry-after"]) > 60
    assert (await client.post(CHAT, json=BODY, headers=bearer("sk-a"))).status_code == 200
