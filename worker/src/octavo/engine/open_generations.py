"""Every open generation of an engine, by the ids of its choices.

Knows whom an update is for and when nobody is left; knows nothing of processes. What the engine
must be told (to abort a choice) is returned, not sent. Torch-free.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence

from octavo.engine.open_generation import OpenGeneration
from octavo.errors import EngineDeadError, InvalidRequestError, OctavoError, RequestFailedError
from octavo.outputs import RequestUpdate

_log = logging.getLogger(__name__)


class OpenGenerations:
    """Used in one event loop."""

    def __init__(self) -> None:
        self._by_id: dict[str, tuple[OpenGeneration, int]] = {}
        """Each choice's generation, and which of its choices it is."""
        self._emptied = asyncio.Event()
        self._emptied.set()

    def __len__(self) -> int:
        """Open choices."""
        return len(self._by_id)

    def __getitem__(self, choice_id: str) -> tuple[OpenGeneration, int]:
        return self._by_id[choice_id]

    @property
    def ids(self) -> list[str]:
        """Of all choices."""
        return list(self._by_id)

    def ids_of(self, request_id: str) -> list[str]:
        """Of one request's choices."""
        return [id for id in self._by_id if id == request_id or id.startswith(request_id + ":")]

    def check_free(self, request_id: str, choice_ids: Sequence[str]) -> None:
        """Raise InvalidRequestError where a choice of one of these ids is open."""
        if any(id in self._by_id for id in choice_ids):
            raise InvalidRequestError(
                f"A request with the id {request_id!r} is open; choose another.", "request_id"
            )

    def add(self, choice_ids: Sequence[str], generation: OpenGeneration) -> None:
        """Until :meth:`close`: updates of these ids are the generation's, in its order."""
        self._by_id.update({id: (generation, index) for index, id in enumerate(choice_ids)})
        self._emptied.clear()

    def feed(self, update: RequestUpdate) -> bool:
        """Hand on the engine's word for a choice; whether the engine is to abort it now."""
        entry = self._by_id.get(update.request_id)
        if entry is None:
            return False  # closed meanwhile; its abort is on the way
        generation, index = entry
        try:
            return generation.feed(index, update)
        except Exception:  # one request's text must not stop the reader of all
            _log.exception("The text of request %s cannot be made", update.request_id)
            generation.fail(RequestFailedError("The text of the answer could not be made."))
            return False

    def abort(self, choice_ids: Sequence[str]) -> None:
        """Tell who reads these choices that they were aborted."""
        for id in choice_ids:
            self.feed(RequestUpdate(id, [], finish_reason="abort"))

    def fail(self, choice_id: str, error: OctavoError) -> None:
        """End a choice's generation with an error, if it is still open."""
        entry = self._by_id.get(choice_id)
        if entry is not None:
            entry[0].fail(error)

    def fail_all(self, message: str) -> None:
        """The engine has gone: end all, each with an error of its own, which tasks will raise."""
        for generation, _ in list(self._by_id.values()):
            generation.fail(EngineDeadError(message))

    def close(self, choice_ids: Sequence[str]) -> list[str]:
        """Forget a generation; returns whatever of it the engine has not finished."""
        unfinished = []
        for id in choice_ids:
            generation, index = self._by_id.pop(id)
            if not generation.is_ended(index):
                unfinished.append(id)
        if not self._by_id:
            self._emptied.set()
        return unfinished

    async def wait_for_none(self) -> None:
        """Until no choice is open."""
        await self._emptied.wait()
