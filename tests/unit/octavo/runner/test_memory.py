"""How much of a card the KV cache gets, and what is said when it is too little."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch

from octavo.config import EngineConfig
from octavo.errors import OutOfMemoryError
from octavo.runner.card_memory import explained_shortage
from octavo.runner.memory import UNCOUNTED_BYTES, KVBudget, kv_budget
from octavo.runner.trial_steps import CardUse

GIB = 1 << 30
USE = CardUse(15 * GIB, 2 * GIB, 1 * GIB, us_per_token=24.0)
UNCOUNTED = UNCOUNTED_BYTES / GIB


class Llama8B:
    """As much of a model as its cache's size follows from."""

    num_layers, num_kv_heads, head_dim = 32, 8, 128
    block_bytes = 32 * 2 * 8 * 16 * 128 * 2


@dataclass
class Card:
    """A card whose bytes are made up."""

    total_bytes: int = 80 * GIB
    own: int = 15 * GIB
    others: int = 0

    def own_bytes(self) -> int:
        return self.own

    def free_bytes(self) -> int:
        return self.total_bytes - self.own - self.others

    def peak_of(self, run: Callable[[], None]) -> int:
        raise AssertionError("nothing is run here")


def budget_of(
    config: EngineConfig, card: Card | None = None, use: CardUse = USE, max_model_len: int = 8192
) -> KVBudget:
    return kv_budget(
        config,
        Llama8B(),  # type: ignore[arg-type]
        dtype=torch.bfloat16,
        max_model_len=max_model_len,
        max_num_seqs=256,
        card=card or Card(),
        use=use,
    )


def test_the_cache_gets_what_weights_steps_and_graphs_leave_of_the_share() -> None:
    budget = budget_of(EngineConfig(model="m", gpu_memory_utilization=0.9))
    left = int(80 * GIB * 0.9) - (15 + 2 + 1) * GIB - UNCOUNTED_BYTES
    assert budget.num_blocks == left // Llama8B.block_bytes
    assert budget.size_bytes == budget.num_blocks * Llama8B.block_bytes <= left


def test_a_neighbour_changes_no_size() -> None:
    config = EngineConfig(model="m", gpu_memory_utilization=0.45)
    alone = budget_of(config)
    assert budget_of(config, Card(others=37 * GIB)) == alone
    assert budget_of(config, Card(others=1 * GIB)) == alone


def test_a_neighbour_that_holds_our_share_is_told_of_with_numbers() -> None:
    config = EngineConfig(model="m", gpu_memory_utilization=0.9)
    with pytest.raises(OutOfMemoryError) as caught:
        budget_of(config, Card(others=40 * GIB))
    message = str(caught.value)
    assert "80.00 GiB only 25.00 are free" in message
    assert "hold 40.00" in message
    assert "--gpu-memory-utilization to 0.49 or less" in message
    assert message.count(".  ") == 0
    assert message.endswith(".")


def test_a_share_too_small_for_one_request_says_where_it_went() -> None:
    config = EngineConfig(model="m", gpu_memory_utilization=0.24, max_model_len=8192)
    with pytest.raises(OutOfMemoryError) as caught:
        budget_of(config)
    left = 80 * 0.24 - 18 - UNCOUNTED
    assert f"{left:.2f} GiB of the card's share (0.24 of 80.00 GiB, less 15.00" in str(caught.value)
    assert "raise --gpu-memory-utilization, or lower --max-num-batched-tokens" in str(caught.value)


def test_a_share_smaller_than_the_weights_leaves_nothing_rather_than_less() -> None:
    config = EngineConfig(model="m", gpu_memory_utilization=0.1)
    with pytest.raises(OutOfMemoryError, match=r"0\.00 GiB .* lower --max-model-len to 0 or less"):
        budget_of(config)


def test_a_cache_of_given_size_is_checked_against_what_is_free() -> None:
    config = EngineConfig(model="m", kv_cache_memory_bytes=8 * GIB)
    assert budget_of(config).num_blocks == 8 * GIB // Llama8B.block_bytes
    with pytest.raises(OutOfMemoryError, match="lower --kv-cache-memory-bytes"):
        budget_of(config, Card(others=60 * GIB))


def test_the_allocators_complaint_becomes_a_sentence_with_numbers() -> None:
    with (
        pytest.raises(OutOfMemoryError) as caught,
        explained_shortage(Card(others=30 * GIB), "the model's weights", "serve a smaller model"),
    ):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate ...")
    assert str(caught.value) == (
        "There is no room for the model's weights: of the card's 80.00 GiB this engine holds "
        "15.00 already, other processes and CUDA 30.00, and 35.00 are free: serve a smaller "
        "model, or stop what else uses the card."
    )


@pytest.mark.parametrize(
    ("us_per_token", "budget"),
    [(3.3, 2048), (24.0, 2048), (29.0, 2048), (31.0, 1536), (130.0, 256), (5000.0, 256)],
)
def test_slow_cards_get_smaller_steps_beside_decodes(us_per_token: float, budget: int) -> None:
    assert CardUse(0, 0, 0, us_per_token).budget_while_decoding() == budget


@pytest.mark.parametrize(
    ("us_per_token", "launch_ms", "captured"), [(21.4, 12.5, 1168), (2.3, 12.5, 10869)]
)
def test_steps_that_the_host_outruns_are_not_captured(
    us_per_token: float, launch_ms: float, captured: int
) -> None:
    assert CardUse(0, 0, 0, us_per_token, launch_ms).captured_tokens() == captured
