"""A runner without a model that remembers what was written to every slot of the KV cache.

Each slot holds a digest of the whole sequence up to its token. A scheduled token is computed
from the slots its block table names, and every one of them must hold the digest of that very
sequence: a wrong prefix hit, a block freed too early or used twice fails at once. The next
token is a function of the digest and the request's seed, so outputs have a reference that no
batching can change.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass

from octavo.batch import BatchPlan, StepResult
from octavo.config import SchedulerConfig

VOCAB_SIZE = 23


def tenant_of(seed: int) -> int:
    """Sequences of different tenants have different digests, though their tokens be equal."""
    return seed >> 16


def digest(previous: int, token_id: int) -> int:
    return zlib.crc32(f"{previous},{token_id}".encode())


def draw(state: int, seed: int) -> int:
    return zlib.crc32(f"{state}/{seed}".encode()) % VOCAB_SIZE


def reference_outputs(prompt: list[int], seed: int, count: int) -> list[int]:
    """The first ``count`` tokens after ``prompt``, computed one request at a time."""
    state = tenant_of(seed)
    for token_id in prompt:
        state = digest(state, token_id)
    outputs = []
    for _ in range(count):
        outputs.append(draw(state, seed))
        state = digest(state, outputs[-1])
    return outputs


@dataclass
class _Row:
    token_ids: list[int]
    block_ids: list[int]
    seed: int


class SlotCheckingRunner:
    """Carries out plans in order, at once; results are kept until asked for."""

    def __init__(self, config: SchedulerConfig) -> None:
        self.config = config
        self.num_computed = 0
        """Tokens computed so far, recomputed ones included."""
        self._rows: dict[int, _Row] = {}
        self._slots: dict[int, int] = {}

    def execute(self, plan: BatchPlan) -> StepResult:
        """Check the plan against the contract and the cache, and draw its tokens."""
        self._check_shape(plan)
        for row in plan.released_rows:
            del self._rows[row]
        for admission in plan.admissions:
            assert admission.row not in self._rows, f"row {admission.row} is taken"
            assert 0 <= admission.row < self.config.max_num_seqs
            self._rows[admission.row] = _Row(
                list(admission.token_ids), list(admission.block_ids), admission.seed
            )
        for row, first, block_ids in plan.new_blocks:
            assert len(self._rows[row].block_ids) == first, "block tables are append-only"
            self._rows[row].block_ids += block_ids
        self._check_shared(plan)
        drawn = [
            self._compute(self._rows[row], start, count, samples)
            for row, start, count, samples in zip(
                plan.rows, plan.starts, plan.num_tokens, plan.samples, strict=True
            )
        ]
        return StepResult([token_id for token_id in drawn if token_id is not None])

    def _check_shape(self, plan: BatchPlan) -> None:
        assert plan.rows, "an empty plan"
        assert len(plan.rows) == len(plan.requests) == len(set(plan.rows))
        assert plan.total_tokens <= self.config.max_num_batched_tokens
        assert len(plan.rows) <= self.config.max_num_seqs
        assert all(count == 1 for count in plan.num_tokens[: plan.num_decodes])
        assert all(count > 1 for count in plan.num_tokens[plan.num_decodes :])

    def _check_shared(self, plan: BatchPlan) -> None:
        """Who is said to share a prefix has the same in full blocks there: one is read for all."""
        sharing = {
            row: length for row, length in zip(plan.rows, plan.shared_lens, strict=False) if length
        }
        if not sharing:
            return
        assert len(plan.shared_lens) <= plan.num_decodes
        assert len(sharing) > 1, "one request shares with nobody"
        lengths = set(sharing.values())
        assert len(lengths) == 1
        length = lengths.pop()
        assert length % self.config.block_size == 0
        starts = dict(zip(plan.rows, plan.starts, strict=True))
        assert all(length <= starts[row] for row in sharing), "a shared block is not full"
        contents = {
            tuple(self._slots[self._slot(self._rows[row], position)] for position in range(length))
            for row in sharing
        }
        assert len(contents) == 1, "a prefix that is not common"

    def _compute(self, row: _Row, start: int, count: int, samples: bool) -> int | None:
        end = start + count
        assert end <= len(row.token_ids), "a token is computed before it is drawn"
        assert samples == (end == len(row.token_ids)), "draws exactly after the last token"
        assert end <= self.config.max_model_len - 1, "planned past max_model_len"
        state = tenant_of(row.seed)
        for position in range(end):
            state = digest(state, row.token_ids[position])
            slot = self._slot(row, position)
            if position >= start:
                self._slots[slot] = state
                self.num_computed += 1
            assert self._slots.get(slot) == state, f"wrong context at position {position}"
        if not samples:
            return None
        row.token_ids.append(draw(state, row.seed))
        return row.token_ids[-1]

    def _slot(self, row: _Row, position: int) -> int:
        block_size = self.config.block_size
        return row.block_ids[position // block_size] * block_size + position % block_size
