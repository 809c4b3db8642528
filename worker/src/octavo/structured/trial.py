"""Asks the trial process whether grammars can be followed, and remembers what it said.

Runs in the server's process, off the event loop: requests that wait for a verdict hold nobody up
but those behind them in the trial.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import struct
import sys
from collections import OrderedDict
from collections.abc import Sequence

from octavo.errors import InvalidRequestError
from octavo.grammar import cannot_be_honoured

WALL_LIMIT_S = 30.0
"""For one verdict, start of the process included; its CPU time is limited much tighter."""
MAX_VERDICTS = 4096
MAX_WAITING = 64
"""Trials that may wait; more are refused, for they are not of people."""
_TOO_COSTLY = (
    "it is too complex: trying it took more than its share of CPU time or memory. Use fewer "
    "alternatives, smaller counts, or less nesting"
)


class GrammarTrials:
    """Verdicts on grammars over one tokenizer."""

    def __init__(self, tokenizer_path: str, vocab_size: int, eos_token_ids: Sequence[int]) -> None:
        self._arguments = [tokenizer_path, str(vocab_size), json.dumps(list(eos_token_ids))]
        self._verdicts: OrderedDict[bytes, str] = OrderedDict()
        self._process: asyncio.subprocess.Process | None = None
        self._turn = asyncio.Lock()
        self._num_waiting = 0
        self.num_tried = 0

    async def check(self, text: str, param: str) -> None:
        """Return where a grammar can be followed.

        Raises InvalidRequestError with the reason where it cannot; ``param`` is the request's field
        that asks for it.
        """
        key = hashlib.blake2b(text.encode(), digest_size=16).digest()
        verdict = self._verdicts.get(key)
        if verdict is None:
            verdict = await self._try(key, text, param)
        self._verdicts[key] = verdict
        self._verdicts.move_to_end(key)
        while len(self._verdicts) > MAX_VERDICTS:
            self._verdicts.popitem(last=False)
        if verdict:
            raise cannot_be_honoured(param, verdict)

    async def close(self) -> None:
        """End the process; may be called twice."""
        process, self._process = self._process, None
        if process is not None:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()

    async def _try(self, key: bytes, text: str, param: str) -> str:
        if self._num_waiting >= MAX_WAITING:
            raise InvalidRequestError(
                f"{MAX_WAITING} new grammars are being tried; send this one again in a moment.",
                param,
            )
        self._num_waiting += 1
        try:
            async with self._turn:
                if key in self._verdicts:  # an equal one stood before us
                    return self._verdicts[key]
                self.num_tried += 1
                verdict = await self._ask(text)
                self._verdicts[key] = verdict
                return verdict
        finally:
            self._num_waiting -= 1

    async def _ask(self, text: str) -> str:
        try:
            return await asyncio.wait_for(self._exchange(text), WALL_LIMIT_S)
        except (TimeoutError, asyncio.IncompleteReadError, ConnectionError):
            await self.close()
            return _TOO_COSTLY
        except BaseException:  # a client that leaves must not leave half an exchange behind
            await asyncio.shield(self.close())
            raise

    async def _exchange(self, text: str) -> str:
        if self._process is None or self._process.returncode is not None:
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
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        data = text.encode()
        self._process.stdin.write(struct.pack("!I", len(data)) + data)
        await self._process.stdin.drain()
        (length,) = struct.unpack("!I", await self._process.stdout.readexactly(4))
        return (await self._process.stdout.readexactly(length)).decode()
