"""From a prompt to what the scheduler queues: tokens, limits, seeds and prefix hashes.

Everything that can be said of a request before it meets the engine is done and checked here,
once, outside the step loop. Torch-free: it runs in the server's process.
"""

from __future__ import annotations

import hashlib
import operator
import secrets
from collections.abc import Sequence

import msgspec

from octavo.cache.prefix_index import hash_blocks
from octavo.engine.messages import RequestSpec
from octavo.engine.model_info import ModelInfo
from octavo.engine.request_options import NO_OPTIONS, RequestOptions
from octavo.errors import InvalidRequestError, PromptTooLongError
from octavo.grammar import Grammar, ReasoningSpan
from octavo.sampling_params import SamplingParams
from octavo.structured.translate import translate
from octavo.tokenization.tokenizer import Tokenizer

_MAX_SEED = 2**63


class Intake:
    """Prepares requests for one engine."""

    def __init__(
        self, info: ModelInfo, seed: int | None, tokenizer: Tokenizer | None = None
    ) -> None:
        self._info = info
        self._tokenizer = tokenizer
        self._base_seed = seed
        self._num_requests = 0
        self._eos = list(info.eos_token_ids)

    def prepare(
        self,
        request_id: str,
        prompt_token_ids: Sequence[int],
        params: SamplingParams,
        options: RequestOptions = NO_OPTIONS,
        grammar: Grammar | None = None,
    ) -> list[RequestSpec]:
        """One spec for each of the n choices; the first computes the prompt for all.

        ``grammar``: what :meth:`grammar_of` made of the parameters, where that was asked before.

        Raises InvalidRequestError naming the field, the value, the limit and the remedy.
        """
        self._check_length(len(prompt_token_ids), params)
        tokens = _integers(prompt_token_ids)
        self._check_tokens(tokens, params)
        params = self._count_logprobs(self._limit_length(len(tokens), params))
        self._check_something_is_left(params)
        grammar = grammar or self.grammar_of(params, options.reasoning)
        if grammar is not None:
            params = msgspec.structs.replace(params, structured_outputs=None)
        cache_key = self._cache_key(request_id, params.n, options)
        hashes = [] if cache_key is None else hash_blocks(tokens, self._info.block_size, cache_key)
        seed = self._seed(params)
        others = params
        if params.n > 1:  # what is said of the prompt is said once
            others = msgspec.structs.replace(params, prompt_logprobs=None)
        specs: list[RequestSpec] = []
        for index in range(params.n):
            specs.append(
                RequestSpec(
                    id=request_id if params.n == 1 else f"{request_id}:{index}",
                    prompt_token_ids=tokens,
                    params=others if index else params,
                    seed=(seed + index) % _MAX_SEED,
                    stop_token_ids=list(params.stop_token_ids),
                    eos_token_ids=[] if params.ignore_eos else self._eos,
                    priority=options.priority,
                    timeout_s=options.timeout_s,
                    cache_key=cache_key,
                    block_hashes=hashes,
                    leader_id=specs[0].id if specs else None,
                    tenant=options.tenant,
                    pooling=options.pooling,
                    adapter_id=None if options.adapter is None else options.adapter.id,
                    grammar=grammar,
                )
            )
        return specs

    def grammar_of(
        self, params: SamplingParams, reasoning: ReasoningSpan | None = None
    ) -> Grammar | None:
        """The grammar a request's output must follow; None for none.

        Raises InvalidRequestError for what cannot be honoured, as far as the text tells.
        """
        if params.structured_outputs is None:
            return None
        if not self._info.can_constrain:
            raise InvalidRequestError(
                f"{params.structured_outputs.asked_by} needs the model's tokenizer and an "
                "end-of-text token, which this engine was started without; leave it out.",
                params.structured_outputs.asked_by,
            )
        _check_grammar_alone_bars(params)
        return translate(params.structured_outputs, reasoning)

    def spell_bad_words(self, params: SamplingParams) -> SamplingParams:
        """``bad_words`` as the token ids that would spell them; may run in any thread."""
        if not params.bad_words:
            return params
        if self._tokenizer is None:
            raise InvalidRequestError(
                "bad_words are texts and this model was opened without a tokenizer; leave it out.",
                "bad_words",
            )
        spellings = [ids for word in params.bad_words for ids in _spellings(word, self._tokenizer)]
        ids = [*params.bad_word_token_ids, *spellings]
        return msgspec.structs.replace(params, bad_words=(), bad_word_token_ids=ids)

    def _check_something_is_left(self, params: SamplingParams) -> None:
        """Of ``allowed_token_ids``, at every step, whatever was drawn before."""
        if not params.allowed_token_ids:
            return
        barred = {ids[-1] for ids in params.bad_word_token_ids}
        if params.min_tokens:
            barred.update(params.stop_token_ids)
            barred.update(() if params.ignore_eos else self._eos)
        if barred.issuperset(params.allowed_token_ids):
            raise InvalidRequestError(
                f"allowed_token_ids holds {len(params.allowed_token_ids)} token ids, and "
                "bad_words or min_tokens may bar all of them; allow one that is not barred.",
                "allowed_token_ids",
            )

    def _check_length(self, num_tokens: int, params: SamplingParams) -> None:
        """Before any token is looked at: there may be millions."""
        if not num_tokens:
            raise InvalidRequestError(
                "The prompt has no tokens; send at least one character or token id.", "prompt"
            )
        if num_tokens + (params.max_tokens != 0) > self._info.max_model_len:
            raise PromptTooLongError(
                f"The prompt has {num_tokens} tokens; this model takes at most "
                f"{self._info.max_model_len} with those to generate. Shorten the prompt, "
                "or serve the model with a larger --max-model-len.",
                "prompt",
            )

    def _check_tokens(self, tokens: list[int], params: SamplingParams) -> None:
        vocab_size = self._info.vocab_size
        if min(tokens) < 0 or max(tokens) >= vocab_size:
            wrong = next(token for token in tokens if not 0 <= token < vocab_size)
            raise InvalidRequestError(
                f"The prompt holds the token id {wrong}; ids of this model go from 0 to "
                f"{vocab_size - 1}.",
                "prompt",
            )
        for name, ids in (
            ("logit_bias", params.logit_bias),
            ("stop_token_ids", params.stop_token_ids),
            ("allowed_token_ids", params.allowed_token_ids),
            *(("bad_word_token_ids", ids) for ids in params.bad_word_token_ids),
        ):
            for token in ids:
                if not 0 <= token < vocab_size:
                    raise InvalidRequestError(
                        f"{name} names the token id {token}; ids of this model go from 0 to "
                        f"{vocab_size - 1}.",
                        name,
                    )

    def _count_logprobs(self, params: SamplingParams) -> SamplingParams:
        """-1 as the number of tokens there are; raises InvalidRequestError for more."""
        vocab_size = self._info.vocab_size
        for name in ("logprobs", "prompt_logprobs"):
            count = getattr(params, name)
            if count == -1:
                params = msgspec.structs.replace(params, **{name: vocab_size})
            elif count is not None and count > vocab_size:
                raise InvalidRequestError(
                    f"{name} is {count}, and this model has {vocab_size} tokens; ask for fewer, "
                    "or for all with -1.",
                    name,
                )
        return params

    def _limit_length(self, num_prompt_tokens: int, params: SamplingParams) -> SamplingParams:
        room = self._info.max_model_len - num_prompt_tokens
        if params.max_tokens is None:
            return msgspec.structs.replace(params, max_tokens=room)
        if params.max_tokens > room:
            raise PromptTooLongError(
                f"max_tokens is {params.max_tokens}, but a prompt of {num_prompt_tokens} tokens "
                f"leaves {room} of this model's {self._info.max_model_len}. Ask for at most "
                f"{room}, or leave max_tokens out.",
                "max_tokens",
            )
        return params

    def _seed(self, params: SamplingParams) -> int:
        if params.seed is not None:
            return params.seed % _MAX_SEED
        # Reproducible for a given engine seed and order of requests.
        if self._base_seed is None:
            return secrets.randbits(63)
        self._num_requests += 1
        digest = hashlib.blake2b(
            f"{self._base_seed}:{self._num_requests}".encode(), digest_size=8
        ).digest()
        return int.from_bytes(digest, "big") % _MAX_SEED

    def _cache_key(self, request_id: str, n: int, options: RequestOptions) -> bytes | None:
        """Requests of two tenants never share a block: how fast a prompt is answered would tell
        one what the other has asked. Keys and values depend on the adapter's weights: a replaced
        adapter finds nothing of the one before, the same one loaded again does."""
        if self._info.enable_prefix_caching:
            owner: tuple[str, ...] = (options.tenant.name, options.cache_salt or "")
            if options.adapter is not None:
                owner += (options.adapter.digest,)
            return hashlib.blake2b(msgspec.json.encode(owner), digest_size=16).digest()
        # Without a shared cache the choices of one prompt still share its blocks.
        if n > 1:
            return hashlib.blake2b(request_id.encode(), digest_size=16, person=b"group").digest()
        return None


def _check_grammar_alone_bars(params: SamplingParams) -> None:
    """A grammar says what may be drawn; who bars more may leave it with nothing."""
    spelt = params.bad_words or params.bad_word_token_ids
    for name, value in (("allowed_token_ids", params.allowed_token_ids), ("bad_words", spelt)):
        if value:
            raise InvalidRequestError(
                f"{name} bars tokens, and the output must follow a grammar, which may then be "
                f"left with none; leave {name} out, and say it in the grammar.",
                name,
            )


def _spellings(word: str, tokenizer: Tokenizer) -> list[list[int]]:
    """A word's encodings as text goes on with it: within a word, and after a space."""
    bare = word.lstrip()
    inside = tokenizer.encode(bare, add_special_tokens=False)
    after_space = tokenizer.encode(f" {bare}", add_special_tokens=False)
    # A sequence that ends with another is barred with it.
    is_covered = after_space[-len(inside) :] == inside
    return [ids for ids in ([inside] if is_covered else [inside, after_space]) if ids]


def _integers(token_ids: Sequence[int]) -> list[int]:
    """Plain integers, also of those that numpy and others make."""
    try:
        return list(map(operator.index, token_ids))
    except TypeError as error:
        raise InvalidRequestError(
            f"The prompt's token ids must be integers ({error}); encode text with the tokenizer.",
            "prompt",
        ) from error
