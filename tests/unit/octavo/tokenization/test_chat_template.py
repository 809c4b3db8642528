"""Chat templates: the dialect, where they are found, and what they may not do."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from octavo.errors import InvalidRequestError, ModelLoadError
from octavo.tokenization import chat_template
from octavo.tokenization.chat_template import ChatTemplate
from octavo.tokenization.tokenizer import Tokenizer
from tiny_gguf import write_tiny_gguf
from tiny_models import make_tiny_model

NAMED = {"bos_token": "<s>", "eos_token": "</s>"}
USER = {"role": "user", "content": "Hi"}
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "add",
            "description": "Adds <a> & 'b'",
            "parameters": {"type": "object", "properties": {"a": {"type": "number"}}},
        },
    }
]
CHATML = """{%- for message in messages %}
    {%- if loop.index > 20 %}
        {%- break %}
    {%- endif %}
    {{- '<|im_start|>' + message.role + '\\n' }}
    {% generation %}
    {{- message.content }}
    {% endgeneration %}
    {{- '<|im_end|>\\n' }}
{%- endfor %}
{%- if tools %}
    {{- tools | tojson(indent=2) }}
{%- endif %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}"""
LLAMA2 = (
    "{% if messages[0]['role'] == 'system' %}{% set system = messages[0]['content'] %}"
    "{% set loop_messages = messages[1:] %}{% else %}{% set system = false %}"
    "{% set loop_messages = messages %}{% endif %}"
    "{% for message in loop_messages %}"
    "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Roles must alternate user/assistant') }}{% endif %}"
    "{% if message['role'] == 'user' %}"
    "{{ bos_token + '[INST] ' + ('<<SYS>>' + system + '<</SYS>>' if loop.first and system else '')"
    " + message['content'].strip() + ' [/INST]' }}"
    "{% elif message['role'] == 'assistant' %}{{ ' ' + message['content'] + eos_token }}"
    "{% endif %}{% endfor %}"
)
CONVERSATIONS: dict[str, list[dict[str, Any]]] = {
    "user": [USER],
    "system": [{"role": "system", "content": "Be brief."}, USER],
    "long": [
        USER,
        {"role": "assistant", "content": " Hello\n"},
        {"role": "user", "content": "é<&"},
    ],
}


def rendered_by_transformers(
    source: str, messages: Sequence[Mapping[str, Any]], **options: Any
) -> str:
    from transformers.utils.chat_template_utils import render_jinja_template

    texts, _ = render_jinja_template(
        conversations=[list(messages)], chat_template=source, **NAMED, **options
    )
    text: str = texts[0]
    return text


@pytest.mark.parametrize("tools", [None, TOOLS], ids=["no-tools", "tools"])
@pytest.mark.parametrize("source", [CHATML, LLAMA2], ids=["chatml", "llama-2"])
@pytest.mark.parametrize("messages", CONVERSATIONS.values(), ids=CONVERSATIONS.keys())
def test_renders_as_transformers_does(
    source: str, messages: list[dict[str, Any]], tools: list[dict[str, Any]] | None
) -> None:
    text = ChatTemplate(source, NAMED).render(messages, tools)
    assert text == rendered_by_transformers(
        source, messages, tools=tools, add_generation_prompt=True
    )


@pytest.mark.parametrize("content", ["I think", "I think  ", "  I think", "a"])
def test_continues_the_final_message(content: str) -> None:
    messages = [USER, {"role": "assistant", "content": content}]
    for source in (CHATML, CHATML.replace("message.content", "message.content | trim")):
        text = ChatTemplate(source, NAMED).render(
            messages, add_generation_prompt=False, continue_final_message=True
        )
        assert text == rendered_by_transformers(
            source, messages, continue_final_message=True, add_generation_prompt=False
        )
        assert text.endswith(content if source == CHATML else content.strip())


@pytest.mark.parametrize(
    ("messages", "options", "param"),
    [
        pytest.param([USER], {"add_generation_prompt": True}, "continue_final_message", id="both"),
        pytest.param([{"role": "user", "content": "  "}], {}, "messages", id="empty"),
        pytest.param([{"role": "assistant", "content": None}], {}, "messages", id="none"),
        pytest.param([], {}, "messages", id="no-messages"),
    ],
)
def test_what_cannot_be_continued(
    messages: list[dict[str, Any]], options: dict[str, Any], param: str
) -> None:
    template = ChatTemplate("{{ messages[0].content if messages }}", NAMED)
    options = {"add_generation_prompt": False, **options}
    with pytest.raises(InvalidRequestError) as caught:
        template.render(messages, continue_final_message=True, **options)
    assert caught.value.param == param


def test_variables_reach_the_template() -> None:
    template = ChatTemplate("{{ enable_thinking }} {{ add_generation_prompt }}", NAMED)
    assert template.render([USER], enable_thinking=False) == "False True"


def test_time_is_the_present() -> None:
    template = ChatTemplate("{{ strftime_now('%Y-%m') }}", NAMED)
    assert template.render([USER]) == datetime.now().strftime("%Y-%m")


PARTS = [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]
LOOP = "{% for part in messages[0].content %}[{{ part.text }}]{% endfor %}"


@pytest.mark.parametrize(
    ("source", "content", "expected"),
    [
        pytest.param("{{ messages[0].content }}", PARTS, "one\ntwo", id="parts-to-text"),
        pytest.param("{{ messages[0]['content'] }}", "one", "one", id="text-to-text"),
        pytest.param(LOOP, PARTS, "[one][two]", id="parts-to-parts"),
        pytest.param(LOOP, "one", "[one]", id="text-to-parts"),
        pytest.param(
            "{% if messages[0].content is string %}{{ messages[0].content }}{% else %}"
            + LOOP
            + "{% endif %}",
            "one",
            "one",
            id="template-that-takes-both",
        ),
    ],
)
def test_content_comes_as_the_template_wants_it(
    source: str, content: object, expected: str
) -> None:
    message = {"role": "user", "content": content}
    assert ChatTemplate(source, NAMED).render([message]) == expected
    assert message["content"] is content


DOUBLING = (
    "{{% set ns = namespace(x='x') %}}{{% for i in range(40) %}}{{% set ns.x = {} %}}{{% endfor %}}"
)
SQUARES = "{% for i in range(40) %}{% set ns.x = ns.x * ns.x %}{% endfor %}"
REFUSED = {
    "raised": (LLAMA2, [{"role": "assistant", "content": "x"}], "Roles must alternate"),
    "undefined": ("{{ messages[0].a.b }}", [USER], "has no attribute 'a'"),
    "type": ("{{ messages[0].content + 1 }}", [USER], "str"),
    "private": ("{{ messages.__class__.__mro__ }}", [USER], "unsafe"),
    "mutation": ("{{ messages.append(1) }}", [USER], "'append' .* unsafe"),
    "range": ("{% for i in range(10**9) %}x{% endfor %}", [USER], "too large|too big"),
    "repetition": ("{{ 'x' * 99999999999 }}", [USER], "too large"),
    "list-repetition": ("{{ (99999999999 * [0]) | length }}", [USER], "too large"),
    "power": ("{{ 9 ** 9 ** 9 }}", [USER], "too large"),
    "doubling": (DOUBLING.format("ns.x ~ ns.x"), [USER], "33554432 items is too large"),
    "sum": (DOUBLING.format("ns.x + ns.x"), [USER], "33554432 items is too large"),
    "joining": (DOUBLING.format("[ns.x, ns.x] | join"), [USER], "33554432 items is too large"),
    "join-method": (DOUBLING.format("''.join([ns.x, ns.x])"), [USER], "is too large"),
    "replacing": (DOUBLING.format("ns.x | replace('x', 'xx')"), [USER], "is too large"),
    "replace-method": (DOUBLING.format("ns.x.replace('x', 'xx')"), [USER], "is too large"),
    "squares": ("{% set ns = namespace(x=99) %}" + SQUARES, [USER], "more than 4096 bits"),
    "field": ("{{ '%99999d' % 1 }}", [USER], "too wide"),
    "any-field": ("{{ '%*d' | format(99999, 1) }}", [USER], "too wide"),
    "named-field": ("{{ '%(a)99999d' % {'a': 1} }}", [USER], "too wide"),
    "bracketed-field": ("{{ '%(a())99999d' % {'a()': 1} }}", [USER], "too wide"),
    "fields": ("{{ ('%(a)9999d' * 5000) % {'a': 1} }}", [USER], "49995000 items is too large"),
    "format": ("{{ '{:>99999}'.format(1) }}", [USER], "too wide"),
    "format-fields": ("{{ ('{0:9999}' * 5000).format(1) }}", [USER], "is too large"),
    "nested-field": ("{{ '{:>{}}'.format(1, 99999) }}", [USER], "too wide"),
    "width": ("{{ 'x' | center(99999999) }}", [USER], "too large"),
    "width-method": ("{{ 'x'.ljust(99999999) }}", [USER], "too large"),
    "indent": ("{{ 'x' | indent(99999999) }}", [USER], "too large"),
    "json-indent": ("{{ [1] | tojson(indent=99999999) }}", [USER], "too large"),
    "batch": ("{{ [1] | batch(99999999, 0) | list }}", [USER], "too large"),
    "tabs": ("{{ 'x'.expandtabs(99999999) }}", [USER], "unsafe"),
    "lipsum": ("{{ lipsum(99999999) }}", [USER], "undefined"),
}


@pytest.mark.parametrize(("source", "messages", "said"), REFUSED.values(), ids=REFUSED.keys())
def test_failure_is_the_requests(source: str, messages: list[dict[str, Any]], said: str) -> None:
    with pytest.raises(InvalidRequestError, match=said) as caught:
        ChatTemplate(source, NAMED).render(messages)
    assert caught.value.param == "messages"


def test_output_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chat_template, "MAX_CHARACTERS", 1000)
    template = ChatTemplate("{% for i in range(99999) %}{{ i }},{% endfor %}", NAMED)
    with pytest.raises(InvalidRequestError, match="more than 1000 characters"):
        template.render([USER])


def test_time_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chat_template, "_MAX_SECONDS", -1.0)
    with pytest.raises(InvalidRequestError, match="took more than"):
        ChatTemplate("{{ 1 }}{{ messages }}", NAMED).render([USER])


@pytest.mark.parametrize(
    "source",
    [
        "{% for i in r %}{% for j in r %}{% for k in r %}{% endfor %}{% endfor %}{% endfor %}",
        "{% macro f(n) %}{% if n %}{{ f(n - 1) ~ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}",
        "{% set n = [1, 1] %}{% for i in n recursive %}"
        "{% if loop.depth < 60 %}{% set x = loop(n) %}{% endif %}{% endfor %}",
    ],
    ids=["loops", "macro", "recursive-loop"],
)
def test_time_is_bounded_where_nothing_is_written(
    source: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chat_template, "_MAX_SECONDS", 0.05)
    template = ChatTemplate("{% set r = range(99999) %}" + source, NAMED)
    with pytest.raises(InvalidRequestError, match="took more than"):
        template.render([USER])


def test_bounds_leave_what_templates_do_as_it_is() -> None:
    source = (
        "{% macro m(context, obj) %}{{ context ~ obj }}{% endmacro %}{{ m(context=1, obj=2) }} "
        "{% for x in [1, 2, 3] if x != 2 %}{{ loop.index }}/{{ loop.length }}{{ loop.last }} "
        "{% else %}none{% endfor %}{{ [1, none] | join(', ') }} {{ 'a-b' | replace('-', '+', 1) }} "
        "{{ '%05d' % 7 }} {{ '{:>3}'.format(4) }} {{ 'x'.join(['a', 'b']) }} {{ 7 % 4 }} "
        "{{ 'a\nb' | indent(2) }} {{ {'k': 1} | tojson(indent=1) }} {{ [1] + [2] }} "
        "{{ messages | map(attribute='role') | join('|') }} {{ 1 ~ missing ~ true }}"
    )
    assert ChatTemplate(source, NAMED).render([USER]) == (
        '12 1/2False 2/2True 1, None a+b 00007   4 axb 3 a\n  b {\n "k": 1\n} [1, 2] user 1True'
    )


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ('{{ \'{"a": {"b": "%s"}}\' % 1 }}', '{"a": {"b": "1"}}'),
        ('{{ \'{"a": {"b": "%s"}}\' | format(1) }}', '{"a": {"b": "1"}}'),
        ("{{ '{{\"a\": {}}}'.format(1) }}", '{"a": 1}'),
        ('{{ \'{{"id": 123456, "a": {:*^5}}}\'.format(1) }}', '{"id": 123456, "a": **1**}'),
        ("{{ '100%% **%s** of 123456' % 1 }}", "100% **1** of 123456"),
    ],
    ids=["percent", "filter", "format", "digits", "stars"],
)
def test_text_around_the_fields_of_a_layout_is_none_of_them(source: str, expected: str) -> None:
    assert ChatTemplate(source, NAMED).render([USER]) == expected


@pytest.mark.parametrize("source", ["{% for %}", "{{ x | nofilter }}", "{% endif %}", "{{"])
def test_template_that_is_not_valid_is_a_load_error(source: str) -> None:
    with pytest.raises(ModelLoadError, match=r"The chat template is not valid: .*--chat-template"):
        ChatTemplate(source, NAMED)


class TestOpen:
    """Where templates are found."""

    @pytest.fixture
    def folder(self, tmp_path: Path) -> Path:
        return make_tiny_model("llama", tmp_path / "m")

    def open(self, path: Path, folder: Path) -> ChatTemplate:
        template = ChatTemplate.open(path, Tokenizer.open(folder))
        assert template is not None
        return template

    def set_template(self, folder: Path, value: object) -> None:
        path = folder / "tokenizer_config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), "chat_template": value}))

    def test_in_the_tokenizers_settings(self, folder: Path) -> None:
        text = self.open(folder, folder).render([USER])
        assert text == "<|bos|><|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"

    def test_in_a_gguf_file(self, folder: Path, tmp_path: Path) -> None:
        path = write_tiny_gguf(folder, tmp_path / "m.gguf")
        text = self.open(path, path).render([USER])
        assert text == self.open(folder, folder).render([USER])

    def test_tool_template_of_a_gguf_file(self, folder: Path, tmp_path: Path) -> None:
        fields = {"tokenizer.chat_template.tool_use": "tools"}
        path = write_tiny_gguf(folder, tmp_path / "m.gguf", metadata=fields)
        assert self.open(path, path).render([USER], TOOLS) == "tools"

    def test_file_beside_the_settings_wins(self, folder: Path) -> None:
        (folder / "chat_template.jinja").write_text("jinja {{ bos_token }}")
        assert self.open(folder, folder).render([USER]) == "jinja <|bos|>"

    def test_file_of_a_processor(self, folder: Path) -> None:
        self.set_template(folder, None)
        (folder / "chat_template.json").write_text('{"chat_template": "processor"}')
        assert self.open(folder, folder).render([USER]) == "processor"

    def test_file_that_the_user_names(self, folder: Path, tmp_path: Path) -> None:
        (tmp_path / "mine.jinja").write_text("mine")
        assert self.open(tmp_path / "mine.jinja", folder).render([USER]) == "mine"

    def test_one_of_several_by_whether_there_are_tools(self, folder: Path) -> None:
        several = [
            {"name": "tool_use", "template": "with {{ tools | length }}"},
            {"name": "default", "template": "without {{ tools }}"},
        ]
        self.set_template(folder, several)
        template = self.open(folder, folder)
        assert template.render([USER]) == "without None"
        assert template.render([USER], TOOLS) == "with 1"

    def test_none_at_all(self, folder: Path) -> None:
        self.set_template(folder, None)
        assert ChatTemplate.open(folder, Tokenizer.open(folder)) is None

    def test_broken_one_names_its_file(self, folder: Path) -> None:
        (folder / "chat_template.jinja").write_text("{% if %}")
        with pytest.raises(ModelLoadError, match=f"The chat template of {folder} is not valid"):
            ChatTemplate.open(folder, Tokenizer.open(folder))

    def test_absent_file_is_a_load_error(self, folder: Path) -> None:
        with pytest.raises(ModelLoadError, match=r"nowhere.jinja cannot be read"):
            ChatTemplate.open(folder / "nowhere.jinja", Tokenizer.open(folder))
