"""Thoughts, content and calls are found alike however the text is cut, and nothing told is taken
back."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import SupportsIndex

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from octavo.tools.hermes import HermesCalls
from octavo.tools.llama_json import LlamaCalls
from octavo.tools.message import CallText, MessageParser
from octavo.tools.mistral import MistralCalls
from octavo.tools.pythonic import ArgumentEnd, PythonicCalls

NAMES = ["get_weather", "get_time", "f", "get-weather"]
THINK = ("<think>", "</think>")
FORMATS: dict[str, Callable[[list[str]], CallText]] = {
    "hermes": HermesCalls,
    "llama": LlamaCalls,
    "mistral": MistralCalls,
    "pythonic": PythonicCalls,
}


@dataclass
class Read:
    """A whole message."""

    reasoning: str = ""
    content: str = ""
    calls: list[list[str]] = field(default_factory=list)


def read(pieces: list[str], parser: MessageParser) -> Read:
    """What the deltas add up to; each must be a valid continuation."""
    whole = Read()
    deltas = [parser.feed(piece) for piece in pieces]
    for delta in [*deltas, parser.finish()]:
        assert not (delta.reasoning and whole.content), "thoughts after content"
        whole.reasoning += delta.reasoning
        whole.content += delta.content
        for call in delta.calls:
            if call.name is not None:
                assert call.index == len(whole.calls), "calls begin in order"
                whole.calls.append([call.name, ""])
            assert call.index == len(whole.calls) - 1, "only the last call grows"
            whole.calls[-1][1] += call.arguments
    return whole


def parser_of(kind: str, *, thinks: bool = False, is_thinking: bool = False) -> MessageParser:
    calls = FORMATS[kind](NAMES) if kind else None
    return MessageParser(calls, THINK if thinks else None, is_thinking=is_thinking)


def cuts(text: str) -> Iterator[list[str]]:
    """The text in two pieces at every place, and in pieces of every length."""
    for at in range(len(text) + 1):
        yield [text[:at], text[at:]]
    for size in range(1, min(len(text), 7) + 1):
        yield [text[at : at + size] for at in range(0, len(text), size)]


W = '{"city": "São \\"Paulo\\" }", "days": [1, {"a": null}]}'
CASES: dict[str, tuple[str, str, str, list[tuple[str, str]]]] = {
    "plain text": ("hermes", "Hello <b>you</b>", "Hello <b>you</b>", []),
    "one call": (
        "hermes",
        f'<tool_call>\n{{"name": "get_weather", "arguments": {W}}}\n</tool_call>',
        "",
        [("get_weather", W)],
    ),
    "text and two calls": (
        "hermes",
        f'Let me see.\n<tool_call>{{"name": "f", "arguments": {{}}}}</tool_call>\n'
        f'<tool_call>{{"arguments": {W}, "name": "get_time"}}</tool_call>\n',
        "Let me see.",
        [("f", "{}"), ("get_time", W)],
    ),
    "text after a call": (
        "hermes",
        '<tool_call>{"name": "f"}</tool_call> done',
        "done",
        [("f", "{}")],
    ),
    "arguments as text": (
        "hermes",
        '<tool_call>{"name": "f", "arguments": "{\\"a\\": 1}"}</tool_call>',
        "",
        [("f", '{"a": 1}')],
    ),
    "a call without its closing mark": (
        "hermes",
        '<tool_call>{"name": "f", "arguments": {"a": 1}}',
        "",
        [("f", '{"a": 1}')],
    ),
    "a call whose closing mark is cut": (
        "hermes",
        '<tool_call>{"name": "f", "arguments": {"a": 1}}\n</tool_cal',
        "",
        [("f", '{"a": 1}')],
    ),
    "a call that is cut": (
        "hermes",
        '<tool_call>{"name": "f", "arguments": {"a": [1, 2',
        "",
        [("f", '{"a": [1, 2')],
    ),
    "no call after all": (
        "hermes",
        "a <tool_call>nonsense</tool_call> b",
        "a <tool_call>nonsense</tool_call> b",
        [],
    ),
    "arguments that stand there twice": (
        "hermes",
        '<tool_call>{"name": "f", "arguments": {"a": 1}, "parameters": {"b": 2}}</tool_call>'
        '<tool_call>{"arguments": "{}", "arguments": {"b": 2}, "name": "f"}</tool_call>'
        '<tool_call>{"name": "f", "arguments": {}, "name": "get_time"}</tool_call>',
        "",
        [("f", '{"a": 1}'), ("f", "{}"), ("f", "{}")],
    ),
    "two objects of arguments": (
        "hermes",
        '<tool_call>{"name": "f", "arguments": {"a": 1}{"b": 2}}</tool_call> done',
        '{"b": 2}} done',
        [("f", '{"a": 1}')],
    ),
    "no arguments": (
        "hermes",
        '<tool_call>{"name": "f", "arguments": null}</tool_call>'
        '<tool_call>{"arguments": null, "name": "f"}</tool_call>'
        '<tool_call>{"name": "f", "arguments": "null"}</tool_call>'
        '<tool_call>{"name": "f", "arguments": ""}</tool_call>'
        '<tool_call>{"name": "f", "arguments": null, "parameters": {"a": null}}</tool_call>',
        "",
        [("f", "{}")] * 4 + [("f", '{"a": null}')],
    ),
    "llama, arguments that stand there twice": (
        "llama",
        '{"name": "f", "parameters": {"a": 1}, "arguments": {"b": 2}}; '
        '{"name": "f", "parameters": null}',
        "",
        [("f", '{"a": 1}'), ("f", "{}")],
    ),
    "llama, two objects of arguments": (
        "llama",
        '{"name": "f", "parameters": {"a": 1}{"b": 2}}',
        '{"b": 2}}',
        [("f", '{"a": 1}')],
    ),
    "mistral, two objects of arguments": (
        "mistral",
        '[TOOL_CALLS][{"name": "f", "arguments": {"a": 1}, "arguments": {"b": 2}},'
        '{"name": "f", "arguments": null}]',
        "",
        [("f", '{"a": 1}'), ("f", "{}")],
    ),
    "half a mark": ("hermes", "x <tool_ca", "x <tool_ca", []),
    "llama": ("llama", f'{{"name": "get_weather", "parameters": {W}}}', "", [("get_weather", W)]),
    "llama, tagged, two": (
        "llama",
        '<|python_tag|>{"name": "f", "parameters": {}}; '
        '{"name": "get_time", "parameters": {"a":1}}',
        "",
        [("f", "{}"), ("get_time", '{"a":1}')],
    ),
    "an answer in JSON": ("llama", '{"name": "Bob", "age": 3}', '{"name": "Bob", "age": 3}', []),
    "llama text": ("llama", "The sky is {blue}.", "The sky is {blue}.", []),
    "mistral list": (
        "mistral",
        f'[TOOL_CALLS] [{{"name": "get_weather", "arguments": {W}}}, '
        '{"name": "f", "arguments": {"x": 1.5}}]',
        "",
        [("get_weather", W), ("f", '{"x": 1.5}')],
    ),
    "mistral names": (
        "mistral",
        f"Sure.[TOOL_CALLS]get_weather[ARGS]{W}[TOOL_CALLS]f{{}}",
        "Sure.",
        [("get_weather", W), ("f", "{}")],
    ),
    "mistral with ids": (
        "mistral",
        '[TOOL_CALLS]f[CALL_ID]abc123def[ARGS]{"a": 1}',
        "",
        [("f", '{"a": 1}')],
    ),
    "mistral nonsense": ("mistral", "[TOOL_CALLS] what now", "[TOOL_CALLS]what now", []),
    "pythonic": (
        "pythonic",
        '[get_weather(city="São \\"P\\" (x, y)", days=[1, 2], ok=True, n=None), get_time()]',
        "",
        [
            (
                "get_weather",
                '{"city": "São \\"P\\" (x, y)", "days": [1, 2], "ok": true, "n": null}',
            ),
            ("get_time", "{}"),
        ],
    ),
    "pythonic with JSON's words": ("pythonic", '[f(a=true, b={"c": 1})]', "", [
        ("f", '{"a": true, "b": {"c": 1}}')]),
    "pythonic with texts of several lines": (
        "pythonic",
        "[f(a=\'\'\'it's, (\'quoted\') \n\'\'\', b=\"\"\"\"x\\\"\"\"\", c=\'\'), f(\"\")]",
        "",
        [
            ("f", json.dumps({"a": "it's, ('quoted') \n", "b": '"x"', "c": ""})),
            ("f", '{"arg0": ""}'),
        ],
    ),
    "pythonic with names that Python does not take": (
        "pythonic",
        '[get-weather(user-id=1, 2fa="a=b", $ref = "x"), 2-factor.auth("x=1", 1==2)]',
        "",
        [
            ("get-weather", '{"user-id": 1, "2fa": "a=b", "$ref": "x"}'),
            ("2-factor.auth", '{"arg0": "x=1", "arg1": "1==2"}'),
        ],
    ),
    "a list that is the answer": ("pythonic", "[1, 2, 3]", "[1, 2, 3]", []),
    "pythonic text": ("pythonic", "I cannot do that.", "I cannot do that.", []),
}  # fmt: skip


@pytest.mark.parametrize(("kind", "text", "content", "calls"), CASES.values(), ids=CASES.keys())
def test_calls_are_read_alike_at_every_cut(
    kind: str, text: str, content: str, calls: list[tuple[str, str]]
) -> None:
    expected = Read("", content, [list(call) for call in calls])
    for pieces in cuts(text):
        assert read(pieces, parser_of(kind)) == expected, pieces


class WatchedText(str):
    """Counts the characters that are looked at."""

    num_seen = 0

    def __getitem__(self, key: SupportsIndex | slice) -> str:
        found = super().__getitem__(key)
        WatchedText.num_seen += len(found)
        return found


def test_a_long_argument_is_read_once_however_many_pieces_it_comes_in() -> None:
    argument = '"' + 500 * "ab, " + '"'
    end = ArgumentEnd()
    for size in range(1, len(argument) + 1):
        assert end.find(WatchedText(argument[:size])) is None
    assert end.find(WatchedText(argument + ")")) == len(argument)
    assert WatchedText.num_seen < 10 * len(argument)


@pytest.mark.parametrize(
    ("kind", "text", "call"),
    [
        ("hermes", r'<tool_call>{"name": "\ud800", "arguments": {}}</tool_call>', ["\ufffd", "{}"]),
        (
            "hermes",
            r'<tool_call>{"name": "f", "arguments": "{\"a\": \"\ud83d\"}"}</tool_call>',
            ["f", '{"a": "\ufffd"}'],
        ),
        (
            "pythonic",
            r"[f(a='\ud83d\ude00', b='\ud83d')]",
            ["f", '{"a": "\U0001f600", "b": "\ufffd"}'],
        ),
    ],
)
def test_half_a_surrogate_pair_is_no_character(kind: str, text: str, call: list[str]) -> None:
    (found,) = read([text], parser_of(kind)).calls
    assert found == call
    found[1].encode()


@pytest.mark.parametrize("source", ["NaN", "-Infinity", "1e999", "[NaN]", "[" * 5000 + "]" * 5000])
def test_what_json_cannot_hold_is_told_as_its_text(source: str) -> None:
    (call,) = read([f"[f(a={source})]"], parser_of("pythonic")).calls
    assert call[1] == json.dumps({"a": source})


def test_a_name_that_is_nested_too_deeply_to_be_read_is_content() -> None:
    text = f'<tool_call>{{"name": {"[" * 5000 + "]" * 5000}, "arguments": {{}}}}</tool_call>'
    assert read([text], parser_of("hermes")) == Read("", text, [])


@pytest.mark.parametrize(
    ("text", "is_thinking", "reasoning", "content"),
    [
        ("<think>\nHm, 1 < 2.\n</think>\n\nYes.", False, "Hm, 1 < 2.", "Yes."),
        ("Hm.\n</think>\n\nYes.", True, "Hm.", "Yes."),
        ("Yes. <think> is a mark", False, "", "Yes. <think> is a mark"),
        ("<think>never ends </thi", False, "never ends </thi", ""),
        ("<think></think>Yes.", False, "", "Yes."),
        ("<th", False, "", "<th"),
        ("", False, "", ""),
    ],
)
def test_thoughts_are_told_from_the_answer(
    text: str, is_thinking: bool, reasoning: str, content: str
) -> None:
    for pieces in cuts(text):
        whole = read(pieces, parser_of("", thinks=True, is_thinking=is_thinking))
        assert whole == Read(reasoning, content), pieces


def test_calls_inside_thoughts_are_thoughts() -> None:
    text = '<think>I could <tool_call></think>\n<tool_call>{"name": "f"}</tool_call>'
    for pieces in cuts(text):
        whole = read(pieces, parser_of("hermes", thinks=True))
        assert whole == Read("I could <tool_call>", "", [["f", "{}"]])


PARTS = st.sampled_from(
    [
        "<tool_call>", "</tool_call>", "[TOOL_CALLS]", "<|python_tag|>", "[ARGS]", "<think>",
        "</think>", '{"name": "f", "arguments": ', '{"name": "f", "parameters": ',
        '{"a": [1, "}"]}', "{}", "}", "]", "[", "f(", "[f(a=1, b='x')", ")",
        ",", "; ", "\n", " ", "f", '"', "\\", "é",
        "get_weather", "text ",
    ]
)  # fmt: skip


@pytest.mark.parametrize(
    ("after", "content", "num_calls"),
    [
        ('<tool_call>{"name": "f", "arguments": {}}</tool_call>', "", 2),
        ("<tool_call></tool_call>", "<tool_call></tool_call>", 1),
        ("}\n</tool_call>", "}\n</tool_call>", 1),
        ("\n</tool_call>x", "x", 1),
    ],
)
def test_a_call_may_lack_its_closing_mark(after: str, content: str, num_calls: int) -> None:
    text = '<tool_call>{"name": "f", "arguments": {}}' + after
    for pieces in ([text], list(text)):
        found = read(pieces, parser_of("hermes"))
        assert (found.content, len(found.calls)) == (content, num_calls)


@pytest.mark.parametrize("kind", FORMATS)
@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_whatever_comes_is_read_alike_however_it_is_cut(kind: str, data: st.DataObject) -> None:
    text = "".join(data.draw(st.lists(PARTS, max_size=12)))
    thinks = data.draw(st.booleans())
    whole = read([text], parser_of(kind, thinks=thinks))
    by_character = read(list(text), parser_of(kind, thinks=thinks))
    assert by_character == whole
    at = data.draw(st.integers(0, len(text)))
    assert read([text[:at], text[at:]], parser_of(kind, thinks=thinks)) == whole


@pytest.mark.parametrize("kind", FORMATS)
@settings(max_examples=60, deadline=None)
@given(
    arguments=st.dictionaries(
        st.from_regex(r"\A[a-z_][a-z0-9_]{0,8}\Z"),
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.text(max_size=8),
            lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner),
            max_leaves=6,
        ),
        max_size=4,
    ),
    size=st.integers(1, 9),
)
def test_arguments_come_out_as_they_went_in(
    kind: str, arguments: dict[str, object], size: int
) -> None:
    written = json.dumps(arguments, ensure_ascii=False)
    keywords = ", ".join(f"{key}={json.dumps(value)}" for key, value in arguments.items())
    text = {
        "hermes": f'<tool_call>\n{{"name": "f", "arguments": {written}}}\n</tool_call>',
        "llama": f'{{"name": "f", "parameters": {written}}}',
        "mistral": f'[TOOL_CALLS][{{"name": "f", "arguments": {written}}}]',
        "pythonic": f"[f({keywords})]",
    }[kind]
    pieces = [text[at : at + size] for at in range(0, len(text), size)]
    (call,) = read(pieces, parser_of(kind)).calls
    assert call[0] == "f"
    assert json.loads(call[1]) == arguments
