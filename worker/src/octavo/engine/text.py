"""From token ids to the text of one choice: detokenised, cut at stop strings.

Runs where the caller is: in the server's process, or beside the engine offline. Torch-free.
"""

from __future__ import annotations

from collections.abc import Sequence, Set

from octavo.engine.request_options import TextEnd
from octavo.outputs import GenerationEvent, RequestUpdate
from octavo.sampling_params import SamplingParams
from octavo.tokenization.detokenizer import Detokenizer
from octavo.tokenization.stop_checker import StopChecker, StopMatch
from octavo.tokenization.tokenizer import Tokenizer


class ChoiceText:
    """Turns the engine's updates of one choice into events.

    A stop string, or ``end``, ends the choice here, before the engine knows: then ``finish_reason``
    of the event is set while the update's is not, and whoever feeds must abort the request.
    """

    def __init__(
        self,
        tokenizer: Tokenizer | None,
        params: SamplingParams,
        prompt_token_ids: Sequence[int],
        *,
        shown_ids: Set[int] = frozenset(),
        end: TextEnd | None = None,
    ) -> None:
        """``shown_ids``: special tokens that are part of the text all the same. ``end``: ends it,
        whatever ``min_tokens`` say, since nothing can follow."""
        self._end = end
        self._detokenizer: Detokenizer | None = None
        self._stops: StopChecker | None = None
        self._min_tokens = params.min_tokens
        self._includes_stop = params.include_stop_str_in_output
        self._num_tokens = 0
        if tokenizer is not None and params.detokenize:
            self._detokenizer = Detokenizer(
                tokenizer,
                prompt_token_ids,
                skip_special_tokens=params.skip_special_tokens,
                shown_ids=shown_ids,
            )
            if params.stop:
                self._stops = StopChecker(
                    params.stop, include_stop_str_in_output=self._includes_stop
                )

    def feed(self, update: RequestUpdate) -> GenerationEvent:
        """The event an update makes; its index is the caller's to set."""
        event = GenerationEvent(
            0,
            "",
            update.new_token_ids,
            logprobs=update.logprobs,
            finish_reason=update.finish_reason,
            stop_reason=update.stop_reason,
            num_cached_tokens=update.num_cached_tokens,
            timings=update.timings,
            prompt_logprobs=update.prompt_logprobs,
            embedding=update.embedding,
        )
        if self._detokenizer is not None:
            self._add_text(self._detokenizer, event)
            if self._end is not None and self._end.is_reached(event.text):
                if event.finish_reason != "stop":
                    event.stop_reason = None
                event.finish_reason = "stop"
        self._num_tokens += len(update.new_token_ids)
        return event

    def _add_text(self, detokenizer: Detokenizer, event: GenerationEvent) -> None:
        # The token that stopped a request is not part of its text, unless asked for.
        is_cut = event.finish_reason == "stop" and not self._includes_stop
        token_ids = event.token_ids[:-1] if is_cut else event.token_ids
        stops = self._stops
        if stops is None:
            event.text = detokenizer.feed(token_ids)
            if event.finish_reason is not None:
                event.text += detokenizer.finish()
            return
        # The last of min_tokens may end the text, those before it may not.
        num_early = max(0, min(self._min_tokens - 1 - self._num_tokens, len(token_ids)))
        event.text = stops.pass_over(detokenizer.feed(token_ids[:num_early])) if num_early else ""
        text, rest = detokenizer.feed(token_ids[num_early:]), ""
        if event.finish_reason is not None:
            rest = detokenizer.finish()
        if event.finish_reason == "stop":  # else a character was cut off, which nobody has written
            text, rest = text + rest, ""
        found = stops.feed(text)
        if isinstance(found, StopMatch):
            event.text += found.text
            event.finish_reason, event.stop_reason = "stop", found.stop
        else:
            event.text += found
            if event.finish_reason is not None:
                event.text += stops.finish() + rest
