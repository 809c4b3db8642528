"""What `/healthz` says: whether the operator still works, not merely whether it answers.

Restarting cures a stuck program, not an unreachable API server; so only the first is a failure.
"""

from __future__ import annotations

import asyncio
import logging
import time
from typing import Any, Final

import kopf

from octavo_operator.cluster.follower import Follower

STUCK_AFTER_S: Final = 300.0
"""A single pass takes milliseconds, and each of its calls has a timeout."""

LOOP_ANSWER_S: Final = 3.0
"""Nothing may block the event loop for so long."""


def register_liveness(
    registry: kopf.OperatorRegistry, follower: Follower, loop: asyncio.AbstractEventLoop
) -> None:
    """Probe handlers. `loop` runs the follower.

    A permanent error is HTTP 500 at once; any other would have kopf try again, and hold the answer.
    """

    # A line for each probe, every few seconds, tells nobody anything.
    for noisy in ("aiohttp.access", "kopf.activities.probe"):
        logging.getLogger(noisy).setLevel(logging.WARNING)

    @kopf.on.probe(id="loop", registry=registry)
    async def answers(**_: Any) -> bool:
        turn = asyncio.run_coroutine_threadsafe(asyncio.sleep(0), loop)
        try:
            async with asyncio.timeout(LOOP_ANSWER_S):
                await asyncio.wrap_future(turn)
        except TimeoutError as error:
            raise kopf.PermanentError(f"the loop has not turned for {LOOP_ANSWER_S} s") from error
        return True

    @kopf.on.probe(id="reconcile", registry=registry)
    async def reconcile(**_: Any) -> dict[str, float | int]:
        now, queues = time.monotonic(), (follower.queue, follower.adapter_queue)
        busy_s = max(queue.longest_work_s(now) for queue in queues)
        if busy_s > STUCK_AFTER_S:
            raise kopf.PermanentError(f"a pass has been under way for {busy_s:.0f} s")
        return {"longest_pass_s": round(busy_s, 1), "waiting": follower.queue.num_waiting}

    @kopf.on.probe(id="watches", registry=registry)
    async def watches(**_: Any) -> dict[str, float]:
        return {"oldest_contact_s": round(follower.index.oldest_contact_s(time.monotonic()), 1)}
