"""A conversation to token ids, through the model's chat template.

Refuses what the template would not read: a variable that changes nothing is a request that is not
honoured.
"""

from __future__ import annotations

from octavo.engine.interface import Engine
from octavo.server.errors import bad_request
from octavo.server.protocol.chat import Conversation


async def render_conversation(engine: Engine, body: Conversation) -> list[int]:
    """The prompt. Raises ApiError, or InvalidRequestError where the template refuses."""
    if not engine.has_chat_template:
        raise bad_request(
            "This model has no chat template; use /v1/completions, "
            "or start the server with --chat-template FILE.",
            "messages",
            "no_chat_template",
        )
    variables = body.template_variables()
    for name in variables:
        if not engine.template_reads(name):
            is_own = name in (body.chat_template_kwargs or {})
            param = f"chat_template_kwargs.{name}" if is_own else name
            raise bad_request(
                f"{param} is set, and this model's chat template does not read {name!r}; "
                "leave it out.",
                param,
                "unsupported_field",
            )
    return await engine.render_chat(
        [message.for_template() for message in body.messages],
        None,
        add_generation_prompt=body.add_generation_prompt,
        continue_final_message=body.continue_final_message,
        add_special_tokens=body.add_special_tokens,
        **variables,
    )
