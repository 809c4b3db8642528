"""Turns between tenants: nobody starves, nobody saves up credit, limits hold, the books agree."""

from __future__ import annotations

import itertools
import random

import pytest

from octavo.errors import InvalidRequestError, QueueFullError
from octavo.request import Request, Tenant
from octavo.scheduler.drain_rate import MAX_RETRY_AFTER_S, DrainRate
from scheduler_world import SchedulerWorld, make_request

NUMBER = itertools.count()


def requests_of(name: str, count: int, prompt: int = 6, **options: object) -> list[Request]:
    limits = {key: options.pop(key) for key in ("max_running", "max_queued") if key in options}
    of = Tenant(name, **limits)  # type: ignore[arg-type]
    return [
        make_request(f"{name}{next(NUMBER)}", prompt, on_behalf_of=of, **options)  # type: ignore[arg-type]
        for _ in range(count)
    ]


def starts(world: SchedulerWorld) -> list[str]:
    """Tenants in the order in which their requests got their first row."""
    seen: list[str] = []
    started: set[str] = set()
    while world.scheduler.has_work():
        world.now_s += 1.0
        world.step()
        fresh = [
            request
            for request in world.requests.values()
            if request.first_scheduled_s is not None and request.id not in started
        ]
        for request in sorted(fresh, key=lambda r: r.first_scheduled_s or 0):
            started.add(request.id)
            seen.append(request.tenant.name)
    world.check_at_rest()
    return seen


def test_a_thousand_requests_of_one_tenant_do_not_starve_the_one_of_another() -> None:
    world = SchedulerWorld(max_num_seqs=1, max_num_waiting=2000, max_queue_tokens=100_000)
    for request in requests_of("many", 1000, max_tokens=1):
        world.add(request)
    world.step()
    for request in requests_of("one", 1, max_tokens=1):
        world.add(request)
    assert "one" in starts(world)[:3]


def test_tokens_are_shared_not_requests() -> None:
    """Long prompts of one tenant against short ones of another: each gets half the tokens."""
    world = SchedulerWorld(max_num_seqs=1, max_num_waiting=200, enable_prefix_caching=False)
    for request in requests_of("long", 10, 32, max_tokens=1, tenant=None):
        world.add(request)
    for request in requests_of("short", 80, 4, max_tokens=1, tenant=None):
        world.add(request)
    order = starts(world)
    half = order[: order.index("long", 40)] if "long" in order[40:] else order[:45]
    long, short = half.count("long") * 32, half.count("short") * 4
    assert abs(long - short) <= 2 * 32, (long, short)


def test_outputs_are_charged_too() -> None:
    """Equal prompts; one tenant's answers are ten times as long, so it gets fewer turns."""
    world = SchedulerWorld(max_num_seqs=1, max_num_waiting=200, enable_prefix_caching=False)
    for talkative, terse in zip(
        requests_of("talkative", 20, 4, max_tokens=20, tenant=None),
        requests_of("terse", 60, 4, max_tokens=2, tenant=None),
        strict=False,
    ):
        world.add(talkative)
        world.add(terse)
    for request in requests_of("terse", 40, 4, max_tokens=2, tenant=None):
        world.add(request)
    order = starts(world)[:40]
    assert order.count("terse") > 2.5 * order.count("talkative") > 0


def test_silence_earns_no_credit() -> None:
    world = SchedulerWorld(max_num_seqs=1, max_num_waiting=200)
    for request in requests_of("busy", 30, max_tokens=1):
        world.add(request)
    for _ in range(20):
        world.step()
    for request in [*requests_of("silent", 10, max_tokens=1), *requests_of("busy", 10)]:
        world.add(request)
    order = starts(world)
    # 'silent' does not run all its ten before 'busy' goes on.
    position = order.index("silent")
    assert "busy" in order[position : position + 3]


def test_priority_goes_before_fairness_and_deadline_within_a_tenant() -> None:
    world = SchedulerWorld(max_num_seqs=1)
    world.add(*requests_of("a", 1, max_tokens=1))
    world.step()
    late, soon = (
        requests_of("a", 1, max_tokens=1, deadline_s=deadline_s)[0] for deadline_s in (900.0, 500.0)
    )
    urgent = requests_of("b", 1, max_tokens=1, priority=-1)[0]
    for request in (late, soon, urgent):
        world.add(request)
    starts(world)
    order = sorted((urgent, soon, late), key=lambda r: r.first_scheduled_s or 0)
    assert order == [urgent, soon, late]


def test_tenant_at_its_limit_is_passed_over_and_counted_as_deferred() -> None:
    world = SchedulerWorld(max_num_seqs=4)
    for request in requests_of("limited", 6, max_running=1):
        world.add(request)
    for request in requests_of("free", 2):
        world.add(request)
    world.step()
    world.step()
    running = [r.tenant.name for r in world.requests.values() if r.row is not None]
    assert sorted(running) == ["free", "free", "limited"]
    stats = world.scheduler.stats()
    assert (stats.num_waiting, stats.num_deferred) == (5, 5)
    most = 0
    while world.scheduler.has_work():
        world.step()
        now = [r for r in world.requests.values() if r.row is not None]
        most = max(most, sum(r.tenant.name == "limited" for r in now))
    assert most == 1
    world.check_at_rest()
    assert world.scheduler.stats().num_deferred == 0


def test_tenant_may_queue_as_many_as_it_may_and_no_more() -> None:
    world = SchedulerWorld(max_num_seqs=1)
    for request in requests_of("limited", 3, max_queued=2)[:2]:
        world.add(request)
    with pytest.raises(QueueFullError, match=r"2 requests of this API key.*may have 2"):
        world.add(*requests_of("limited", 1, max_queued=2))
    world.add(*requests_of("other", 1))
    world.run()


def test_choices_that_may_run_at_once_are_not_among_those_that_wait() -> None:
    world = SchedulerWorld(max_num_seqs=4)
    limits = {"max_running": 1, "max_queued": 2}
    world.add(*requests_of("limited", 3, **limits))
    world.step()
    with pytest.raises(QueueFullError, match=r"2 requests of this API key.*may have 2"):
        world.add(*requests_of("limited", 1, **limits))
    world.run()
    world.check_at_rest()


@pytest.mark.parametrize(
    ("num_prompts", "n", "limits", "words", "param"),
    [
        (1, 4, {"max_running": 1, "max_queued": 2}, "n is 4, .* 1 running .* 2 waiting", "n"),
        (1, 4, {"max_queued": 3}, "n is 4, .* may have 3 waiting", "n"),
        (4, 1, {"max_queued": 3}, "has 4 prompts, .* may have 3 waiting", "prompt"),
        (2, 2, {"max_running": 2, "max_queued": 1}, "has 2 prompts with n 2, .* 2 run", "prompt"),
    ],
)
def test_more_choices_than_a_tenant_may_ever_have_are_no_reason_to_come_back(
    num_prompts: int, n: int, limits: dict[str, int], words: str, param: str
) -> None:
    world = SchedulerWorld(max_num_seqs=8)
    leaders = requests_of("limited", num_prompts, **limits)
    followers = [
        each for lead in leaders for each in requests_of("limited", n - 1, leader=lead, **limits)
    ]
    with pytest.raises(
        InvalidRequestError, match=rf"{words}.*\(max-queued\).*at most 3"
    ) as refused:
        world.add(*leaders, *followers)
    assert ("(max-running)" in str(refused.value)) == ("max_running" in limits)
    assert refused.value.param == param
    world.add(*requests_of("limited", 3, **limits))
    world.run()


def test_queue_is_bounded_by_tokens_and_says_when_there_is_room() -> None:
    world = SchedulerWorld(max_num_seqs=1, max_queue_tokens=20, enable_prefix_caching=False)
    for request in requests_of("", 4, 10, max_tokens=1)[:2]:
        world.add(request)
    for _ in range(2):  # ten tokens leave the queue every 2 s
        world.step()
        world.now_s += 2.0
    for request in requests_of("", 2, 10, max_tokens=1):
        world.add(request)
    with pytest.raises(QueueFullError, match=r"20 prompt tokens.*max_queue_tokens is 20") as caught:
        world.add(*requests_of("", 1, 10))
    assert caught.value.retry_after_s == pytest.approx(2.0)
    assert world.scheduler.stats().num_waiting_tokens == 20
    world.run()


def test_request_larger_than_the_bound_waits_alone() -> None:
    world = SchedulerWorld(max_queue_tokens=8)
    world.add(*requests_of("", 1, 20))
    with pytest.raises(QueueFullError):
        world.add(*requests_of("", 1, 4))
    world.run()


def test_retry_after_forgets_a_long_storm_as_soon_as_its_longest_answer_has_passed() -> None:
    """Ten minutes in which four of five are refused, and a minute in which nobody is."""
    drain = DrainRate()
    for tenth in range(6600):
        drain.record_departure(tenth / 10)
        for _ in range(4 if tenth < 6000 else 0):
            longest_s = drain.retry_after_s(1, tenth / 10)
    assert longest_s == MAX_RETRY_AFTER_S
    assert drain.retry_after_s(1, 660.0) < 5.0


def test_retry_after_is_honest() -> None:
    """Clients that come back when told find room: on a simulated clock, at a steady drain."""
    world = SchedulerWorld(max_num_seqs=2, max_num_waiting=8, max_num_batched_tokens=16)
    draw = random.Random(1)
    coming = [(0.0, i) for i in range(40)]
    asked_again = first_refusals = too_early = 0
    while coming:
        world.now_s = round(world.now_s + 0.1, 6)
        world.step()
        due = [each for each in coming if each[0] <= world.now_s]
        coming = [each for each in coming if each[0] > world.now_s]
        for when, i in due:
            try:
                world.add(make_request(f"c{i}-{when}", 4, max_tokens=draw.randint(4, 8)))
            except QueueFullError as refusal:
                is_first = when == 0.0
                first_refusals += is_first
                too_early += not is_first
                asked_again += 1
                coming.append((world.now_s + refusal.retry_after_s, i))
    world.run()
    assert first_refusals == 32
    # The first refusals know of no rate yet; after that at most one more try for each client.
    assert too_early <= 1.5 * first_refusals, (too_early, first_refusals)


@pytest.mark.parametrize("seed", range(4))
def test_books_agree_under_any_traffic(seed: int) -> None:
    """Aborts, deadlines, priorities, preemption and limits together; integrity at every step."""
    draw = random.Random(seed)
    world = SchedulerWorld(max_num_seqs=3, num_blocks=16, max_num_waiting=50)
    for _ in range(120):
        name = draw.choice(["a", "b", "c"])
        limits = {"max_running": 1} if name == "c" else {}
        group = requests_of(
            name,
            1,
            draw.randint(1, 12),
            max_tokens=draw.randint(1, 16),
            priority=draw.choice([0, 0, 1, -1]),
            arrival_s=world.now_s,
            deadline_s=draw.choice([None, None, world.now_s + draw.random() * 20]),
            **limits,
        )
        world.add(*group)
        for _ in range(draw.randrange(5)):
            world.now_s += 0.2
            world.step()
        if draw.random() < 0.2:
            world.end(draw.choice(list(world.requests)), "abort")
    world.run()
