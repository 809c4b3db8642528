"""How one request wants its prompt's hidden states made into a vector.

Knows names and meanings; knows nothing of tensors, models or HTTP.
"""

from __future__ import annotations

from typing import Literal

import msgspec

Pooling = Literal["last", "mean"]


class PoolingParams(msgspec.Struct, frozen=True, array_like=True):
    """Parameters of one embedding. Immutable; crosses processes as msgpack."""

    pooling: Pooling = "last"
    """The hidden state of the last token, or the mean over all tokens of the prompt."""
    dimensions: int | None = None
    """Keep this many first components (Kusupati et al., "Matryoshka Representation Learning",
    2022); None: all."""
    normalize: bool = True
    """Whether the vector, after the cut, is scaled to length 1."""

    @property
    def reads_whole_prompt(self) -> bool:
        """Whether every position is needed, cached or not."""
        return self.pooling == "mean"
