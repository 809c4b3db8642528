"""A conversation to token ids, through the model's chat template.

Refuses what the template would not read: a variable that changes nothing is a request that is not
honoured.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from octavo.engine.interface import Engine
from octavo.server.errors import bad_request
from octavo.server.protocol.chat import Conversation
from octavo.tools.formats import Tool
from octavo.tools.tool_prompt import with_tools


async def render_conversation(
    engine: Engine,
    body: Conversation,
    tools: Sequence[Tool] = (),
    most_tokens: int | None = None,
) -> list[int]:
    """The prompt, which tells the model of its tools.

    Raises ApiError, or InvalidRequestError where the template refuses.
    """
    if not engine.has_chat_template:
        raise bad_request(
            "This model has no chat template; use /v1/completions, "
            "or start the server with --chat-template FILE.",
            body.field_of("messages"),
            "no_chat_template",
        )
    variables = body.template_variables()
    for name in variables:
        if not engine.template_reads(name):
            param = body.field_of(name)
            raise bad_request(
                f"{param} is set, and this model's chat template does not read {name!r}; "
                "leave it out.",
                param,
                "unsupported_field",
            )
    messages = [message.for_template() for message in body.messages]
    told: list[dict[str, Any]] | None = [tool.for_template() for tool in tools] or None
    has_calls = any("tool_calls" in each or each["role"] == "tool" for each in messages)
    if (told or has_calls) and not engine.template_reads("tools"):
        messages, told = with_tools(messages, tools), None
    return await engine.render_chat(
        messages,
        told,
        add_generation_prompt=body.add_generation_prompt,
        continue_final_message=body.continue_final_message,
        add_special_tokens=body.add_special_tokens,
        most_tokens=most_tokens,
        **variables,
    )
