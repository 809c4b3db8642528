"""Offline inference: a model in this process, prompts in, texts out.

::

    from octavo import LLM, SamplingParams

    llm = LLM("demo://smollm2-135m-instruct")
    for output in llm.generate(["Water boils at"], SamplingParams(max_tokens=16)):
        print(output.outputs[0].text)
"""

from __future__ import annotations

import itertools
import os
import sys
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NoReturn, Self, TypeVar

from octavo.engine.build import build_engine
from octavo.engine.core import EngineCore
from octavo.engine.intake import Intake
from octavo.engine.model_info import ModelInfo
from octavo.engine.offline_adapters import OfflineAdapters
from octavo.engine.offline_batch import OfflineBatch, UseTqdm
from octavo.engine.offline_chat import Message, chat_prompts, checked_template_kwargs
from octavo.engine.offline_options import offline_config
from octavo.engine.offline_prompts import Prompt, listed
from octavo.engine.pooling import checked_pooling, checked_truncation
from octavo.errors import EngineDeadError, InvalidRequestError
from octavo.grammar import Vocabulary
from octavo.lora.request import LoRARequest
from octavo.outputs import EmbeddingOutput, EmbeddingRequestOutput, EngineStats, RequestOutput
from octavo.pooling_params import Pooling, PoolingParams
from octavo.request import AdapterGeneration
from octavo.sampling_params import SamplingParams
from octavo.tokenization.chat_template import ChatTemplate
from octavo.tokenization.tokenizer import Tokenizer, Truncation

_NOBODY_WAITS: dict[str, Any] = {
    "max_num_batched_tokens_while_decoding": sys.maxsize,
    "lora_wait_s": None,
}
"""For a step in which others decode, so prompts need not be cut small; few long steps read
adapters less often than many short ones. Nor for a slot, which those of other adapters may hold
for as long as their prompts take."""


_METHODS_OF_VLLM: Mapping[str, str] = {
    "apply_model": "the model is the engine's own",
    "beam_search": "use generate() with n, and sort by cumulative_logprob",
    "classify": "models with a classification head are not served",
    "collective_rpc": "there are no worker processes",
    "encode": "use embed()",
    "get_metrics": "use stats()",
    "get_tokenizer": "use the property tokenizer",
    "llm_engine": "use the methods of LLM itself",
    "reward": "models with a reward head are not served",
    "score": "use embed(), whose vectors have length 1, and multiply them",
    "set_tokenizer": "the tokenizer comes with the model",
    "sleep": "use close(), and open another LLM later",
    "wake_up": "use close(), and open another LLM later",
}
"""Those that there are not, and what to do instead."""


class LLM:
    """An engine in this process, for batches.

    ``options`` are the fields of :class:`octavo.config.EngineConfig` (``load_format``,
    ``max_model_len``, ``dtype``, ``skip_tokenizer_init``, ...), the same names as the flags of
    ``octavo serve``. Two defaults differ: steps in which requests decode are as long as others,
    and requests wait for a slot for their adapter as long as it takes.
    ``with`` closes it at its end, which gives its memory back.
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

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    if not TYPE_CHECKING:  # to a type checker it would be an attribute of any name

        def __getattr__(self, name: str) -> NoReturn:
            """Asked for what is not there."""
            remedy = _METHODS_OF_VLLM.get(name)
            words = "" if remedy is None else f": {remedy}"
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}{words}")

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
        use_tqdm: UseTqdm = True,
        priority: int | Sequence[int] | None = None,
    ) -> list[RequestOutput]:
        """Complete every prompt; results in the prompts' order.

        Prompts of one adapter are begun together, so that a step reads, and a slot holds, few.
        ``sampling_params`` and ``lora_request``: one for all, or one for each prompt (None there:
        the base model). Without parameters, :meth:`get_default_sampling_params`. Adapters are
        loaded when first named, side by side (``enable_lora=True``); a name given with another
        path than before, or whose files have changed, is loaded anew. ``priority``: a number for
        each prompt, or one for all; lower ones run first. ``use_tqdm``: whether a progress bar is
        shown, or what makes one in the place of tqdm's class.
        Raises InvalidRequestError before anything runs when one of them cannot be served,
        AdapterError or ModelLoadError for an adapter. A request that fails while it runs (no token
        can follow its grammar, its adapter cannot be copied) ends alone: ``finish_reason`` of its
        output is ``error`` and ``error`` tells why, after what it had said before, and a warning is
        logged. Whatever ends the call early ends all its requests, and the next call starts from
        nothing; Ctrl-C does when the step under way has ended, and a second one at once.
        """
        if sampling_params is None:
            sampling_params = self.get_default_sampling_params()
        return self._run(prompts, sampling_params, lora_request, use_tqdm, priority).outputs

    def embed(
        self,
        prompts: Prompt | Iterable[Prompt],
        *,
        pooling: Pooling | None = None,
        dimensions: int | None = None,
        normalize: bool = True,
        truncate_prompt_tokens: int | None = None,
        lora_request: LoRARequest | Sequence[LoRARequest | None] | None = None,
        use_tqdm: UseTqdm = True,
    ) -> list[EmbeddingRequestOutput]:
        """A vector for every prompt, of the model's hidden states; results in the prompts' order.

        ``pooling``: ``last`` for the last token's, ``mean`` for the mean of all tokens', None for
        what the model was made for. ``dimensions``: keep so many first components, where it was
        made for that. ``normalize``: scale to length 1. ``truncate_prompt_tokens``: keep so many
        tokens of each prompt, its last ones; -1: as many as fit. The rest, and errors, as of
        :meth:`generate`; a request that fails while it runs has an empty vector and ``error``.
        """
        params = SamplingParams(max_tokens=0, detokenize=False)
        asked = checked_pooling(self.info, pooling, dimensions, normalize)
        cut = checked_truncation(self.info, truncate_prompt_tokens)
        batch = self._run(prompts, params, lora_request, use_tqdm, pooling=asked, truncation=cut)
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
        use_tqdm: UseTqdm,
        priority: int | Sequence[int] | None = None,
        pooling: PoolingParams | None = None,
        truncation: Truncation | None = None,
    ) -> OfflineBatch:
        """All of it, to the end."""
        each = listed(prompts)
        count = len(each)
        params = _one_each(
            sampling_params, count, "sampling_params", "sampling parameters", SamplingParams
        )
        requests = _one_each(
            lora_request, count, "lora_request", "adapters", LoRARequest, type(None)
        )
        priorities = _one_each(
            0 if priority is None else priority, count, "priority", "priorities", int
        )
        named = [request for request in requests if request is not None]
        with self._turn():
            loaded = iter(self._adapters.load(named, bool(use_tqdm)))
            adapters = [None if request is None else next(loaded) for request in requests]
            batch = OfflineBatch(
                self._engine.core,
                self._intake,
                self._tokenizer,
                self._max_num_waiting,
                pooling,
                truncation,
            )
            for number, asked in enumerate(zip(each, params, adapters, priorities, strict=True)):
                try:
                    batch.add(str(next(self._ids)), *asked)
                except InvalidRequestError as error:
                    raise type(error)(f"Prompt {number}: {error}", error.param) from error
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
        use_tqdm: UseTqdm = True,
        tools: Sequence[Mapping[str, Any]] | None = None,
        chat_template: str | None = None,
        chat_template_kwargs: Mapping[str, Any] | None = None,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        priority: int | Sequence[int] | None = None,
    ) -> list[RequestOutput]:
        """Complete one conversation, or each of several, rendered with the model's chat template.

        The rest and results as of :meth:`generate`; ``prompt`` of an output is what was rendered.
        ``tools``: functions as OpenAI writes them, of which the template tells the model; its
        calls stay in the text. ``chat_template``: Jinja's source, in
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
        return self.generate(
            prompts,
            sampling_params,
            lora_request=lora_request,
            use_tqdm=use_tqdm,
            priority=priority,
        )

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


_One = TypeVar("_One")


def _one_each(
    values: _One | Sequence[_One], count: int, name: str, what: str, *kinds: type
) -> Sequence[_One]:
    """``values``, or one for each of ``count`` prompts; each is of one of ``kinds``."""
    given: Any = values
    if isinstance(given, kinds):
        one: Any = given
        return [one] * count
    remedy = f"pass one {kinds[0].__name__} for all prompts, or a list of one for each."
    if not isinstance(given, Sequence) or isinstance(given, str):
        raise InvalidRequestError(f"{name} is {given!r:.120}; {remedy}", name)
    for place, each in enumerate(given):
        if not isinstance(each, kinds):
            raise InvalidRequestError(
                f"{name} has {each!r:.120} for prompt {place}; {remedy}", name
            )
    if len(given) != count:
        raise InvalidRequestError(
            f"{len(given)} {what} for {count} prompts; pass one, or one for each.",
            name,
        )
    return given
