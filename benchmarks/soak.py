#!/usr/bin/env python
"""Hours in minutes: a full cache, aborts, deadlines and preemptions, and nothing may go wrong.

    python benchmarks/soak.py --model demo://smollm2-135m-instruct --minutes 10
    python benchmarks/soak.py --shape 8b --dtype bfloat16 --minutes 8.5 --results h100
    python benchmarks/soak.py --shape 0.6b --batch-invariant --minutes 8.5

Keeps more requests open than the KV cache holds, of every kind the engine knows: greedy, drawn,
filtered, penalised, with log probabilities, with n choices, sharing prefixes, of two priorities,
some aborted, some with a deadline. Ends with status 1 and a list unless

- no block, row or request is lost, while it runs and at its end;
- greedy requests, a sample over the whole time, get the tokens they get when run alone: bit for
  bit with --batch-invariant; else, where rounding chose between two tokens, the one taken must be
  as likely within --tolerance when the same text is computed alone;
- no step takes longer than --stall-limit;
- the cache was at least 90 % full half of the time, and preemptions and aborts did happen;
- memory is flat: what torch and the process hold does not grow after the first quarter.
"""

from __future__ import annotations

import argparse
import math
import os
import random
import statistics
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from record import Recorder
from shapes import SHAPES, model_folder

from octavo import SamplingParams
from octavo.config import EngineConfig
from octavo.engine.build import build_engine
from octavo.engine.intake import Intake
from octavo.engine.request_options import RequestOptions
from octavo.errors import QueueFullError
from octavo.outputs import RequestUpdate

_SAMPLE_EVERY_S = 2.0
_CHECKED_SHARE = 0.25
_ABORTED_SHARE = 0.12
_DEADLINE_SHARE = 0.05
_NUM_PREFIXES = 6
_MOST_CORRECTIONS = 40
"""Near ties in one request; more are no accident."""


@dataclass(slots=True)
class Open:
    """One request under way."""

    prompt: list[int]
    is_checked: bool
    abort_after: int | None
    """Tokens after which its client leaves."""
    ids: list[str]
    tokens: list[int] = field(default_factory=list)
    num_open: int = 1


@dataclass(slots=True)
class Seen:
    """What happened."""

    steps_s: list[float] = field(default_factory=list)
    usage: list[float] = field(default_factory=list)
    memory: list[dict[str, int]] = field(default_factory=list)
    ends: dict[str, int] = field(default_factory=dict)
    to_check: list[tuple[list[int], list[int]]] = field(default_factory=list)
    num_submitted: int = 0
    num_tokens: int = 0


class Soak:
    """One engine under load."""

    def __init__(self, options: argparse.Namespace) -> None:
        config: dict[str, Any] = {
            name: value
            for name in (
                "dtype",
                "device",
                "max_model_len",
                "max_num_seqs",
                "kv_cache_memory_bytes",
            )
            if (value := getattr(options, name)) is not None
        }
        model = model_folder(options.shape) if options.shape else options.model
        if options.shape:
            config |= {"load_format": "dummy"}
        self._options = options
        engine = build_engine(
            EngineConfig(
                model=model,
                skip_tokenizer_init=True,
                batch_invariant=options.batch_invariant,
                gpu_memory_utilization=options.gpu_memory_utilization,
                **config,
            )
        )
        self.core, self.info = engine.core, engine.info
        self._intake = Intake(self.info, seed=1)
        self._draw = random.Random(options.seed)
        # Together the open ones want half as much again as there is.
        capacity = self.info.num_blocks * self.info.block_size
        longest = 4 * capacity // max(1, self.info.max_num_seqs)
        self._longest = max(8, min(longest, self.info.max_model_len - 1))
        self._prefixes = [self._ids(self._longest // 3) for _ in range(_NUM_PREFIXES)]
        self._open: dict[str, Open] = {}
        self.seen = Seen()

    def run(self) -> None:
        """Load until the time or the requests are over, then end what is open."""
        while self.core.prepare_next():
            pass
        options, started_s = self._options, time.monotonic()
        next_sample_s = started_s
        while self._is_wanted(time.monotonic() - started_s):
            self._fill()
            self._step()
            if time.monotonic() >= next_sample_s:
                self._sample()
                next_sample_s += 0.0 if options.requests else _SAMPLE_EVERY_S
        # The end of a shift: whoever is not to be checked leaves at once.
        self.core.abort([id for id, request in self._open.items() if not request.is_checked])
        while self.core.has_work:
            self._step()
        self.core.check_integrity()

    def _is_wanted(self, elapsed_s: float) -> bool:
        if self._options.requests:
            return self.seen.num_submitted < self._options.requests
        return elapsed_s < 60 * self._options.minutes

    def _fill(self) -> None:
        wanted = self.info.max_num_seqs + self.info.max_num_seqs // 2
        while len(self._open) < wanted:
            if not self._submit():
                return

    def _submit(self) -> bool:
        draw, number = self._draw, self.seen.num_submitted
        is_checked = draw.random() < _CHECKED_SHARE
        length = draw.randint(2, self._longest)
        num_prompt = draw.randint(1, length - 1)
        prompt = self._ids(num_prompt)
        if draw.random() < 0.3:
            prompt = [*draw.choice(self._prefixes), *prompt][: length - 1]
        params = self._params(length - len(prompt), is_checked)
        leaves = not is_checked and draw.random() < _ABORTED_SHARE
        specs = self._intake.prepare(
            str(number),
            prompt,
            params,
            RequestOptions(
                priority=int(draw.random() < 0.2),
                timeout_s=draw.uniform(0.05, 5) if draw.random() < _DEADLINE_SHARE else None,
            ),
        )
        ids = [spec.id for spec in specs]
        after = draw.randint(0, length - len(prompt)) if leaves else None
        request = Open(prompt, is_checked, after, ids, num_open=len(ids))
        try:
            self.core.submit(specs)
        except QueueFullError:
            return False
        self.seen.num_submitted += 1
        self._open.update(dict.fromkeys(ids, request))
        return True

    def _params(self, max_tokens: int, is_checked: bool) -> SamplingParams:
        draw = self._draw
        if is_checked:
            max_tokens = min(max_tokens, self._options.checked_tokens)
            return SamplingParams(temperature=0.0, max_tokens=max_tokens, ignore_eos=True)
        kind: dict[str, Any] = draw.choice(
            [
                {},
                {},
                {"temperature": 0.0},
                {"top_p": 0.9, "top_k": 40},
                {"presence_penalty": 0.5, "repetition_penalty": 1.1},
                {"logprobs": 3},
                {"n": 2},
            ]
        )
        return SamplingParams(max_tokens=max_tokens, ignore_eos=True, detokenize=False, **kind)

    def _step(self) -> None:
        started_s = time.perf_counter()
        updates = self.core.step()
        self.seen.steps_s.append(time.perf_counter() - started_s)
        for update in updates:
            self._take(update)

    def _take(self, update: RequestUpdate) -> None:
        request = self._open.get(update.request_id)
        if request is None:
            return
        request.tokens += update.new_token_ids
        self.seen.num_tokens += len(update.new_token_ids)
        reason = update.finish_reason
        if reason is None:
            if request.abort_after is not None and len(request.tokens) >= request.abort_after:
                self.core.abort(request.ids)
                request.abort_after = None
            return
        self.seen.ends[reason] = self.seen.ends.get(reason, 0) + 1
        del self._open[update.request_id]
        if request.is_checked and reason == "length":
            self.seen.to_check.append((request.prompt, request.tokens))

    def _sample(self) -> None:
        self.core.check_integrity()
        stats = self.core.stats()
        self.seen.usage.append(stats.num_owned_blocks / stats.num_blocks)
        self.seen.memory.append(_memory(self.info.device))

    def _ids(self, count: int) -> list[int]:
        vocab_size = self.info.vocab_size
        return [self._draw.randrange(vocab_size // 10, vocab_size) for _ in range(count)]

    # ---- What must hold -------------------------------------------------------------------

    def check_tokens(self) -> tuple[int, int, list[str]]:
        """Runs a sample of greedy requests alone: how many, near ties in them, and faults."""
        self.core.reset_prefix_cache()
        everything, most = self.seen.to_check, self._options.checks
        step = max(1, math.ceil(len(everything) / most))
        num_ties, faults = 0, []
        sample = everything[::step]
        for prompt, tokens in sample:
            ties, fault = self._check_one(prompt, tokens)
            num_ties += ties
            if fault:
                faults.append(fault)
        return len(sample), num_ties, faults

    def _check_one(self, prompt: list[int], tokens: list[int]) -> tuple[int, str | None]:
        done, ties = 0, 0
        while done < len(tokens):
            alone = self._alone(prompt + tokens[:done], len(tokens) - done)
            rest = tokens[done:]
            pairs = enumerate(zip(alone, rest, strict=True))
            same = next((i for i, (a, b) in pairs if a != b), len(rest))
            if same == len(rest):
                return ties, None
            done += same
            where = f"after {len(prompt)} + {done} tokens {tokens[done]}, alone {alone[same]}"
            if self._options.batch_invariant:
                return ties, f"batch-invariant, but {where}"
            gap = self._gap(prompt + tokens[:done], tokens[done])
            if gap > self._options.tolerance:
                return ties, f"{where}, which is more likely by {gap:.3f}"
            done, ties = done + 1, ties + 1
            if ties > _MOST_CORRECTIONS:
                return ties, f"{where}; the {ties}th of its kind"
        return ties, None

    def _alone(self, prompt: list[int], count: int) -> list[int]:
        params = SamplingParams(temperature=0.0, max_tokens=count, ignore_eos=True)
        return [token for update in self._run(prompt, params) for token in update.new_token_ids]

    def _gap(self, prompt: list[int], token_id: int) -> float:
        """How much more likely the likeliest next token is than this one, computed alone."""
        params = SamplingParams(temperature=0.0, max_tokens=1, logprobs=20, ignore_eos=True)
        (logprobs,) = (one for update in self._run(prompt, params) for one in update.logprobs or [])
        among = dict(zip(logprobs.top_token_ids, logprobs.top_logprobs, strict=True))
        return max(among.values()) - among.get(token_id, -math.inf)

    def _run(self, prompt: list[int], params: SamplingParams) -> list[RequestUpdate]:
        self.seen.num_submitted += 1
        self.core.submit(self._intake.prepare(f"alone-{self.seen.num_submitted}", prompt, params))
        updates = []
        while self.core.has_work:
            updates += self.core.step()
        return updates

    def faults(self) -> list[str]:
        """Everything but tokens."""
        seen, options, stats = self.seen, self._options, self.core.stats()
        faults = []
        if stats.num_owned_blocks or stats.num_running or stats.num_waiting:
            faults.append(f"not everything was given back: {stats}")
        if self._open:
            faults.append(f"{len(self._open)} requests never ended")
        slowest = max(seen.steps_s)
        if slowest > options.stall_limit:
            faults.append(f"a step took {slowest:.2f} s; the limit is {options.stall_limit} s")
        if not stats.num_preemptions:
            faults.append("nobody was preempted: the cache is too large for this load")
        if not seen.ends.get("abort"):
            faults.append("nobody was aborted")
        if statistics.median(seen.usage) < 0.9:
            faults.append(f"the cache was {statistics.median(seen.usage):.0%} full, not 90 %")
        return faults + _growth(seen.memory)


def _memory(device: str) -> dict[str, int]:
    """Bytes held by the process, and by torch's allocator on a card."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    memory = {"rss": pages * os.sysconf("SC_PAGE_SIZE")}
    if device == "cuda":
        import torch

        memory["cuda_allocated"] = torch.cuda.memory_allocated()
        memory["cuda_reserved"] = torch.cuda.memory_reserved()
    return memory


def _growth(samples: list[dict[str, int]]) -> list[str]:
    """From the end of the first quarter to the last one; medians, as steps come and go."""
    quarter = len(samples) // 4
    if not quarter:
        return []
    faults = []
    for name in samples[0]:
        early = statistics.median(one[name] for one in samples[quarter : 2 * quarter])
        late = statistics.median(one[name] for one in samples[-quarter:])
        if late > early * 1.02 + (64 << 20):
            faults.append(f"{name} grew from {early / 2**20:.0f} to {late / 2**20:.0f} MiB")
    return faults


def main() -> int:
    """Run, check, report."""
    options = _parse()
    soak = Soak(options)
    started_s = time.monotonic()
    soak.run()
    seconds = time.monotonic() - started_s
    faults = soak.faults()
    num_checked, num_ties, wrong = soak.check_tokens()
    soak.core.check_integrity()
    seen, stats = soak.seen, soak.core.stats()
    recorder = Recorder(soak.info.device, options.results)
    recorder.figure(
        "soak",
        "minutes",
        seconds / 60,
        "min",
        model=options.shape or options.model.rpartition("/")[2],
        dtype=soak.info.dtype,
        batch_invariant=options.batch_invariant,
        requests=sum(seen.ends.values()),
        ends=seen.ends,
        tokens=seen.num_tokens,
        steps=len(seen.steps_s),
        preemptions=stats.num_preemptions,
        kv_usage_p50=round(statistics.median(seen.usage), 3),
        step_ms_p50=round(1e3 * statistics.median(seen.steps_s), 2),
        step_ms_max=round(1e3 * max(seen.steps_s), 1),
        checked=num_checked,
        near_ties=num_ties,
        memory_mib={
            name: [round(one[name] / 2**20) for one in (seen.memory[0], seen.memory[-1])]
            for name in seen.memory[0]
        },
        faults=faults + wrong,
    )
    for fault in faults + wrong:
        print(f"FAULT: {fault}", file=sys.stderr)
    return 1 if faults or wrong else 0


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--model", help="folder, .gguf file, ORG/NAME or demo://NAME")
    source.add_argument("--shape", choices=SHAPES, help="random weights of a published shape")
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--requests", type=int, help="end after so many instead")
    parser.add_argument("--checks", type=int, default=48, help="greedy requests to run alone")
    parser.add_argument("--checked-tokens", type=int, default=128, help="most of each of them")
    parser.add_argument("--tolerance", type=float, default=0.25, help="of log probabilities")
    parser.add_argument("--stall-limit", type=float, default=10.0, help="seconds of one step")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--batch-invariant", action="store_true")
    parser.add_argument("--dtype")
    parser.add_argument("--device")
    parser.add_argument("--max-model-len", type=int)
    parser.add_argument("--max-num-seqs", type=int)
    parser.add_argument("--kv-cache-memory-bytes", type=int)
    parser.add_argument("--gpu-memory-utilization", type=float, default=0.9)
    parser.add_argument("--results", help="append to benchmarks/results/NAME.jsonl")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
