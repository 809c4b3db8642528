"""The scheduler's rules, one by one."""

from __future__ import annotations

import tracemalloc

import pytest

from octavo.batch import BatchPlan
from octavo.errors import InvalidRequestError, PromptTooLongError, QueueFullError
from octavo.outputs import TokenLogprobs
from octavo.request import RequestStatus
from scheduler_world import EOS, SchedulerWorld, make_request
from slot_checking_runner import reference_outputs


def planned(plan: BatchPlan | None) -> dict[str, int]:
    """Tokens each request computes in a plan."""
    assert plan is not None
    return {r.id: n for r, n in zip(plan.requests, plan.num_tokens, strict=True)}


# ---- Arrivals ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("prompt_len", "changes", "numbers"),
    [
        (64, {}, ["64 tokens", "max_model_len is 64", "63 tokens"]),
        (17, {"num_blocks": 4}, ["17 tokens", "5 blocks", "has 4", "16 tokens"]),
    ],
    ids=["context", "cache"],
)
def test_prompt_that_can_never_run_is_refused_with_numbers(
    prompt_len: int, changes: dict[str, int], numbers: list[str]
) -> None:
    world = SchedulerWorld(**changes)
    with pytest.raises(PromptTooLongError) as caught:
        world.add(make_request("a", prompt_len))
    assert all(number in str(caught.value) for number in numbers)
    assert caught.value.param == "prompt"
    assert not world.scheduler.has_work()


def test_longest_possible_prompt_is_served() -> None:
    world = SchedulerWorld()
    world.add(make_request("a", 63))
    world.run()
    assert len(world.outputs["a"]) == 1


def test_prompt_that_fills_the_whole_cache_is_served_after_the_others() -> None:
    """The watermark does not keep out who runs alone."""
    world = SchedulerWorld(num_blocks=4)
    world.add(make_request("a", 3))
    world.add(make_request("b", 16))
    world.run()
    assert len(world.outputs["b"]) == 1


@pytest.mark.parametrize("case", ["empty prompt", "id in use", "group too large"])
def test_request_that_makes_no_sense_is_refused(case: str) -> None:
    world = SchedulerWorld(max_num_waiting=2)
    world.add(make_request("a"))
    group = {
        "empty prompt": [make_request("b", [])],
        "id in use": [make_request("a")],
        "group too large": [make_request(f"b{i}") for i in range(3)],
    }[case]
    with pytest.raises(InvalidRequestError):
        world.add(*group)
    world.run()


def test_group_that_does_not_fit_the_queue_leaves_no_trace() -> None:
    world = SchedulerWorld(max_num_waiting=2)
    world.add(make_request("a"))
    with pytest.raises(QueueFullError):
        world.add(make_request("b"), make_request("c"))
    assert world.scheduler.stats().num_waiting == 1
    world.run()


def test_retry_after_follows_the_measured_drain_rate() -> None:
    world = SchedulerWorld(max_num_seqs=1, max_num_waiting=4)
    for i in range(4):
        world.add(make_request(f"r{i}", max_tokens=1))
    for _ in range(4):  # one leaves the queue every 2 s
        world.step()
        world.now_s += 2.0
    for i in range(4):
        world.add(make_request(f"s{i}"))
    waits = []
    for _ in range(3):
        with pytest.raises(QueueFullError) as caught:
            world.add(make_request("late"))
        waits.append(caught.value.retry_after_s)
    assert waits == pytest.approx([2.0, 4.0, 6.0])  # each is sent to a departure of its own


def test_retry_after_grows_while_the_queue_stands_still() -> None:
    world = SchedulerWorld(max_num_waiting=1)
    world.add(make_request("a"))
    world.step()
    world.add(make_request("b"))
    world.now_s += 10.0
    with pytest.raises(QueueFullError) as caught:
        world.add(make_request("c"))
    assert caught.value.retry_after_s == pytest.approx(10.0)


# ---- Budget and order ----------------------------------------------------------------------


def test_long_prompt_is_computed_in_chunks_beside_decodes() -> None:
    world = SchedulerWorld(max_num_batched_tokens=8)
    world.add(make_request("a", 4))
    assert planned(world.step()) == {"a": 4}
    world.add(make_request("b", 17))
    plans = [world.step() for _ in range(3)]
    assert [planned(plan) for plan in plans] == [
        {"a": 1, "b": 7},
        {"a": 1, "b": 7},
        {"a": 1, "b": 3},
    ]
    assert [plan.samples for plan in plans if plan] == [[True, False], [True, False], [True, True]]
    world.run()


def test_single_tokens_come_first_in_a_plan() -> None:
    world = SchedulerWorld()
    world.add(make_request("a", 5))
    world.step()
    world.add(make_request("b", 5))
    world.add(make_request("c", 1))
    plan = world.step()
    assert plan is not None
    assert [r.id for r in plan.requests] == ["a", "c", "b"]
    assert plan.num_decodes == 2
    world.run()


def test_waiting_requests_start_by_priority_then_deadline_then_arrival() -> None:
    world = SchedulerWorld(max_num_seqs=1)
    world.add(make_request("late", max_tokens=1, arrival_s=3.0))
    world.add(make_request("early", max_tokens=1, arrival_s=2.0))
    world.add(make_request("urgent", max_tokens=1, arrival_s=4.0, deadline_s=50.0))
    world.add(make_request("first", max_tokens=1, arrival_s=5.0, priority=-1))
    order = [next(iter(planned(world.step()))) for _ in range(4)]
    assert order == ["first", "urgent", "early", "late"]
    world.run()


def test_request_that_does_not_fit_is_not_overtaken() -> None:
    world = SchedulerWorld(num_blocks=6)
    world.add(make_request("a", 12, max_tokens=4))
    world.step()
    world.add(make_request("long", 16, max_tokens=1, arrival_s=1.0))
    world.add(make_request("short", 1, max_tokens=1, arrival_s=2.0))
    assert planned(world.step()) == {"a": 1}
    world.run()
    assert list(world.ends) == ["a", "long", "short"]


def test_better_priority_goes_before_the_next_chunk_of_a_worse_prompt() -> None:
    world = SchedulerWorld(max_num_batched_tokens=8)
    world.add(make_request("long", 30, priority=1))
    world.step()
    world.add(make_request("peer", 6, priority=1))
    world.add(make_request("urgent", 6, priority=0))
    assert planned(world.step()) == {"urgent": 6, "long": 2}
    world.run()


def test_rows_are_reused_and_released_first() -> None:
    world = SchedulerWorld(max_num_seqs=1)
    world.add(make_request("a", max_tokens=1))
    world.add(make_request("b", max_tokens=1))
    world.step()
    plan = world.step()
    assert plan is not None
    assert plan.released_rows == [0]
    assert [admission.row for admission in plan.admissions] == [0]
    world.run()


class UncompiledGrammar:
    """Of a request that may not run yet."""

    has_ended = False
    error: str | None = None

    def __init__(self) -> None:
        self.is_ready = False

    def accept(self, token_id: int) -> bool:
        return True

    def release(self) -> None:
        pass


def test_any_number_of_requests_that_wait_for_their_grammars_hold_nobody_up() -> None:
    world = SchedulerWorld(max_num_waiting=1000)
    grammar = UncompiledGrammar()
    for i in range(600):
        request = make_request(f"constrained {i}", 2, max_tokens=1)
        request.grammar = grammar
        world.add(request)
    world.add(make_request("free", 2, max_tokens=1))
    assert planned(world.step()) == {"free": 2}
    assert world.step() is None
    grammar.is_ready = True
    world.run()


# ---- Preemption ----------------------------------------------------------------------------


def test_last_in_order_gives_way_when_blocks_run_out() -> None:
    world = SchedulerWorld(num_blocks=6)
    for id in "abc":
        world.add(make_request(id, 4, max_tokens=12))
    world.step()
    world.add(make_request("d", 1))  # no blocks left for it once the others grow
    requests = world.requests
    while not world.scheduler.stats().num_preemptions:
        world.step()
    assert requests["a"].status is requests["b"].status is RequestStatus.RUNNING
    assert requests["c"].num_preemptions == 1
    world.run()
    assert requests["a"].num_preemptions == 0


def test_request_in_need_that_is_last_gives_way_itself() -> None:
    world = SchedulerWorld(num_blocks=4)
    a = world.add(make_request("a", 8, max_tokens=4))
    b = world.add(make_request("b", 3, max_tokens=6))
    world.step()
    world.step()
    assert planned(world.step()) == {"a": 1}  # b needed a block: its own were the ones to go
    assert (a.num_preemptions, b.num_preemptions) == (0, 1)
    world.run()


def test_preempted_request_keeps_its_tokens_and_its_place() -> None:
    world = SchedulerWorld(max_num_seqs=1)
    a = world.add(make_request("a", 6, max_tokens=8, priority=1))
    for _ in range(3):
        world.step()
    known = list(world.outputs["a"])
    world.add(make_request("later", 6, max_tokens=1, priority=1, arrival_s=1.0))
    world.add(make_request("urgent", 6, max_tokens=1, priority=0, arrival_s=2.0))
    assert planned(world.step()) == {"urgent": 6}
    assert a.status is RequestStatus.PREEMPTED
    assert world.outputs["a"] == known
    assert planned(world.step()) == {"a": 9 - 8}  # two full blocks were still in the cache
    world.run()
    assert list(world.ends) == ["urgent", "a", "later"]


def test_better_priority_takes_blocks_from_a_worse_one() -> None:
    world = SchedulerWorld(num_blocks=6)
    world.add(make_request("a", 16, max_tokens=4, priority=1))
    world.step()
    world.add(make_request("urgent", 16, max_tokens=1, priority=0))
    assert planned(world.step()) == {"urgent": 16}
    world.run()


@pytest.mark.parametrize("look_ahead", [0, 1])
def test_better_priority_takes_its_token_from_a_worse_decode_where_those_take_all(
    look_ahead: int,
) -> None:
    world = SchedulerWorld(
        max_num_seqs=4, max_num_batched_tokens=4, max_tokens_in_flight=look_ahead
    )
    for i in range(4):
        world.add(make_request(f"worse {i}", 1, max_tokens=20, priority=1))
    for _ in range(3):
        world.step()
    world.add(make_request("peer", 1, max_tokens=1, priority=1))
    world.add(make_request("urgent", 5, max_tokens=1, priority=0))
    assert world.step() is not None
    assert world.requests["urgent"].row is not None
    assert world.scheduler.stats().num_preemptions == 1
    world.run()
    assert next(iter(world.ends)) == "urgent"
    assert world.scheduler.stats().num_preemptions == 1


def test_who_was_blocked_preempts_a_worse_one_that_started_while_its_adapter_was_away() -> None:
    world = SchedulerWorld(num_blocks=20, max_num_batched_tokens=64, num_adapter_slots=1)
    adapters = world.scheduler.adapters

    def step() -> None:
        world.step()
        for fill in adapters.take_fills():
            adapters.filled(*fill)

    for adapter_id in (1, 2):
        adapters.add(adapter_id)
    world.add(make_request("first", 40, max_tokens=20))
    blocked = world.add(make_request("blocked", 48, adapter_id=1))
    for _ in range(3):
        step()
    world.now_s += 1.0  # it has kept its slot for long enough
    world.add(make_request("other adapter", 4, max_tokens=8, priority=-1, adapter_id=2))
    step()
    step()
    assert adapters.resident() == {2: 0}
    world.end("first", "abort")
    worse = world.add(make_request("worse", 40, max_tokens=24, priority=1))
    step()
    assert worse.row is not None
    while "other adapter" not in world.ends:
        step()
    for _ in range(3):
        step()
    assert blocked.row is not None, "it waits for one of worse priority"
    assert worse.num_preemptions == 1
    while "blocked" not in world.ends:
        step()
    world.run()


def test_an_adapter_that_is_to_leave_for_a_worse_priority_starts_a_better_request() -> None:
    """Though others keep the worse one from being looked at."""
    world = SchedulerWorld(max_num_seqs=2, num_adapter_slots=1)
    adapters = world.scheduler.adapters
    for adapter_id in (1, 2):
        adapters.add(adapter_id)
    world.add(make_request("running", 4, max_tokens=40, adapter_id=1))
    world.step()
    assert adapters.take_fills() == [(1, 0)]
    adapters.filled(1, 0)
    world.add(make_request("worse", 4, priority=2, adapter_id=2))
    for _ in range(2):
        world.step()
        world.now_s += 1.0
    world.step()  # 1 is to leave for 2
    for i in range(4):
        world.add(make_request(f"base{i}", 4, max_tokens=8, priority=1))
    better = world.add(make_request("better", 4, adapter_id=1))
    world.step()
    assert better.row is not None
    while "running" not in world.ends or "better" not in world.ends:
        world.step()
    world.step()
    assert adapters.take_fills() == [(2, 0)]
    adapters.filled(2, 0)
    world.run()


@pytest.mark.parametrize("scarce", [{"max_num_seqs": 1}, {"num_blocks": 6}], ids=["rows", "blocks"])
def test_equal_priority_waits_for_its_turn(scarce: dict[str, int]) -> None:
    world = SchedulerWorld(**scarce)
    world.add(make_request("a", 16, max_tokens=4, arrival_s=1.0))
    world.step()
    world.add(make_request("b", 16, max_tokens=1, arrival_s=0.0))
    world.run()
    assert list(world.ends) == ["a", "b"]
    assert world.scheduler.stats().num_preemptions == 0


def test_preempted_request_does_not_come_back_only_to_give_way_again() -> None:
    world = SchedulerWorld(num_blocks=16, max_num_seqs=8, max_num_batched_tokens=64)
    for i in range(6):
        world.add(make_request(f"r{i}", 8, max_tokens=24))
    world.run()
    stats = world.scheduler.stats()
    assert 0 < stats.num_preemptions <= 6
    useful = 6 * (8 + 24 - 1)
    assert world.runner.num_computed <= 1.5 * useful


# ---- Prefixes ------------------------------------------------------------------------------


def test_prompt_seen_before_is_computed_from_its_last_block_on() -> None:
    world = SchedulerWorld()
    prompt = list(range(100, 112))
    world.add(make_request("a", prompt))
    world.run()
    b = world.add(make_request("b", prompt))
    assert planned(world.step()) == {"b": 4}  # never the whole prompt: there must be a draw
    assert b.num_cached_tokens == 8
    world.run()
    assert world.ends["b"].num_cached_tokens == 8
    stats = world.scheduler.stats()
    assert (stats.prefix_query_tokens, stats.cached_prompt_tokens) == (24, 8)
    assert stats.prompt_tokens == 24


def test_conversation_finds_the_blocks_of_its_last_answer() -> None:
    world = SchedulerWorld()
    a = world.add(make_request("a", 6, max_tokens=7))
    world.run()
    world.add(make_request("b", [*a.token_ids, 5, 6]))
    assert planned(world.step()) == {"b": 3}  # 13 tokens are known, 12 of them in full blocks
    world.run()


@pytest.mark.parametrize("tenants", [(1, 2), (None, None)], ids=["other key", "no key"])
def test_nothing_is_shared_without_a_common_key(tenants: tuple[int | None, int | None]) -> None:
    world = SchedulerWorld()
    prompt = list(range(100, 112))
    world.add(make_request("a", prompt, tenant=tenants[0]))
    world.run()
    world.add(make_request("b", prompt, tenant=tenants[1]))
    assert planned(world.step()) == {"b": 12}
    world.run()


def test_blocks_are_not_findable_before_their_step_is_committed() -> None:
    world = SchedulerWorld(max_tokens_in_flight=1, max_num_batched_tokens=32)
    prompt = list(range(100, 112))
    world.add(make_request("a", prompt))
    world.plan()
    b = world.add(make_request("b", prompt))
    world.plan()
    assert b.num_cached_tokens == 0
    world.run()


def test_reset_forgets_cached_prefixes() -> None:
    world = SchedulerWorld()
    prompt = list(range(100, 112))
    world.add(make_request("a", prompt))
    world.run()
    world.scheduler.reset_prefix_cache()
    world.add(make_request("b", prompt))
    assert planned(world.step()) == {"b": 12}
    world.run()


def test_children_start_when_their_leader_has_computed_the_prompt() -> None:
    world = SchedulerWorld(max_num_batched_tokens=8)
    prompt = list(range(100, 113))
    leader = make_request("a", prompt)
    world.add(leader, make_request("b", prompt, leader=leader))
    assert planned(world.step()) == {"a": 8}
    assert planned(world.step()) == {"a": 5}
    assert planned(world.step()) == {"a": 1, "b": 1}
    assert world.requests["b"].num_cached_tokens == 12
    world.run()


@pytest.mark.parametrize(("length", "tenant"), [(3, 1), (12, None)])
def test_children_with_nothing_to_share_do_not_wait(length: int, tenant: int | None) -> None:
    world = SchedulerWorld(max_num_batched_tokens=32)
    prompt = list(range(100, 100 + length))
    leader = make_request("a", prompt, tenant=tenant)
    world.add(leader, make_request("b", prompt, tenant=tenant, leader=leader))
    assert planned(world.step()).keys() == {"a", "b"}
    world.run()


def test_children_of_an_aborted_leader_start_alone() -> None:
    world = SchedulerWorld()
    prompt = list(range(100, 112))
    leader = make_request("a", prompt)
    world.add(leader, make_request("b", prompt, leader=leader))
    world.end("a", "abort")
    assert planned(world.step()) == {"b": 12}
    world.run()


# ---- One step ahead ------------------------------------------------------------------------


def test_next_token_is_planned_before_the_last_one_is_known() -> None:
    world = SchedulerWorld(max_tokens_in_flight=1)
    a = world.add(make_request("a", 6, max_tokens=8))
    first, second = world.plan(), world.plan()
    assert first is not None
    assert second is not None
    assert (second.starts, second.num_tokens, a.num_in_flight) == ([6], [1], 2)
    assert world.plan() is None  # one step ahead, no more
    world.run()


def test_nothing_is_planned_past_the_last_token_in_flight() -> None:
    world = SchedulerWorld(max_tokens_in_flight=2)
    world.add(make_request("a", 6, max_tokens=2))
    assert [world.plan() is None for _ in range(3)] == [False, False, True]
    world.run()


def test_tokens_drawn_after_the_end_are_dropped() -> None:
    world = SchedulerWorld(max_tokens_in_flight=1)
    a = make_request("a", 6, max_tokens=20)
    outputs = reference_outputs(a.token_ids, a.seed, 20)
    a.stop_token_ids = frozenset({outputs[3]})
    world.add(a)
    while not a.is_finished:
        world.step()
    [(plan, result)] = world.under_way  # a token too many has been drawn already
    assert (plan.requests, len(result.token_ids)) == ([a], 1)
    assert world.commit() == []
    assert world.outputs["a"] == outputs[: outputs.index(outputs[3]) + 1]
    world.run()


@pytest.mark.parametrize("reason", ["abort", "error"])
def test_request_that_ends_while_its_step_is_under_way_is_heard_of_once(reason: str) -> None:
    world = SchedulerWorld(max_tokens_in_flight=1)
    world.add(make_request("a", 6))
    world.plan()
    world.plan()
    assert world.end("a", reason)
    assert not world.end("a", reason)
    assert world.commit() == []
    world.run()
    assert world.ends["a"].finish_reason == reason
    assert world.outputs["a"] == []


def test_preempted_request_gets_the_token_in_flight_before_it_comes_back() -> None:
    world = SchedulerWorld(max_tokens_in_flight=2, max_num_seqs=1)
    a = world.add(make_request("a", 6, max_tokens=4, priority=1))
    world.plan()
    world.add(make_request("urgent", 6, max_tokens=1, priority=0))
    world.plan()
    assert (a.status, a.num_in_flight) == (RequestStatus.PREEMPTED, 1)
    world.end("urgent", "abort")
    assert world.plan() is None  # the row is free, but nobody knows a's tokens
    world.commit()
    assert len(world.outputs["a"]) == 1
    assert planned(world.plan()) == {"a": 7}  # its blocks went before their step was committed
    world.run()


def test_all_goes_on_after_fail_all() -> None:
    world = SchedulerWorld(max_tokens_in_flight=1)
    world.add(make_request("a"))
    world.add(make_request("b", 30))
    world.plan()
    world.plan()
    world.scheduler.fail_all("the device was lost")
    world.under_way.clear()
    assert world.plan() is None
    assert {end.error for end in world.ends.values()} == {"the device was lost"}
    assert not world.scheduler.has_work()
    world.add(make_request("c"))
    world.run()


# ---- Ends ----------------------------------------------------------------------------------


@pytest.mark.parametrize("min_tokens", [0, 3])
@pytest.mark.parametrize("is_eos", [False, True])
def test_stop_token_ends_after_min_tokens_and_is_named_unless_end_of_text(
    min_tokens: int, is_eos: bool
) -> None:
    world = SchedulerWorld(max_model_len=4096, num_blocks=1024)
    a = make_request("a", 6, max_tokens=200, min_tokens=min_tokens, has_eos=is_eos)
    outputs = reference_outputs(a.token_ids, a.seed, 200)
    stop = EOS if is_eos else outputs[0]
    a.stop_token_ids = frozenset({stop})
    world.add(a)
    world.run()
    length = next(i for i, t in enumerate(outputs, 1) if t == stop and i >= min_tokens)
    assert world.outputs["a"] == outputs[:length]
    assert world.ends["a"].finish_reason == "stop"
    assert world.ends["a"].stop_reason == (None if is_eos else stop)


@pytest.mark.parametrize(
    ("max_tokens", "changes", "expected"),
    [(5, {}, 5), (None, {}, 58), (None, {"num_blocks": 4}, 11)],
    ids=["max_tokens", "max_model_len", "the whole cache"],
)
def test_length_ends_a_request(
    max_tokens: int | None, changes: dict[str, int], expected: int
) -> None:
    world = SchedulerWorld(**changes)
    world.add(make_request("a", 6, max_tokens=max_tokens))
    world.run()
    assert len(world.outputs["a"]) == expected
    assert world.ends["a"].finish_reason == "length"


@pytest.mark.parametrize("in_flight", [0, 1])
def test_deadline_ends_a_request_at_the_next_step_and_keeps_its_tokens(in_flight: int) -> None:
    world = SchedulerWorld(max_num_seqs=1, max_tokens_in_flight=in_flight)
    world.add(make_request("a", deadline_s=5.0))
    world.add(make_request("waiting", deadline_s=6.0))
    for _ in range(3):
        world.step()
    known = list(world.outputs["a"])
    world.now_s = 6.0
    world.step()
    assert {end.finish_reason for end in world.ends.values()} == {"deadline"}
    assert world.outputs["a"] == known
    assert len(known) == 3 - in_flight
    world.run()


def test_deadlines_of_requests_that_have_ended_take_no_memory() -> None:
    """A day may be allowed for what takes a second."""
    world = SchedulerWorld()

    def come_and_go(count: int) -> int:
        for i in range(count):
            id = f"{i:020d}"
            world.scheduler.add(make_request(id, 1, deadline_s=86_400.0))
            world.scheduler.abort(id)
            world.scheduler.take_updates()
        return tracemalloc.get_traced_memory()[0]

    tracemalloc.start()
    try:
        num_bytes = come_and_go(300)
        assert come_and_go(1000) - num_bytes < 20_000
    finally:
        tracemalloc.stop()
    world.run()


def test_deadline_of_an_earlier_request_does_not_end_a_later_one_of_the_same_id() -> None:
    world = SchedulerWorld()
    world.add(make_request("a", max_tokens=1, deadline_s=5.0))
    world.run()
    world.ends.clear()
    world.add(make_request("a", max_tokens=3))
    world.now_s = 9.0
    world.run()
    assert world.ends["a"].finish_reason == "length"


def test_abort_of_the_unknown_is_no_error() -> None:
    assert not SchedulerWorld().scheduler.abort("nobody")


def test_log_probabilities_go_to_the_rows_they_were_drawn_for() -> None:
    world = SchedulerWorld(max_num_batched_tokens=8)
    world.add(make_request("a", 2))
    world.step()
    world.add(make_request("long", 20))  # its chunk draws nothing
    world.add(make_request("b", 2))
    while "b" not in planned(world.plan()):
        world.commit()
    plan, result = world.under_way[-1]
    result.logprobs = [TokenLogprobs(id, -1.0, 1, [], []) for id in result.token_ids]
    updates = world.scheduler.commit(plan, result)
    world.under_way.clear()
    assert len(updates) == len(result.token_ids)
    for update in updates:
        assert update.logprobs is not None
        assert [entry.token_id for entry in update.logprobs] == update.new_token_ids


def test_a_step_beside_decodes_has_a_smaller_budget() -> None:
    world = SchedulerWorld(max_num_batched_tokens_while_decoding=8, max_num_seqs=4)
    world.add(make_request("alone", 14))
    plan = world.step()
    assert plan is not None
    assert plan.num_tokens == [14]  # nobody decodes: the whole budget of 16
    world.add(make_request("beside", 20))
    plan = world.step()
    assert plan is not None
    assert plan.num_tokens == [1, 7]  # 8 tokens, the decode's included
    world.run()


def test_prompts_move_on_beside_more_decodes_than_the_small_budget() -> None:
    world = SchedulerWorld(max_num_batched_tokens_while_decoding=2, max_num_seqs=4)
    for name in "abc":
        world.add(make_request(name, 5, max_tokens=40))
    while sum(len(tokens) > 1 for tokens in world.outputs.values()) < 3:
        assert world.step() is not None
    world.add(make_request("late", 9))
    plan = world.step()
    assert plan is not None
    assert plan.num_tokens == [1, 1, 1, 4]  # as much as one block
    world.run()


def test_a_small_budget_beside_decodes_never_exceeds_the_whole() -> None:
    world = SchedulerWorld(
        max_num_batched_tokens_while_decoding=100, max_num_batched_tokens=6, max_num_seqs=4
    )
    world.add(make_request("a", 3))
    world.step()
    world.add(make_request("b", 30))
    plan = world.step()
    assert plan is not None
    assert plan.total_tokens == 6
    world.run()
