"""A real engine core around a tiny random model: its grammars hold whatever else happens."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path

import jsonschema
import pytest

from octavo.engine.core import EngineCore
from octavo.grammar import Grammar, ReasoningSpan, StructuredOutputs
from octavo.kernels.cpu import CpuKernels
from octavo.outputs import RequestUpdate
from octavo.runner.cuda_graphs import StepGraphs
from octavo.sampling_params import SamplingParams
from octavo.structured.compiled_grammar import ROWS_PER_AUTOMATON
from octavo.structured.translate import translate
from tiny_engine import (
    TinyEngine,
    UncapturedGraphs,
    byte_grammars,
    request_spec,
    run_to_end,
    tokens_of,
)
from tiny_models import EOS_TOKEN_ID

SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 4},
        "kind": {"enum": ["cat", "dog"]},
        "ok": {"type": "boolean"},
    },
    "required": ["name", "kind", "ok"],
    "additionalProperties": False,
}
JSON = StructuredOutputs(json=SCHEMA, disable_any_whitespace=True)


@dataclass(frozen=True)
class Mode:
    """A way to run the same requests."""

    look_ahead: int = 0
    graphs: type[StepGraphs] | None = None
    num_blocks: int = 64


MODES = {
    "plain": Mode(),
    "one step ahead": Mode(look_ahead=1),
    "captured": Mode(look_ahead=1, graphs=UncapturedGraphs),
    "preempting": Mode(num_blocks=9),
    "preempting, one step ahead": Mode(look_ahead=1, num_blocks=9),
}


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> TinyEngine:
    return TinyEngine(tmp_path_factory.mktemp("tiny"))


def make_core(engine: TinyEngine, mode: Mode) -> EngineCore:
    return engine.core(
        look_ahead=mode.look_ahead,
        graphs=mode.graphs,
        num_blocks=mode.num_blocks,
        grammars=byte_grammars(),
    )


def submit(
    core: EngineCore,
    request_id: str,
    params: SamplingParams,
    grammar: Grammar | None = None,
    prompt: list[int] | None = None,
) -> None:
    eos = [] if params.ignore_eos else [EOS_TOKEN_ID]
    seed = sum(request_id.encode())
    core.submit(
        [
            request_spec(
                request_id,
                prompt or list(f"prompt {request_id}".encode()),
                params,
                seed=seed,
                grammar=grammar,
                eos_token_ids=eos,
            )
        ]
    )


def text_of(updates: list[RequestUpdate], request_id: str) -> str:
    ids = tokens_of(updates, request_id)
    return bytes(id for id in ids if id < 256).decode(errors="replace")


def end_of(updates: list[RequestUpdate], request_id: str) -> RequestUpdate:
    return next(u for u in updates if u.request_id == request_id and u.finish_reason)


@pytest.mark.parametrize("mode", MODES.values(), ids=MODES.keys())
def test_every_finished_output_follows_its_grammar(engine: TinyEngine, mode: Mode) -> None:
    core = make_core(engine, mode)
    grammar = translate(JSON)
    for number in range(12):
        params = SamplingParams(
            temperature=1.0 if number % 3 else 0.0, max_tokens=70, top_p=0.9 if number % 2 else 1.0
        )
        submit(core, f"json{number}", params, grammar)
        submit(core, f"free{number}", SamplingParams(max_tokens=20))
    updates = run_to_end(core, 4000)
    core.check_integrity()
    for number in range(12):
        assert end_of(updates, f"json{number}").finish_reason == "stop"
        document = json.loads(text_of(updates, f"json{number}"))
        jsonschema.validate(document, SCHEMA)
    if mode.num_blocks < 64:
        assert core.stats().num_preemptions > 0


def test_outputs_do_not_depend_on_how_steps_are_run(engine: TinyEngine) -> None:
    texts = []
    for mode in MODES.values():
        core = make_core(engine, mode)
        for number in range(8):
            submit(core, f"r{number}", SamplingParams(max_tokens=70), translate(JSON))
            submit(core, f"f{number}", SamplingParams(max_tokens=30))
            # Outlives the others' grammars, and comes beside them and alone.
            wish = SamplingParams(max_tokens=90, logprobs=number % 2, presence_penalty=0.5)
            submit(core, f"w{number}", wish)
        updates = run_to_end(core, 4000)
        texts.append([tokens_of(updates, f"{kind}{n}") for kind in "rfw" for n in range(8)])
    assert all(each == texts[0] for each in texts[1:])


def test_the_c_kernels_draw_the_same(tmp_path: Path, engine: TinyEngine) -> None:
    on_c = TinyEngine(tmp_path, kernels=CpuKernels())
    ends = []
    for one in (engine, on_c):
        core = make_core(one, MODES["plain"])
        for number in range(6):
            submit(core, f"r{number}", SamplingParams(max_tokens=70), translate(JSON))
        updates = run_to_end(core)
        ends.append([text_of(updates, f"r{number}") for number in range(6)])
    assert ends[0] == ends[1]


def test_free_rows_draw_what_they_draw_without_constrained_neighbours(engine: TinyEngine) -> None:
    texts = []
    for with_neighbour in (False, True):
        core = make_core(engine, MODES["one step ahead"])
        submit(core, "free", SamplingParams(max_tokens=40))
        if with_neighbour:
            submit(core, "json", SamplingParams(max_tokens=70), translate(JSON))
        texts.append(tokens_of(run_to_end(core), "free"))
    assert texts[0] == texts[1]


@pytest.mark.parametrize("mode", MODES.values(), ids=MODES.keys())
def test_penalties_logprobs_and_biases_go_together_with_a_grammar(
    engine: TinyEngine, mode: Mode
) -> None:
    core = make_core(engine, mode)
    params = SamplingParams(
        max_tokens=70, logprobs=2, frequency_penalty=0.5, logit_bias={ord("x"): 20.0}
    )
    submit(core, "r", params, translate(JSON))
    updates = run_to_end(core)
    document = json.loads(text_of(updates, "r"))
    jsonschema.validate(document, SCHEMA)
    assert document["name"] == "xxxx", "the bias is felt where the grammar leaves a choice"
    assert all(u.logprobs for u in updates if u.new_token_ids)


def test_what_max_tokens_cuts_ends_by_length(engine: TinyEngine) -> None:
    core = make_core(engine, MODES["plain"])
    submit(core, "r", SamplingParams(max_tokens=5), translate(JSON))
    updates = run_to_end(core)
    assert end_of(updates, "r").finish_reason == "length"
    assert text_of(updates, "r") == '{"nam'


def test_min_tokens_keeps_a_text_going_where_the_grammar_lets_it(engine: TinyEngine) -> None:
    core = make_core(engine, MODES["plain"])
    digits = translate(StructuredOutputs(regex="[0-9]*"))
    two = translate(StructuredOutputs(choice=["ab"]))
    submit(core, "long", SamplingParams(max_tokens=40, min_tokens=30), digits)
    submit(core, "short", SamplingParams(max_tokens=40, min_tokens=30), two)
    updates = run_to_end(core)
    assert re.fullmatch("[0-9]{29,}", text_of(updates, "long"))
    assert text_of(updates, "short") == "ab"
    assert end_of(updates, "short").finish_reason == "stop", "nothing else could follow"


def test_no_stop_token_is_drawn_before_min_tokens_where_the_grammar_lets_others_follow(
    engine: TinyEngine,
) -> None:
    core = make_core(engine, MODES["plain"])
    stops = list(b"012345678")
    early = SamplingParams(max_tokens=40, min_tokens=30, stop_token_ids=stops)
    submit(core, "digits", early, translate(StructuredOutputs(regex="[0-9]*")))
    submit(core, "zeros", early, translate(StructuredOutputs(regex="0{35}")))
    ends_too = SamplingParams(max_tokens=40, min_tokens=30, stop_token_ids=[EOS_TOKEN_ID])
    submit(core, "short", ends_too, translate(StructuredOutputs(choice=["ab"])))
    thinking = SamplingParams(max_tokens=30, min_tokens=30, stop_token_ids=list(range(100)))
    thoughts = ReasoningSpan("<think>", "</think>", is_open=True)
    submit(core, "thoughts", thinking, Grammar(translate(JSON).text, thoughts))
    updates = run_to_end(core)
    assert text_of(updates, "digits")[:30] == "9" * 30
    assert text_of(updates, "zeros") == "0" * 30, "it stops at the first that may"
    assert text_of(updates, "short") == "ab"
    assert {end_of(updates, id).finish_reason for id in ("zeros", "short")} == {"stop"}
    assert min(tokens_of(updates, "thoughts")) >= 100


def test_ignoring_the_end_of_text_ends_only_where_nothing_else_can_follow(
    engine: TinyEngine,
) -> None:
    core = make_core(engine, MODES["plain"])
    digits = translate(StructuredOutputs(regex="[0-9]*"))
    submit(core, "digits", SamplingParams(max_tokens=40, ignore_eos=True), digits)
    submit(core, "json", SamplingParams(max_tokens=70, ignore_eos=True), translate(JSON))
    updates = run_to_end(core)
    assert re.fullmatch("[0-9]{40}", text_of(updates, "digits"))
    assert end_of(updates, "digits").finish_reason == "length"
    assert end_of(updates, "json").finish_reason == "stop"
    jsonschema.validate(json.loads(text_of(updates, "json")), SCHEMA)


@pytest.mark.parametrize(
    "params",
    [SamplingParams(max_tokens=9, min_tokens=3), SamplingParams(max_tokens=9, ignore_eos=True)],
)
def test_a_grammar_of_the_empty_text_alone_ends_at_once(
    engine: TinyEngine, params: SamplingParams
) -> None:
    core = make_core(engine, MODES["plain"])
    submit(core, "r", params, translate(StructuredOutputs(regex="")))
    updates = run_to_end(core)
    assert (text_of(updates, "r"), end_of(updates, "r").finish_reason) == ("", "stop")


def test_a_grammar_waits_for_the_thoughts_to_end(engine: TinyEngine) -> None:
    core = make_core(engine, MODES["one step ahead"])
    # A bias makes the tiny model think of semicolons only: they end its thoughts here.
    span = ReasoningSpan("<|im_start|>", ";", is_open=True)
    for number in range(4):
        grammar = translate(JSON, span)
        submit(core, f"r{number}", SamplingParams(max_tokens=110), grammar)
    submit(
        core, "soon", SamplingParams(max_tokens=110, logit_bias={59: 50.0}), translate(JSON, span)
    )
    updates = run_to_end(core)
    core.check_integrity()
    thoughts, _, answer = text_of(updates, "soon").partition(";")
    assert thoughts == ""
    jsonschema.validate(json.loads(answer), SCHEMA)
    for number in range(4):
        text, reason = text_of(updates, f"r{number}"), end_of(updates, f"r{number}").finish_reason
        assert reason == "length" or ";" in text
        if reason == "stop":
            jsonschema.validate(json.loads(text.partition(";")[2]), SCHEMA)


def test_the_first_token_decides_whether_there_are_thoughts(engine: TinyEngine) -> None:
    core = make_core(engine, MODES["plain"])
    grammar = translate(JSON, ReasoningSpan("<|im_start|>", ";", is_open=False))
    thinks = SamplingParams(max_tokens=110, logit_bias={258: 80.0, 59: 100.0})
    submit(core, "thinks", thinks, grammar)
    submit(core, "answers", SamplingParams(max_tokens=110, logit_bias={258: -100.0}), grammar)
    updates = run_to_end(core)
    assert tokens_of(updates, "thinks")[:2] == [258, 59]
    jsonschema.validate(json.loads(text_of(updates, "thinks").partition(";")[2]), SCHEMA)
    jsonschema.validate(json.loads(text_of(updates, "answers")), SCHEMA)


def test_aborts_and_preemption_release_every_grammar(engine: TinyEngine) -> None:
    core = make_core(engine, MODES["preempting, one step ahead"])
    for number in range(20):
        submit(core, f"r{number}", SamplingParams(max_tokens=70), translate(JSON))
    for step in range(60):
        core.step()
        if step % 3 == 0:
            core.abort([f"r{step // 3}"])
        core.check_integrity()
    run_to_end(core)
    core.check_integrity()
    assert core._constrained.num_open == 0


def test_a_grammar_that_cannot_be_compiled_fails_its_request_alone(engine: TinyEngine) -> None:
    core = make_core(engine, MODES["plain"])
    submit(core, "bad", SamplingParams(), Grammar("start: ("))
    submit(core, "good", SamplingParams(max_tokens=70), translate(JSON))
    submit(core, "free", SamplingParams(max_tokens=4))
    updates = run_to_end(core)
    core.check_integrity()
    end = end_of(updates, "bad")
    assert end.finish_reason == "error"
    assert "cannot be compiled" in (end.error or "")
    assert end_of(updates, "good").finish_reason == "stop"
    assert end_of(updates, "free").finish_reason == "length"


def test_free_requests_run_while_a_grammar_compiles(engine: TinyEngine) -> None:
    core = make_core(engine, MODES["plain"])
    choices = [f"choice number {number}" for number in range(3000)]
    submit(
        core, "slow", SamplingParams(max_tokens=40), translate(StructuredOutputs(choice=choices))
    )
    submit(core, "free", SamplingParams(max_tokens=4))
    updates = run_to_end(core)
    order = [u.request_id for u in updates if u.finish_reason]
    assert order == ["free", "slow"]
    assert text_of(updates, "slow") in choices


def test_equal_grammars_are_compiled_once(engine: TinyEngine) -> None:
    core = make_core(engine, MODES["plain"])
    for number in range(ROWS_PER_AUTOMATON):
        submit(core, f"r{number}", SamplingParams(max_tokens=70), translate(JSON))
    run_to_end(core)
    grammars = core._constrained._grammars
    assert grammars is not None
    assert grammars.num_compiled == 1


def test_a_request_whose_parameters_bar_all_that_its_grammar_allows_fails(
    engine: TinyEngine,
) -> None:
    core = make_core(engine, MODES["plain"])
    grammar = Grammar('start: "ab" <[300]>')
    submit(core, "r", SamplingParams(max_tokens=9), grammar)
    submit(core, "good", SamplingParams(max_tokens=70), translate(JSON))
    updates = run_to_end(core)
    core.check_integrity()
    assert end_of(updates, "r").finish_reason == "error"
    assert end_of(updates, "good").finish_reason == "stop"
