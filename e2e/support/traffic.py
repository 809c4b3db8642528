"""Steady requests to the ready pods of a service, as its Service would spread them."""

from __future__ import annotations

import threading
import time
from types import TracebackType
from typing import Self

from services import Answer, Stage

_PAUSE_S = 0.05


class Traffic:
    """Runs inside a `with`; afterwards `answers` and `failures` tell how it went.

    A caller learns which pods are ready from the API once per request, like a kube-proxy that is
    never late: what fails then is the worker's or the operator's fault, not the network's.
    """

    def __init__(
        self,
        stage: Stage,
        name: str,
        num_clients: int = 2,
        num_tokens: int = 16,
        model: str | None = None,
    ) -> None:
        self._stage = stage
        self._name = name
        self._model = model or name
        self._num_tokens = num_tokens
        self._stop = threading.Event()
        self._clients = [threading.Thread(target=self._run, args=(n,)) for n in range(num_clients)]
        self.answers: list[Answer] = []

    @property
    def failures(self) -> list[Answer]:
        return [answer for answer in self.answers if answer.status != 200]

    def wait_answers(self, count: int, deadline_s: float = 120) -> None:
        """Until `count` more have been answered; only to be sure that there is traffic."""
        wanted, end = len(self.answers) + count, time.monotonic() + deadline_s
        while len(self.answers) < wanted:
            assert time.monotonic() < end, f"only {len(self.answers)} of {wanted} answers"
            self._stop.wait(_PAUSE_S)

    def __enter__(self) -> Self:
        for client in self._clients:
            client.start()
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._stop.set()
        for client in self._clients:
            client.join()

    def _run(self, turn: int) -> None:
        while not self._stop.is_set():
            pods = self._stage.ready_pods(self._name)
            if not pods:
                self.answers.append(Answer(None, None, "no pod is ready"))
                self._stop.wait(1)
                continue
            turn += 1
            pod = pods[turn % len(pods)]
            self.answers.append(self._stage.complete(pod, self._model, self._num_tokens))
            self._stop.wait(_PAUSE_S)
