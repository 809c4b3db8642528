"""Log probabilities of drawn tokens and of their likeliest alternatives.

Always of the raw logits, before biases, penalties and temperature: they tell what the model
thought, not what the sampler made of it (vLLM's default).
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from torch import Tensor
from torch.nn.functional import pad

from octavo.outputs import TokenLogprobs

_MOST_KEYS = 1 << 22
"""Of 8 bytes, at once: whole batches of them would take gigabytes from the KV cache."""


@dataclass(frozen=True, slots=True)
class LogprobBatch:
    """The L rows of a batch that asked for log probabilities."""

    indices: Tensor
    """``[L], int64``: which rows of the logits."""
    rows: tuple[int, ...]
    """The same, for the host."""
    num_top: tuple[int, ...]
    """How many alternatives each wants."""

    def compute(self, raw: Tensor, token_ids: Tensor) -> LogprobTensors:
        """``raw: [L, vocab]``: these rows' raw logits; ``token_ids: [R]``: what all drew."""
        chosen_ids = token_ids[self.indices]
        chosen = raw.gather(1, chosen_ids[:, None])
        top_ids = likeliest(raw, min(max(self.num_top), raw.shape[1]))
        logprobs = normalized(raw)
        return LogprobTensors(
            batch=self,
            token_ids=chosen_ids,
            logprobs=logprobs.gather(1, chosen_ids[:, None])[:, 0],
            ranks=(raw > chosen).sum(dim=1) + 1,
            top_token_ids=top_ids,
            top_logprobs=logprobs.gather(1, top_ids),
        )


def likeliest(logits: Tensor, count: int) -> Tensor:
    """The ``count`` likeliest tokens of each row, of equally likely ones the lowest ids first.

    ``logits: [L, vocab], float32`` → ``[L, count], int64``. Logits in half precision are often
    equal, and which of them torch prefers depends on how many rows there are.
    """
    ids = torch.arange(logits.shape[1], device=logits.device)
    found = [_likeliest(part, ids, count) for part in torch.split(logits, _rows_at_once(ids))]
    return torch.cat(found)


def _rows_at_once(ids: Tensor) -> int:
    return max(1, _MOST_KEYS // len(ids))


def _likeliest(logits: Tensor, ids: Tensor, count: int) -> Tensor:
    """By keys that differ: the order of a float's bits, then of the ids."""
    rising = logits.view(torch.int32)
    rising = rising ^ (rising >> 31).bitwise_and_(0x7FFFFFFF)
    return rising.long().mul_(2**32).sub_(ids).topk(count, dim=1).indices


def normalized(logits: Tensor) -> Tensor:
    """Natural logarithms of each row's probabilities, with bits that other rows do not change.

    ``logits: [L, vocab], float32``. Torch's softmax takes a row at a time, where the order of a
    plain sum depends on how many there are; and as all rows begin at multiples of 16 bytes, it
    reads them alike.
    """
    vocab_size = logits.shape[1]
    padded = pad(logits, (0, -vocab_size % 4), value=-torch.inf)
    return padded.log_softmax(dim=1)[:, :vocab_size]


def score_tokens(logits: Tensor, token_ids: Tensor, num_top: int) -> LogprobTensors:
    """Log probabilities of given tokens, one a row; ``logits: [L, vocab]``, ``token_ids: [L]``."""
    count = len(token_ids)
    indices = torch.arange(count, device=logits.device)
    return LogprobBatch(indices, tuple(range(count)), (num_top,) * count).compute(logits, token_ids)


@dataclass(frozen=True, slots=True)
class LogprobTensors:
    """One step's log probabilities, as tensors of one device."""

    batch: LogprobBatch
    token_ids: Tensor
    """``[L], int64``."""
    logprobs: Tensor
    """``[L], float32``, natural logarithm."""
    ranks: Tensor
    """``[L], int64``: 1 for the most likely token."""
    top_token_ids: Tensor
    """``[L, K], int64``, likeliest first; K is the most any row asked for."""
    top_logprobs: Tensor
    """``[L, K], float32``."""

    def to(self, device: torch.device, *, non_blocking: bool = False) -> LogprobTensors:
        """A copy elsewhere; with ``non_blocking``, not to be read before the stream has passed."""
        tensors = (getattr(self, field.name) for field in fields(self) if field.name != "batch")
        return LogprobTensors(
            self.batch, *(tensor.to(device, non_blocking=non_blocking) for tensor in tensors)
        )

    def per_row(self, num_rows: int) -> list[TokenLogprobs | None]:
        """For each of the batch's ``num_rows`` rows what it asked for. Waits for the
        device, if they are on one."""
        result: list[TokenLogprobs | None] = [None] * num_rows
        columns = zip(
            self.batch.rows,
            self.batch.num_top,
            self.token_ids.tolist(),
            self.logprobs.tolist(),
            self.ranks.tolist(),
            self.top_token_ids.tolist(),
            self.top_logprobs.tolist(),
            strict=True,
        )
        for row, num_top, token_id, logprob, rank, top_ids, top_logprobs in columns:
            result[row] = TokenLogprobs(
                token_id, logprob, rank, top_ids[:num_top], top_logprobs[:num_top]
            )
        return result
