"""The choices of one HTTP request, as one stream of events.

Knows how prompts and n become choice indices, and writes down when tokens came; knows nothing of
HTTP or of an answer's shape.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass

import msgspec

from octavo.engine.interface import Engine
from octavo.engine.request_options import RequestOptions
from octavo.metrics.server_metrics import ChoiceRecord, ServerMetrics
from octavo.outputs import GenerationEvent
from octavo.request import EVERYONE, AdapterGeneration, Tenant
from octavo.sampling_params import SamplingParams
from octavo.server.requests import RequestRecord
from octavo.server.service_level import deadline_exceeded
from octavo.server.thought_counter import ThoughtCounter

_PENDING_EVENTS = 64


@dataclass(frozen=True, slots=True)
class GenerationJob:
    """What one HTTP request asks of the engine."""

    prompts: Sequence[str | list[int]]
    params: SamplingParams
    options: RequestOptions
    """As far as the body tells: who asks, for how long and of which adapter is added to them."""

    @property
    def num_choices(self) -> int:
        """Choices in the answer: ``n`` for each prompt, in the prompts' order."""
        return len(self.prompts) * self.params.n


@dataclass(slots=True)
class Usage:
    """Tokens of a request so far. A prompt counts once, whatever n is."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0
    reasoning_tokens: int = 0
    """Of the completion's tokens those of thoughts."""


class Generation:
    """Runs a job and keeps its accounts."""

    def __init__(
        self,
        engine: Engine,
        metrics: ServerMetrics,
        job: GenerationJob,
        request: RequestRecord,
        tenant: Tenant = EVERYONE,
        adapter: str | None = None,
    ) -> None:
        self._engine = engine
        self._adapter = adapter
        self._metrics = metrics
        self._job = job
        self._request = request
        self._tenant = tenant
        self._id = uuid.uuid4().hex
        """The engine's id for it: ours, so that no client can make two requests collide."""
        arrived_s = request.arrived_s
        self._records: list[ChoiceRecord | None] = [
            metrics.start_choice(arrived_s) for _ in range(job.num_choices)
        ]
        self._prompt_tokens = [0] * len(job.prompts)
        self._cached_tokens = [0] * len(job.prompts)
        self._longest = [0] * len(job.prompts)
        self._thoughts = _thought_counters(engine, job)
        self.usage = Usage()
        request.usage, request.engine_id = self.usage, self._id
        request.num_prompts, request.num_choices = len(job.prompts), job.num_choices
        request.max_tokens = job.params.max_tokens
        request.temperature, request.top_p = job.params.temperature, job.params.top_p
        metrics.n_asked.observe(job.params.n)

    async def events(self) -> AsyncGenerator[GenerationEvent, None]:
        """Events of all choices; ``index`` counts over all prompts.

        Raises what :meth:`octavo.engine.interface.Engine.generate` raises. Closing it aborts
        everything that still runs.
        """
        source = self._of_prompt(0) if len(self._job.prompts) == 1 else self._of_all_prompts()
        try:
            async with aclosing(source) as events:
                async for event in events:
                    self._request.is_accepted = True
                    self._account(event)
                    yield event
        except Exception:
            self._close_records("error")
            raise
        finally:
            self._close_records("abort")

    async def _of_prompt(self, number: int) -> AsyncGenerator[GenerationEvent, None]:
        job = self._job
        first_index = number * job.params.n
        adapter = await self._acquire_adapter()
        options = msgspec.structs.replace(
            job.options,
            priority=self._request.priority,
            timeout_s=self._request.remaining_s(time.monotonic()),
            tenant=self._tenant,
            adapter=adapter,
        )
        events = self._engine.generate(
            job.prompts[number], job.params, request_id=f"{self._id}-{number}", options=options
        )
        try:
            async with aclosing(events):
                async for event in events:
                    event.index += first_index
                    yield event
        finally:
            if adapter is not None:
                self._engine.adapters.release(adapter)

    async def _acquire_adapter(self) -> AdapterGeneration | None:
        """What the request is for, waiting for a load no longer than the request may take."""
        timeout_s = self._request.remaining_s(time.monotonic())
        if timeout_s is not None and timeout_s <= 0:
            raise deadline_exceeded()
        if self._adapter is None:
            return None
        try:
            async with asyncio.timeout(timeout_s):
                return await self._engine.adapters.acquire(self._adapter)
        except TimeoutError:
            raise deadline_exceeded() from None

    async def _of_all_prompts(self) -> AsyncGenerator[GenerationEvent, None]:
        queue: asyncio.Queue[GenerationEvent | Exception | None] = asyncio.Queue(_PENDING_EVENTS)
        tasks = [
            asyncio.create_task(self._pump(number, queue))
            for number in range(len(self._job.prompts))
        ]
        num_running = len(tasks)
        try:
            while num_running:
                item = await queue.get()
                if item is None:
                    num_running -= 1
                elif isinstance(item, Exception):
                    raise item
                else:
                    yield item
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _pump(
        self, number: int, queue: asyncio.Queue[GenerationEvent | Exception | None]
    ) -> None:
        try:
            async with aclosing(self._of_prompt(number)) as events:
                async for event in events:
                    await queue.put(event)
        except Exception as error:
            await queue.put(error)
        else:
            await queue.put(None)

    def _account(self, event: GenerationEvent) -> None:
        prompt = event.index // self._job.params.n
        if event.num_prompt_tokens and not self._prompt_tokens[prompt]:
            self._prompt_tokens[prompt] = event.num_prompt_tokens
            self.usage.prompt_tokens += event.num_prompt_tokens
        if event.num_cached_tokens > self._cached_tokens[prompt]:
            self.usage.cached_tokens += event.num_cached_tokens - self._cached_tokens[prompt]
            self._cached_tokens[prompt] = event.num_cached_tokens
        record = self._records[event.index]
        if record is None:
            return
        if event.token_ids:
            now_s = time.monotonic()
            if not self.usage.completion_tokens:
                self._request.first_token_s = now_s
            self.usage.completion_tokens += len(event.token_ids)
            if self._thoughts:
                self.usage.reasoning_tokens += self._thoughts[event.index].feed(event.token_ids)
            record.tokens(len(event.token_ids), now_s)
        if event.finish_reason is not None:
            self._finish(record, event, prompt)

    def _finish(self, record: ChoiceRecord, event: GenerationEvent, prompt: int) -> None:
        assert event.finish_reason is not None
        self._records[event.index] = None
        self._request.end_choice(event.finish_reason, event.timings)
        record.finished(
            event.finish_reason,
            time.monotonic(),
            num_prompt_tokens=self._prompt_tokens[prompt],
            num_cached_tokens=event.num_cached_tokens,
            max_tokens=self._job.params.max_tokens,
            timings=event.timings,
        )
        self._longest[prompt] = max(self._longest[prompt], record.num_tokens)
        first = prompt * self._job.params.n
        if not any(self._records[first : first + self._job.params.n]):
            self._metrics.max_generation_length.observe(self._longest[prompt])

    def _close_records(self, reason: str) -> None:
        """What has not ended ends now. A prompt that an error met before its first event was
        refused, which whoever answers counts once for the whole request."""
        for index, record in enumerate(self._records):
            was_accepted = self._prompt_tokens[index // self._job.params.n] > 0
            if record is not None and (was_accepted or reason == "abort"):
                self._metrics.count_end(reason)
        self._records = [None] * len(self._records)


def _thought_counters(engine: Engine, job: GenerationJob) -> list[ThoughtCounter]:
    """One a choice, where choices may think."""
    tokenizer, span = engine.tokenizer, job.options.reasoning
    if tokenizer is None or span is None:
        return []
    return [ThoughtCounter(tokenizer, span) for _ in range(job.num_choices)]
