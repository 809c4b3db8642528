"""A step's inputs, expanded on the device from one small table of its sequences.

The host uploads which rows run, where each starts and how many tokens it computes; everything
else is gathered from the rows. Shapes depend on host numbers alone and nothing synchronises, so
the same expansion serves eager steps and captured ones, where it is padded.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from octavo.batch import BatchPlan
from octavo.kernels.interface import AttentionBatch, SharedPrefix
from octavo.kernels.upload import upload
from octavo.runner.rows import Rows

_MIN_ORDERED = 32
"""Decodes that are worth sorting."""


@dataclass(frozen=True, slots=True)
class SequenceTable:
    """The sequences of a step, ``[S], int64`` each, on the device.

    A padding sequence stands on the padding row, starts at 0 and computes ``count`` tokens: one
    among the decodes, none after them.
    """

    row: Tensor
    start: Tensor
    count: Tensor
    num_tokens: int
    """T: tokens of all sequences, padding included."""
    num_decodes: int
    """Sequences, first in order, that compute one token each."""
    max_query_len: int
    max_context_len: int
    shared_len: Tensor | None = None
    """Tokens in blocks that decodes have in common, 0 for those that do not share."""

    @property
    def is_decode(self) -> bool:
        """Whether every sequence computes one token."""
        return self.num_tokens == self.num_decodes

    @property
    def after(self) -> Tensor:
        """``[S]``: the position after each sequence's last token of this step."""
        return self.start + self.count


def sequence_table(plan: BatchPlan, device: torch.device) -> SequenceTable:
    """The table of a plan, as it is."""
    columns = [plan.rows, plan.starts, plan.num_tokens]
    if plan.shared_lens:
        columns.append(padded_shared_lens(plan))
    row, start, count, *shared_len = upload(columns, torch.int64, device).unbind()
    return SequenceTable(
        row,
        start,
        count,
        num_tokens=plan.total_tokens,
        num_decodes=plan.num_decodes,
        max_query_len=max(plan.num_tokens),
        max_context_len=max(map(int.__add__, plan.starts, plan.num_tokens)),
        shared_len=shared_len[0] if shared_len else None,
    )


def padded_shared_lens(plan: BatchPlan) -> list[int]:
    """The plan's shared lengths, for all its rows."""
    return plan.shared_lens + [0] * (len(plan.rows) - len(plan.shared_lens))


def expand(
    rows: Rows, table: SequenceTable, padding_row: int | None = None
) -> tuple[Tensor, AttentionBatch, Tensor]:
    """Token ids ``[T], int32``, the attention batch of a table, and the row of each token.

    With a padding row, its sequences see an empty context and write nowhere, and tokens past
    the last sequence do the same.
    """
    query_starts, token_row, positions = _tokens_of(rows, table, padding_row)
    block = rows.block_tables[token_row, positions // rows.block_size]
    slots = block * rows.block_size + (positions % rows.block_size).to(torch.int32)
    context_lens = table.after
    if padding_row is not None:
        slots = slots.masked_fill(token_row == padding_row, -1)
        context_lens = context_lens.masked_fill(table.row == padding_row, 0)
    num_blocks = -(-table.max_context_len // rows.block_size)
    attention = AttentionBatch(
        query_starts=query_starts,
        context_lens=context_lens.to(torch.int32),
        block_tables=rows.block_tables[table.row, :num_blocks],
        positions=positions.to(torch.int32),
        slots=slots,
        num_decodes=table.num_decodes,
        max_query_len=table.max_query_len,
        max_context_len=table.max_context_len,
        shared=_shared_prefix(table),
        longest_first=_longest_first(table, context_lens),
    )
    return rows.token_ids[token_row, positions], attention, token_row


def _shared_prefix(table: SequenceTable) -> SharedPrefix | None:
    if table.shared_len is None or not table.num_decodes:
        return None
    lens = table.shared_len[: table.num_decodes]
    return SharedPrefix(lens=lens.to(torch.int32), sharer=lens.argmax())


def _longest_first(table: SequenceTable, context_lens: Tensor) -> Tensor | None:
    """Only on a GPU (or what stands for one), and where there are more decodes than one round of
    programs takes."""
    if table.num_decodes < _MIN_ORDERED or context_lens.device.type == "cpu":
        return None
    own = context_lens[: table.num_decodes]
    if table.shared_len is not None:
        own = own - table.shared_len[: table.num_decodes]
    return longest_first(own)


def longest_first(lengths: Tensor) -> Tensor:
    """``[N], int64`` → the indices from the longest on, without a wait for the device.

    A place is the number of those that are longer, or as long and further on: for some hundred, all
    pairs are compared sooner than a library sorts.
    """
    indices = torch.arange(lengths.shape[0], device=lengths.device)
    keys = lengths * lengths.shape[0] + indices
    order = torch.empty_like(indices)
    order[(keys[None, :] > keys[:, None]).sum(dim=1)] = indices
    return order


def _tokens_of(
    rows: Rows, table: SequenceTable, padding_row: int | None
) -> tuple[Tensor, Tensor, Tensor]:
    """``query_starts [S + 1], int32``; row and position of each token, ``[T], int64``."""
    num_sequences, device = table.row.shape[0], rows.device
    if table.is_decode:
        query_starts = torch.arange(num_sequences + 1, dtype=torch.int32, device=device)
        return query_starts, table.row, table.start
    query_starts = torch.zeros(num_sequences + 1, dtype=torch.int32, device=device)
    torch.cumsum(table.count, 0, out=query_starts[1:])
    token = torch.arange(table.num_tokens, device=device, dtype=torch.int32)
    owner = torch.searchsorted(query_starts[1:], token, right=True)
    if padding_row is None:
        token_row = table.row[owner]
        return query_starts, token_row, token - query_starts[owner] + table.start[owner]
    is_padding = owner == num_sequences
    owner = owner.clamp_max(num_sequences - 1)
    token_row = table.row[owner].masked_fill(is_padding, padding_row)
    positions = token - query_starts[owner] + table.start[owner]
    return query_starts, token_row, positions.masked_fill(is_padding, 0)
