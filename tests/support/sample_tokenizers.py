"""One tokenizer of each spelling, small enough for properties over all ids."""

from __future__ import annotations

import tempfile
from functools import cache
from pathlib import Path

from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models

from octavo.tokenization.tokenizer import Tokenizer
from tiny_models import save_byte_tokenizer


@cache
def byte_level_tokenizer() -> Tokenizer:
    """Ids 0 to 255 are bytes, 256 to 259 special."""
    with tempfile.TemporaryDirectory() as folder:
        save_byte_tokenizer(Path(folder))
        return Tokenizer.open(folder)


@cache
def sentencepiece_tokenizer() -> Tokenizer:
    """Ids 0 to 255 are bytes, then a special token, then pieces as Llama 2's."""
    tokens = [f"<0x{byte:02X}>" for byte in range(256)]
    tokens += ["<s>", "▁", "▁a", "b", "▁▁", "日", "▁stop"]
    model = models.BPE({token: id for id, token in enumerate(tokens)}, [], byte_fallback=True)
    backend = Backend(model)
    backend.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    backend.add_special_tokens(["<s>"])
    with tempfile.TemporaryDirectory() as folder:
        backend.save(str(Path(folder) / "tokenizer.json"))
        return Tokenizer.open(folder)
