"""A step's inputs, gathered from the rows on the device."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from octavo.batch import BatchPlan
from octavo.kernels.interface import AttentionBatch
from octavo.runner.rows import Rows


@dataclass(frozen=True, slots=True)
class BatchTensors:
    """Inputs of one step; T tokens of S sequences, R of which draw a token."""

    token_ids: Tensor
    """``[T], int32``."""
    attention: AttentionBatch
    sample_indices: Tensor | None
    """``[R], int64``: hidden states that need logits; None: all of them, in order."""
    sampled_rows: list[int]
    sampled_row_indices: Tensor
    """``[R], int64``: the same on the device."""
    sampled_positions: Tensor
    """``[R], int64``: the position each drawn token will stand at."""


def build_batch_tensors(rows: Rows, plan: BatchPlan) -> BatchTensors:
    """Turn a plan with at least one row into device tensors."""
    device = rows.device
    # One small upload: row, start and count of every sequence.
    table = torch.tensor([plan.rows, plan.starts, plan.num_tokens], dtype=torch.int64)
    if device.type != "cpu":
        table = table.pin_memory().to(device, non_blocking=True)
    row, start, count = table.unbind()
    ends = start + count
    num_sequences = len(plan.rows)
    total = plan.total_tokens
    query_starts = torch.zeros(num_sequences + 1, dtype=torch.int32, device=device)
    if total == num_sequences:
        torch.arange(num_sequences + 1, out=query_starts)
        token_row, positions = row, start
    else:
        torch.cumsum(count, 0, out=query_starts[1:])
        owner = torch.repeat_interleave(count, output_size=total)
        token_row = row[owner]
        offset = start - query_starts[:-1]
        positions = torch.arange(total, device=device) + offset[owner]
    block_size = rows.block_size
    block = rows.block_tables[token_row, positions // block_size]
    max_context_len = max(map(int.__add__, plan.starts, plan.num_tokens))
    num_blocks = -(-max_context_len // block_size)
    attention = AttentionBatch(
        query_starts=query_starts,
        context_lens=ends.to(torch.int32),
        block_tables=rows.block_tables[row, :num_blocks],
        positions=positions.to(torch.int32),
        slots=block * block_size + (positions % block_size).to(torch.int32),
        num_decodes=plan.num_decodes,
        max_query_len=max(plan.num_tokens),
        max_context_len=max_context_len,
    )
    token_ids = rows.token_ids[token_row, positions]
    if all(plan.samples):
        last = None if total == num_sequences else query_starts[1:].long() - 1
        return BatchTensors(token_ids, attention, last, plan.rows, row, ends)
    sampling = [index for index, samples in enumerate(plan.samples) if samples]
    chosen = torch.tensor(sampling, dtype=torch.int64, device=device)
    return BatchTensors(
        token_ids,
        attention,
        query_starts[1:].long()[chosen] - 1,
        [plan.rows[index] for index in sampling],
        row[chosen],
        ends[chosen],
    )
