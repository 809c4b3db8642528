"""Conversations, as users of an engine in this process write them, to prompts."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from octavo.engine.offline_prompts import Prompt
from octavo.errors import InvalidRequestError
from octavo.tokenization.chat_template import ChatTemplate, shown_arguments
from octavo.tokenization.tokenizer import Tokenizer

Message = Mapping[str, Any]

_RESERVED = frozenset({"messages", "tools", "add_generation_prompt", "continue_final_message"})


def chat_prompts(
    messages: object,
    tokenizer: Tokenizer | None,
    template: ChatTemplate | None,
    tools: Sequence[Mapping[str, Any]] | None,
    variables: Mapping[str, Any],
) -> list[Prompt]:
    """``messages``: a conversation or several; ``variables``: what
    :meth:`octavo.tokenization.chat_template.ChatTemplate.render` takes beside.

    Raises InvalidRequestError, which tells the conversation that is meant.
    """
    conversations = _conversations(messages)
    if template is None or tokenizer is None:
        raise InvalidRequestError(
            "This model has no chat template; pass one as chat_template, or use generate() with "
            "a plain prompt.",
            "messages",
        )
    prompts: list[Prompt] = []
    for number, each in enumerate(conversations):
        try:
            for message in each:
                _check(message)
            text = template.render(list(map(_shaped, each)), tools, **variables)
        except InvalidRequestError as error:
            raise InvalidRequestError(f"Conversation {number}: {error}", error.param) from error
        ids = tokenizer.encode(text, add_special_tokens=False)
        prompts.append({"prompt": text, "prompt_token_ids": ids})
    return prompts


def checked_template_kwargs(given: Mapping[str, Any] | None) -> Mapping[str, Any]:
    """Raises InvalidRequestError for names that are parameters of their own."""
    taken = _RESERVED.intersection(given or {})
    if taken:
        name = min(taken)
        raise InvalidRequestError(
            f"chat_template_kwargs holds {name!r}; pass it to chat() itself.",
            "chat_template_kwargs",
        )
    return given or {}


def _check(message: Message) -> None:
    """Templates print what they do not expect, or leave it out, and say nothing of either."""
    role, content = message.get("role"), message.get("content")
    if not isinstance(role, str) or not role:
        raise _refused(f"role is {role!r:.120}; it must be a text, such as 'user'")
    if content is None:
        if role != "assistant":  # which may have called tools only
            raise _refused(f"a message of the {role} has no content; give it a text")
        return
    parts: Any = [{"type": "text", "text": content}] if isinstance(content, str) else content
    if not isinstance(parts, list) or not all(map(_is_text, parts)):
        raise _refused(
            f"content is {content!r:.120}; it must be a text, or a list of "
            '{"type": "text", "text": ...}'
        )


def _is_text(part: Any) -> bool:
    return (
        isinstance(part, Mapping)
        and part.get("type") == "text"
        and isinstance(part.get("text"), str)
    )


def _refused(words: str) -> InvalidRequestError:
    return InvalidRequestError(f"{words}.", "messages")


def _shaped(message: Message) -> Message:
    """Arguments of calls as templates expect them."""
    calls = message.get("tool_calls")
    if not isinstance(calls, Sequence) or not calls:
        return message
    return {**message, "tool_calls": list(map(_shaped_call, calls))}


def _shaped_call(call: Any) -> Any:
    function = call.get("function") if isinstance(call, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(function.get("arguments"), str):
        return call
    arguments = shown_arguments(function["arguments"])
    return {**call, "function": {**function, "arguments": arguments}}


def _conversations(messages: object) -> list[list[Message]]:
    """The one, or those, that ``messages`` hold; none where they are empty."""
    given: list[Any] = [None]
    if isinstance(messages, Iterable) and not isinstance(messages, str | Mapping):
        given = list(messages)
    if given and all(isinstance(each, Mapping) for each in given):
        return [given]
    if all(map(_is_conversation, given)):
        return [list(each) for each in given]
    raise InvalidRequestError(
        f"messages is {messages!r:.120}; pass a conversation, such as "
        '[{"role": "user", "content": "..."}], or a list of conversations.',
        "messages",
    )


def _is_conversation(given: object) -> bool:
    return (
        isinstance(given, Sequence)
        and len(given) > 0
        and all(isinstance(message, Mapping) for message in given)
    )
