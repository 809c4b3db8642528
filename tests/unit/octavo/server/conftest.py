"""A fake engine and a client that talks to the application without a network."""

from __future__ import annotations

from collections.abc import AsyncIterator

import httpx
import pytest

from fake_engine import FakeEngine
from octavo.config import ServerConfig
from octavo.server.app import create_app


@pytest.fixture
async def engine() -> FakeEngine:
    return FakeEngine()


@pytest.fixture
async def client(engine: FakeEngine) -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.ASGITransport(create_app(engine, ServerConfig()), raise_app_exceptions=True)
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
        yield client
