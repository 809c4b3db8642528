"""From texts and conversations to token ids, in the server's process and off its event loop.

Holds the model's tokenizer and chat template, once they are loaded; says in our words what cannot
be done without them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from contextlib import AbstractAsyncContextManager, nullcontext
from typing import Any

from octavo.errors import InvalidRequestError, PromptTooLongError
from octavo.tokenization.chat_template import ChatTemplate
from octavo.tokenization.tokenizer import Tokenizer, Truncation

_LONG_CHARS, _MOST_LONG = 128 * 1024, 4
_HUGE_CHARS, _MOST_HUGE = 1024 * 1024, 1
"""How many texts of so many characters are encoded at a time. The library takes some 330 bytes for
a token, which may be a single character: 3 GB for the longest body."""
_LIKELY_CHARS = 16
"""A text with more of them for each token that is allowed is first tried by its beginning."""
_CUT_TOKENS = 1024
"""By so many more tokens the beginning of a text may be encoded as when the rest is there."""


class PromptWriter:
    """``chat_template_path``: a template in place of the model's own."""

    def __init__(self, chat_template_path: str | None = None) -> None:
        self._chat_template_path = chat_template_path
        self.tokenizer: Tokenizer | None = None
        self._template: ChatTemplate | None = None
        self._long = asyncio.Semaphore(_MOST_LONG)
        self._huge = asyncio.Semaphore(_MOST_HUGE)

    async def load(self, path: str) -> None:
        """From a model's folder or file; raises OctavoError for what is broken."""
        self.tokenizer = await asyncio.to_thread(Tokenizer.open, path)
        self._template = await asyncio.to_thread(
            ChatTemplate.open, self._chat_template_path or path, self.tokenizer
        )

    @property
    def has_template(self) -> bool:
        return self._template is not None and self.tokenizer is not None

    @property
    def template_source(self) -> str:
        """Empty without one."""
        return "" if self._template is None else self._template.source

    def template_reads(self, variable: str) -> bool:
        return self._template is not None and self._template.reads(variable)

    async def encode(
        self,
        text: str,
        add_special_tokens: bool = True,
        truncation: Truncation | None = None,
        most_tokens: int | None = None,
    ) -> list[int]:
        """As :meth:`octavo.engine.interface.Engine.encode`.

        ``most_tokens``: raise PromptTooLongError, without encoding all of it, for a text that is
        far longer.
        """
        tokenizer = self.tokenizer
        if tokenizer is None:
            raise InvalidRequestError(
                "This server runs without a tokenizer (--skip-tokenizer-init); send token ids.",
                "prompt",
            )
        await self._check_length(tokenizer, text, most_tokens)
        return await self._encode(tokenizer, text, add_special_tokens, truncation)

    async def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] | None,
        add_special_tokens: bool,
        options: Mapping[str, Any],
        most_tokens: int | None = None,
    ) -> list[int]:
        """As :meth:`octavo.engine.interface.Engine.render_chat`."""
        template, tokenizer = self._template, self.tokenizer
        if tokenizer is None or template is None:
            raise InvalidRequestError(
                "This model has no chat template; use /v1/completions, or start the server with "
                "--chat-template FILE.",
                "messages",
            )

        def render() -> str | list[int]:
            """A short text is encoded at once: most are, and each way to a thread takes time."""
            text = template.render(list(messages), tools=tools, **options)
            is_short = len(text) <= _LONG_CHARS and not _is_suspect(text, most_tokens)
            return tokenizer.encode(text, add_special_tokens) if is_short else text

        rendered = await asyncio.to_thread(render)
        if not isinstance(rendered, str):
            return rendered
        await self._check_length(tokenizer, rendered, most_tokens)
        return await self._encode(tokenizer, rendered, add_special_tokens)

    def ids_of(self, tokens: Sequence[str]) -> frozenset[int]:
        """Ids of those that are tokens of the vocabulary."""
        if self.tokenizer is None:
            return frozenset()
        ids = [self.tokenizer.token_id(token) for token in tokens]
        return frozenset(token_id for token_id in ids if token_id is not None)

    async def _check_length(self, tokenizer: Tokenizer, text: str, most_tokens: int | None) -> None:
        if most_tokens is None or not _is_suspect(text, most_tokens):
            return
        beginning = text[: _LIKELY_CHARS * most_tokens]
        if len(await self._encode(tokenizer, beginning, False)) > most_tokens + _CUT_TOKENS:
            raise PromptTooLongError(
                f"The prompt has {len(text)} characters and more than {most_tokens} tokens, all "
                "that this model takes. Shorten the prompt, or serve the model with a larger "
                "--max-model-len.",
                "prompt",
            )

    async def _encode(
        self,
        tokenizer: Tokenizer,
        text: str,
        add_special_tokens: bool,
        truncation: Truncation | None = None,
    ) -> list[int]:
        async with self._turn(len(text)):
            return await asyncio.to_thread(tokenizer.encode, text, add_special_tokens, truncation)

    def _turn(self, num_chars: int) -> AbstractAsyncContextManager[object]:
        """Short texts wait for nobody, and long ones for no huge ones."""
        if num_chars <= _LONG_CHARS:
            return nullcontext()
        return self._long if num_chars <= _HUGE_CHARS else self._huge


def _is_suspect(text: str, most_tokens: int | None) -> bool:
    """Whether it is tried by its beginning first."""
    return most_tokens is not None and len(text) > _LIKELY_CHARS * most_tokens
