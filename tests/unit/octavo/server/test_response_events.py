"""Events of responses with thoughts and calls: cut anywhere, they add up to the whole answer."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest

from octavo.outputs import GenerationEvent
from octavo.sampling_params import SamplingParams
from octavo.server.exchange import GatheredChoice
from octavo.server.message_plan import MessagePlan
from octavo.server.message_reader import MessageReader
from octavo.server.protocol.response_answers import OutputItem, ResponseAnswer
from octavo.server.response_events import ResponseEvents, items_of
from octavo.tools.formats import CallFormat, MessageFormat

FORMAT = MessageFormat(CallFormat.HERMES, ("<think>", "</think>"))
CALL = '<tool_call>\n{"name": "f", "arguments": {"a": 1}}\n</tool_call>'
OTHER = '<tool_call>\n{"name": "g", "arguments": {}}\n</tool_call>'
TEXTS = {
    "thoughts-then-text": "<think>Hm.</think>Hello there",
    "text-then-calls": f"I look it up.\n{CALL}\n{OTHER}",
    "thoughts-then-call": f"<think>Hm.</think>\n{CALL}",
    "a-call": CALL,
    "only-thoughts": "<think>Hm",
    "only-text": "Hello",
    "nothing": "",
}


def reader() -> MessageReader:
    plan = MessagePlan(SamplingParams(), FORMAT, ("f", "g"), False)
    return MessageReader(plan, 1, tells_reasoning=True)


def snapshot(items: list[OutputItem], choice: GatheredChoice | None) -> ResponseAnswer:
    status = "completed" if choice and choice.finish_reason == "stop" else "incomplete"
    return ResponseAnswer(
        id="resp_x",
        created_at=0,
        model="m",
        status="in_progress" if choice is None else status,  # type: ignore[arg-type]
        output=list(items),
        temperature=1.0,
        top_p=1.0,
    )


def streamed(text: str, size: int, finish_reason: str) -> list[dict[str, Any]]:
    events = ResponseEvents("x", snapshot, None, reader())
    data = events.opening()
    pieces = [text[at : at + size] for at in range(0, len(text), size)]
    for piece in pieces:
        data += events.write(GenerationEvent(0, piece, [1]))
    data += events.write(GenerationEvent(0, "", [], finish_reason=finish_reason))
    data += events.ending()
    blocks = data.decode().split("\n\n")[:-1]
    return [json.loads(block.partition("\ndata: ")[2]) for block in blocks]


def without_call_ids(items: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{key: value for key, value in item.items() if key != "call_id"} for item in items]


@pytest.mark.parametrize("finish_reason", ["stop", "length"])
@pytest.mark.parametrize("size", [1, 3, 1000])
@pytest.mark.parametrize("text", TEXTS.values(), ids=list(TEXTS))
def test_events_add_up_to_the_whole(text: str, size: int, finish_reason: str) -> None:
    whole = items_of(reader().message(0, text), "x", [], is_complete=finish_reason == "stop")
    expected = without_call_ids(msgspec.to_builtins(whole))
    events = streamed(text, size, finish_reason)
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    assert (
        events[-1]["type"] == f"response.{'completed' if finish_reason == 'stop' else 'incomplete'}"
    )
    assert without_call_ids(events[-1]["response"]["output"]) == expected
    done = [event["item"] for event in events if event["type"] == "response.output_item.done"]
    assert without_call_ids(done) == expected
    added = [event for event in events if event["type"] == "response.output_item.added"]
    assert [event["output_index"] for event in added] == list(range(len(expected)))
    assert [event["item"]["id"] for event in added] == [item["id"] for item in expected]


@pytest.mark.parametrize("size", [1, 4])
def test_deltas_are_of_their_items(size: int) -> None:
    events = streamed(f"<think>Hm.</think>Well{CALL}", size, "stop")
    found: dict[tuple[str, str], str] = {}
    for event in events:
        if event["type"].endswith(".delta"):
            place = event["type"], event["item_id"]
            found[place] = found.get(place, "") + event["delta"]
    assert found == {
        ("response.reasoning_text.delta", "rs_x"): "Hm.",
        ("response.output_text.delta", "msg_x_1"): "Well",
        ("response.function_call_arguments.delta", "fc_x_2"): '{"a": 1}',
    }
