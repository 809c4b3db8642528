"""Questions to the engine about where its requests stand, and their answers.

Knows serial numbers and who waits; knows nothing of how a question gets there. Torch-free.
"""

from __future__ import annotations

import asyncio

from octavo.engine.messages import Inspected
from octavo.outputs import RequestState

_LIMIT_S = 2.0


class Inspections:
    """Used in one event loop."""

    def __init__(self) -> None:
        self._asked: dict[int, asyncio.Future[list[RequestState]]] = {}
        self._num_asked = 0

    def ask(self) -> int:
        """A new question's serial number, to be sent; :meth:`answer` has to come next."""
        self._num_asked += 1
        self._asked[self._num_asked] = asyncio.get_running_loop().create_future()
        return self._num_asked

    async def answer(self, serial: int) -> list[RequestState]:
        """What the engine says; nothing where it does not say it soon."""
        try:
            return await asyncio.wait_for(self._asked[serial], _LIMIT_S)
        except TimeoutError:
            return []
        finally:
            del self._asked[serial]

    def hear(self, inspected: Inspected) -> None:
        """The engine has answered, perhaps too late."""
        asked = self._asked.get(inspected.serial)
        if asked is not None and not asked.done():
            asked.set_result(inspected.requests)
