"""Trials of grammars: one at a time, shared, and their own masters."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from octavo.errors import EngineDeadError, QueueFullError, RequestFailedError
from octavo.grammar import StructuredOutputs
from octavo.structured import trial
from octavo.structured.translate import translate
from octavo.structured.trial import GrammarTrials
from polling import until
from tiny_models import EOS_TOKEN_ID, VOCAB_SIZE


class GatedTrials(GrammarTrials):
    """No process: each exchange waits until the gate is open, and has no objection."""

    def __init__(self) -> None:
        super().__init__("", 0, [])
        self.gate = asyncio.Event()
        self.exchanged: list[str] = []

    async def _exchange(self, text: str) -> str:
        self.exchanged.append(text)
        await self.gate.wait()
        return ""

    def asking(self, text: str) -> asyncio.Task[None]:
        return asyncio.create_task(self.check(text, StructuredOutputs(regex=text)))


@pytest.fixture
async def trials() -> AsyncIterator[GatedTrials]:
    trials = GatedTrials()
    yield trials
    await trials.close()
    await trials.close()


async def test_a_trial_goes_on_when_who_asked_for_it_leaves(trials: GatedTrials) -> None:
    leaving, staying = trials.asking("a"), trials.asking("b")
    await until(lambda: trials.exchanged)
    leaving.cancel()
    with pytest.raises(asyncio.CancelledError):
        await leaving
    again = trials.asking("a")
    trials.gate.set()
    await asyncio.gather(staying, again)
    assert trials.exchanged == ["a", "b"]


async def test_equal_grammars_share_a_trial_whoever_leaves(trials: GatedTrials) -> None:
    several = [trials.asking("a") for _ in range(2 * trial.MAX_WAITING)]
    await until(lambda: trials.exchanged)
    several.pop().cancel()
    trials.gate.set()
    await asyncio.gather(*several)
    assert trials.num_tried == 1


async def test_more_trials_than_may_wait_are_told_to_come_again(
    trials: GatedTrials, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trial, "MAX_WAITING", 2)
    waiting = [trials.asking("a"), trials.asking("b")]
    await until(lambda: trials.exchanged)
    with pytest.raises(QueueFullError, match="2 new grammars are being tried") as refused:
        await trials.asking("c")
    assert refused.value.retry_after_s > 0
    trials.gate.set()
    await asyncio.gather(*waiting)
    await trials.asking("c")


async def test_who_waits_when_trials_end_is_told(trials: GatedTrials) -> None:
    waiting = [trials.asking("a"), trials.asking("a"), trials.asking("b")]
    await until(lambda: trials.exchanged)
    await trials.close()
    for task in waiting:
        with pytest.raises(EngineDeadError, match="shutting down"):
            await task


async def test_a_process_that_does_not_start_says_nothing_of_a_grammar(
    tmp_path: Path, byte_tokenizer: Path
) -> None:
    trials = GrammarTrials(str(tmp_path / "tokenizer"), VOCAB_SIZE, [EOS_TOKEN_ID])
    asked = StructuredOutputs(regex="[ab]")
    try:
        with pytest.raises(RequestFailedError, match="did not start"):
            await trials.check(translate(asked).text, asked)
        shutil.copytree(byte_tokenizer, tmp_path / "tokenizer")
        await trials.check(translate(asked).text, asked)
    finally:
        await trials.close()
