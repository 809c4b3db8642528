"""How one request wants its tokens drawn, with vLLM's names and defaults.

Knows each parameter's meaning and limits; knows nothing of tensors, models or HTTP. What can be
checked without a model is checked at construction, so that an instance is always servable as
far as its own fields go; token ids are checked against a vocabulary at intake.
"""

from __future__ import annotations

import operator
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import msgspec

from octavo.errors import InvalidRequestError
from octavo.grammar import StructuredOutputs

MAX_N = 128
"""Choices per prompt that a server's client may ask for; OpenAI's limit."""
MAX_LOGPROBS = 20
"""Alternatives listed per token that a server's client may ask for; OpenAI's limit for chat."""
MAX_ABS_LOGIT_BIAS = 100.0
_MIN_DIVISOR, _MAX_DIVISOR = 1e-5, 1e6
"""Of logits, which are float32 when they are divided by a temperature or a repetition penalty: the
least keeps the quotient finite, with the most hardly any difference is left. A draw at a lower
temperature is greedy anyway."""

_SWITCHES = ("ignore_eos", "skip_special_tokens", "include_stop_str_in_output", "detokenize")
_SCALARS = (
    *("n", "temperature", "top_p", "top_k", "min_p", "seed", "max_tokens", "min_tokens"),
    *("repetition_penalty", "presence_penalty", "frequency_penalty"),
    *("logprobs", "prompt_logprobs", *_SWITCHES),
)
_scalars = operator.attrgetter(*_SCALARS)
_PLAIN = frozenset({int, float, bool, str, type(None)})
_NONE = ()
"""Most requests list nothing, and to look at what they list takes longer than all else here."""


class SamplingParams(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Parameters of one request. Immutable; crosses processes as msgpack.

    Raises :class:`octavo.errors.InvalidRequestError` for a value that cannot be served.
    """

    n: int = 1
    """Choices to generate for the prompt."""
    temperature: float = 1.0
    """Divides the logits; 0 picks the most likely token every time."""
    top_p: float = 1.0
    """Keep the most likely tokens that together reach this probability; 1: all."""
    top_k: int = 0
    """Keep this many most likely tokens; 0 or -1: all."""
    min_p: float = 0.0
    """Keep tokens at least this likely relative to the likeliest; 0: all."""
    repetition_penalty: float = 1.0
    """Divides positive and multiplies negative logits of tokens in the prompt or output."""
    presence_penalty: float = 0.0
    """Subtracted from the logits of tokens in the output."""
    frequency_penalty: float = 0.0
    """Subtracted from a token's logit for each time it is in the output."""
    seed: int | None = None
    """Same seed, same tokens, whatever else is in the batch; None: a random one."""
    stop: Sequence[str] = ()
    """Strings that end the text. One string or None are accepted and stored as a tuple."""
    stop_token_ids: Sequence[int] = ()
    """Token ids that end the text, besides the model's own. Stored as a tuple."""
    ignore_eos: bool = False
    """Whether to generate past the model's end-of-text token."""
    max_tokens: int | None = 16
    """Most tokens to generate; None: as many as the context holds; 0: only read the prompt."""
    min_tokens: int = 0
    """Tokens before which no end-of-text or stop token is drawn."""
    logprobs: int | None = None
    """Alternatives to report at each token; 0: the chosen one only; -1: the whole vocabulary;
    None: nothing."""
    prompt_logprobs: int | None = None
    """The same at each token of the prompt but the first, which nothing precedes."""
    logit_bias: Mapping[int, float] = {}
    """Added to the logits of these token ids."""
    allowed_token_ids: Sequence[int] = ()
    """The only token ids that may be drawn; empty: all. Stored as a tuple."""
    bad_words: Sequence[str] = ()
    """Words that are not generated, at the beginning of a word or within one. Only the token that
    would complete a word's encoding is barred. Stored as a tuple."""
    bad_word_token_ids: Sequence[Sequence[int]] = ()
    """Sequences of token ids that are not generated. Intake adds those of ``bad_words``. Stored
    as a tuple of tuples."""
    skip_special_tokens: bool = True
    """Whether special tokens are left out of the text."""
    include_stop_str_in_output: bool = False
    """Whether the text keeps the stop string that ended it."""
    detokenize: bool = True
    """Whether to produce text at all."""
    structured_outputs: StructuredOutputs | None = None
    """What the text must follow; None: anything."""

    def __post_init__(self) -> None:
        self._store_scalars()
        self._store_sequences()
        self._check_structured_outputs()
        for name in _SWITCHES:
            _check_switch(name, getattr(self, name))
        _check_integer("n", self.n, 1, None, "leave it out for one choice")
        self._check_distribution()
        self._check_penalties()
        self._check_lengths()
        self._check_stops()
        self._check_logits()

    @property
    def is_greedy(self) -> bool:
        """Whether the most likely token is taken each time."""
        return self.temperature < _MIN_DIVISOR

    @property
    def has_filter(self) -> bool:
        """Whether top-k, top-p or min-p restrict a random draw."""
        return not self.is_greedy and (self.top_k > 0 or self.top_p < 1.0 or self.min_p > 0.0)

    @property
    def has_penalty(self) -> bool:
        """Whether tokens seen so far change the logits."""
        return (
            self.repetition_penalty != 1.0
            or self.presence_penalty != 0.0
            or self.frequency_penalty != 0.0
        )

    def _store_scalars(self) -> None:
        """As Python's own, which cross processes."""
        values = _scalars(self)
        if not _PLAIN.issuperset(map(type, values)):
            for name, value in zip(_SCALARS, values, strict=True):
                msgspec.structs.force_setattr(self, name, _plain(value))

    def _store_sequences(self) -> None:
        """Bring the forms a client may write to one form a reader can rely on."""
        stop: object = self.stop
        stop = (stop,) if isinstance(stop, str) else _as_tuple("stop", stop)
        msgspec.structs.force_setattr(self, "stop", stop)
        for name in ("stop_token_ids", "allowed_token_ids", "bad_words"):
            msgspec.structs.force_setattr(self, name, _as_tuple(name, getattr(self, name)))
        sequences = _as_tuple("bad_word_token_ids", self.bad_word_token_ids)
        sequences = tuple(_as_tuple("bad_word_token_ids", one) for one in sequences)
        msgspec.structs.force_setattr(self, "bad_word_token_ids", sequences)
        bias: object = self.logit_bias
        if bias is None:
            msgspec.structs.force_setattr(self, "logit_bias", {})
        elif not isinstance(bias, Mapping):
            raise InvalidRequestError(
                f"logit_bias is {bias!r}; it must map token ids to numbers.", "logit_bias"
            )
        else:
            bias = {_plain(id): _plain(value) for id, value in bias.items()}
            msgspec.structs.force_setattr(self, "logit_bias", bias)

    def _check_structured_outputs(self) -> None:
        given: object = self.structured_outputs
        if given is not None and not isinstance(given, StructuredOutputs):
            raise InvalidRequestError(
                f"structured_outputs is {given!r:.120}; pass a StructuredOutputs of "
                'octavo.grammar, such as StructuredOutputs(regex="[0-9]+").',
                "structured_outputs",
            )

    def _check_distribution(self) -> None:
        _check_number(
            "temperature", self.temperature, 0.0, _MAX_DIVISOR, "use 0 for greedy decoding"
        )
        _check_number("top_p", self.top_p, 0.0, 1.0, "use 1 to keep every token")
        if self.top_p == 0.0:
            raise InvalidRequestError(
                "top_p is 0; it must be above 0 and at most 1. "
                "Set temperature to 0 to take the most likely token.",
                "top_p",
            )
        _check_integer("top_k", self.top_k, -1, 2**31 - 1, "use 0 or -1 to keep every token")
        _check_number("min_p", self.min_p, 0.0, 1.0, "use 0 to keep every token")
        if self.seed is not None:
            _check_integer("seed", self.seed, -(2**63), 2**63 - 1, "leave it out for a random one")

    def _check_penalties(self) -> None:
        for name in ("presence_penalty", "frequency_penalty"):
            _check_number(name, getattr(self, name), -2.0, 2.0, "use 0 for none")
        _check_number(
            "repetition_penalty",
            self.repetition_penalty,
            _MIN_DIVISOR,
            _MAX_DIVISOR,
            "use 1 for none",
        )

    def _check_lengths(self) -> None:
        if self.max_tokens is not None:
            _check_integer("max_tokens", self.max_tokens, 0, None, "leave it out for the default")
        _check_integer(
            "min_tokens", self.min_tokens, 0, self.max_tokens, "the upper limit is max_tokens"
        )

    def _check_stops(self) -> None:
        stops: tuple[object, ...] = tuple(self.stop)
        for stop in stops:
            if not isinstance(stop, str) or not stop:
                raise InvalidRequestError(
                    f"stop holds {stop!r}; every stop must be a string of at least one "
                    "character. Leave it out to stop at the end of text only.",
                    "stop",
                )
        if self.stop and not self.detokenize:
            raise InvalidRequestError(
                "stop strings need the text, and detokenize is false. "
                "Set detokenize to true or use stop_token_ids.",
                "stop",
            )
        for token_id in self.stop_token_ids:
            _check_integer("stop_token_ids", token_id, 0, None, "list token ids of the model")

    def _check_logits(self) -> None:
        for name in ("logprobs", "prompt_logprobs"):
            if getattr(self, name) is not None:
                _check_integer(name, getattr(self, name), -1, None, "-1 asks for all tokens")
        for token_id in self.allowed_token_ids:
            _check_integer("allowed_token_ids", token_id, 0, None, "list token ids of the model")
        self._check_bad_words()
        for token_id, bias in self.logit_bias.items():
            _check_integer("logit_bias", token_id, 0, None, "its keys are token ids")
            _check_number(
                "logit_bias", bias, -MAX_ABS_LOGIT_BIAS, MAX_ABS_LOGIT_BIAS, "use a smaller bias"
            )

    def _check_bad_words(self) -> None:
        words: tuple[object, ...] = tuple(self.bad_words)
        for word in words:
            if not isinstance(word, str) or not word.strip():
                raise InvalidRequestError(
                    f"bad_words holds {word!r}; every word must be a string with a character "
                    "that is no space. Leave it out to bar nothing.",
                    "bad_words",
                )
        for sequence in self.bad_word_token_ids:
            if not sequence:
                raise InvalidRequestError(
                    "bad_word_token_ids holds an empty list; each must have a token id.",
                    "bad_word_token_ids",
                )
            for token_id in sequence:
                _check_integer("bad_word_token_ids", token_id, 0, None, "list the model's ids")


def _as_tuple(param: str, value: object) -> tuple[object, ...]:
    if value is None or value is _NONE:
        return ()
    listed: object = value.tolist() if hasattr(value, "tolist") else value  # numpy's and torch's
    if not isinstance(listed, Iterable) or isinstance(listed, (str, bytes, Mapping)):
        raise InvalidRequestError(f"{param} is {value!r:.120}; it must be a list.", param)
    return tuple(map(_plain, listed))


def _plain(value: Any) -> Any:
    """A number or truth value of numpy's or torch's as Python's; others as they are."""
    if type(value) in _PLAIN:
        return value
    return value.item() if getattr(value, "ndim", None) == 0 else value


def _check_switch(param: str, value: object) -> None:
    if not isinstance(value, bool):
        raise InvalidRequestError(f"{param} is {value!r}; it must be true or false.", param)


def _check_integer(
    param: str, value: object, lowest: int, highest: int | None, remedy: str
) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise InvalidRequestError(f"{param} is {value!r}; it must be an integer.", param)
    if value < lowest or (highest is not None and value > highest):
        raise InvalidRequestError(_out_of_range(param, value, lowest, highest, remedy), param)


def _check_number(param: str, value: object, lowest: float, highest: float, remedy: str) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not _is_float(value):
        raise InvalidRequestError(f"{param} is {value!r}; it must be a finite number.", param)
    if not lowest <= value <= highest:
        raise InvalidRequestError(_out_of_range(param, value, lowest, highest, remedy), param)


def _is_float(value: float) -> bool:
    """Neither NaN nor infinite, nor an integer that no float holds."""
    return -sys.float_info.max <= value <= sys.float_info.max


def _out_of_range(
    param: str, value: float, lowest: float, highest: float | None, remedy: str
) -> str:
    limit = f"at least {lowest}" if highest is None else f"between {lowest} and {highest}"
    sentence = remedy[0].upper() + remedy[1:]
    return f"{param} is {value}; it must be {limit}. {sentence}."
