"""Which padded shape serves which plan."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from octavo.batch import BatchPlan
from octavo.kernels.adapters import AdapterUse
from octavo.runner.step_shapes import StepShapes
from octavo.sampling.sampler import DrawKind

GREEDY = DrawKind.GREEDY


def plan_of(num_decodes: int, prefills: list[int]) -> BatchPlan:
    counts = [1] * num_decodes + prefills
    return BatchPlan(
        rows=list(range(len(counts))),
        starts=[0] * len(counts),
        num_tokens=counts,
        samples=[True] * len(counts),
        num_decodes=num_decodes,
    )


@settings(max_examples=60)
@given(
    num_decodes=st.integers(0, 256),
    prefills=st.lists(st.integers(2, 600), max_size=40),
    max_num_seqs=st.sampled_from([296, 300, 512]),
    budget=st.sampled_from([64, 1000, 2048]),
)
def test_a_shape_holds_its_plan(
    num_decodes: int, prefills: list[int], max_num_seqs: int, budget: int
) -> None:
    shapes = StepShapes(max_num_seqs, budget)
    plan = plan_of(num_decodes, prefills)
    if not plan.rows:
        return
    shape = shapes.shape_for(plan, GREEDY)
    if shape is None:
        assert prefills
        return
    assert shape.num_decodes >= num_decodes
    assert shape.num_prefills >= len(prefills)
    assert shape.num_tokens >= shape.num_decodes + sum(prefills)
    assert shape.is_decode == (not prefills)
    assert shape.num_sequences <= shapes.max_num_sequences
    places = [shape.place_of(i, plan) for i in range(len(plan.rows))]
    assert len(set(places)) == len(places)
    assert places[:num_decodes] == list(range(num_decodes))
    assert all(shape.num_decodes <= place < shape.num_sequences for place in places[num_decodes:])


@pytest.mark.parametrize("num_decodes", range(0, 257, 16))
def test_a_full_step_of_the_default_budget_is_captured_beside_any_decodes(
    num_decodes: int,
) -> None:
    shapes = StepShapes(256, 2048)
    shape = shapes.shape_for(plan_of(num_decodes, [2048 - num_decodes]), GREEDY)
    assert shape is not None
    assert shape.num_tokens <= 2112


def test_a_step_past_the_largest_shape_has_none() -> None:
    shapes = StepShapes(256, 8192)
    assert shapes.shape_for(plan_of(0, [2112]), GREEDY) is not None
    assert shapes.shape_for(plan_of(0, [2113]), GREEDY) is None


def test_the_largest_shapes_are_at_least_as_large_as_those_captured_ahead() -> None:
    shapes = StepShapes(256, 2048)
    largest = shapes.largest()
    ahead = list(shapes.by_use())
    assert ahead[0] in largest
    assert ahead[0].num_tokens == max(shape.num_tokens for shape in largest)
    assert len(ahead) == len(set(ahead)) < 120
    # A step that draws later runs the kernels of the others, and needs less.
    assert {shape.kind for shape in largest} == set(DrawKind) - {DrawKind.LATER}
    for shape in ahead:
        assert any(
            shape.num_tokens <= other.num_tokens and shape.num_sequences <= other.num_sequences
            for other in largest
            if other.kind is shape.kind or shape.kind is DrawKind.LATER
        )


def test_steps_of_few_and_of_many_adapters_have_shapes_of_their_own() -> None:
    uses = [AdapterUse.FEW, AdapterUse.MANY]
    shapes = StepShapes(256, 2048, uses)
    plan = plan_of(64, [])
    found = {shapes.shape_for(plan, GREEDY, use) for use in AdapterUse}
    assert len(found) == len(AdapterUse)
    ahead = list(shapes.by_use())
    assert found <= set(ahead)
    assert len(ahead) == len(set(ahead))
    assert ahead[0].adapters is AdapterUse.MANY  # in whose memory all others find room
    first = [shape.adapters for shape in ahead[1:]]
    assert first.index(AdapterUse.FEW) > 50, "steps without adapters come first"
    for use in uses:
        assert use in {shape.adapters for shape in shapes.largest()}
        assert use in {shape.adapters for shape in shapes.covering()}


@pytest.mark.parametrize("uses", [(), (AdapterUse.FEW, AdapterUse.MANY)])
@pytest.mark.parametrize("max_num_seqs", [1, 4, 256])
def test_covering_shapes_hold_the_largest_and_none_twice(
    uses: tuple[AdapterUse, ...], max_num_seqs: int
) -> None:
    shapes = StepShapes(max_num_seqs, 2048, uses)
    covering = shapes.covering()
    assert set(shapes.largest()) <= set(covering)
    assert len(covering) == len(set(covering))
    assert {shape.adapters for shape in covering} == {AdapterUse.NONE, *uses}
