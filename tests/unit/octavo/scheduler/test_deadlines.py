"""Deadlines that come, and those of requests that end before."""

from __future__ import annotations

import math
import random

from octavo.scheduler.deadlines import Deadlines


def test_those_that_are_open_come_due_in_order_whoever_has_ended_meanwhile() -> None:
    draw, deadlines = random.Random(0), Deadlines()
    open_at: dict[int, float] = {}
    for serial in range(3000):
        deadlines.add(deadline_s := draw.choice([10.0, draw.random() * 100]), str(serial), serial)
        open_at[serial] = deadline_s
        for ended in draw.sample(sorted(open_at), draw.randrange(min(3, len(open_at)))):
            del open_at[ended]
            deadlines.remove(ended)
        if draw.random() < 0.1:
            now_s = draw.random() * 30
            due = sorted((at, serial) for serial, at in open_at.items() if at <= now_s)
            assert deadlines.take_due(now_s) == [str(serial) for _, serial in due]
            for _, ended in due:
                del open_at[ended]
                deadlines.remove(ended)
        assert deadlines.next_s == min(open_at.values(), default=math.inf)
        deadlines.check_integrity(len(open_at))
