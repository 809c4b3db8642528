#!/usr/bin/env python
"""Libraries for grammar masks, side by side: llguidance, and xgrammar where it is installed.

    python benchmarks/grammars.py --suite JSON-Schema-Test-Suite/tests/draft2020-12 --results cpu

Compile and mask times with the demo model's vocabulary (49,152) and with one of 151,936 tokens
made of it by joining pairs; and, given the folder of the JSON Schema Test Suite (the source
distribution of jsonschema carries it), how many of its schemas each library refuses, honours, or
takes and then lets an invalid document through.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import torch
from record import Recorder

from octavo.errors import InvalidRequestError
from octavo.grammar import StructuredOutputs, Vocabulary
from octavo.loading.demo_model import fetch_demo_model
from octavo.structured.library import GrammarLibrary
from octavo.structured.translate import translate
from octavo.tokenization.tokenizer import Tokenizer

LARGE_VOCABULARY = 151_936
SCHEMAS: dict[str, tuple[dict[str, Any], Any]] = {
    "flat": (
        {
            "type": "object",
            "properties": {"name": {"type": "string"}, "age": {"type": "integer"}},
            "required": ["name", "age"],
            "additionalProperties": False,
        },
        {"name": "Ada Lovelace", "age": 36},
    ),
    "nested": (
        {
            "type": "object",
            "properties": {
                "title": {"type": "string", "maxLength": 80},
                "status": {"enum": ["open", "closed", "in progress"]},
                "people": {
                    "type": "array",
                    "items": {
                        "type": "object",
                        "properties": {
                            "name": {"type": "string"},
                            "mail": {"type": "string", "format": "email"},
                            "born": {"type": "string", "format": "date"},
                            "score": {"type": "number", "minimum": 0, "maximum": 1},
                        },
                        "required": ["name", "mail"],
                        "additionalProperties": False,
                    },
                    "maxItems": 20,
                },
                "zip": {"type": "string", "pattern": "^[0-9]{5}$"},
            },
            "required": ["title", "status", "people", "zip"],
            "additionalProperties": False,
        },
        {
            "title": "Weekly report of the committee",
            "status": "in progress",
            "people": [
                {"name": "Ada", "mail": "ada@example.org", "born": "1815-12-10", "score": 0.75},
                {"name": "Charles Babbage", "mail": "cb@example.com"},
            ],
            "zip": "12345",
        },
    ),
    "enum of 2,000": (
        {"enum": [f"choice number {number}" for number in range(2000)]},
        "choice number 1234",
    ),
}


class Library(Protocol):
    """One library with one vocabulary."""

    name: str

    def compile(self, schema: dict[str, Any] | bool) -> Any:
        """A fresh matcher; raises ValueError where the schema is refused."""

    def mask(self, matcher: Any) -> None: ...

    def accept(self, matcher: Any, token_id: int) -> bool: ...

    def is_complete(self, matcher: Any) -> bool: ...


class LLGuidance:
    """Matchers of llguidance, as Octavo uses it."""

    name = "llguidance"

    def __init__(self, tokens: list[bytes], special: list[int], eos: int) -> None:
        self._library = GrammarLibrary(Vocabulary(tokens, special), len(tokens), [eos])
        self._mask = torch.zeros(-(-len(tokens) // 32), dtype=torch.int32)

    def compile(self, schema: dict[str, Any] | bool) -> Any:
        try:
            grammar = translate(StructuredOutputs(json=schema, disable_any_whitespace=False))
        except InvalidRequestError as error:
            raise ValueError(str(error)) from error
        return self._library.compile(grammar.text)

    def mask(self, matcher: Any) -> None:
        matcher.unsafe_compute_mask_ptr(self._mask.data_ptr(), self._mask.numel() * 4)

    def accept(self, matcher: Any, token_id: int) -> bool:
        return bool(matcher.consume_token(token_id))

    def is_complete(self, matcher: Any) -> bool:
        return bool(matcher.is_accepting())


class XGrammar:
    """Matchers of xgrammar."""

    name = "xgrammar"

    def __init__(self, tokens: list[bytes], special: list[int], eos: int) -> None:
        import xgrammar

        self._library = xgrammar
        shown = [
            b"" if token_id in set(special) else piece for token_id, piece in enumerate(tokens)
        ]
        info = xgrammar.TokenizerInfo(
            shown, vocab_type=xgrammar.VocabType.RAW, vocab_size=len(tokens), stop_token_ids=[eos]
        )
        self._compiler = xgrammar.GrammarCompiler(info, max_threads=2, cache_enabled=False)
        self._mask = xgrammar.allocate_token_bitmask(1, len(tokens))

    def compile(self, schema: dict[str, Any] | bool) -> Any:
        try:
            compiled = self._compiler.compile_json_schema(json.dumps(schema), strict_mode=False)
        except RuntimeError as error:
            raise ValueError(str(error)) from error
        return self._library.GrammarMatcher(compiled)

    def mask(self, matcher: Any) -> None:
        matcher.fill_next_token_bitmask(self._mask)

    def accept(self, matcher: Any, token_id: int) -> bool:
        return bool(matcher.accept_token(token_id))

    def is_complete(self, matcher: Any) -> bool:
        is_completed = getattr(matcher, "is_completed", None)
        if is_completed is not None:
            return bool(is_completed())
        self.mask(matcher)
        eos = matcher.stop_token_ids[0]
        return bool(int(self._mask[0, eos // 32]) >> (eos % 32) & 1)


def main() -> None:
    """Measure what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--suite", type=Path, help="tests/draft2020-12 of JSON-Schema-Test-Suite")
    parser.add_argument("--results", help="append to benchmarks/results/NAME.jsonl")
    arguments = parser.parse_args()
    recorder = Recorder("cpu", arguments.results)
    tokenizer = Tokenizer.open(fetch_demo_model())
    small = [tokenizer.token_bytes(token_id) for token_id in range(tokenizer.vocab_size)]
    special, eos = sorted(tokenizer.special_ids), tokenizer.eos_token_ids[0]
    for tokens in (small, _enlarged(small, special)):
        for library in _libraries(tokens, special, eos):
            _times(library, tokenizer, len(tokens), recorder)
    if arguments.suite is not None:
        pieces = [bytes([value]) for value in range(256)] + [b"<eos>"]
        for library in _libraries(pieces, [256], 256):
            _coverage(library, arguments.suite, recorder)


def _libraries(tokens: list[bytes], special: list[int], eos: int) -> Iterator[Library]:
    for kind in (LLGuidance, XGrammar):
        try:
            yield kind(tokens, special, eos)
        except ImportError:
            print(f"{kind.name} is not installed")


def _enlarged(tokens: list[bytes], special: list[int]) -> list[bytes]:
    """As large as Qwen's vocabulary: pairs of tokens that stand beside each other in no text."""
    draw = random.Random(0)
    known = dict.fromkeys(tokens)
    plain = [token for token_id, token in enumerate(tokens) if token_id not in set(special)]
    while len(known) < LARGE_VOCABULARY:
        known.setdefault(draw.choice(plain) + draw.choice(plain))
    extra = list(known)[len(dict.fromkeys(tokens)) :]
    return [*tokens, *extra][:LARGE_VOCABULARY]


def _times(library: Library, tokenizer: Tokenizer, vocab_size: int, recorder: Recorder) -> None:
    library.compile({"type": "null"})
    for name, (schema, document) in SCHEMAS.items():
        compiles = []
        for _ in range(5):
            started = time.perf_counter()
            matcher = library.compile(schema)
            compiles.append(1e3 * (time.perf_counter() - started))
        token_ids = tokenizer.encode(json.dumps(document), add_special_tokens=False)
        for state in ("first", "later"):
            masks, accepts = [], []
            start = _copy(library, matcher)
            for token_id in token_ids:
                started = time.perf_counter()
                library.mask(start)
                masks.append(1e6 * (time.perf_counter() - started))
                started = time.perf_counter()
                assert library.accept(start, token_id), f"{library.name} refuses {document}"
                accepts.append(1e6 * (time.perf_counter() - started))
            assert library.is_complete(start)
            recorder.figure(
                "grammar", f"mask of {name}, {state} request", statistics.median(masks), "us",
                mean=round(statistics.mean(masks), 1),
                max=round(max(masks), 1), accept=round(statistics.mean(accepts), 1),
                library=library.name, vocab_size=vocab_size,
            )  # fmt: skip
        recorder.figure(
            "grammar", f"compile {name}", statistics.median(compiles), "ms",
            runs=[round(value, 2) for value in compiles],
            library=library.name, vocab_size=vocab_size,
        )  # fmt: skip


def _copy(library: Library, matcher: Any) -> Any:
    return matcher.deep_copy() if library.name == "llguidance" else matcher.fork()


def _coverage(library: Library, suite: Path, recorder: Recorder) -> None:
    counts = {"refused": 0, "honoured": 0, "half honoured": 0}
    num_valid = num_taken = 0
    leaks: dict[str, list[str]] = {}
    for file in sorted(suite.glob("*.json")):
        for group in json.loads(file.read_text()):
            try:
                matcher = library.compile(group["schema"])
            except ValueError:
                counts["refused"] += 1
                continue
            leaking = []
            for test in group["tests"]:
                taken = _takes(library, _copy(library, matcher), test["data"])
                if test["valid"]:
                    num_valid, num_taken = num_valid + 1, num_taken + taken
                elif taken:
                    leaking.append(test["description"])
            counts["half honoured" if leaking else "honoured"] += 1
            if leaking:
                leaks[f"{file.stem}: {group['description']}"] = leaking
    for name, count in counts.items():
        recorder.figure("grammar", f"suite schemas {name}", count, "", library=library.name)
    recorder.figure(
        "grammar", "valid documents of taken schemas that can be written", num_taken, "",
        of=num_valid, library=library.name,
    )  # fmt: skip
    print(json.dumps(leaks, indent=1))


def _takes(library: Library, matcher: Any, document: object) -> bool:
    text = json.dumps(document, ensure_ascii=False)
    try:
        data = text.encode()
    except UnicodeEncodeError:
        return False
    return all(library.accept(matcher, byte) for byte in data) and library.is_complete(matcher)


if __name__ == "__main__":
    main()
