"""Tries grammars under limits of CPU time and memory, one after the other, until its input ends.

Started by :mod:`octavo.structured.trial` as ``python -m octavo.structured.trial_process``. A
grammar may be hostile: what costs too much ends this process, and nothing else. Frames of a
4-byte big-endian length and UTF-8 text: grammars on standard input, reasons on standard output,
empty where the grammar can be followed. The first empty one says that the process has started.
"""

from __future__ import annotations

import json
import random
import resource
import struct
import sys
import time
from typing import Any, BinaryIO

from octavo.structured.library import GrammarLibrary
from octavo.structured.refusal import explain
from octavo.tokenization.tokenizer import Tokenizer

CPU_LIMIT_S = 3
"""For one grammar. Schemas that people write compile in milliseconds."""
MEMORY_LIMIT_BYTES = 1 << 30
"""For all that is compiled here, beside the vocabulary."""
MASK_LIMIT_S = 0.25
"""Longest that one mask may take; every other request in the batch would wait for it."""
_NUM_TOKENS = 24
"""How far a grammar is followed."""


def main() -> int:
    """Arguments: the tokenizer's path, the size of the vocabulary, end-of-text ids as JSON."""
    path, vocab_size, eos_token_ids = sys.argv[1:]
    vocabulary = Tokenizer.open(path).vocabulary()
    library = GrammarLibrary(vocabulary, int(vocab_size), json.loads(eos_token_ids))
    _limit_memory()
    source, answers = sys.stdin.buffer, sys.stdout.buffer
    _write(answers, "")
    while (text := _read(source)) is not None:
        _limit_cpu()
        _write(answers, try_grammar(library, text, json.loads(eos_token_ids)))
    return 0


def try_grammar(library: GrammarLibrary, text: str, eos_token_ids: list[int]) -> str:
    """Why a grammar cannot be followed; empty where it can, as far as a short walk shows."""
    try:
        matcher = library.compile(text)
    except ValueError as error:
        return str(error)
    draw = random.Random(0)
    for _ in range(_NUM_TOKENS):
        started_s = time.thread_time()
        mask = matcher.compute_bitmask()
        seconds = time.thread_time() - started_s
        if matcher.is_error():
            return explain(matcher.get_error())
        if seconds > MASK_LIMIT_S:
            return f"it is too complex: one token took {seconds:.1f} s"
        allowed = _allowed(mask)
        if not allowed:
            return "no text can satisfy it"
        token_id = draw.choice(allowed)
        if token_id in eos_token_ids:
            return ""
        if not matcher.consume_token(token_id):
            return explain(matcher.get_error())
    return ""


def _allowed(mask: bytes) -> list[int]:
    return [
        8 * index + bit
        for index, byte in enumerate(mask)
        if byte
        for bit in range(8)
        if byte >> bit & 1
    ]


def _read(source: BinaryIO) -> str | None:
    head = source.read(4)
    if len(head) < 4:
        return None
    (length,) = struct.unpack("!I", head)
    return source.read(length).decode()


def _write(answers: BinaryIO, reason: str) -> None:
    data = reason.encode()
    answers.write(struct.pack("!I", len(data)) + data)
    answers.flush()


def _limit_memory() -> None:
    with open("/proc/self/statm") as statm:
        size_bytes = int(statm.read().split()[0]) * resource.getpagesize()
    limit = size_bytes + MEMORY_LIMIT_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _limit_cpu() -> None:
    """From now on; the signal at its end cannot be caught by accident."""
    usage: Any = resource.getrusage(resource.RUSAGE_SELF)
    spent_s = int(usage.ru_utime + usage.ru_stime) + 1
    _, hard = resource.getrlimit(resource.RLIMIT_CPU)
    resource.setrlimit(resource.RLIMIT_CPU, (spent_s + CPU_LIMIT_S, hard))


if __name__ == "__main__":
    sys.exit(main())
