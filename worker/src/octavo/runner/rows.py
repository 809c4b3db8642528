"""What the device remembers of every running request: one row each.

A plan carries only differences; a step's inputs are gathered from these tensors on the device,
and drawn tokens are written back to them there, so the host need not know a token before the
next step starts.
"""

from __future__ import annotations

import torch
from torch import Tensor

from octavo.batch import BatchPlan
from octavo.kernels.adapters import NO_ADAPTER
from octavo.kernels.upload import upload, write


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
        max_blocks = -(-max_model_len // block_size)
        self.token_ids = torch.zeros(num_rows, max_model_len + 1, dtype=torch.int32, device=device)
        self.block_tables = torch.zeros(num_rows, max_blocks, dtype=torch.int32, device=device)
        self.adapter_slots = torch.full((num_rows,), NO_ADAPTER, dtype=torch.int32, device=device)
        self._adapted: dict[int, int] = {}
        """Slots other than none, as the device has them: also of rows that were released."""

    def apply(self, plan: BatchPlan) -> None:
        """Carry out the plan's admissions and new blocks, without waiting for the device."""
        targets: list[Tensor] = []
        values: list[int] = []
        for admission in plan.admissions:
            row, token_ids, block_ids = admission.row, admission.token_ids, admission.block_ids
            # Prompt tokens found in the cache are not computed again: the device need not know
            # them. Outputs it must: what was drawn may bar what is drawn next.
            first = min(admission.num_cached_tokens, admission.num_prompt_tokens)
            targets.append(self.token_ids[row, first : len(token_ids)])
            targets.append(self.block_tables[row, : len(block_ids)])
            values += token_ids[first:]
            values += block_ids
            self._write_adapter(row, admission.adapter_slot)
        write(targets, values)
        if plan.new_blocks:
            self._add_blocks(plan.new_blocks)

    def num_adapters(self, plan: BatchPlan) -> int:
        """How many different slots the plan's rows use."""
        adapted = self._adapted
        return len({adapted[row] for row in plan.rows if row in adapted}) if adapted else 0

    def _write_adapter(self, row: int, slot: int | None) -> None:
        """Costs nothing where no request has an adapter, or had one."""
        if self._adapted.get(row) == slot:
            return
        write([self.adapter_slots[row : row + 1]], [NO_ADAPTER if slot is None else slot])
        if slot is None:
            del self._adapted[row]
        else:
            self._adapted[row] = slot

    def _add_blocks(self, runs: list[tuple[int, int, list[int]]]) -> None:
        """Write runs ``(row, first column, block ids)``: many and short, so all with one upload."""
        width = self.block_tables.shape[1]
        places: list[int] = []
        ids: list[int] = []
        for row, first, run in runs:
            begin = row * width + first
            places += range(begin, begin + len(run))
            ids += run
        uploaded = upload([places, ids], torch.int64, self.device)
        self.block_tables.view(-1)[uploaded[0]] = uploaded[1].to(torch.int32)
