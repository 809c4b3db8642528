"""The local Deployment controller: gentle replacement within maxSurge and maxUnavailable."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from octavo_operator.local.deployment_controller import (
    TEMPLATE_HASH_LABEL,
    next_step,
    template_hash,
)


def deployment(replicas: int, surge: int, unavailable: int, **spec: Any) -> dict[str, Any]:
    return {
        "metadata": {"name": "chat"},
        "spec": {
            "replicas": replicas,
            "strategy": {"rollingUpdate": {"maxSurge": surge, "maxUnavailable": unavailable}},
            "template": {"spec": {"new": True}},
            **spec,
        },
    }


def pods(text: str) -> tuple[dict[str, Any], ...]:
    """One letter a pod: n, o for new and old, upper case when ready, then ! when stopping."""
    found: list[dict[str, Any]] = []
    latest = template_hash(deployment(1, 1, 0))
    for letter in text:
        if letter == "!":
            found[-1]["metadata"]["deletionTimestamp"] = "now"
            continue
        metadata = {
            "name": f"{letter}{len(found)}",
            "labels": {TEMPLATE_HASH_LABEL: latest if letter in "nN" else "old"},
        }
        status = {
            "conditions": [{"type": "Ready", "status": "True" if letter.isupper() else "False"}]
        }
        found.append({"metadata": metadata, "status": status})
    return tuple(found)


@pytest.mark.parametrize(
    ("replicas", "surge", "unavailable", "present", "num_to_start", "to_stop"),
    [
        (2, 1, 0, "", 2, ()),
        (2, 1, 0, "NN", 0, ()),
        (2, 1, 0, "OO", 1, ()),
        (2, 1, 0, "OOn", 0, ()),
        (2, 1, 0, "OON", 0, ("O0",)),
        (2, 1, 0, "O!ON", 1, ()),
        (2, 1, 0, "O!ONn", 0, ()),
        (2, 1, 0, "ONN", 0, ("O0",)),
        (1, 0, 1, "O", 0, ("O0",)),
        (1, 0, 1, "O!", 1, ()),
        (2, 1, 0, "Oo", 1, ("o1",)),
        (1, 1, 0, "NNn", 0, ("n2", "N0")),
        (0, 1, 0, "ON", 0, ("N1", "O0")),
        (3, 1, 0, "NN", 1, ()),
    ],
)
def test_step(
    replicas: int,
    surge: int,
    unavailable: int,
    present: str,
    num_to_start: int,
    to_stop: tuple[str, ...],
) -> None:
    step = next_step(deployment(replicas, surge, unavailable), pods(present))
    assert (step.num_to_start, step.to_stop) == (num_to_start, to_stop)


def test_paused_deployment_replaces_nothing_but_keeps_its_number() -> None:
    assert next_step(deployment(2, 1, 0, paused=True), pods("OO")).num_to_start == 0
    assert next_step(deployment(2, 1, 0, paused=True), pods("OO")).to_stop == ()
    assert next_step(deployment(2, 1, 0, paused=True), pods("N")).num_to_start == 1


@given(
    replicas=st.integers(0, 4),
    surge=st.integers(0, 2),
    unavailable=st.integers(0, 2),
    num_old=st.integers(0, 4),
)
def test_rollout_ends_and_never_breaks_its_bounds(
    replicas: int, surge: int, unavailable: int, num_old: int
) -> None:
    if surge == 0 and unavailable == 0:
        return
    target = deployment(replicas, surge, unavailable)
    old, starting, ready = num_old, 0, 0
    for _ in range(40):
        step = next_step(target, pods("O" * old + "n" * starting + "N" * ready))
        served_before = old + ready
        for name in step.to_stop:
            old -= name[0] == "O"
            ready -= name[0] == "N"
            starting -= name[0] == "n"
        # At most the promised number is missing, unless fewer were there to begin with.
        assert old + ready >= min(served_before, replicas - unavailable)
        starting += step.num_to_start
        assert old + starting + ready <= max(replicas + surge, num_old)
        if starting:
            starting, ready = starting - 1, ready + 1
    assert (old, starting, ready) == (0, 0, replicas)
