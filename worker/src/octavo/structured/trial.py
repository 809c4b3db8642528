"""Asks the trial process whether grammars can be followed, and remembers what it said.

Runs in the server's process, off the event loop: requests that wait for a verdict hold nobody up
but those behind them in the trial. One whose client leaves goes on to its verdict: to end it would
end the process, and the next would wait for another to start. Where a schema is refused, smaller
ones are asked about, for a short time, to tell where in it the fault is.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import struct
import sys
import time
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from octavo.errors import (
    EngineDeadError,
    InvalidRequestError,
    QueueFullError,
    RequestFailedError,
)
from octavo.grammar import StructuredOutputs, cannot_be_honoured
from octavo.structured.schema_fault import find_fault
from octavo.structured.translate import translate

WALL_LIMIT_S = 30.0
"""For one verdict, and for the process to start; its CPU time is limited much tighter."""
MAX_VERDICTS = 4096
MAX_WAITING = 64
"""Trials that may wait; more are refused for now, for they are not of people."""
_RETRY_S = 1.0
"""Many are over by then."""
PLACE_LIMIT_S = 1.0
"""To find where in a schema a fault is; others wait meanwhile. Measured: 0.2 s for one among 101
properties (49,152 tokens, two busy cores)."""
_TOO_COSTLY = (
    "it is too complex: trying it took more than its share of CPU time or memory. Use fewer "
    "alternatives, smaller counts, or less nesting"
)


@dataclass(frozen=True, slots=True)
class Verdict:
    """On one grammar."""

    reason: str
    """Why it cannot be followed; empty where it can."""
    place: str
    """A pointer into the schema that it was made of; empty where none is sure."""


class GrammarTrials:
    """Verdicts on grammars over one tokenizer."""

    def __init__(self, tokenizer_path: str, vocab_size: int, eos_token_ids: Sequence[int]) -> None:
        self._arguments = [tokenizer_path, str(vocab_size), json.dumps(list(eos_token_ids))]
        self._verdicts: OrderedDict[bytes, Verdict] = OrderedDict()
        self._under_way: dict[bytes, asyncio.Task[Verdict]] = {}
        self._process: asyncio.subprocess.Process | None = None
        self._turn = asyncio.Lock()
        self.num_tried = 0

    async def check(self, text: str, asked: StructuredOutputs) -> None:
        """Return where a grammar can be followed.

        Raises InvalidRequestError with the reason where it cannot, and with the place of it in a
        schema where that is sure, QueueFullError where too many wait, RequestFailedError where it
        cannot be tried, EngineDeadError when closed meanwhile; ``asked``: what the grammar was made
        of.
        """
        key = hashlib.blake2b(text.encode(), digest_size=16).digest()
        verdict = self._verdicts.get(key)
        if verdict is None:
            verdict = await self._shared(self._trial(key, text, asked))
        else:
            self._verdicts.move_to_end(key)
        if verdict.reason:
            raise cannot_be_honoured(asked.param, verdict.reason, verdict.place)

    async def close(self) -> None:
        """End all trials and the process; may be called twice."""
        trials = list(self._under_way.values())
        for trial in trials:
            trial.cancel()
        await asyncio.gather(*trials, return_exceptions=True)
        await self._end_process()

    async def _end_process(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()

    def _trial(self, key: bytes, text: str, asked: StructuredOutputs) -> asyncio.Task[Verdict]:
        """The one of this grammar, which may be under way."""
        trial = self._under_way.get(key)
        if trial is None:
            if len(self._under_way) >= MAX_WAITING:
                raise QueueFullError(
                    f"{MAX_WAITING} new grammars are being tried; try again in {_RETRY_S:.0f} s.",
                    _RETRY_S,
                )
            trial = self._under_way[key] = asyncio.create_task(self._try(key, text, asked))
            trial.add_done_callback(lambda _: self._under_way.pop(key))
        return trial

    @staticmethod
    async def _shared(trial: asyncio.Task[Verdict]) -> Verdict:
        """Its verdict; whoever stops waiting for it does not end it."""
        try:
            return await asyncio.shield(trial)
        except asyncio.CancelledError:
            if trial.cancelled():
                raise EngineDeadError("The server is shutting down.") from None
            raise

    async def _try(self, key: bytes, text: str, asked: StructuredOutputs) -> Verdict:
        async with self._turn:
            self.num_tried += 1
            reason = await self._ask(text)
            place = await self._place(reason, asked) if reason else ""
        verdict = self._verdicts[key] = Verdict(reason, place)
        while len(self._verdicts) > MAX_VERDICTS:
            self._verdicts.popitem(last=False)
        return verdict

    async def _place(self, reason: str, asked: StructuredOutputs) -> str:
        """Where in the schema that was asked for the reason lies; empty where that is not sure."""
        if asked.kind != "json" or reason == _TOO_COSTLY:
            return ""
        schema = json.loads(asked.json) if isinstance(asked.json, str) else asked.json
        until_s = time.monotonic() + PLACE_LIMIT_S

        async def refuses(smaller: object) -> bool:
            if time.monotonic() > until_s:
                raise TimeoutError
            text = await asyncio.to_thread(_text_of, asked, smaller)
            return text is not None and await self._ask(text) == reason

        try:
            return await find_fault(schema, refuses) or ""
        except TimeoutError:
            return ""

    async def _ask(self, text: str) -> str:
        try:
            return await self._exchange(text)
        except (TimeoutError, asyncio.IncompleteReadError, ConnectionError):
            await self._end_process()
            return _TOO_COSTLY

    async def _exchange(self, text: str) -> str:
        if self._process is None or self._process.returncode is not None:
            await self._start_process()
        assert self._process is not None
        assert self._process.stdin is not None
        data = text.encode()
        async with asyncio.timeout(WALL_LIMIT_S):
            self._process.stdin.write(struct.pack("!I", len(data)) + data)
            await self._process.stdin.drain()
            return await _answer(self._process)

    async def _start_process(self) -> None:
        """Raises RequestFailedError where it does not start, which says nothing of a grammar."""
        self._process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-P",
            "-m",
            "octavo.structured.trial_process",
            *self._arguments,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,  # it may speak of the client's schema
        )
        try:
            async with asyncio.timeout(WALL_LIMIT_S):
                await _answer(self._process)
        except (TimeoutError, asyncio.IncompleteReadError):
            await self._end_process()
            raise RequestFailedError(
                "New grammars cannot be tried now, as the process that tries them did not start; "
                "try again later."
            ) from None


async def _answer(process: asyncio.subprocess.Process) -> str:
    assert process.stdout is not None
    (length,) = struct.unpack("!I", await process.stdout.readexactly(4))
    return (await process.stdout.readexactly(length)).decode()


def _text_of(asked: StructuredOutputs, schema: Any) -> str | None:
    """The grammar of a part of the schema that was asked for; None where it makes none."""
    try:
        return translate(msgspec.structs.replace(asked, json=schema)).text
    except InvalidRequestError:
        return None
