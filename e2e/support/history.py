"""What objects have been while a story played: every state of them that was seen."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Hashable, Mapping
from types import TracebackType
from typing import Self

from cluster import POLL_S

Look = Callable[[], Hashable]


class History:
    """Looks all the time inside a `with`; `states` has each thing's states in their order, one
    after the other only where they differ. `error` is what a look failed with, if one did."""

    def __init__(self, looks: Mapping[str, Look]) -> None:
        self._looks = looks
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self.states: dict[str, list[Hashable]] = {name: [] for name in looks}
        self.error: Exception | None = None

    def flaps(self) -> dict[str, list[Hashable]]:
        """Histories of what came back to a state that it had left."""
        return {
            name: states for name, states in self.states.items() if len(set(states)) < len(states)
        }

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._stop.set()
        self._thread.join()
        if exc is None and self.error is not None:
            raise self.error

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                self._look()
            except Exception as error:  # told at the end, by the thread that asserts
                self.error = error
                return
            self._stop.wait(POLL_S)

    def _look(self) -> None:
        for name, look in self._looks.items():
            state = look()
            if not self.states[name] or self.states[name][-1] != state:
                self.states[name].append(state)


def frozen(value: object) -> str:
    """A value that can be compared and hashed."""
    return json.dumps(value, sort_keys=True, default=str)
