"""What the device remembers of every running request: one row each.

A plan carries only differences; a step's inputs are gathered from these tensors on the device,
and drawn tokens are written back to them there, so the host need not know a token before the
next step starts.
"""

from __future__ import annotations

import torch

from octavo.batch import BatchPlan
from octavo.kernels.adapters import NO_ADAPTER
from octavo.kernels.upload import upload, write_runs


class Rows:
    """Persistent per-request tensors.

    - ``token_ids: [num_rows, max_model_len + 1], int32``: prompt, outputs, drafts to come;
      stale where a prompt's keys and values were found in the cache.
    - ``block_tables: [num_rows, max_blocks], int32``: entries past the last block are stale
      but valid ids.
    - ``adapter_slots: [num_rows], int32``: where each request's adapter lies, or none.
    """

    def __init__(
        self, num_rows: int, max_model_len: int, block_size: int, device: torch.device
    ) -> None:
        self.block_size = block_size
        self.device = device
        self._row_len, self._max_blocks = max_model_len + 1, -(-max_model_len // block_size)
        sizes = [num_rows * self._row_len, num_rows * self._max_blocks, num_rows]
        # One memory, so that one write fills them all.
        self._memory = torch.zeros(sum(sizes), dtype=torch.int32, device=device)
        token_ids, block_tables, self.adapter_slots = self._memory.split_with_sizes(sizes)
        self._first_block, self._first_slot = sizes[0], sizes[0] + sizes[1]
        self.token_ids = token_ids.view(num_rows, self._row_len)
        self.block_tables = block_tables.view(num_rows, self._max_blocks)
        self.adapter_slots.fill_(NO_ADAPTER)
        self._adapted: dict[int, int] = {}
        """Slots other than none, as the device has them: also of rows that were released."""

    def apply(self, plan: BatchPlan) -> None:
        """Carry out the plan's admissions and new blocks, without waiting for the device."""
        begins: list[int] = []
        sizes: list[int] = []
        values: list[int] = []
        for admission in plan.admissions:
            row, token_ids, block_ids = admission.row, admission.token_ids, admission.block_ids
            fits = len(token_ids) <= self._row_len and len(block_ids) <= self._max_blocks
            assert fits, (
                f"{len(token_ids)} tokens, {len(block_ids)} blocks would reach the next row"
            )
            # Prompt tokens found in the cache are not computed again: the device need not know
            # them. Outputs it must: what was drawn may bar what is drawn next.
            first = min(admission.num_cached_tokens, admission.num_prompt_tokens)
            begins += (row * self._row_len + first, self._first_block + row * self._max_blocks)
            sizes += (len(token_ids) - first, len(block_ids))
            values += token_ids[first:]
            values += block_ids
            if self._adapted.get(row) != admission.adapter_slot:
                begins.append(self._first_slot + row)
                sizes.append(1)
                values.append(self._adapt(row, admission.adapter_slot))
        write_runs(self._memory, begins, sizes, values)
        if plan.new_blocks:
            self._add_blocks(plan.new_blocks)

    def num_adapters(self, plan: BatchPlan) -> int:
        """How many different slots the plan's rows use."""
        adapted = self._adapted
        return len({adapted[row] for row in plan.rows if row in adapted}) if adapted else 0

    def _adapt(self, row: int, slot: int | None) -> int:
        """Remember which adapter the row has; returns what the device is to have."""
        if slot is None:
            del self._adapted[row]
            return NO_ADAPTER
        self._adapted[row] = slot
        return slot

    def _add_blocks(self, runs: list[tuple[int, int, list[int]]]) -> None:
        """Write runs ``(row, first column, block ids)``: many and short, so all with one upload."""
        places: list[int] = []
        ids: list[int] = []
        for row, first, run in runs:
            begin = row * self._max_blocks + first
            places += range(begin, begin + len(run))
            ids += run
        uploaded = upload([places, ids], torch.int64, self.device)
        self.block_tables.view(-1)[uploaded[0]] = uploaded[1].to(torch.int32)
