"""Tools for models whose chat template knows none: told in a system message, in Hermes' way.

Templates that read ``tools`` are given them instead, and need nothing of this.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from octavo.tools.formats import Tool
from octavo.tools.hermes import BEGIN, END

_EXPLANATION = (
    "You may call functions to help with the user's request. Their signatures, one JSON object a "
    "line:\n{signatures}\n\nTo call a function, write a JSON object with its name and arguments "
    "between marks:\n{begin}\n{{\"name\": <name>, \"arguments\": <arguments>}}\n{end}"
)  # fmt: skip


def with_tools(
    messages: Sequence[Mapping[str, Any]], tools: Sequence[Tool]
) -> list[dict[str, Any]]:
    """Messages without calls and results, that tell the model of its tools."""
    told = [_as_plain(message) for message in messages]
    if not tools:
        return told
    signatures = "\n".join(json.dumps(tool.for_template()["function"]) for tool in tools)
    text = _EXPLANATION.format(signatures=signatures, begin=BEGIN, end=END)
    if told and told[0]["role"] == "system":
        first = told[0] | {"content": f"{told[0]['content']}\n\n{text}"}
        return [first, *told[1:]]
    return [{"role": "system", "content": text}, *told]


def _as_plain(message: Mapping[str, Any]) -> dict[str, Any]:
    if message["role"] == "tool":
        text = f"<tool_response>\n{message.get('content') or ''}\n</tool_response>"
        return {"role": "user", "content": text}
    plain = {key: value for key, value in message.items() if key != "tool_calls"}
    calls = [_written(call["function"]) for call in message.get("tool_calls") or ()]
    plain["content"] = "\n".join(filter(None, [plain.get("content") or "", *calls]))
    return plain


def _written(function: Mapping[str, Any]) -> str:
    call = {"name": function["name"], "arguments": function["arguments"]}
    return f"{BEGIN}\n{json.dumps(call, ensure_ascii=False)}\n{END}"
