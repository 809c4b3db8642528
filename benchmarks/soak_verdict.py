"""What must hold after a soak's load: see ``soak.py``. Knows nothing of how requests were drawn."""

from __future__ import annotations

import statistics

from answer_check import Answer, AnswerCheck
from soak_load import SoakLoad

from octavo.outputs import EngineStats

_NUM_TRIALS = 8
"""Answers that are held against other weights than their own."""


class SoakVerdict:
    """Of one load that has ended."""

    def __init__(self, load: SoakLoad) -> None:
        self._load = load
        self._adapters = load.adapters
        self._check = AnswerCheck(
            load.core,
            load.intake,
            is_exact=load.options.batch_invariant,
            tolerance=load.options.tolerance,
        )

    def check_tokens(self) -> tuple[int, int, list[str]]:
        """Runs a sample of greedy requests alone: how many, near ties in them, and faults."""
        sample = self._load.seen.answers
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
        if not self._adapters:
            return 0, []
        adapted = [answer for answer in self._load.seen.answers if answer.digest is not None]
        adapted.sort(key=lambda answer: -len(answer.drawn))
        num_apart, tried = 0, adapted[:_NUM_TRIALS]
        for answer in tried:
            others = self._adapters.others(answer.digest or "")
            num_apart += all(self._check_one(answer, other)[1] for other in [*others, None])
        if 2 * num_apart > len(tried):
            return num_apart, []
        told = f"{num_apart} of {len(tried)} answers were told from those of other weights"
        return num_apart, [f"adapters make too little difference to be told apart: {told}"]

    def _place(self, digest: str | None) -> str:
        return self._adapters.folders[digest] if self._adapters and digest else "the base model"

    def _check_one(self, answer: Answer, digest: str | None) -> tuple[int, str | None]:
        adapter = self._adapters.open_alone(digest) if self._adapters and digest else None
        try:
            return self._check.check(answer, adapter)
        finally:
            if self._adapters and adapter:
                self._adapters.close_alone(adapter)

    def faults(self) -> list[str]:
        """Everything but tokens."""
        load, seen, stats = self._load, self._load.seen, self._load.core.stats()
        faults = [*seen.faults, *self._adapter_faults(stats)]
        if stats.num_owned_blocks or stats.num_running or stats.num_waiting:
            faults.append(f"not everything was given back: {stats}")
        if load.num_left:
            faults.append(f"{load.num_left} requests never ended, or were never answered")
        if seen.ends.total() != seen.num_choices:
            faults.append(f"{seen.num_choices} choices were taken in, and {seen.ends} told of")
        slowest = max(seen.steps_s)
        if slowest > load.options.stall_limit:
            faults.append(f"a step took {slowest:.2f} s; the limit is {load.options.stall_limit} s")
        if not stats.num_preemptions:
            faults.append("nobody was preempted: the cache is too large for this load")
        if not seen.ends.get("abort"):
            faults.append("nobody was aborted")
        usage, needed = statistics.median(seen.usage), 50 if self._adapters else 90
        if 100 * usage < needed:
            faults.append(f"the cache was {usage:.0%} full, not {needed} %")
        return faults + _growth(seen.memory)

    def _adapter_faults(self, stats: EngineStats) -> list[str]:
        if not self._adapters or stats.adapters is None:
            return []
        changes, adapters = self._adapters.changes, stats.adapters
        needed = {
            "copied to another's slot": adapters.num_slot_evictions,
            "dropped from host memory": adapters.num_host_evictions,
            **{change: changes[change] for change in ("loaded", "replaced", "refused")},
            "unloaded": changes["unloaded"] + changes["unloaded with requests"],
        }
        missing = [f"no adapter was {what}" for what, count in needed.items() if not count]
        return self._adapters.faults + missing


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
