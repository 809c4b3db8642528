"""From texts and conversations to token ids, in the server's process and off its event loop.

Holds the model's tokenizer and chat template, once they are loaded; says in our words what cannot
be done without them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

from octavo.errors import InvalidRequestError
from octavo.tokenization.chat_template import ChatTemplate
from octavo.tokenization.tokenizer import Tokenizer, Truncation


class PromptWriter:
    """``chat_template_path``: a template in place of the model's own."""

    def __init__(self, chat_template_path: str | None = None) -> None:
        self._chat_template_path = chat_template_path
        self.tokenizer: Tokenizer | None = None
        self._template: ChatTemplate | None = None

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
        self, text: str, add_special_tokens: bool = True, truncation: Truncation | None = None
    ) -> list[int]:
        """As :meth:`octavo.engine.interface.Engine.encode`."""
        tokenizer = self.tokenizer
        if tokenizer is None:
            raise InvalidRequestError(
                "This server runs without a tokenizer (--skip-tokenizer-init); send token ids.",
                "prompt",
            )
        return await asyncio.to_thread(tokenizer.encode, text, add_special_tokens, truncation)

    async def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] | None,
        add_special_tokens: bool,
        options: Mapping[str, Any],
    ) -> list[int]:
        """As :meth:`octavo.engine.interface.Engine.render_chat`."""
        template, tokenizer = self._template, self.tokenizer
        if tokenizer is None or template is None:
            raise InvalidRequestError(
                "This model has no chat template; use /v1/completions, or start the server with "
                "--chat-template FILE.",
                "messages",
            )

        def render() -> list[int]:
            text = template.render(list(messages), tools=tools, **options)
            return tokenizer.encode(text, add_special_tokens)

        return await asyncio.to_thread(render)

    def ids_of(self, tokens: Sequence[str]) -> frozenset[int]:
        """Ids of those that are tokens of the vocabulary."""
        if self.tokenizer is None:
            return frozenset()
        ids = [self.tokenizer.token_id(token) for token in tokens]
        return frozenset(token_id for token_id in ids if token_id is not None)
