#!/usr/bin/env python
"""Hours in minutes: a full cache, aborts, deadlines and preemptions, and nothing may go wrong.

    python benchmarks/soak.py --model demo://smollm2-135m-instruct --minutes 10
    python benchmarks/soak.py --shape 8b --dtype bfloat16 --minutes 8.5 --results h100
    python benchmarks/soak.py --shape 0.6b --batch-invariant --minutes 8.5
    python benchmarks/soak.py --shape 8b --dtype bfloat16 --minutes 8.5 --adapters 16

Keeps more requests open than the KV cache holds, of every kind the engine knows: greedy, drawn,
filtered, penalised, with log probabilities, with n choices, sharing prefixes, of two priorities,
some aborted, some with a deadline; with --adapters, of the base model and of so many LoRA adapters,
which are loaded, replaced and unloaded meanwhile, with slots for a quarter of them and host memory
for half. Ends with status 1 and a list unless

- no block, row or request is lost, while it runs and at its end;
- greedy requests, a sample over the whole time, get the tokens and log probabilities they get when
  run alone: bit for bit with --batch-invariant; else log probabilities within --tolerance, and
  where rounding chose between two tokens, the one taken must be as nearly as likely alone;
- no step takes longer than --stall-limit;
- every request ended, or was refused for a reason that there was;
- the cache was at least 90 % full half of the time (50 with adapters, as not all can run at once),
  and preemptions and aborts did happen;
- memory is flat: what torch and the process hold does not grow after the first quarter;
- with adapters: each answer is that of the generation the request was given, and would not do for
  other weights that its name had; no slot, host entry or generation is left when all are unloaded.
"""

from __future__ import annotations

import argparse
import math
import os
import random
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from adapter_churn import AdapterChurn
from answer_check import Answer, AnswerCheck, greedy
from record import Recorder
from shapes import SHAPES, model_folder

from octavo import SamplingParams
from octavo.config import EngineConfig
from octavo.engine.build import build_engine
from octavo.engine.intake import Intake
from octavo.engine.request_options import RequestOptions
from octavo.errors import AdapterNotReadyError, OctavoError, QueueFullError, UnknownModelError
from octavo.outputs import EngineStats, RequestUpdate, TokenLogprobs
from octavo.request import AdapterGeneration

_SAMPLE_EVERY_S = 2.0
_CHECKED_SHARE = 0.25
_ABORTED_SHARE = 0.12
_DEADLINE_SHARE = 0.05
_NUM_PREFIXES = 6
_NUM_PREFIXES_WITH_ADAPTERS = 2
"""As they are cached once for each adapter."""
_MOST_TOKENS_WITH_ADAPTERS = 256
"""An adapter keeps its slot until its running requests have ended: long ones would keep all others
waiting for longer than they may."""
_NUM_TRIALS = 8
"""Answers that are held against other weights than their own."""
_FOUNDED = (UnknownModelError, AdapterNotReadyError)
"""Refusals that come of adapters that are unloaded, or too many for the slots."""


@dataclass(slots=True)
class Asked:
    """What somebody wants."""

    number: int
    prompt: list[int]
    params: SamplingParams
    is_checked: bool
    abort_after: int | None
    """Tokens after which its client leaves."""
    priority: int
    timeout_s: float | None


@dataclass(slots=True)
class Open:
    """One request under way; its choices together."""

    asked: Asked
    adapter: AdapterGeneration | None
    ids: list[str]
    num_open: int
    num_tokens: int = 0
    logprobs: list[TokenLogprobs] = field(default_factory=list)
    abort_after: int | None = None


@dataclass(slots=True)
class Seen:
    """What happened."""

    steps_s: list[float] = field(default_factory=list)
    usage: list[float] = field(default_factory=list)
    memory: list[dict[str, int]] = field(default_factory=list)
    ends: Counter[str] = field(default_factory=Counter)
    """Of choices, by reason."""
    refusals: Counter[str] = field(default_factory=Counter)
    """Of requests, by the error's kind."""
    answers: list[Answer] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    num_asked: int = 0
    num_choices: int = 0
    """Of all requests that were taken in."""
    num_tokens: int = 0


class Soak:
    """One engine under load."""

    def __init__(self, options: argparse.Namespace, adapters: Path | None) -> None:
        """``adapters``: an empty folder for them; None: there are none."""
        self.options = options
        engine = build_engine(_engine_config(options))
        self.core, self.info = engine.core, engine.info
        self._intake = Intake(self.info, seed=1)
        self._check = AnswerCheck(
            self.core,
            self._intake,
            is_exact=options.batch_invariant,
            tolerance=options.tolerance,
        )
        self._draw = random.Random(options.seed)
        # Together the open ones want half as much again as there is; with adapters, of which many
        # share a prefix and not all can run, more.
        capacity = self.info.num_blocks * self.info.block_size
        longest = (8 if adapters else 4) * capacity // max(1, self.info.max_num_seqs)
        self._longest = max(8, min(longest, self.info.max_model_len - 1))
        num_prefixes = _NUM_PREFIXES_WITH_ADAPTERS if adapters else _NUM_PREFIXES
        self._prefixes = [self._ids(self._longest // 3) for _ in range(num_prefixes)]
        self._open: dict[str, Open] = {}
        self._num_asking = 0
        """Requests that wait for their adapter to be loaded."""
        self.seen = Seen()
        self.adapters = self._adapters_in(adapters) if adapters else None

    def _adapters_in(self, folder: Path) -> AdapterChurn:
        options = self.options
        return AdapterChurn(
            self.core,
            _model(options),
            folder,
            count=options.adapters,
            max_rank=options.max_lora_rank,
            seed=options.seed,
        )

    def run(self) -> None:
        """Load until the time or the requests are over, then end what is open."""
        while self.core.prepare_next():
            pass
        if self.adapters:
            self.adapters.load_all()
        options, started_s = self.options, time.monotonic()
        next_sample_s = started_s
        while self._is_wanted(time.monotonic() - started_s):
            self._fill()
            self._step()
            if time.monotonic() >= next_sample_s:
                self._sample()
                next_sample_s += 0.0 if options.requests else _SAMPLE_EVERY_S
        # The end of a shift: whoever is not to be checked leaves at once.
        unchecked = [id for id, request in self._open.items() if not request.asked.is_checked]
        self.core.abort(unchecked)
        while self.core.has_work or (self.adapters and self.adapters.is_busy):
            self._step(may_change=False)
        self.core.check_integrity()

    def _is_wanted(self, elapsed_s: float) -> bool:
        if self.options.requests:
            return self.seen.num_asked < int(self.options.requests)
        return elapsed_s < 60 * float(self.options.minutes)

    def _fill(self) -> None:
        """As many as half fill the queue, beside those whose adapter is not on the device: these
        take no memory, however many there are."""
        most = self.info.max_num_seqs
        resident = self.adapters.resident() if self.adapters else ()
        num_absent = self._num_asking + sum(
            request.adapter is not None and request.adapter.id not in resident
            for request in self._open.values()
        )
        num_able = len(self._open) + self._num_asking - num_absent
        while num_able < most + most // 2:
            num_before, is_to_run = len(self._open), num_absent >= most
            if not self._ask(resident, is_to_run=is_to_run):
                return
            num_able += max(1, len(self._open) - num_before)

    def _ask(self, resident: Collection[int], *, is_to_run: bool) -> bool:
        asked = self._draw_request()
        name = self.adapters.choose(resident, is_to_run=is_to_run) if self.adapters else None
        if self.adapters is None or name is None:
            return self._enter(asked, None)
        self._num_asking += 1
        self.adapters.begin(self._enter_with(name, asked))
        return True

    def _draw_request(self) -> Asked:
        draw = self._draw
        is_checked = draw.random() < _CHECKED_SHARE
        length = draw.randint(2, self._longest)
        prompt = self._ids(draw.randint(1, length - 1))
        if draw.random() < (0.6 if self.adapters else 0.3):
            prompt = [*draw.choice(self._prefixes), *prompt][: length - 1]
        leaves = not is_checked and draw.random() < _ABORTED_SHARE
        params = self._params(length - len(prompt), is_checked)
        self.seen.num_asked += 1
        return Asked(
            self.seen.num_asked,
            prompt,
            params,
            is_checked,
            abort_after=draw.randint(0, params.max_tokens or 0) if leaves else None,
            priority=int(draw.random() < 0.2),
            timeout_s=draw.uniform(0.05, 5) if draw.random() < _DEADLINE_SHARE else None,
        )

    async def _enter_with(self, name: str, asked: Asked) -> None:
        assert self.adapters
        try:
            adapter = await self.adapters.acquire(name)
        except OctavoError as error:
            self._refused(error)
        else:
            self._enter(asked, adapter)
        finally:
            self._num_asking -= 1

    def _enter(self, asked: Asked, adapter: AdapterGeneration | None) -> bool:
        options = RequestOptions(
            priority=asked.priority, timeout_s=asked.timeout_s, adapter=adapter
        )
        specs = self._intake.prepare(str(asked.number), asked.prompt, asked.params, options)
        ids = [spec.id for spec in specs]
        request = Open(asked, adapter, ids, len(ids), abort_after=asked.abort_after)
        try:
            self.core.submit(specs)
        except OctavoError as error:
            self._refused(error)
            self._release(adapter)
            return False
        self.seen.num_choices += len(ids)
        self._open.update(dict.fromkeys(ids, request))
        return True

    def _refused(self, error: OctavoError) -> None:
        self.seen.refusals[type(error).__name__] += 1
        if not isinstance(error, (*_FOUNDED, QueueFullError)):
            self.seen.faults.append(f"a request was refused: {error!r}")

    def _release(self, adapter: AdapterGeneration | None) -> None:
        if self.adapters and adapter is not None:
            self.adapters.release(adapter)

    def _params(self, max_tokens: int, is_checked: bool) -> SamplingParams:
        draw = self._draw
        if self.adapters:
            max_tokens = min(max_tokens, _MOST_TOKENS_WITH_ADAPTERS)
        if is_checked:
            max_tokens = min(max_tokens, self.options.checked_tokens)
            return greedy(max_tokens)
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

    def _step(self, *, may_change: bool = True) -> None:
        updates: list[RequestUpdate] = []
        if self.core.has_work:  # else it would only sleep
            started_s = time.perf_counter()
            updates = self.core.step()
            self.seen.steps_s.append(time.perf_counter() - started_s)
        if self.adapters:
            self.adapters.turn(may_change=may_change)
        for update in updates:
            self._take(update)

    def _take(self, update: RequestUpdate) -> None:
        request = self._open.get(update.request_id)
        if request is None:
            self.seen.faults.append(f"{update} is nobody's")
            return
        request.num_tokens += len(update.new_token_ids)
        if request.asked.is_checked:
            request.logprobs += update.logprobs or []
        self.seen.num_tokens += len(update.new_token_ids)
        reason = update.finish_reason
        if reason is None:
            if request.abort_after is not None and request.num_tokens >= request.abort_after:
                self.core.abort(request.ids)
                request.abort_after = None
            return
        self.seen.ends[reason] += 1
        self._check_reason(update)
        del self._open[update.request_id]
        request.num_open -= 1
        if not request.num_open:
            self._release(request.adapter)
        if request.asked.is_checked and reason == "length":
            digest = request.adapter.digest if request.adapter else None
            self.seen.answers.append(Answer(request.asked.prompt, request.logprobs, digest))

    def _check_reason(self, update: RequestUpdate) -> None:
        """Of those that fail, the engine has said why before."""
        if update.finish_reason != "error":
            return
        kind = self.adapters and self.adapters.refusals.pop(update.request_id, None)
        if kind == AdapterNotReadyError.__name__:
            self.seen.refusals[kind] += 1
        else:
            self.seen.faults.append(f"{update.request_id} failed: {kind} {update.error}")

    def close(self) -> None:
        """Let go of the device."""
        if self.adapters:
            self.adapters.close()
        self.core.close()

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
        everything, most = self.seen.answers, self.options.checks
        sample = everything[:: max(1, math.ceil(len(everything) / most))]
        num_ties, faults = 0, []
        # Those of one adapter after each other: each is loaded once.
        for answer in sorted(sample, key=lambda answer: answer.digest or ""):
            ties, fault = self._check_one(answer, answer.digest)
            num_ties += ties
            if fault:
                faults.append(f"{fault} ({self._place(answer.digest)})")
        return len(sample), num_ties, faults

    def check_the_check(self) -> tuple[int, list[str]]:
        """Holds answers against other weights than their own: how many were told apart."""
        if not self.adapters:
            return 0, []
        adapted = [answer for answer in self.seen.answers if answer.digest is not None]
        adapted.sort(key=lambda answer: -len(answer.drawn))
        num_apart, tried = 0, adapted[:_NUM_TRIALS]
        for answer in tried:
            others = self.adapters.others(answer.digest or "")
            num_apart += all(self._check_one(answer, other)[1] for other in [*others, None])
        if 2 * num_apart > len(tried):
            return num_apart, []
        told = f"{num_apart} of {len(tried)} answers were told from those of other weights"
        return num_apart, [f"adapters make too little difference to be told apart: {told}"]

    def _place(self, digest: str | None) -> str:
        return self.adapters.folders[digest] if self.adapters and digest else "the base model"

    def _check_one(self, answer: Answer, digest: str | None) -> tuple[int, str | None]:
        adapter = self.adapters.open_alone(digest) if self.adapters and digest else None
        try:
            return self._check.check(answer, adapter)
        finally:
            if self.adapters and adapter:
                self.adapters.close_alone(adapter)

    def faults(self) -> list[str]:
        """Everything but tokens."""
        seen, options, stats = self.seen, self.options, self.core.stats()
        faults = [*seen.faults, *self._adapter_faults(stats)]
        if stats.num_owned_blocks or stats.num_running or stats.num_waiting:
            faults.append(f"not everything was given back: {stats}")
        if self._open or self._num_asking:
            num_left = len(self._open) + self._num_asking
            faults.append(f"{num_left} requests never ended, or were never answered")
        if seen.ends.total() != seen.num_choices:
            faults.append(f"{seen.num_choices} choices were taken in, and {seen.ends} told of")
        slowest = max(seen.steps_s)
        if slowest > options.stall_limit:
            faults.append(f"a step took {slowest:.2f} s; the limit is {options.stall_limit} s")
        if not stats.num_preemptions:
            faults.append("nobody was preempted: the cache is too large for this load")
        if not seen.ends.get("abort"):
            faults.append("nobody was aborted")
        usage, needed = statistics.median(seen.usage), 50 if self.adapters else 90
        if 100 * usage < needed:
            faults.append(f"the cache was {usage:.0%} full, not {needed} %")
        return faults + _growth(seen.memory)

    def _adapter_faults(self, stats: EngineStats) -> list[str]:
        if not self.adapters or stats.adapters is None:
            return []
        changes, adapters = self.adapters.changes, stats.adapters
        needed = {
            "copied to another's slot": adapters.num_slot_evictions,
            "dropped from host memory": adapters.num_host_evictions,
            **{change: changes[change] for change in ("loaded", "replaced", "refused")},
            "unloaded": changes["unloaded"] + changes["unloaded with requests"],
        }
        missing = [f"no adapter was {what}" for what, count in needed.items() if not count]
        return self.adapters.faults + missing


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
    if not options.adapters:
        return _run_soak(Soak(options, None))
    with tempfile.TemporaryDirectory() as folder:
        return _run_soak(Soak(options, Path(folder)))


def _run_soak(soak: Soak) -> int:
    started_s = time.monotonic()
    soak.run()
    seconds = time.monotonic() - started_s
    if soak.adapters:
        soak.adapters.finish()
    faults = soak.faults()
    stats = soak.core.stats()  # the checks below come on top
    num_checked, num_ties, wrong = soak.check_tokens()
    num_apart, blind = soak.check_the_check()
    soak.core.check_integrity()
    faults += [*wrong, *blind]
    _report(soak, stats, seconds, faults, (num_checked, num_ties, num_apart))
    for fault in faults:
        print(f"FAULT: {fault}", file=sys.stderr)
    soak.close()
    return 1 if faults else 0


def _report(
    soak: Soak,
    stats: EngineStats,
    seconds: float,
    faults: list[str],
    checks: tuple[int, int, int],
) -> None:
    options, seen = soak.options, soak.seen
    num_checked, num_ties, num_apart = checks
    adapters: dict[str, Any] = {}
    if soak.adapters and stats.adapters:
        adapters = {
            "adapters": options.adapters,
            "slots": stats.adapters.num_slots,
            "changes": soak.adapters.changes,
            "fills": stats.adapters.num_fills,
            "slot_evictions": stats.adapters.num_slot_evictions,
            "host_evictions": stats.adapters.num_host_evictions,
            "told_apart": num_apart,
        }
    Recorder(soak.info.device, options.results).figure(
        "soak",
        "minutes",
        seconds / 60,
        "min",
        model=options.shape or options.model.rpartition("/")[2],
        dtype=soak.info.dtype,
        batch_invariant=options.batch_invariant,
        requests=seen.num_asked,
        ends=seen.ends,
        refusals=seen.refusals,
        tokens=seen.num_tokens,
        steps=len(seen.steps_s),
        preemptions=stats.num_preemptions,
        kv_usage_p50=round(statistics.median(seen.usage), 3),
        step_ms_p50=round(1e3 * statistics.median(seen.steps_s), 2),
        step_ms_max=round(1e3 * max(seen.steps_s), 1),
        **adapters,
        checked=num_checked,
        near_ties=num_ties,
        memory_mib={
            name: [round(one[name] / 2**20) for one in (seen.memory[0], seen.memory[-1])]
            for name in seen.memory[0]
        },
        faults=faults,
    )


def _model(options: argparse.Namespace) -> str:
    return model_folder(options.shape) if options.shape else str(options.model)


def _engine_config(options: argparse.Namespace) -> EngineConfig:
    names = ("dtype", "device", "max_model_len", "max_num_seqs", "kv_cache_memory_bytes")
    config: dict[str, Any] = {
        name: value for name in names if (value := getattr(options, name)) is not None
    }
    if options.shape:
        config["load_format"] = "dummy"
    if options.adapters:
        num_slots = max(2, options.adapters // 4)
        config |= {"enable_lora": True, "max_lora_rank": options.max_lora_rank}
        config |= {"max_loras": num_slots, "max_cpu_loras": max(num_slots, options.adapters // 2)}
    return EngineConfig(
        model=_model(options),
        skip_tokenizer_init=True,
        batch_invariant=options.batch_invariant,
        gpu_memory_utilization=options.gpu_memory_utilization,
        **config,
    )


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
    parser.add_argument("--adapters", type=int, default=0, help="names of LoRA adapters; 0: none")
    parser.add_argument("--max-lora-rank", type=int, default=16)
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
