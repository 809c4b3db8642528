"""The choices of one HTTP request, as one stream of events.

Knows who asks, for which adapter and for how long, and writes down when tokens came; knows nothing
of HTTP or of an answer's shape.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import AsyncGenerator
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
from octavo.server.service_level import cancelled, deadline_exceeded
from octavo.server.thought_counter import ThoughtCounter
from octavo.server.usage import Usage


@dataclass(frozen=True, slots=True)
class GenerationJob:
    """What one HTTP request asks of the engine."""

    prompts: list[str | list[int]]
    params: SamplingParams
    options: RequestOptions
    """As far as the body tells: who asks, for how long and of which adapter is added to them."""

    @property
    def num_choices(self) -> int:
        """Choices in the answer: ``n`` for each prompt, in the prompts' order."""
        return len(self.prompts) * self.params.n


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
        request.num_choices = job.num_choices
        request.max_tokens = job.params.max_tokens
        request.temperature, request.top_p = job.params.temperature, job.params.top_p
        metrics.n_asked.observe(job.params.n)

    async def events(self) -> AsyncGenerator[GenerationEvent, None]:
        """Events of all choices; ``index`` counts over all prompts.

        Raises what :meth:`octavo.engine.interface.Engine.generate` raises. Closing it aborts
        everything that still runs.
        """
        try:
            async with aclosing(self._generate()) as events:
                async for event in events:
                    self._request.is_accepted = True
                    self._account(event)
                    yield event
        except Exception:
            self._close_records("error")
            raise
        finally:
            self._close_records("abort")

    async def _generate(self) -> AsyncGenerator[GenerationEvent, None]:
        job = self._job
        adapter = await self._acquire_adapter()
        options = msgspec.structs.replace(
            job.options,
            priority=self._request.priority,
            timeout_s=self._request.remaining_s(time.monotonic()),
            tenant=self._tenant,
            adapter=adapter,
        )
        try:
            if self._request.is_cancelled:  # as the load ended
                raise cancelled()
            events = self._engine.generate(
                job.prompts, job.params, request_id=self._id, options=options
            )
            async with aclosing(events):
                async for event in events:
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
            async with asyncio.timeout(timeout_s) as self._request.adapter_wait:
                return await self._engine.adapters.acquire(self._adapter)
        except TimeoutError:
            raise cancelled() if self._request.is_cancelled else deadline_exceeded() from None
        finally:
            self._request.adapter_wait = None

    def _account(self, event: GenerationEvent) -> None:
        prompt, choice = divmod(event.index, self._job.params.n)
        if event.num_prompt_tokens and not self._prompt_tokens[prompt]:
            self._prompt_tokens[prompt] = event.num_prompt_tokens
            self.usage.prompt_tokens += event.num_prompt_tokens
        # The other choices find what the first has computed.
        if not choice and event.num_cached_tokens > self._cached_tokens[prompt]:
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
        """What has not ended ends now. An error before the first event is a refusal, which whoever
        answers counts once for the whole request."""
        if self._request.is_accepted or reason == "abort":
            for record in self._records:
                if record is not None:
                    self._metrics.count_end(reason)
        self._records = [None] * len(self._records)


def _thought_counters(engine: Engine, job: GenerationJob) -> list[ThoughtCounter]:
    """One a choice, where choices may think."""
    tokenizer, span = engine.tokenizer, job.options.reasoning
    if tokenizer is None or span is None:
        return []
    return [ThoughtCounter(tokenizer, span) for _ in range(job.num_choices)]
