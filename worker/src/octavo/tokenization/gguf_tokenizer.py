"""A tokenizer out of a GGUF file's metadata.

The file holds the vocabulary, its merges or scores, and a name for the way text is split before
merging; everything else (the regular expressions behind those names, normalisation, decoding) is
convention, written down here. Sources: llama.cpp's ``llama-vocab.cpp`` and the
``tokenizer.json`` files of the models the names come from.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers

from octavo.errors import ModelLoadError, UnsupportedModelError
from octavo.tokenization.gguf_vocabulary import GGUFVocabulary, TokenType
from octavo.tokenization.token_pieces import SPACE

_log = logging.getLogger(__name__)

_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_SPACES = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_UPPER = r"\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}"
_LOWER = r"\p{Ll}\p{Lm}\p{Lo}\p{M}"
_LLAMA3 = (
    rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{1,3}}"
    rf"| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|{_SPACES}"
)
_QWEN2 = (
    rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}"
    rf"| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|{_SPACES}"
)
_TEKKEN = (
    rf"[^\r\n\p{{L}}\p{{N}}]?[{_UPPER}]*[{_LOWER}]+|[^\r\n\p{{L}}\p{{N}}]?[{_UPPER}]+[{_LOWER}]*"
    rf"|\p{{N}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{_SPACES}"
)


@dataclass(frozen=True, slots=True)
class SplitRule:
    """How text is cut into words before merging.

    ``pattern`` None: GPT-2's own. ``ignores_merges``: a word that is in the vocabulary is taken
    whole, whatever its merges say.
    """

    pattern: str | None = None
    splits_digits: bool = False
    is_nfc: bool = False
    ignores_merges: bool = False
    adds_bos: bool = False
    """What a file that does not say means."""


_GPT2_RULE = SplitRule()
_DIGITS_RULE = SplitRule(splits_digits=True)
_LLAMA3_RULE = SplitRule(_LLAMA3, ignores_merges=True, adds_bos=True)
_QWEN2_RULE = SplitRule(_QWEN2, is_nfc=True)
SPLIT_RULES = {
    "gpt-2": _GPT2_RULE,
    "phi-2": _GPT2_RULE,
    "smollm": _DIGITS_RULE,
    "starcoder": _DIGITS_RULE,
    "refact": _DIGITS_RULE,
    "llama-bpe": _LLAMA3_RULE,
    "llama3": _LLAMA3_RULE,
    "llama-v3": _LLAMA3_RULE,
    "falcon3": _LLAMA3_RULE,
    "smaug-bpe": SplitRule(_LLAMA3),
    "qwen2": _QWEN2_RULE,
    "deepseek-r1-qwen": _QWEN2_RULE,
    "megrez": _QWEN2_RULE,
    "tekken": SplitRule(_TEKKEN, ignores_merges=True, adds_bos=True),
}
"""By ``tokenizer.ggml.pre``."""


_MERGED = (TokenType.NORMAL.value, TokenType.USER_DEFINED.value)
_MAX_PIECE_CHARACTERS = 256
"""Longer pieces are not made by merging: ways to cut grow with the square of the length, and
real vocabularies stay far below (SentencePiece's own limit is 16 unless told otherwise)."""


def adds_bos(vocabulary: GGUFVocabulary) -> bool:
    """Whether encoding puts the beginning-of-sequence token first."""
    if vocabulary.add_bos is not None:
        return vocabulary.add_bos
    if vocabulary.model == "llama":
        return True
    return vocabulary.pre is not None and _split_rule(vocabulary.pre).adds_bos


def build_tokenizer(vocabulary: GGUFVocabulary, architecture: str) -> tokenizers.Tokenizer:
    """The tokenizer that the vocabulary describes, without a post-processor.

    Raises UnsupportedModelError for a kind of vocabulary or a split rule that is not known.
    """
    if vocabulary.model == "gpt2":
        tokenizer = _byte_level(vocabulary)
    elif vocabulary.model == "llama":
        tokenizer = _sentencepiece(vocabulary, architecture)
    else:
        raise UnsupportedModelError(
            f"tokenizer.ggml.model is {vocabulary.model!r} in the GGUF file; supported: gpt2, "
            "llama."
        )
    _add_special_tokens(tokenizer, vocabulary)
    return tokenizer


def _byte_level(vocabulary: GGUFVocabulary) -> tokenizers.Tokenizer:
    if vocabulary.pre is None:
        _log.warning(
            "The GGUF file does not say how its tokenizer splits text (tokenizer.ggml.pre is "
            "absent); it is split as GPT-2 does, which may give other tokens than the model's own."
        )
    rule = _GPT2_RULE if vocabulary.pre is None else _split_rule(vocabulary.pre)
    tokenizer = _merging(
        vocab=_ids(vocabulary.tokens),
        merges=[_merge(merge) for merge in vocabulary.merges],
        ignore_merges=rule.ignores_merges,
    )
    if rule.is_nfc:
        tokenizer.normalizer = normalizers.NFC()
    steps: list[pre_tokenizers.PreTokenizer] = []
    if rule.splits_digits:
        steps.append(pre_tokenizers.Digits(individual_digits=True))
    if rule.pattern is not None:
        steps.append(pre_tokenizers.Split(Regex(rule.pattern), behavior="isolated"))
    steps.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=rule.pattern is None))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(steps)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _sentencepiece(vocabulary: GGUFVocabulary, architecture: str) -> tokenizers.Tokenizer:
    tokens = vocabulary.tokens
    scores: Sequence[float] = vocabulary.scores
    if architecture.startswith("gemma"):
        # Runs of spaces are stored as such, but merged in their normalised form; and pieces
        # merge in the order of their ids, which Gemma's scores do not follow.
        tokens = [SPACE * len(token) if token.strip(" ") == "" else token for token in tokens]
        scores = range(0, -len(tokens), -1)
    if len(scores) != len(tokens):
        raise ModelLoadError("The GGUF file's SentencePiece vocabulary has no scores.")
    unknown = vocabulary.special_ids.get("unk")
    merges = [_merge(merge) for merge in vocabulary.merges]
    tokenizer = _merging(
        vocab=_ids(tokens),
        merges=merges or merges_by_score(tokens, scores, vocabulary.types),
        unk_token=None if unknown is None else tokens[unknown],
        fuse_unk=True,
        byte_fallback=True,
    )
    has_prefix = vocabulary.add_space_prefix is not False
    replace = normalizers.Replace(" ", SPACE)
    tokenizer.normalizer = (
        normalizers.Sequence([normalizers.Prepend(SPACE), replace]) if has_prefix else replace
    )
    steps = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    if has_prefix:
        steps.append(decoders.Strip(" ", 1, 0))
    tokenizer.decoder = decoders.Sequence(steps)
    return tokenizer


def _merging(**arguments: Any) -> tokenizers.Tokenizer:
    try:
        return tokenizers.Tokenizer(models.BPE(**arguments))
    except Exception as exc:  # the library raises plain Exception
        raise ModelLoadError(f"The GGUF file's tokenizer cannot be built: {exc}.") from exc


def merges_by_score(
    tokens: Sequence[str], scores: Sequence[float], types: Sequence[int]
) -> list[tuple[str, str]]:
    """The merges a SentencePiece vocabulary implies, best first.

    SentencePiece joins the neighbours whose union scores highest; as merge rules: every way to
    cut a piece into two others, in order of the piece's score.
    """
    known = frozenset(tokens)
    merges: list[tuple[str, str]] = []
    for index in sorted(range(len(tokens)), key=scores.__getitem__, reverse=True):
        token = tokens[index]
        if types[index] not in _MERGED or len(token) > _MAX_PIECE_CHARACTERS:
            continue
        # In transformers' order; ways to make the same piece hardly ever compete.
        for cut in range(len(token) - 1, 0, -1):
            if token[:cut] in known and token[cut:] in known:
                merges.append((token[:cut], token[cut:]))
    return merges


def _add_special_tokens(tokenizer: tokenizers.Tokenizer, vocabulary: GGUFVocabulary) -> None:
    special, others = [], []
    for token, kind in zip(vocabulary.tokens, vocabulary.types, strict=True):
        if kind == TokenType.CONTROL:
            special.append(AddedToken(token, normalized=False, special=True))
        elif kind == TokenType.USER_DEFINED and token.strip(" "):
            others.append(AddedToken(token, normalized=False, special=False))
    # A vocabulary's unknown token is special too, but is never looked for in a text.
    tokenizer.add_special_tokens(special)
    tokenizer.add_tokens(others)


def _split_rule(name: str) -> SplitRule:
    rule = SPLIT_RULES.get(name)
    if rule is None:
        raise UnsupportedModelError(
            f"tokenizer.ggml.pre is {name!r} in the GGUF file, a way to split text that is not "
            f"known; supported: {', '.join(sorted(SPLIT_RULES))}. Use the model's safetensors."
        )
    return rule


def _ids(tokens: Sequence[str]) -> dict[str, int]:
    return {token: token_id for token_id, token in enumerate(tokens)}


def _merge(merge: str) -> tuple[str, str]:
    # The first token may itself begin with a space in some files, hence not from index 0.
    left, separator, right = merge[1:].partition(" ")
    if not separator or not right:
        raise ModelLoadError(f"The GGUF file has the merge {merge!r:.80}; it must be two tokens.")
    return merge[0] + left, right
