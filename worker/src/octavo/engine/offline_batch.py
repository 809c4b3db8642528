"""One call of a user of an engine in this process: from prompts to outputs.

Knows an engine's core and steps it; knows nothing of who else may call it.
"""

from __future__ import annotations

import logging
from array import array
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import msgspec
from tqdm import tqdm

from octavo.engine.core import EngineCore
from octavo.engine.held_interrupt import HeldInterrupt
from octavo.engine.intake import Intake
from octavo.engine.messages import RequestSpec
from octavo.engine.offline_logprobs import OfflineLogprobs
from octavo.engine.offline_prompts import OfflinePrompt
from octavo.engine.request_options import RequestOptions
from octavo.engine.text import ChoiceText
from octavo.errors import InvalidRequestError, QueueFullError
from octavo.outputs import CompletionOutput, RequestOutput, RequestUpdate, TokenLogprobs
from octavo.pooling_params import PoolingParams
from octavo.request import AdapterGeneration
from octavo.sampling_params import SamplingParams
from octavo.tokenization.tokenizer import Tokenizer, Truncation

_log = logging.getLogger(__name__)

UseTqdm = bool | Callable[..., "tqdm[Any]"]
"""Whether a progress bar is shown; or what makes one, as tqdm's class does."""

_GRAMMARS_AT_ONCE = 64
"""That are compiled before anything runs: each takes memory."""


class OfflineBatch:
    """One call's requests, their texts, a progress bar."""

    def __init__(
        self,
        core: EngineCore,
        intake: Intake,
        tokenizer: Tokenizer | None,
        max_num_waiting: int,
        pooling: PoolingParams | None = None,
        truncation: Truncation | None = None,
    ) -> None:
        """``pooling``: embed the prompts, so; None: generate. ``truncation``: cut them first."""
        self._truncation = truncation
        self._core = core
        self._intake = intake
        self._tokenizer = tokenizer
        self._logprobs = OfflineLogprobs(tokenizer)
        self._max_num_waiting = max_num_waiting
        self._pooling = pooling
        self.outputs: list[RequestOutput] = []
        """In the prompts' order."""
        self.vectors: dict[str, list[float]] = {}
        """By request."""
        self._choices: dict[str, tuple[RequestOutput, CompletionOutput, ChoiceText]] = {}
        self._specs: list[list[RequestSpec]] = []
        self._params: list[SamplingParams] = []

    def add(
        self,
        request_id: str,
        given: object,
        params: SamplingParams,
        adapter: AdapterGeneration | None,
        priority: int,
    ) -> None:
        """Raises InvalidRequestError for a prompt that cannot be served."""
        _check_may_wait(params.n, self._max_num_waiting)
        prompt = OfflinePrompt.of(given)
        options = RequestOptions(
            adapter=adapter,
            cache_salt=prompt.cache_salt,
            pooling=self._pooling,
            priority=priority,
        )
        params_of_ids = self._intake.spell_bad_words(params)
        ids = prompt.encode(self._tokenizer, self._truncation)
        specs = self._intake.prepare(request_id, ids, params_of_ids, options)
        ids = specs[0].prompt_token_ids
        output = RequestOutput(request_id, prompt.text, ids)
        self.outputs.append(output)
        self._specs.append(specs)
        self._params.append(params)
        for index, spec in enumerate(specs):
            choice = CompletionOutput(index, "", [])
            output.outputs.append(choice)
            self._choices[spec.id] = (output, choice, ChoiceText(self._tokenizer, params, ids))

    def run(self, use_tqdm: UseTqdm) -> None:
        """Step until every request has ended."""
        try:
            with HeldInterrupt() as interrupt:
                if use_tqdm:
                    make = use_tqdm if callable(use_tqdm) else tqdm
                    doing = "Generating" if self._pooling is None else "Embedding"
                    with make(total=len(self._choices), desc=doing, unit="seq") as bar:
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
        pending = deque(sorted(self._specs, key=_turn_of))
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
                if not self._apply(update) or bar is None:
                    continue
                bar.update()
                if self._pooling is None:
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


def _turn_of(specs: Sequence[RequestSpec]) -> tuple[int, int]:
    """Of the choices of one prompt: by priority, then adapter by adapter, the base model first."""
    return specs[0].priority, specs[0].adapter_id or 0
