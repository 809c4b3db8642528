"""The load of a soak: more requests than fit, of every kind, and adapters that come and go.

Draws requests, carries out steps and keeps what happened; what must hold of that is
:mod:`soak_verdict`'s.
"""

from __future__ import annotations

import argparse
import os
import random
import time
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from adapter_churn import AdapterChurn
from answer_check import Answer
from shapes import model_folder
from soak_requests import Asked, SoakRequests

from octavo.config import EngineConfig
from octavo.engine.build import build_engine
from octavo.engine.intake import Intake
from octavo.engine.request_options import RequestOptions
from octavo.errors import AdapterNotReadyError, OctavoError, QueueFullError, UnknownModelError
from octavo.outputs import RequestUpdate, TokenLogprobs
from octavo.request import AdapterGeneration

_SAMPLE_EVERY_S = 2.0
_FOUNDED = (UnknownModelError, AdapterNotReadyError)
"""Refusals that come of adapters that are unloaded, or too many for the slots."""


@dataclass(slots=True)
class Open:
    """One request under way; its choices together."""

    asked: Asked
    adapter: AdapterGeneration | None
    ids: list[str]
    num_open: int
    num_tokens: int = 0
    logprobs: list[TokenLogprobs] = field(default_factory=list)
    abort_after: int | None = None


@dataclass(slots=True)
class Seen:
    """What happened."""

    steps_s: list[float] = field(default_factory=list)
    usage: list[float] = field(default_factory=list)
    memory: list[dict[str, int]] = field(default_factory=list)
    ends: Counter[str] = field(default_factory=Counter)
    """Of choices, by reason."""
    refusals: Counter[str] = field(default_factory=Counter)
    """Of requests, by the error's kind."""
    answers: list[Answer] = field(default_factory=list)
    """A sample of those that can be checked."""
    num_answers: int = 0
    faults: list[str] = field(default_factory=list)
    num_asked: int = 0
    num_choices: int = 0
    """Of all requests that were taken in."""
    num_tokens: int = 0


class SoakLoad:
    """One engine under load."""

    def __init__(self, options: argparse.Namespace, adapters: Path | None) -> None:
        """``adapters``: an empty folder for them; None: there are none."""
        self.options = options
        engine = build_engine(_engine_config(options))
        self.core, self.info = engine.core, engine.info
        self.intake = Intake(self.info, seed=1)
        self._draw = random.Random(options.seed)
        self._requests = SoakRequests(options, self.info, self._draw)
        self._open: dict[str, Open] = {}
        self._num_asking = 0
        """Requests that wait for their adapter to be loaded."""
        self.seen = Seen()
        self.adapters = self._adapters_in(adapters) if adapters else None

    def _adapters_in(self, folder: Path) -> AdapterChurn:
        options = self.options
        return AdapterChurn(
            self.core,
            _model(options),
            folder,
            count=options.adapters,
            max_rank=options.max_lora_rank,
            seed=options.seed,
        )

    def run(self) -> None:
        """Load until the time or the requests are over, then end what is open."""
        while self.core.prepare_next():
            pass
        if self.adapters:
            self.adapters.load_all()
        options, started_s = self.options, time.monotonic()
        next_sample_s = started_s
        while self._is_wanted(time.monotonic() - started_s):
            self._fill()
            self._step()
            if time.monotonic() >= next_sample_s:
                self._sample()
                next_sample_s += 0.0 if options.requests else _SAMPLE_EVERY_S
        # The end of a shift: whoever is not to be checked leaves at once.
        unchecked = [id for id, request in self._open.items() if not request.asked.is_checked]
        self.core.abort(unchecked)
        while self.core.has_work or (self.adapters and self.adapters.is_busy):
            self._step(may_change=False)
        self.core.check_integrity()

    def _is_wanted(self, elapsed_s: float) -> bool:
        if self.options.requests:
            return self.seen.num_asked < int(self.options.requests)
        return elapsed_s < 60 * float(self.options.minutes)

    def _fill(self) -> None:
        """As many as half fill the queue, beside those whose adapter is not on the device: these
        take no memory, however many there are."""
        most = self.info.max_num_seqs
        resident = self.adapters.resident() if self.adapters else ()
        num_absent = self._num_asking + sum(
            request.adapter is not None and request.adapter.id not in resident
            for request in self._open.values()
        )
        num_able = len(self._open) + self._num_asking - num_absent
        while num_able < most + most // 2:
            num_before, is_to_run = len(self._open), num_absent >= most
            if not self._ask(resident, is_to_run=is_to_run):
                return
            num_able += max(1, len(self._open) - num_before)

    def _ask(self, resident: Collection[int], *, is_to_run: bool) -> bool:
        self.seen.num_asked += 1
        asked = self._requests.drawn(self.seen.num_asked)
        name = self.adapters.choose(resident, is_to_run=is_to_run) if self.adapters else None
        if self.adapters is None or name is None:
            return self._enter(asked, None)
        self._num_asking += 1
        self.adapters.begin(self._enter_with(name, asked))
        return True

    async def _enter_with(self, name: str, asked: Asked) -> None:
        assert self.adapters
        try:
            adapter = await self.adapters.acquire(name)
        except OctavoError as error:
            self._refused(error)
        else:
            self._enter(asked, adapter)
        finally:
            self._num_asking -= 1

    def _enter(self, asked: Asked, adapter: AdapterGeneration | None) -> bool:
        options = RequestOptions(
            priority=asked.priority, timeout_s=asked.timeout_s, adapter=adapter
        )
        specs = self.intake.prepare(str(asked.number), asked.prompt, asked.params, options)
        ids = [spec.id for spec in specs]
        request = Open(asked, adapter, ids, len(ids), abort_after=asked.abort_after)
        try:
            self.core.submit(specs)
        except OctavoError as error:
            self._refused(error)
            self._release(adapter)
            return False
        self.seen.num_choices += len(ids)
        self._open.update(dict.fromkeys(ids, request))
        return True

    def _refused(self, error: OctavoError) -> None:
        self.seen.refusals[type(error).__name__] += 1
        if not isinstance(error, (*_FOUNDED, QueueFullError)):
            self.seen.faults.append(f"a request was refused: {error!r}")

    def _release(self, adapter: AdapterGeneration | None) -> None:
        if self.adapters and adapter is not None:
            self.adapters.release(adapter)

    def _step(self, *, may_change: bool = True) -> None:
        updates: list[RequestUpdate] = []
        if self.core.has_work:  # else it would only sleep
            started_s = time.perf_counter()
            updates = self.core.step()
            self.seen.steps_s.append(time.perf_counter() - started_s)
        if self.adapters:
            self.adapters.turn(may_change=may_change)
        for update in updates:
            self._take(update)

    def _take(self, update: RequestUpdate) -> None:
        request = self._open.get(update.request_id)
        if request is None:
            self.seen.faults.append(f"{update} is nobody's")
            return
        request.num_tokens += len(update.new_token_ids)
        if request.asked.is_checked:
            request.logprobs += update.logprobs or []
        self.seen.num_tokens += len(update.new_token_ids)
        reason = update.finish_reason
        if reason is None:
            if request.abort_after is not None and request.num_tokens >= request.abort_after:
                self.core.abort(request.ids)
                request.abort_after = None
            return
        self.seen.ends[reason] += 1
        self._check_reason(update)
        del self._open[update.request_id]
        request.num_open -= 1
        if not request.num_open:
            self._release(request.adapter)
        if request.asked.is_checked and reason == "length":
            digest = request.adapter.digest if request.adapter else None
            self._keep(Answer(request.asked.prompt, request.logprobs, digest))

    def _keep(self, answer: Answer) -> None:
        """As many as are to be checked, each of all with the same chance: more would be memory that
        grows."""
        answers, most = self.seen.answers, int(self.options.checks)
        self.seen.num_answers += 1
        place = self._draw.randrange(self.seen.num_answers)
        if len(answers) < most:
            answers.append(answer)
        elif place < most:
            answers[place] = answer

    def _check_reason(self, update: RequestUpdate) -> None:
        """Of those that fail, the engine has said why before."""
        if update.finish_reason != "error":
            return
        kind = self.adapters and self.adapters.refusals.pop(update.request_id, None)
        if kind == AdapterNotReadyError.__name__:
            self.seen.refusals[kind] += 1
        else:
            self.seen.faults.append(f"{update.request_id} failed: {kind} {update.error}")

    @property
    def num_left(self) -> int:
        """Requests that have not ended, or were not answered."""
        return len(self._open) + self._num_asking

    def close(self) -> None:
        """Let go of the device."""
        if self.adapters:
            self.adapters.close()
        self.core.close()

    def _sample(self) -> None:
        self.core.check_integrity()
        stats = self.core.stats()
        self.seen.usage.append(stats.num_owned_blocks / stats.num_blocks)
        self.seen.memory.append(_memory(self.info.device))


def _memory(device: str) -> dict[str, int]:
    """Bytes held by the process, and by torch's allocator on a card."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    memory = {"rss": pages * os.sysconf("SC_PAGE_SIZE")}
    if device == "cuda":
        import torch

        memory["cuda_allocated"] = torch.cuda.memory_allocated()
        memory["cuda_reserved"] = torch.cuda.memory_reserved()
    return memory


def _model(options: argparse.Namespace) -> str:
    return model_folder(options.shape) if options.shape else str(options.model)


def _engine_config(options: argparse.Namespace) -> EngineConfig:
    names = ("dtype", "device", "max_model_len", "max_num_seqs", "kv_cache_memory_bytes")
    config: dict[str, Any] = {
        name: value for name in names if (value := getattr(options, name)) is not None
    }
    if options.shape:
        config["load_format"] = "dummy"
    if options.adapters:
        num_slots = max(2, options.adapters // 4)
        config |= {"enable_lora": True, "max_lora_rank": options.max_lora_rank}
        config |= {"max_loras": num_slots, "max_cpu_loras": max(num_slots, options.adapters // 2)}
    return EngineConfig(
        model=_model(options),
        skip_tokenizer_init=True,
        batch_invariant=options.batch_invariant,
        gpu_memory_utilization=options.gpu_memory_utilization,
        **config,
    )
