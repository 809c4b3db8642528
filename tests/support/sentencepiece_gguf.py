"""A real SentencePiece vocabulary, trained in milliseconds, as GGUF metadata has it."""

from __future__ import annotations

import io
from functools import cache
from typing import Any

import sentencepiece

_TEXTS = (
    "The quick brown fox jumps over the lazy dog, and then the dog sleeps for 12 hours.",
    "In the beginning there was a word, and the word was written in the book of words.",
    "def function(argument): return [value for value in argument if value is not None]",
    "Les élèves étaient très contents de leur journée à l'école près de la forêt.",
    "Then there were three: the cat, the hat and the other one, who were there before.",
)


@cache
def train_sentencepiece(add_dummy_prefix: bool = True) -> sentencepiece.SentencePieceProcessor:
    """A BPE model of 500 pieces with byte fallback, as Llama 2's."""
    stream = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(_TEXTS * 4),
        model_writer=stream,
        vocab_size=500,
        model_type="bpe",
        byte_fallback=True,
        add_dummy_prefix=add_dummy_prefix,
        remove_extra_whitespaces=False,
        normalization_rule_name="identity",
        character_coverage=0.99,
        minloglevel=2,
    )
    return sentencepiece.SentencePieceProcessor(model_proto=stream.getvalue())


def vocabulary_fields(
    model: sentencepiece.SentencePieceProcessor, add_space_prefix: bool = True
) -> dict[str, Any]:
    """``tokenizer.ggml.*`` as llama.cpp's converter writes them."""
    ids = range(model.get_piece_size())
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.pre": "default",
        "tokenizer.ggml.tokens": [model.id_to_piece(id) for id in ids],
        "tokenizer.ggml.scores": [float(model.get_score(id)) for id in ids],
        "tokenizer.ggml.token_type": [_token_type(model, id) for id in ids],
        "tokenizer.ggml.bos_token_id": model.bos_id(),
        "tokenizer.ggml.eos_token_id": model.eos_id(),
        "tokenizer.ggml.unknown_token_id": model.unk_id(),
        "tokenizer.ggml.add_space_prefix": add_space_prefix,
    }


def _token_type(model: sentencepiece.SentencePieceProcessor, token_id: int) -> int:
    if model.is_unknown(token_id):
        return 2
    if model.is_control(token_id):
        return 3
    return 6 if model.is_byte(token_id) else 1
