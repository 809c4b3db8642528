"""From what a caller asks for to what the engine is sent, off the event loop where that takes long.

Knows the loaded model's intake and the trial of grammars; knows nothing of processes or of what
comes back. Torch-free.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from octavo.engine.intake import Intake
from octavo.engine.interface import ModelInfo
from octavo.engine.messages import RequestSpec
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
        self, info: ModelInfo, seed: int, prompts: PromptWriter, tokenizer_path: str | None
    ) -> None:
        self._prompts = prompts
        self._intake = Intake(info, seed, prompts.tokenizer)
        self._trials: GrammarTrials | None = None
        if info.can_constrain and tokenizer_path is not None:
            self._trials = GrammarTrials(tokenizer_path, info.vocab_size, info.eos_token_ids)

    async def write(
        self,
        request_id: str,
        prompt: str | Sequence[int],
        params: SamplingParams,
        options: RequestOptions,
    ) -> list[RequestSpec]:
        """One spec for each choice; see :meth:`octavo.engine.interface.Engine.generate`.

        Raises InvalidRequestError for what cannot be honoured.
        """
        if isinstance(prompt, str):
            prompt = await self._prompts.encode(prompt)
        if params.bad_words:
            params = await asyncio.to_thread(self._intake.spell_bad_words, params)
        grammar = await self._grammar(params, options.reasoning)
        return self._intake.prepare(request_id, prompt, params, options, grammar)

    async def close(self) -> None:
        """End what tries grammars; may be called twice."""
        if self._trials is not None:
            await self._trials.close()

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
