"""From what a caller asks for to what the engine is sent, off the event loop where that takes long.

Knows the loaded model's intake and the trial of grammars; knows nothing of processes or of what
comes back. Torch-free.
"""

from __future__ import annotations

import asyncio

from octavo.engine.intake import Intake
from octavo.engine.messages import RequestSpec
from octavo.engine.model_info import ModelInfo
from octavo.engine.prompt_writer import PromptWriter
from octavo.engine.request_options import RequestOptions
from octavo.errors import InvalidRequestError
from octavo.grammar import Grammar, ReasoningSpan, StructuredOutputs
from octavo.sampling_params import SamplingParams
from octavo.structured.translate import translate
from octavo.structured.trial import GrammarTrials


class RequestWriter:
    """Of one loaded model. ``tokenizer_path``: None where there is none; then no grammar can be
    tried."""

    def __init__(
        self, info: ModelInfo, seed: int | None, prompts: PromptWriter, tokenizer_path: str | None
    ) -> None:
        self._prompts = prompts
        self._most_tokens = info.max_model_len
        self._intake = Intake(info, seed, prompts.tokenizer)
        self._trials: GrammarTrials | None = None
        if info.can_constrain and tokenizer_path is not None:
            self._trials = GrammarTrials(tokenizer_path, info.vocab_size, info.eos_token_ids)

    async def write(
        self,
        request_id: str,
        prompts: list[str | list[int]],
        params: SamplingParams,
        options: RequestOptions,
    ) -> list[RequestSpec]:
        """One spec for each choice of each prompt in turn; see
        :meth:`octavo.engine.interface.Engine.generate`.

        Raises InvalidRequestError for what cannot be honoured.
        """
        encoded = await asyncio.gather(*map(self._token_ids, prompts))
        if params.bad_words:
            params = await asyncio.to_thread(self._intake.spell_bad_words, params)
        grammar = await self._grammar(params, options.reasoning)
        specs: list[RequestSpec] = []
        for number, token_ids in enumerate(encoded):
            id = request_id if len(encoded) == 1 else f"{request_id}:{number}"
            specs += self._intake.prepare(id, token_ids, params, options, grammar)
            await asyncio.sleep(0)  # everybody's tokens pass through this loop
        return specs

    async def close(self) -> None:
        """End what tries grammars; may be called twice."""
        if self._trials is not None:
            await self._trials.close()

    async def _token_ids(self, prompt: str | list[int]) -> list[int]:
        if not isinstance(prompt, str):
            return prompt
        return await self._prompts.encode(prompt, most_tokens=self._most_tokens)

    async def _grammar(
        self, params: SamplingParams, reasoning: ReasoningSpan | None
    ) -> Grammar | None:
        """What the output must follow, known to be something that can be followed."""
        if params.structured_outputs is None:
            return None
        grammar = await asyncio.to_thread(self._intake.grammar_of, params, reasoning)
        if grammar is not None and self._trials is not None:
            await _try(self._trials, params.structured_outputs, grammar)
        return grammar


async def _try(trials: GrammarTrials, asked: StructuredOutputs, grammar: Grammar) -> None:
    """Raises InvalidRequestError that names the part at fault, where it is one part's alone."""
    try:
        await trials.check(grammar.text, asked)
    except InvalidRequestError:
        for part in asked.parts:
            await _try(trials, part, translate(part))
        raise
