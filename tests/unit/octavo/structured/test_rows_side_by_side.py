"""Rows that follow one grammar at the same time: none notices the others."""

from __future__ import annotations

import ctypes
import random
from dataclasses import dataclass

import pytest

from octavo.batch import MaskMemory
from octavo.grammar import Grammar, StructuredOutputs, Vocabulary
from octavo.sampling_params import SamplingParams
from octavo.structured import compiled_grammar, library
from octavo.structured.compiled_grammar import ROWS_PER_AUTOMATON
from octavo.structured.compiler import GrammarCompiler
from octavo.structured.follower import GrammarFollower
from octavo.structured.masks import MaskFiller
from octavo.structured.translate import translate
from schema_families import schemas
from tiny_engine import TinyEngine, byte_grammars, request_spec, run_to_end, tokens_of
from tiny_models import EOS_TOKEN_ID, VOCAB_SIZE

NUM_WORDS = -(-VOCAB_SIZE // 32)
MANY_STATES = Grammar("start: /[a-c]*a[a-c]{10}/")
"""Each text of the last eleven letters is a state of its own."""


class Masks:
    """Memory for masks, and what is in it."""

    def __init__(self, grammars: GrammarCompiler, count: int) -> None:
        self._words = (ctypes.c_uint32 * (count * NUM_WORDS))()
        memory = MaskMemory(ctypes.addressof(self._words), count, NUM_WORDS)
        self.filler = MaskFiller(grammars, memory)

    def allowed(self, index: int) -> set[int]:
        words = self._words[index * NUM_WORDS : (index + 1) * NUM_WORDS]
        return {
            32 * i + bit for i, word in enumerate(words) for bit in range(32) if word >> bit & 1
        }


@dataclass
class Row:
    """A follower, and a matcher compiled for it alone that has consumed the same."""

    follower: GrammarFollower
    alone: object
    num_left: int


def ready(
    grammars: GrammarCompiler, grammar: Grammar, count: int, min_tokens: int = 0
) -> list[GrammarFollower]:
    """Followers that came at once."""
    followers = [grammars.follow(grammar, [EOS_TOKEN_ID], min_tokens) for _ in range(count)]
    while not all(follower.is_ready for follower in followers):
        pass
    return followers


def test_masks_are_those_of_matchers_alone_while_rows_come_and_go() -> None:
    draw = random.Random(3)
    grammars = byte_grammars(num_threads=3)
    texts = [translate(StructuredOutputs(json=schema)) for schema in draw.sample(schemas(), 12)]
    masks = Masks(grammars, 40)
    rows: list[Row] = []
    num_compared = num_ended = 0
    for _ in range(120):
        while len(rows) < 24 + draw.randrange(16):
            grammar = draw.choice(texts[: 1 + draw.randrange(len(texts))])
            for follower in ready(grammars, grammar, 1 + draw.randrange(3)):
                alone = grammars.library.compile(grammar.text)
                rows.append(Row(follower, alone, draw.randrange(1, 60)))
        rows = rows[:40]
        draw.shuffle(rows)
        masks.filler.fill([row.follower for row in rows])
        drawn = []
        for index, row in enumerate(rows):
            bits = row.alone.compute_bitmask()  # type: ignore[attr-defined]
            expected = {i for i in range(8 * len(bits)) if bits[i // 8] >> (i % 8) & 1}
            assert masks.allowed(index) == expected
            drawn.append((row.follower, draw.choice(sorted(expected))))
            num_compared += 1
        grammars.consume(drawn)
        for row, (follower, token_id) in zip(rows, drawn, strict=True):
            row.num_left -= 1
            assert follower.accept(token_id)
            assert row.alone.consume_token(token_id)  # type: ignore[attr-defined]
            if follower.has_ended or not row.num_left:
                num_ended += follower.has_ended
                follower.release()
        rows = [row for row in rows if row.num_left and not row.follower.has_ended]
    assert num_compared > 3000
    assert num_ended > 20


def test_what_is_taken_as_a_whole_changes_no_mask(monkeypatch: pytest.MonkeyPatch) -> None:
    draw = random.Random(5)
    letters = [
        bytes(draw.choices(b'abz "{},:\xc3\xa4\\', k=draw.randint(2, 40))) for _ in range(900)
    ]
    vocabulary = Vocabulary([bytes([i]) for i in range(256)] + letters, [])
    properties = {
        "short": {"type": "string", "minLength": 3, "maxLength": 25},
        "long": {"type": "string", "maxLength": 44},
        "free": {"type": "string"},
        "coded": {"type": "string", "pattern": "^[ab]{1,18}z?$"},
    }
    schema = {"type": "object", "properties": properties, "required": list(properties)}
    text = translate(StructuredOutputs(json=schema)).text
    sliced = library.GrammarLibrary(vocabulary, len(vocabulary.tokens), [0]).compile(text)
    monkeypatch.setattr(library, "_SLICES", [])
    whole = library.GrammarLibrary(vocabulary, len(vocabulary.tokens), [0]).compile(text)
    num_partial = 0
    for _ in range(12):
        one, other = sliced.deep_copy(), whole.deep_copy()
        for _ in range(90):
            mask = one.compute_bitmask()
            assert mask == other.compute_bitmask()
            allowed = [i for i in range(8 * len(mask)) if mask[i // 8] >> (i % 8) & 1]
            num_partial += 20 < len(allowed) < 700
            token_id = draw.choice(allowed)
            assert one.consume_token(token_id)
            assert other.consume_token(token_id)
            if one.is_stopped():
                break
    assert num_partial > 50


def test_who_breaks_the_grammar_is_told_and_nobody_else() -> None:
    grammars = byte_grammars(num_threads=3)
    followers = ready(grammars, Grammar("start: /[ab]+/"), 9)
    masks = Masks(grammars, 9)
    masks.filler.fill(followers)
    grammars.consume([(follower, ord("ax"[i == 4])) for i, follower in enumerate(followers)])
    assert [follower.accept(ord("a")) for follower in followers] == [i != 4 for i in range(9)]
    followers[4].release()
    masks.filler.fill([*followers[:4], *followers[5:]])
    assert all(masks.allowed(i) == {ord("a"), ord("b"), EOS_TOKEN_ID} for i in range(8))


@pytest.mark.parametrize(("num_threads", "expected"), [(1, 1), (2, 4), (16, 5)])
def test_a_grammar_has_automata_for_its_rows_and_threads(num_threads: int, expected: int) -> None:
    grammars = byte_grammars(num_threads=num_threads)
    followers = ready(grammars, Grammar("start: /[ab]*/"), 4 * ROWS_PER_AUTOMATON + 1)
    users = {follower.automaton: 0 for follower in followers}
    for follower in followers:
        users[follower.automaton] += 1
    assert len(users) == grammars.num_compiled == expected
    assert max(users.values()) - min(users.values()) <= ROWS_PER_AUTOMATON
    for follower in followers:
        follower.release()
    ready(grammars, Grammar("start: /[ab]*/"), ROWS_PER_AUTOMATON * expected)
    assert grammars.num_compiled == expected, "automata are kept for who comes later"


def test_what_takes_long_to_compile_is_compiled_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiled_grammar, "MAX_EXTRA_COMPILE_S", 0.0)
    grammars = byte_grammars(num_threads=8)
    ready(grammars, Grammar("start: /[ab]*/"), 9)
    assert grammars.num_compiled == 1


def test_a_grammar_goes_on_when_the_states_of_its_automaton_are_used_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(library._LIMITS, "max_lexer_states", 250)
    grammars = byte_grammars(num_threads=1)
    draw = random.Random(0)
    masks = Masks(grammars, 6)
    for _ in range(4):
        followers = ready(grammars, MANY_STATES, 6)
        for step in range(60):
            masks.filler.fill(followers)
            pairs = [(follower, ord(draw.choice("abc"))) for follower in followers]
            for index, (_, token_id) in enumerate(pairs):
                assert token_id in masks.allowed(index), f"row {index} after {step} tokens"
            grammars.consume(pairs)
            assert all(follower.accept(token_id) for follower, token_id in pairs)
        for follower in followers:
            follower.release()
    assert grammars.num_compiled > 1, "no automaton was used up"


def test_an_answer_too_complex_for_an_automaton_of_its_own_ends_with_an_error(
    monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    monkeypatch.setitem(library._LIMITS, "max_lexer_states", 60)
    core = TinyEngine(tmp_path_factory.mktemp("tiny")).core(grammars=byte_grammars(num_threads=2))
    complex_params = SamplingParams(max_tokens=100, ignore_eos=True)
    core.submit([request_spec("complex", [1], complex_params, grammar=MANY_STATES)])
    for number in range(3):
        plain = Grammar("start: /[xy]{20}/")
        core.submit([request_spec(f"{number}", [2], SamplingParams(max_tokens=30), grammar=plain)])
    updates = run_to_end(core)
    core.check_integrity()
    ends = {u.request_id: u for u in updates if u.finish_reason}
    assert ends["complex"].finish_reason == "error", "half an answer that says it is a whole one"
    assert "too complex" in (ends["complex"].error or "")
    for number in range(3):
        assert ends[f"{number}"].finish_reason == "stop"
        assert len(tokens_of(updates, f"{number}")) == 21
