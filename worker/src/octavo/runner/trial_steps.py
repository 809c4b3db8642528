"""The largest steps an engine will ever run, tried before memory is shared out.

They load the usual kernels, and tell how much memory a step needs beside weights and cache, and
how long a token of a long step takes. Knows plans and bytes; the model is the runner's affair.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import msgspec

from octavo.batch import BatchPlan, PromptReading, RowAdmission, Runner, StepHandle
from octavo.config import SchedulerConfig
from octavo.pooling_params import PoolingParams
from octavo.runner.card_memory import CardMemory, explained_shortage
from octavo.sampling_params import SamplingParams

TARGET_STEP_MS = 60.0
"""How long a step beside decodes may take: they all wait for it."""
_BUDGETS = (256, 512, 768, 1024, 1536, 2048)
"""Token budgets beside decodes. More than the last gains no throughput on any card: its products
run at full speed by then, and larger steps are not captured."""
# What costs most memory at each row: filters, penalties and log probabilities.
_DEMANDING = SamplingParams(temperature=1.0, top_k=50, top_p=0.9, presence_penalty=1.0, logprobs=20)
# And what has kernels of its own beside.
_WISHING = msgspec.structs.replace(
    _DEMANDING,
    logit_bias={0: 1.0},
    allowed_token_ids=(0, 1),
    bad_word_token_ids=((0, 1),),
    min_tokens=1,
    stop_token_ids=(1,),
)


class TriedRunner(Runner, Protocol):
    """A runner as it is tried."""

    def execute_uncaptured(self, plan: BatchPlan) -> StepHandle:
        """Start a step kernel by kernel, whatever is captured."""

    def run_largest(self) -> None:
        """Run on padding alone the captured steps that need most memory."""

    def run_products(self, most_tokens: int, most_draws: int) -> None:
        """Load all kernels that products of up to so many tokens, or of logits, may take."""

    def run_draws(self) -> None:
        """Load all kernels that draws may take."""

    def seconds_to_launch(self) -> float:
        """How long the host needs to launch a step that is not captured; 0 if none ever is."""


@dataclass(frozen=True, slots=True)
class CardUse:
    """What an engine needs of its card beside the KV cache, in bytes; and how fast it is."""

    weights_bytes: int
    step_bytes: int
    """Rows, and the workspace of the largest eager step."""
    graphs_bytes: int
    """What captured steps keep for themselves."""
    us_per_token: float
    """Of a step with max_num_batched_tokens."""
    launch_ms: float = 0.0
    """What the host takes to launch a step that is not captured."""

    def budget_while_decoding(self) -> int:
        """Tokens of a step that ends within the target, as one of a few round numbers."""
        fitting = [b for b in _BUDGETS if b * self.us_per_token <= 1e3 * TARGET_STEP_MS]
        return fitting[-1] if fitting else _BUDGETS[0]

    def captured_tokens(self) -> int:
        """Up to how many tokens the device takes less than twice as long for a step as the host
        does to launch it: capturing longer ones gains nothing, and keeps both waiting once."""
        return max(1, int(2e3 * self.launch_ms / self.us_per_token))


def try_steps(
    make_runner: Callable[[], TriedRunner], limits: SchedulerConfig, memory: CardMemory
) -> CardUse:
    """Build a runner, try its largest steps and drop it.

    ``make_runner`` is called once, for a cache of one block. Raises
    :class:`octavo.errors.OutOfMemoryError` with what to lower when a step does not fit.
    """
    weights_bytes = memory.own_bytes()
    what = f"a step of {limits.max_num_batched_tokens} tokens and {limits.max_num_seqs} requests"
    with explained_shortage(memory, what, "lower --max-num-batched-tokens or --max-num-seqs"):
        runner = make_runner()
        before_bytes = memory.own_bytes()
        graphs_bytes = memory.peak_of(runner.run_largest) - before_bytes
        plan = _largest_plan(limits)
        step_bytes = memory.peak_of(lambda: _run(runner, plan)) - weights_bytes
        started_s = time.perf_counter()
        _run(runner, plan)
        elapsed_s = time.perf_counter() - started_s
        launch_s = runner.seconds_to_launch()
        runner.run_products(limits.max_num_batched_tokens, limits.max_num_seqs)
        runner.run_draws()
        _run(runner, _wishing_plan())
    runner.close()
    us_per_token = 1e6 * elapsed_s / plan.total_tokens
    return CardUse(weights_bytes, step_bytes, graphs_bytes, us_per_token, 1e3 * launch_s)


def run_largest_step(runner: TriedRunner, limits: SchedulerConfig) -> None:
    """Let the allocator hold the largest step's workspace from the start: later steps take parts
    of it. Where steps grow one by one, what each left is too small for the next, and in the end
    the allocator holds far more than any step needs."""
    _run(runner, _largest_plan(limits))


def _run(runner: TriedRunner, plan: BatchPlan) -> None:
    """Returns when the device has done it."""
    runner.execute_uncaptured(plan).result()
    runner.execute(BatchPlan(released_rows=plan.rows))


def _largest_plan(limits: SchedulerConfig) -> BatchPlan:
    """As many tokens and as many draws as a step can have."""
    num_rows = min(limits.max_num_seqs, limits.max_num_batched_tokens)
    num_tokens = min(limits.max_num_batched_tokens, num_rows * (limits.max_model_len - 1))
    ends = [num_tokens * (row + 1) // num_rows for row in range(num_rows)]
    counts = [end - start for start, end in zip([0, *ends], ends, strict=False)]
    return trial_plan(sorted(counts), _DEMANDING)


def _wishing_plan() -> BatchPlan:
    """A short prompt that is read for its scores and for an embedding, and draws under every wish:
    kernels that it loads now need not be loaded while others decode."""
    plan = trial_plan([2], _WISHING)
    plan.readings = [
        PromptReading(0, num_scored=1, num_top=1, pooling=PoolingParams(), ends_prompt=True)
    ]
    return plan


def trial_plan(lengths: Sequence[int], params: SamplingParams) -> BatchPlan:
    """Prompts of so many tokens, those of one token first, that all draw; keys and values go to
    one block."""
    admissions = [
        RowAdmission(
            row=row,
            token_ids=[0] * length,
            num_prompt_tokens=length,
            num_cached_tokens=0,
            params=params,
            seed=row,
            stop_token_ids=frozenset(params.stop_token_ids),
            block_ids=[0],
        )
        for row, length in enumerate(lengths)
    ]
    return BatchPlan(
        admissions=admissions,
        rows=list(range(len(lengths))),
        starts=[0] * len(lengths),
        num_tokens=list(lengths),
        samples=[True] * len(lengths),
        num_decodes=lengths.count(1),
    )
