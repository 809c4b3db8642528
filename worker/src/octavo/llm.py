"""Offline inference: a model in this process, prompts in, texts out.

::

    from octavo import LLM, SamplingParams

    llm = LLM("demo://smollm2-135m-instruct")
    for output in llm.generate(["Water boils at"], SamplingParams(max_tokens=16)):
        print(output.outputs[0].text)
"""

from __future__ import annotations

import itertools
import logging
import os
import sys
import threading
from array import array
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import msgspec
from tqdm import tqdm

from octavo.engine.build import build_engine
from octavo.engine.core import EngineCore
from octavo.engine.held_interrupt import HeldInterrupt
from octavo.engine.intake import Intake
from octavo.engine.messages import RequestSpec
from octavo.engine.model_info import ModelInfo
from octavo.engine.offline_adapters import OfflineAdapters
from octavo.engine.offline_chat import Message, chat_prompts, checked_template_kwargs
from octavo.engine.offline_logprobs import OfflineLogprobs
from octavo.engine.offline_options import offline_config
from octavo.engine.offline_pooling import offline_pooling
from octavo.engine.offline_prompts import OfflinePrompt, Prompt, listed
from octavo.engine.request_options import RequestOptions
from octavo.engine.text import ChoiceText
from octavo.errors import (
    EngineDeadError,
    InvalidRequestError,
    QueueFullError,
)
from octavo.grammar import Vocabulary
from octavo.lora.request import LoRARequest
from octavo.outputs import (
    CompletionOutput,
    EmbeddingOutput,
    EmbeddingRequestOutput,
    EngineStats,
    RequestOutput,
    RequestUpdate,
    TokenLogprobs,
)
from octavo.pooling_params import Pooling, PoolingParams
from octavo.request import AdapterGeneration
from octavo.sampling_params import SamplingParams
from octavo.tokenization.chat_template import ChatTemplate
from octavo.tokenization.tokenizer import Tokenizer

_log = logging.getLogger(__name__)

_NOBODY_WAITS: dict[str, Any] = {
    "max_num_batched_tokens_while_decoding": sys.maxsize,
    "lora_wait_s": None,
}
"""For a step in which others decode, so prompts need not be cut small; few long steps read
adapters less often than many short ones. Nor for a slot, which those of other adapters may hold
for as long as their prompts take."""

_GRAMMARS_AT_ONCE = 64
"""That are compiled before anything runs: each takes memory."""


class LLM:
    """An engine in this process, for batches.

    ``options`` are the fields of :class:`octavo.config.EngineConfig` (``load_format``,
    ``max_model_len``, ``dtype``, ``skip_tokenizer_init``, ...), the same names as the flags of
    ``octavo serve``. Two defaults differ: steps in which requests decode are as long as others,
    and requests wait for a slot for their adapter as long as it takes.
    Threads that call it at the same time take turns: pass many prompts to one call instead.
    """

    def __init__(
        self,
        model: str | os.PathLike[str],
        *,
        vocabulary: Vocabulary | None = None,
        **options: Any,
    ) -> None:
        """``vocabulary``: lets grammars work without a tokenizer, for measurements.

        Raises ConfigError for an option that there is not or that cannot be served, ModelLoadError
        for a model that cannot be loaded.
        """
        config = offline_config(model, _NOBODY_WAITS, options)
        self._engine = build_engine(config, vocabulary=vocabulary)
        self._tokenizer = self._engine.open_tokenizer()
        self._intake = Intake(self._engine.info, config.seed, self._tokenizer)
        self._max_num_waiting = config.max_num_waiting
        self._chat_template: ChatTemplate | None = None
        self._ids = itertools.count()
        self._adapters = OfflineAdapters(self._engine.core)
        self._lock = threading.Lock()
        self._is_closed = False

    @property
    def info(self) -> ModelInfo:
        """The loaded model and the limits it is served under."""
        return self._engine.info

    @property
    def tokenizer(self) -> Tokenizer | None:
        """The model's tokenizer; None with ``skip_tokenizer_init``."""
        return self._tokenizer

    def get_default_sampling_params(self) -> SamplingParams:
        """What calls without parameters use: those of the model's ``generation_config.json``, as
        a server's requests do."""
        defaults: dict[str, Any] = self.info.sampling_defaults
        return SamplingParams(**defaults)

    def stats(self) -> EngineStats:
        """The engine's counters since it was built."""
        return self._engine.core.stats()

    def reset_prefix_cache(self) -> None:
        """Forget every cached prefix, for measurements that must not profit from it."""
        with self._turn() as core:
            core.reset_prefix_cache()

    def prepare(self) -> None:
        """Capture all the usual steps now, which a server does when idle; for measurements."""
        with self._turn() as core:
            while core.prepare_next():
                pass

    def check_integrity(self) -> None:
        """Assert that no block, row or request was lost; for tests."""
        self._engine.core.check_integrity()

    def generate(
        self,
        prompts: Prompt | Iterable[Prompt],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        lora_request: LoRARequest | Sequence[LoRARequest | None] | None = None,
        use_tqdm: bool = True,
    ) -> list[RequestOutput]:
        """Complete every prompt; results in the prompts' order.

        Prompts of one adapter are begun together, so that a step reads, and a slot holds, few.
        ``sampling_params`` and ``lora_request``: one for all, or one for each prompt (None there:
        the base model). Without parameters, :meth:`get_default_sampling_params`. Adapters are
        loaded when first named, side by side (``enable_lora=True``); a name given with another
        path than before, or whose files have changed, is loaded anew.
        Raises InvalidRequestError before anything runs when one of them cannot be served,
        AdapterError or ModelLoadError for an adapter. A request that fails while it runs (no token
        can follow its grammar, its adapter cannot be copied) ends alone: ``finish_reason`` of its
        output is ``error`` and ``error`` tells why, after what it had said before, and a warning is
        logged. Whatever ends the call early ends all its requests, and the next call starts from
        nothing; Ctrl-C does when the step under way has ended, and a second one at once.
        """
        if sampling_params is None:
            sampling_params = self.get_default_sampling_params()
        return self._run(prompts, sampling_params, lora_request, use_tqdm).outputs

    def embed(
        self,
        prompts: Prompt | Iterable[Prompt],
        *,
        pooling: Pooling | None = None,
        dimensions: int | None = None,
        normalize: bool = True,
        lora_request: LoRARequest | Sequence[LoRARequest | None] | None = None,
        use_tqdm: bool = True,
    ) -> list[EmbeddingRequestOutput]:
        """A vector for every prompt, of the model's hidden states; results in the prompts' order.

        ``pooling``: ``last`` for the last token's, ``mean`` for the mean of all tokens', None for
        what the model was made for. ``dimensions``: keep so many first components, where it was
        made for that. ``normalize``: scale to length 1. The rest, and errors, as of
        :meth:`generate`; a request that fails while it runs has an empty vector and ``error``.
        """
        params = SamplingParams(max_tokens=0, detokenize=False)
        asked = offline_pooling(self.info, pooling, dimensions, normalize)
        batch = self._run(prompts, params, lora_request, use_tqdm, asked)
        return [
            EmbeddingRequestOutput(
                output.request_id,
                EmbeddingOutput(batch.vectors.get(output.request_id, []), output.outputs[0].error),
                output.prompt_token_ids,
                output.num_cached_tokens,
            )
            for output in batch.outputs
        ]

    def _run(
        self,
        prompts: Prompt | Iterable[Prompt],
        sampling_params: SamplingParams | Sequence[SamplingParams],
        lora_request: LoRARequest | Sequence[LoRARequest | None] | None,
        use_tqdm: bool,
        pooling: PoolingParams | None = None,
    ) -> _OfflineBatch:
        """All of it, to the end."""
        each = listed(prompts)
        count = len(each)
        params = _one_each(
            sampling_params, count, "sampling_params", "sampling parameters", SamplingParams
        )
        requests = _one_each(
            lora_request, count, "lora_request", "adapters", LoRARequest, type(None)
        )
        named = [request for request in requests if request is not None]
        with self._turn():
            loaded = iter(self._adapters.load(named, use_tqdm))
            adapters = [None if request is None else next(loaded) for request in requests]
            batch = _OfflineBatch(self, each, params, adapters, pooling)
            batch.run(use_tqdm)
        return batch

    def load_lora(self, request: LoRARequest) -> AdapterGeneration:
        """Load an adapter, unless it is, from the same files; raises AdapterError or
        ModelLoadError."""
        named = _one_each(request, 1, "request", "adapters", LoRARequest)
        with self._turn():
            (adapter,) = self._adapters.load(named)
        return adapter

    def unload_lora(self, name: str) -> None:
        """Forget an adapter; names that are not loaded are ignored."""
        if not isinstance(name, str):
            raise InvalidRequestError(
                f"name is {name!r:.120}; pass an adapter's lora_name.", "name"
            )
        with self._turn():
            self._adapters.unload(name)

    def chat(
        self,
        messages: Sequence[Message] | Iterable[Sequence[Message]],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        lora_request: LoRARequest | Sequence[LoRARequest | None] | None = None,
        use_tqdm: bool = True,
        tools: Sequence[Mapping[str, Any]] | None = None,
        chat_template: str | None = None,
        chat_template_kwargs: Mapping[str, Any] | None = None,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
    ) -> list[RequestOutput]:
        """Complete one conversation, or each of several, rendered with the model's chat template.

        ``sampling_params``, ``lora_request`` and results as of :meth:`generate`; ``prompt`` of an
        output is what was rendered. ``tools``: functions as OpenAI writes them, of which the
        template tells the model; its calls stay in the text. ``chat_template``: Jinja's source, in
        place of the model's own; ``chat_template_kwargs`` reach it (``enable_thinking``).
        ``continue_final_message``, with ``add_generation_prompt=False``: go on with the last
        message.
        """
        variables = {
            **checked_template_kwargs(chat_template_kwargs),
            "add_generation_prompt": add_generation_prompt,
            "continue_final_message": continue_final_message,
        }
        template = self._open_chat_template(chat_template)
        prompts = chat_prompts(messages, self._tokenizer, template, tools, variables)
        return self.generate(prompts, sampling_params, lora_request=lora_request, use_tqdm=use_tqdm)

    def close(self) -> None:
        """Release the model's memory; the object cannot be used afterwards."""
        with self._lock:
            self._is_closed = True
            self._engine.core.close()

    @contextmanager
    def _turn(self) -> Iterator[EngineCore]:
        """The core, for one thread at a time; raises EngineDeadError once closed."""
        with self._lock:
            if self._is_closed:
                raise EngineDeadError("This LLM has been closed; open another one.")
            yield self._engine.core

    def _open_chat_template(self, source: str | None) -> ChatTemplate | None:
        if source is not None and self._tokenizer is not None:
            return ChatTemplate(source, self._tokenizer.named_tokens)
        if self._chat_template is None and self._tokenizer is not None:
            self._chat_template = self._engine.open_chat_template(self._tokenizer)
        return self._chat_template


class _OfflineBatch:
    """One call of generate: its requests, their texts, a progress bar."""

    def __init__(
        self,
        llm: LLM,
        prompts: Sequence[Prompt],
        params: Sequence[SamplingParams],
        adapters: Sequence[AdapterGeneration | None],
        pooling: PoolingParams | None,
    ) -> None:
        self._core = llm._engine.core
        self._tokenizer = llm._tokenizer
        self._logprobs = OfflineLogprobs(llm._tokenizer)
        self._pooling = pooling
        self.outputs: list[RequestOutput] = []
        """In the prompts' order."""
        self.vectors: dict[str, list[float]] = {}
        """By request."""
        self._choices: dict[str, tuple[RequestOutput, CompletionOutput, ChoiceText]] = {}
        self._specs: list[list[RequestSpec]] = []
        for number, (prompt, one, adapter) in enumerate(
            zip(prompts, params, adapters, strict=True)
        ):
            try:
                self._add(llm, prompt, one, adapter)
            except InvalidRequestError as error:
                raise type(error)(f"Prompt {number}: {error}", error.param) from error
        self._params = params

    def _add(
        self, llm: LLM, given: object, params: SamplingParams, adapter: AdapterGeneration | None
    ) -> None:
        prompt = OfflinePrompt.of(given)
        options = RequestOptions(
            adapter=adapter, cache_salt=prompt.cache_salt, pooling=self._pooling
        )
        params_of_ids = llm._intake.spell_bad_words(params)
        ids = prompt.encode(self._tokenizer)
        request_id = str(next(llm._ids))
        specs = llm._intake.prepare(request_id, ids, params_of_ids, options)
        _check_may_wait(params.n, llm._max_num_waiting)
        ids = specs[0].prompt_token_ids
        output = RequestOutput(request_id, prompt.text, ids)
        self.outputs.append(output)
        self._specs.append(specs)
        for index, spec in enumerate(specs):
            choice = CompletionOutput(index, "", [])
            output.outputs.append(choice)
            self._choices[spec.id] = (output, choice, ChoiceText(self._tokenizer, params, ids))

    def run(self, use_tqdm: bool) -> None:
        """Step until every request has ended."""
        try:
            with HeldInterrupt() as interrupt:
                if use_tqdm:
                    with tqdm(total=len(self._choices), desc="Generating", unit="seq") as bar:
                        self._run(bar, interrupt)
                else:
                    self._run(None, interrupt)
        except BaseException:
            self._core.give_up()
            raise
        self._warn_of_failures()

    def _warn_of_failures(self) -> None:
        failed = [c for _, c, _ in self._choices.values() if c.finish_reason == "error"]
        if failed:
            _log.warning(
                "%d of %d requests failed, the first one so: %s See finish_reason and error of "
                "their outputs.",
                len(failed),
                len(self._choices),
                failed[0].error,
            )

    def _run(self, bar: tqdm[Any] | None, interrupt: HeldInterrupt) -> None:
        pending = deque(sorted(self._specs, key=_adapter_of))
        self._submit(pending)
        self._check_grammars(interrupt)
        num_tokens = 0
        while pending or self._core.has_work:
            interrupt.check()
            self._submit(pending)
            updates = self._core.step()
            self._core.take_adapter_events()  # the ends of requests tell the same
            for update in updates:
                num_tokens += len(update.new_token_ids)
                if self._apply(update) and bar is not None:
                    bar.update()
                    rate = num_tokens / max(bar.format_dict["elapsed"], 1e-9)
                    bar.set_postfix_str(f"{rate:.0f} tokens/s", refresh=False)

    def _check_grammars(self, interrupt: HeldInterrupt) -> None:
        """Raise InvalidRequestError for one that cannot be compiled, before anything runs. Those of
        requests that wait are kept, as these follow them."""
        asked = {
            specs[0].grammar: (number, one.structured_outputs)
            for number, (specs, one) in enumerate(zip(self._specs, self._params, strict=True))
        }
        # The last first: of more than are kept besides, those that begin soonest are.
        grammars = [grammar for grammar in reversed(asked) if grammar is not None]
        for first in range(0, len(grammars), _GRAMMARS_AT_ONCE):
            interrupt.check()
            faults = self._core.grammar_faults(grammars[first : first + _GRAMMARS_AT_ONCE])
            for grammar, fault in faults.items():
                number, outputs = asked[grammar]
                asked_by = None if outputs is None else outputs.asked_by
                raise InvalidRequestError(f"{asked_by} of prompt {number}: {fault}", asked_by)

    def _submit(self, pending: deque[list[RequestSpec]]) -> None:
        """As many prompts as the engine's queue takes."""
        while pending:
            try:
                self._core.submit(pending[0])
            except QueueFullError:
                return
            pending.popleft()

    def _apply(self, update: RequestUpdate) -> bool:
        """Add to its choice; returns whether that ended it."""
        known = self._choices.get(update.request_id)
        if known is None:
            return False  # the last word on a request of a call that was ended early
        output, choice, text = known
        if choice.finish_reason is not None:
            return False  # a stop string ended it; the engine's own last word comes after
        if update.finish_reason == "error":
            # The token that came with it is none of the answer's.
            update = msgspec.structs.replace(update, new_token_ids=[], logprobs=None)
        piece = text.feed(update)
        choice.text += piece.text
        choice.token_ids += piece.token_ids
        if piece.logprobs is not None:
            self._add_logprobs(choice, piece.logprobs)
        if piece.prompt_logprobs is not None:
            output.prompt_logprobs = [None, *self._logprobs.by_token(piece.prompt_logprobs)]
        if piece.embedding is not None:
            self.vectors[output.request_id] = array("f", piece.embedding).tolist()
        if not choice.index:  # the others find what the first has computed
            output.num_cached_tokens = max(output.num_cached_tokens, update.num_cached_tokens)
        choice.finish_reason, choice.stop_reason = piece.finish_reason, piece.stop_reason
        if piece.finish_reason == "error":
            choice.error = update.error or "The engine gave no reason."
        if piece.finish_reason is not None and update.finish_reason is None:
            self._core.abort([update.request_id])
        return piece.finish_reason is not None

    def _add_logprobs(self, choice: CompletionOutput, scores: list[TokenLogprobs]) -> None:
        if choice.logprobs is None or choice.cumulative_logprob is None:
            choice.logprobs, choice.cumulative_logprob = [], 0.0
        choice.logprobs += self._logprobs.by_token(scores)
        choice.cumulative_logprob += sum(score.logprob for score in scores)


def _check_may_wait(n: int, most: int) -> None:
    """Raise InvalidRequestError for a prompt whose choices the queue would never take: it would be
    refused when its turn comes, and take the answers of those before it along."""
    if n > most:
        raise InvalidRequestError(
            f"n is {n}, and max_num_waiting is {most}; ask for at most {most} choices of a prompt, "
            "or open the LLM with a larger max_num_waiting.",
            "n",
        )


def _adapter_of(specs: Sequence[RequestSpec]) -> int:
    """Of the choices of one prompt; below all adapters' ids where there is none."""
    return specs[0].adapter_id or 0


_One = TypeVar("_One")


def _one_each(
    values: _One | Sequence[_One], count: int, name: str, what: str, *kinds: type
) -> Sequence[_One]:
    """``values``, or one for each of ``count`` prompts; each is of one of ``kinds``."""
    given: Any = values
    if isinstance(given, kinds):
        one: Any = given
        return [one] * count
    if not isinstance(given, Sequence) or not all(isinstance(each, kinds) for each in given):
        raise InvalidRequestError(
            f"{name} is {given!r:.120}; pass one {kinds[0].__name__} for all prompts, or a list "
            "of one for each.",
            name,
        )
    if len(given) != count:
        raise InvalidRequestError(
            f"{len(given)} {what} for {count} prompts; pass one, or one for each.",
            name,
        )
    return given
