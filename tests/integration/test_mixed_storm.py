"""Requests of every kind at once, in a cache that holds few: each gets what it gets alone."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from octavo.config import EngineConfig
from octavo.engine.build import build_engine
from octavo.engine.intake import Intake
from octavo.engine.request_options import RequestOptions
from octavo.engine.text import ChoiceText
from octavo.grammar import ReasoningSpan, StructuredOutputs
from octavo.outputs import RequestUpdate, TokenLogprobs
from octavo.pooling_params import PoolingParams
from octavo.request import Tenant
from octavo.sampling_params import SamplingParams
from tiny_models import EOS_TOKEN_ID, VOCAB_SIZE, make_tiny_model

MAX_MODEL_LEN = 128
BLOCK_BYTES = 2 * 2 * 2 * 16 * 16 * 4
"""2 layers, keys and values, 2 heads of 16, 16 tokens, float32."""
NUM_REQUESTS = 90
MOST_STEPS = 20_000
GRAMMARS = [
    StructuredOutputs(choice=["alpha", "beta", "gamma delta"]),
    StructuredOutputs(regex="[a-c]{3,9}(x|yz)"),
    StructuredOutputs(json={"type": "object", "properties": {"a": {"enum": [1, 22]}}}),
    StructuredOutputs(grammar='start: "a" ("b" | "c")~2..6 "d"'),
]
TENANTS = [Tenant(), Tenant("one at a time", max_running=1), Tenant("other")]


@dataclass(frozen=True)
class Asked:
    """What one request asks for."""

    prompts: list[list[int]]
    params: SamplingParams
    options: RequestOptions


@dataclass
class Answer:
    """All that is told of one choice."""

    token_ids: list[int] = field(default_factory=list)
    text: str = ""
    logprobs: list[TokenLogprobs] = field(default_factory=list)
    prompt_logprobs: list[TokenLogprobs] | None = None
    embedding: bytes | None = None
    finish_reason: str | None = None
    stop_reason: int | str | None = None
    error: str | None = None

    def take(self, text: ChoiceText, update: RequestUpdate) -> bool:
        """The next of its updates; whether its text has just ended what the engine goes on with."""
        event = text.feed(update)
        self.token_ids += event.token_ids
        self.text += event.text
        self.logprobs += event.logprobs or []
        if event.prompt_logprobs is not None:
            assert self.prompt_logprobs is None, "the prompt is told of twice"
            self.prompt_logprobs = event.prompt_logprobs
        self.embedding = event.embedding
        self.finish_reason, self.stop_reason = event.finish_reason, event.stop_reason
        self.error = update.error
        return event.finish_reason is not None and update.finish_reason is None

    def begins(self, whole: Answer) -> bool:
        """Whether this one, which was cut, is the beginning of the other."""
        num_tokens = len(self.token_ids)
        return (
            self.token_ids == whole.token_ids[:num_tokens]
            and self.logprobs == whole.logprobs[: len(self.logprobs)]
            and whole.text.startswith(self.text.rstrip("\ufffd"))
        )


class Asking:
    """An engine, and everyone who asks it."""

    def __init__(self, model: Path, num_blocks: int, **limits: Any) -> None:
        config = EngineConfig(
            model=str(model),
            device="cpu",
            num_threads=1,
            batch_invariant=True,
            max_model_len=MAX_MODEL_LEN,
            kv_cache_memory_bytes=num_blocks * BLOCK_BYTES,
            **limits,
        )
        engine = build_engine(config)
        self.core = engine.core
        self._tokenizer = engine.open_tokenizer()
        self._intake = Intake(engine.info, 1, self._tokenizer)
        self.open: dict[str, tuple[Answer, ChoiceText]] = {}
        self.num_tokens = 0

    def ask(self, id: str, asked: Asked) -> dict[str, Answer]:
        """The answers, which grow; by the ids of their choices."""
        params = self._intake.spell_bad_words(asked.params)
        prompts = enumerate(asked.prompts)
        specs = [
            spec
            for number, prompt in prompts
            for spec in self._intake.prepare(f"{id}:{number}", prompt, params, asked.options)
        ]
        self.core.submit(specs)
        answers = {spec.id: Answer() for spec in specs}
        for spec in specs:
            text = ChoiceText(self._tokenizer, asked.params, spec.prompt_token_ids)
            self.open[spec.id] = answers[spec.id], text
        return answers

    def step(self) -> None:
        for update in self.core.step():
            answer, text = self.open[update.request_id]
            self.num_tokens += len(update.new_token_ids)
            if answer.finish_reason is None and answer.take(text, update):
                self.core.abort([update.request_id])
            if update.finish_reason is not None:
                del self.open[update.request_id]

    def alone(self, id: str, asked: Asked) -> list[Answer]:
        self.core.reset_prefix_cache()
        answers = self.ask(id, asked)
        while self.core.has_work:
            self.step()
        return list(answers.values())


class Draw(random.Random):
    """What is asked, by a seed."""

    def __init__(self, seed: int) -> None:
        super().__init__(seed)
        self._prefixes = [self._ids(length) for length in (20, 48, 70)]

    def asked(self) -> Asked:
        """One that can be served."""
        prompts = [self._prompt() for _ in range(self.choice([1, 1, 1, 2]))]
        pooling = PoolingParams(self.choice(["last", "mean"])) if self._one_in(10) else None
        reasoning = ReasoningSpan("<", ">", is_open=True) if self._one_in(5) else None
        options = RequestOptions(
            priority=self.choice([-1, 0, 0, 3]),
            cache_salt=self.choice([None, None, "salt"]),
            tenant=self.choice(TENANTS),
            pooling=pooling,
            reasoning=reasoning,
        )
        if pooling is not None:
            return Asked(prompts, SamplingParams(max_tokens=0, detokenize=False), options)
        room = MAX_MODEL_LEN - max(map(len, prompts))
        return Asked(prompts, self._params(room), options)

    def _params(self, room: int) -> SamplingParams:
        max_tokens = self.choice([0, 1, min(room, 12), min(room, 30), room])
        wishes: dict[str, Any] = {
            "top_p": self.choice([0.3, 0.9]),
            "top_k": self.choice([1, 40]),
            "min_p": 0.05,
            "repetition_penalty": 1.3,
            "presence_penalty": 0.8,
            "frequency_penalty": -0.5,
            "logprobs": self.randrange(4),
            "prompt_logprobs": self.randrange(3),
            "n": self.choice([2, 3]),
            "min_tokens": self.randint(0, max_tokens),
            "stop": [chr(self.randrange(97, 123)), "".join(map(chr, self.choices(range(97), k=2)))],
            "stop_token_ids": self._ids(12),
            "logit_bias": {EOS_TOKEN_ID: 6.0, ord(">"): 4.0},
            "bad_word_token_ids": [self._ids(self.randint(1, 2)) for _ in range(30)],
            "include_stop_str_in_output": True,
            "skip_special_tokens": False,
            "ignore_eos": True,
            "structured_outputs": self.choice(GRAMMARS),
        }
        chosen = {name: value for name, value in wishes.items() if self._one_in(4)}
        if "structured_outputs" in chosen:
            chosen.pop("bad_word_token_ids", None)  # the two together are refused
        return SamplingParams(
            max_tokens=max_tokens,
            temperature=self.choice([0.0, 0.7, 1.5]),
            seed=self.randrange(10**6),
            **chosen,
        )

    def _prompt(self) -> list[int]:
        begin = self.choice([[], *self._prefixes])
        return [*begin, *self._ids(self.choice([1, 2, 15, 16, 30]))]

    def _ids(self, count: int) -> list[int]:
        return [self.randrange(VOCAB_SIZE) for _ in range(count)]

    def _one_in(self, number: int) -> bool:
        return self.randrange(number) == 0


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model("llama", tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def quiet(model: Path) -> Iterator[Asking]:
    engine = Asking(model, num_blocks=200)
    yield engine
    engine.core.close()


LIMITS: list[dict[str, Any]] = [
    {"max_num_batched_tokens": 40, "look_ahead": False},
    {"max_num_batched_tokens": 40, "look_ahead": True},
    {"max_num_batched_tokens": 7, "max_num_seqs": 7},
    {"enable_prefix_caching": False, "max_num_batched_tokens_while_decoding": 16},
]


@pytest.mark.parametrize(("seed", "limits"), list(enumerate(LIMITS)))
def test_each_request_of_a_storm_gets_what_it_gets_alone(
    model: Path, quiet: Asking, seed: int, limits: dict[str, Any]
) -> None:
    storm, draw = Asking(model, num_blocks=10, **limits), Draw(seed)
    answered: list[tuple[Asked, list[Answer]]] = []
    leaving: list[tuple[int, list[str]]] = []
    for step in range(MOST_STEPS):
        while len(answered) < NUM_REQUESTS and len(storm.open) < 16:
            asked = draw.asked()
            answers = storm.ask(str(len(answered)), asked)
            answered.append((asked, list(answers.values())))
            if draw.randrange(6) == 0:
                leaving.append((step + draw.randrange(12), list(answers)))
        storm.core.abort([id for at, ids in leaving if at == step for id in ids])
        if draw.randrange(40) == 0:
            storm.core.reset_prefix_cache()
        storm.step()
        storm.core.check_integrity()
        if not storm.core.has_work and len(answered) == NUM_REQUESTS:
            break
    assert not storm.open, f"still open after {MOST_STEPS} steps"
    _check_at_rest(storm)
    ends = _compare(answered, quiet)
    assert min(ends["stop"], ends["length"], ends["abort"]) > 0
    storm.core.close()


def _check_at_rest(storm: Asking) -> None:
    stats = storm.core.stats()
    assert (stats.num_running, stats.num_waiting, stats.num_owned_blocks) == (0, 0, 0)
    assert (stats.num_deferred, stats.num_waiting_tokens) == (0, 0)
    assert stats.generation_tokens == storm.num_tokens
    assert stats.num_preemptions > 0


def _compare(answered: list[tuple[Asked, list[Answer]]], quiet: Asking) -> Counter[str | None]:
    """How the storm's choices ended; AssertionError where one differs from that of the same request
    alone."""
    ends: Counter[str | None] = Counter()
    for number, (asked, answers) in enumerate(answered):
        for answer, alone in zip(answers, quiet.alone(f"{number} alone", asked), strict=True):
            ends[answer.finish_reason] += 1
            is_right = answer.begins(alone) if answer.finish_reason == "abort" else answer == alone
            assert is_right, (asked, answer, alone)
    return ends
