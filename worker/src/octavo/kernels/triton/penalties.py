"""Repetition, presence and frequency penalties over a table of token counts.

``counts: [num_table_rows, vocab], int16 or int32``, one row for each running request: how often
each token was generated, with the bit :func:`prompt_flag` set where the prompt holds it. The
repetition penalty (Keskar et al., CTRL, 2019) looks at prompt and output, the other two (OpenAI's
API) at the output alone.
"""
# Programs are Triton's language, which no Python type checker knows.
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, allow-untyped-calls

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from octavo.kernels.triton.launch import INTERPRETED

_BLOCK = 256 if INTERPRETED else 4096


def prompt_flag(dtype: torch.dtype) -> int:
    """The bit of a count that says the prompt holds the token."""
    return 1 << (torch.iinfo(dtype).bits - 2)


def penalize_reference(
    logits: Tensor,
    counts: Tensor,
    rows: Tensor,
    repetition: Tensor,
    presence: Tensor,
    frequency: Tensor,
) -> None:
    """What :func:`penalize` does, in plain torch."""
    flag = prompt_flag(counts.dtype)
    entries = counts[rows.clamp(min=0).long()].int()
    generated = entries & (flag - 1)
    factor = torch.where(logits > 0, 1 / repetition[:, None], repetition[:, None])
    penalized = torch.where(entries != 0, logits * factor, logits)
    penalized -= presence[:, None] * (generated > 0) + frequency[:, None] * generated
    logits.copy_(torch.where((rows >= 0)[:, None], penalized, logits))


@triton.jit(
    do_not_specialize_on_alignment=["rows", "repetition", "presence", "frequency"],
)
def _penalize_program(
    logits,
    counts,
    rows,
    repetition,
    presence,
    frequency,
    logits_stride,
    counts_stride,
    FLAG: tl.constexpr,
    VOCAB_SIZE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One program for one block of one row; rows without penalties end at once."""
    row = tl.program_id(0).to(tl.int64)
    table_row = tl.load(rows + row).to(tl.int64)
    repeated = tl.load(repetition + row)
    present = tl.load(presence + row)
    frequent = tl.load(frequency + row)
    is_neutral = (repeated == 1.0) & (present == 0.0) & (frequent == 0.0)
    if (table_row >= 0) & (not is_neutral):
        ids = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
        mask = ids < VOCAB_SIZE
        entries = tl.load(counts + table_row * counts_stride + ids, mask=mask, other=0)
        entries = entries.to(tl.int32)
        pointers = logits + row * logits_stride + ids
        mask = mask & (entries != 0)
        x = tl.load(pointers, mask=mask, other=0.0)
        generated = entries & (FLAG - 1)
        x = tl.where(x > 0, x / repeated, x * repeated)
        x -= tl.where(generated > 0, present, 0.0) + frequent * generated.to(tl.float32)
        tl.store(pointers, x, mask=mask)


def penalize(
    logits: Tensor,
    counts: Tensor,
    rows: Tensor,
    repetition: Tensor,
    presence: Tensor,
    frequency: Tensor,
) -> None:
    """Change ``logits: [R, vocab], float32`` in place.

    ``rows: [R], int32``: each row's place in ``counts``, or -1 for no penalties.
    ``repetition`` (1 is off), ``presence``, ``frequency`` (0 is off): ``[R], float32``.
    """
    num_rows, vocab_size = logits.shape
    if num_rows == 0:
        return
    _penalize_program[(num_rows, triton.cdiv(vocab_size, _BLOCK))](
        logits,
        counts,
        rows,
        repetition,
        presence,
        frequency,
        logits.stride(0),
        counts.stride(0),
        FLAG=prompt_flag(counts.dtype),
        VOCAB_SIZE=vocab_size,
        BLOCK=_BLOCK,
        num_warps=8,
    )


@triton.jit(do_not_specialize_on_alignment=["rows", "token_ids"])
def _count_program(counts, rows, token_ids, counts_stride, FLAG: tl.constexpr):
    """One program a row: add one where the row is counted, below the flag's bit."""
    row = tl.program_id(0)
    table_row = tl.load(rows + row).to(tl.int64)
    if table_row >= 0:
        pointer = counts + table_row * counts_stride + tl.load(token_ids + row)
        entry = tl.load(pointer)
        is_full = (entry & (FLAG - 1)) == FLAG - 1
        tl.store(pointer, tl.where(is_full, entry, entry + 1).to(counts.dtype.element_ty))


def count_tokens(counts: Tensor, rows: Tensor, token_ids: Tensor) -> None:
    """Count one generated token for each row: ``rows: [R], int32`` (-1: none), each row once.

    ``token_ids: [R], int64``. A count that is full stays so.
    """
    if rows.shape[0] == 0:
        return
    _count_program[(rows.shape[0],)](
        counts, rows, token_ids, counts.stride(0), FLAG=prompt_flag(counts.dtype), num_warps=1
    )
