"""How much of a model is wanted: fetching asks, so that a question does not cost a download."""

from __future__ import annotations

import enum


class NeededFiles(enum.Enum):
    """Parts of a model's folder. A GGUF file is one part: it is wanted whole or not at all."""

    ALL = "all"
    """What serving takes."""
    NO_WEIGHTS = "no weights"
    """Configuration and tokenizer."""
    SHAPE = "shape"
    """The configuration and the index of the weights: kilobytes."""
