"""The open choices of one request: between the task that reads from the engine and the one that
streams to a client.

Knows updates, events and who waits for them; knows nothing of processes. Torch-free.
"""

from __future__ import annotations

import asyncio

from octavo.engine.text import ChoiceText
from octavo.errors import OctavoError, RequestFailedError
from octavo.outputs import GenerationEvent, RequestUpdate


class OpenGeneration:
    """Fed by the reader of updates, emptied by whoever streams; both in one event loop."""

    def __init__(self, choices: list[ChoiceText]) -> None:
        self._choices = choices
        self._events: dict[int, GenerationEvent] = {}
        """At most one a choice: what a slow reader has not taken yet is merged."""
        self._ended = [False] * len(choices)
        self._error: OctavoError | None = None
        self._wakeup = asyncio.Event()

    @property
    def is_over(self) -> bool:
        """Whether every choice has ended and every event was taken."""
        return all(self._ended) and not self._events and self._error is None

    def is_ended(self, index: int) -> bool:
        """Whether the engine, or a stop string, has ended the choice."""
        return self._ended[index]

    def feed(self, index: int, update: RequestUpdate) -> bool:
        """Take the engine's word for one choice.

        Returns whether a stop string has just ended it, which the engine does not know: it must
        be told to abort.
        """
        if self._ended[index]:
            return False
        if update.finish_reason == "error":
            self._ended[index] = True
            self.fail(RequestFailedError(update.error or "The engine gave no reason."))
            return False
        event = self._choices[index].feed(update)
        event.index = index
        self._ended[index] = event.finish_reason is not None
        if index in self._events:
            self._events[index].absorb(event)
        else:
            self._events[index] = event
        self._wakeup.set()
        return self._ended[index] and update.finish_reason is None

    def fail(self, error: OctavoError) -> None:
        """End the whole with an error, raised to whoever streams once events are used up."""
        if self._error is None:
            self._error = error
        self._wakeup.set()

    async def next_events(self) -> list[GenerationEvent]:
        """What has happened since last asked, at most one event a choice."""
        while not self._events:
            if self._error is not None:
                raise self._error
            self._wakeup.clear()
            await self._wakeup.wait()
        events, self._events = list(self._events.values()), {}
        return events
