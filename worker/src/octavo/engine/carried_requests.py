"""Requests across the process wall: a spec becomes the core's record, where that stands is told.

Knows both forms; changes nothing of a request.
"""

from __future__ import annotations

from octavo.engine.messages import RequestSpec
from octavo.outputs import RequestState
from octavo.request import Request, RequestStatus, TokenConstraint


def from_spec(
    spec: RequestSpec, now_s: float, leader: Request | None, grammar: TokenConstraint | None
) -> Request:
    """The core's record of a request that has just come, at ``now_s`` on its clock."""
    eos_token_ids = frozenset(spec.eos_token_ids)
    return Request(
        spec.id,
        spec.prompt_token_ids,
        spec.params,
        seed=spec.seed,
        stop_token_ids=eos_token_ids.union(spec.stop_token_ids),
        eos_token_ids=eos_token_ids,
        priority=spec.priority,
        arrival_s=now_s,
        deadline_s=None if spec.timeout_s is None else now_s + spec.timeout_s,
        cache_key=spec.cache_key,
        block_hashes=spec.block_hashes,
        leader=leader,
        adapter_id=spec.adapter_id,
        grammar=grammar,
        tenant=spec.tenant,
        pooling=spec.pooling,
    )


def to_state(request: Request, now_s: float) -> RequestState:
    """Where it stands."""
    state = request.status.value
    if request.status is RequestStatus.RUNNING:
        state = "prefill" if request.first_token_s is None else "decode"
    return RequestState(
        request.id,
        state,
        request.timings(now_s),
        request.num_output_tokens,
        request.num_computed_tokens,
        len(request.block_ids),
        request.num_preemptions,
    )
