"""Fields of OpenAI's and vLLM's APIs that do nothing here: the values that are harmless, and why
every other value is refused.

A client may always send what asks for nothing (``null``, ``store: false``): official clients do.
What would change the answer, and cannot be honoured, is refused by name, never ignored.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from octavo.server.errors import bad_request


@dataclass(frozen=True, slots=True)
class Unsupported:
    """A known field: ``harmless`` values are dropped, others refused with ``reason``."""

    reason: str
    harmless: tuple[object, ...] = ()
    """Beside null, which always is."""

    def is_harmless(self, value: object) -> bool:
        """Whether ``value`` asks for nothing; types count, so that 1 is not true."""
        if value is None:
            return True
        return any(type(value) is type(known) and value == known for known in self.harmless)

    def json_schema(self) -> dict[str, Any]:
        """For the OpenAPI document."""
        return {"enum": [None, *self.harmless], "description": f"Other values: {self.reason}."}


_NOT_YET = "it is not supported yet"
_NOTHING_STORED = "this server stores no answers"

BOTH: Mapping[str, Unsupported] = {
    "repetition_detection": Unsupported(_NOT_YET),
    "thinking_token_budget": Unsupported(_NOT_YET),
    "use_beam_search": Unsupported("beam search is not offered; use n", (False,)),
    "length_penalty": Unsupported("it belongs to beam search, which is not offered", (1, 1.0)),
    "kv_transfer_params": Unsupported("this server neither sends nor takes over KV caches"),
    "vllm_xargs": Unsupported("this server has no plugins that would read it", ({},)),
    "prompt_cache_retention": Unsupported(
        "cached prompts stay while there is room for them", ("in_memory",)
    ),
    "prompt_cache_options": Unsupported("equal prompts share their cache without options"),
    "moderation": Unsupported("answers are not moderated"),
    "store": Unsupported(_NOTHING_STORED, (False,)),
    "service_tier": Unsupported("there is one tier here; use priority", ("auto", "default")),
}

_OLDER_NAMES = {
    "guided_json": "json",
    "guided_regex": "regex",
    "guided_choice": "choice",
    "guided_grammar": "grammar",
    "guided_whitespace_pattern": "whitespace_pattern",
}
BOTH = {
    **BOTH,
    **{
        name: Unsupported(f"use structured_outputs.{field}, its name today")
        for name, field in _OLDER_NAMES.items()
    },
    "guided_json_object": Unsupported("use response_format {'type': 'json_object'}", (False,)),
    "guided_decoding_backend": Unsupported("there is one library for grammars here"),
    "structural_tag": Unsupported("use structured_outputs.structural_tag"),
}

CHAT: Mapping[str, Unsupported] = {
    **BOTH,
    "functions": Unsupported("it is deprecated; use tools", ([],)),
    "function_call": Unsupported("it is deprecated; use tool_choice", ("none", "auto")),
    "modalities": Unsupported("only text is generated", (["text"],)),
    "audio": Unsupported("only text is generated"),
    "prediction": Unsupported("predicted outputs are not offered"),
    "web_search_options": Unsupported("this server does not search the web"),
    "verbosity": Unsupported("no model here knows it; ask in the prompt", ("medium",)),
    "chat_template": Unsupported(
        "templates come with the model, or from the server's --chat-template"
    ),
    "media_io_kwargs": Unsupported("only text is taken", ({},)),
    "mm_processor_kwargs": Unsupported("only text is taken", ({},)),
}

TOKENIZE_CHAT: Mapping[str, Unsupported] = {
    name: CHAT[name] for name in ("chat_template", "media_io_kwargs", "mm_processor_kwargs")
}

EMBEDDING: Mapping[str, Unsupported] = {
    "messages": Unsupported("render them with /tokenize and send the token ids as input"),
    "embed_dtype": Unsupported("vectors are float32", ("float32",)),
    "endianness": Unsupported("vectors are little-endian", ("native", "little")),
    "additional_data": Unsupported("this server has no plugins that would read it"),
    "use_activation": Unsupported("use normalize", (True,)),
}

RESPONSE: Mapping[str, Unsupported] = {
    **{
        name: BOTH[name]
        for name in (
            "service_tier",
            "moderation",
            "prompt_cache_retention",
            "prompt_cache_options",
            "vllm_xargs",
            "kv_transfer_params",
        )
    },
    **{name: CHAT[name] for name in ("media_io_kwargs", "mm_processor_kwargs")},
    "max_tool_calls": Unsupported("no tools are run here"),
    "store": Unsupported(_NOTHING_STORED, (False,)),
    "previous_response_id": Unsupported(
        f"{_NOTHING_STORED}; send the earlier items with the input"
    ),
    "conversation": Unsupported(f"{_NOTHING_STORED}; send the earlier items with the input"),
    "prompt": Unsupported("this server stores no prompts"),
    "background": Unsupported("answers are not made in the background", (False,)),
    "background_options": Unsupported("answers are not made in the background"),
    "context_management": Unsupported("contexts are not compacted"),
    "truncation": Unsupported("inputs are taken whole", ("disabled",)),
    "image": Unsupported("only text is taken"),
    "access_programs": Unsupported("there are no programs here"),
    "enable_response_messages": Unsupported("use return_token_ids of /v1/completions", (False,)),
    "previous_input_messages": Unsupported("send the earlier items with the input"),
}

RESPONSE_ITEM: Mapping[str, Unsupported] = {
    "phase": Unsupported("no model here knows it"),
    "summary": Unsupported("it is not shown to the model; send the thoughts as content", ([],)),
    "encrypted_content": Unsupported("there is none here to be decrypted"),
    "namespace": Unsupported("tools have no namespaces here"),
    "caller": Unsupported("tools are called by the model alone"),
}

RESPONSE_PART: Mapping[str, Unsupported] = {
    "annotations": Unsupported("they are not shown to the model", ([],)),
    "prompt_cache_breakpoint": Unsupported("prompts are cached by blocks, wherever they end"),
}

COMPLETION: Mapping[str, Unsupported] = {
    **BOTH,
    "suffix": Unsupported("no model here fills in the middle", ("",)),
    "prompt_embeds": Unsupported("prompts are text or token ids"),
}

MESSAGE: Mapping[str, Unsupported] = {
    "function_call": Unsupported("it is deprecated; use tool_calls"),
    "refusal": Unsupported("the model has no separate refusals; send it as content"),
    "audio": Unsupported("only text is taken"),
    "annotations": Unsupported("they are not shown to the model; send them as content", ([],)),
    "reasoning": Unsupported("use reasoning_content", ("",)),
}

STREAM_OPTIONS: Mapping[str, Unsupported] = {
    "include_obfuscation": Unsupported("chunks are not padded", (False,)),
}


def settle(document: dict[str, Any], table: Mapping[str, Unsupported], path: str = "") -> None:
    """Drop harmless fields from ``document``; raise ApiError (400) for one that is not."""
    for name in table.keys() & document.keys():
        value = document[name]
        if not table[name].is_harmless(value):
            raise bad_request(
                f"{path}{name} cannot be honoured: {table[name].reason}. Leave it out.",
                f"{path}{name}",
                "unsupported_field",
            )
        del document[name]
