"""An engine that knows sources and their digests, as the table of adapters sees one."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

from octavo.engine.adapter_state import AdapterStateFile
from octavo.engine.adapter_table import AdapterTable
from octavo.engine.messages import AdapterFailed, AdapterOpened, CloseAdapter, OpenAdapter
from octavo.lora.adapter_source import AdapterSource


class AdapterEngine:
    """The other side: sources that exist have a digest, and maybe a commit."""

    def __init__(
        self, state: Path | None = None, wait_s: float = 60.0, wanted: Path | None = None
    ) -> None:
        self.digests: dict[str, str] = {}
        self.commits: dict[str, str] = {}
        self.refusals: dict[str, str] = {}
        self.held: list[OpenAdapter] = []
        self.is_holding = False
        self.opened: list[AdapterSource] = []
        self.closed: list[int] = []
        self.table = AdapterTable(
            self._take,
            is_enabled=True,
            wait_s=wait_s,
            state_file=None if state is None else AdapterStateFile(state),
            wanted_file=None if wanted is None else AdapterStateFile(wanted),
        )

    def _take(self, message: OpenAdapter | CloseAdapter) -> None:
        if isinstance(message, CloseAdapter):
            self.closed.append(message.adapter_id)
        elif self.is_holding:
            self.held.append(message)
        else:
            asyncio.get_running_loop().call_soon(self._answer, message)

    def release(self) -> None:
        self.is_holding = False
        for message in self.held:
            self._answer(message)

    def _answer(self, message: OpenAdapter) -> None:
        source, digest = message.source, self.digests.get(message.source.path)
        self.opened.append(source)
        if source.path in self.refusals:
            reason = self.refusals[source.path]
            self.table.heard(AdapterFailed(message.adapter_id, "AdapterError", reason))
        elif digest is None:
            failed = AdapterFailed(message.adapter_id, "SourceUnreachableError", "No answer.")
            self.table.heard(failed)
        elif source.digest not in (None, digest):
            changed = f"{digest}, not {source.digest}"
            self.table.heard(AdapterFailed(message.adapter_id, "AdapterChangedError", changed))
        else:
            commit, is_known = self.commits.get(source.path), digest == message.known_digest
            self.table.heard(
                AdapterOpened(message.adapter_id, digest, 4, 9, 0.1, None, commit, is_known)
            )


def run(action: Callable[[], Any]) -> None:
    asyncio.run(asyncio.wait_for(action(), 60))
