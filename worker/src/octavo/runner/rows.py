"""What the device remembers of every running request: one row each.

A plan carries only differences; a step's inputs are gathered from these tensors on the device,
and drawn tokens are written back to them there, so the host need not know a token before the
next step starts.
"""

from __future__ import annotations

import torch
from torch import Tensor

from octavo.batch import BatchPlan


class Rows:
    """Persistent per-request tensors.

    - ``token_ids: [num_rows, max_model_len + 1], int32``: prompt, outputs, drafts to come.
    - ``block_tables: [num_rows, max_blocks], int32``: entries past the last block are stale
      but valid ids.
    """

    def __init__(
        self, num_rows: int, max_model_len: int, block_size: int, device: torch.device
    ) -> None:
        self.block_size = block_size
        self.device = device
        max_blocks = -(-max_model_len // block_size)
        self.token_ids = torch.zeros(num_rows, max_model_len + 1, dtype=torch.int32, device=device)
        self.block_tables = torch.zeros(num_rows, max_blocks, dtype=torch.int32, device=device)

    def apply(self, plan: BatchPlan) -> None:
        """Carry out the plan's admissions and new blocks."""
        for admission in plan.admissions:
            self._write(self.token_ids, admission.row, 0, admission.token_ids)
            self._write(self.block_tables, admission.row, 0, admission.block_ids)
        if plan.new_blocks:
            self._add_blocks(plan.new_blocks)

    def _add_blocks(self, new_blocks: list[tuple[int, int, list[int]]]) -> None:
        rows: list[int] = []
        columns: list[int] = []
        ids: list[int] = []
        for row, first, block_ids in new_blocks:
            rows += [row] * len(block_ids)
            columns += range(first, first + len(block_ids))
            ids += block_ids
        where = torch.tensor([rows, columns], dtype=torch.int64)
        values = torch.tensor(ids, dtype=torch.int32)
        if self.device.type != "cpu":
            where = where.to(self.device, non_blocking=True)
            values = values.to(self.device, non_blocking=True)
        self.block_tables[where[0], where[1]] = values

    @staticmethod
    def _write(table: Tensor, row: int, start: int, values: list[int]) -> None:
        if values:
            table[row, start : start + len(values)] = torch.tensor(values, dtype=torch.int32)
