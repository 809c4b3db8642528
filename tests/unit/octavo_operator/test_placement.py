"""How many GPUs a model is given, and what is said of it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inference_services import inference_service
from model_shapes import (
    LLAMA_8B,
    LLAMA_70B,
    LLAMA_405B,
    MIXTRAL_8X7B,
    PUBLISHED_PARAMETERS,
    QWEN_06B,
    QWEN_32B,
    SMOLLM_135M,
    model_shape,
)
from octavo_operator.placement.decision import Decision, Standing, decide
from octavo_operator.placement.footprint import Split, footprint, split_problem
from octavo_operator.placement.gpu_kind import GpuKind
from octavo_operator.placement.model_shape import (
    ModelShape,
    read_report,
    read_status,
    to_status,
)
from octavo_operator.placement.node_gpus import gpu_kinds
from octavo_operator.resources.inference_service import InferenceService, parse_inference_service

GIB = 1 << 30


def service(engine: dict[str, Any] | None = None, **parallelism: Any) -> InferenceService:
    return parse_inference_service(
        inference_service(parallelism=parallelism or {"tensor": "Auto"}, engine=engine or {})
    )


def gpus(size_gib: float, per_node: int = 8, num_nodes: int = 4, name: str = "card") -> GpuKind:
    return GpuKind(f"{name}-{size_gib:g}", int(size_gib * GIB), per_node, num_nodes)


def chosen(decision: Decision) -> tuple[int, int, int] | None:
    split = decision.split
    return None if split is None else (split.tensor, split.pipeline, split.nodes)


@pytest.mark.parametrize(
    ("shape", "parameters"), PUBLISHED_PARAMETERS.values(), ids=PUBLISHED_PARAMETERS
)
def test_shapes_are_those_of_the_published_models(shape: ModelShape, parameters: int) -> None:
    assert shape.weights_bytes == pytest.approx(2 * parameters, rel=3e-4)


# What each model takes of 24, 40, 48, 80 and 141 GB cards, as (tensor, pipeline, nodes), at
# 8,192 tokens; None where even four nodes of eight do not hold it.
FEWEST = [
    ("qwen-0.6b", QWEN_06B, [(1, 1, 1), (1, 1, 1), (1, 1, 1), (1, 1, 1), (1, 1, 1)]),
    ("llama-8b", LLAMA_8B, [(1, 1, 1), (1, 1, 1), (1, 1, 1), (1, 1, 1), (1, 1, 1)]),
    ("qwen-32b", QWEN_32B, [(4, 1, 1), (2, 1, 1), (2, 1, 1), (1, 1, 1), (1, 1, 1)]),
    ("mixtral", MIXTRAL_8X7B, [(8, 1, 1), (4, 1, 1), (4, 1, 1), (2, 1, 1), (1, 1, 1)]),
    ("llama-70b", LLAMA_70B, [(8, 1, 1), (8, 1, 1), (4, 1, 1), (2, 1, 1), (2, 1, 1)]),
    ("llama-405b", LLAMA_405B, [None, (8, 3, 3), (8, 3, 3), (8, 2, 2), (8, 1, 1)]),
]
CARDS = [22.5, 40.0, 45.0, 79.6, 140.4]


@pytest.mark.parametrize(
    ("shape", "expected"), [case[1:] for case in FEWEST], ids=[case[0] for case in FEWEST]
)
def test_auto_is_the_fewest_gpus_that_hold_the_model(
    shape: ModelShape, expected: list[tuple[int, int, int] | None]
) -> None:
    wanted = service({"maxModelLen": 8192}, tensor="Auto")
    assert [chosen(decide(wanted, shape, [gpus(card)])) for card in CARDS] == expected


def test_the_sentence_is_an_addition_that_can_be_checked() -> None:
    decision = decide(service({"maxModelLen": 8192}, tensor="Auto"), LLAMA_8B, [gpus(22.5)])
    assert (decision.standing, decision.reason) == (Standing.FITS, "Fits")
    assert decision.message == (
        "1 × card-22.5: each GPU holds 15.0 of weights + 1.0 of KV cache for 8192 tokens + about "
        "2.4 to work in = 18.3 GiB, and may use 0.9 of 21.6 = 19.5 GiB; 2 requests of 8192 tokens "
        "at a time"
    )


def test_a_length_that_is_left_out_is_the_models_own() -> None:
    assert chosen(decide(service(tensor="Auto"), LLAMA_8B, [gpus(22.5)])) == (2, 1, 1)
    given_length = service({"maxModelLen": 131072}, tensor="Auto")
    assert chosen(decide(given_length, LLAMA_8B, [gpus(22.5)])) == (2, 1, 1)


def test_fp8_halves_the_layers_and_not_the_tables() -> None:
    plain, packed = service(tensor=1), service({"quantization": "fp8"}, tensor=1)
    before = footprint(LLAMA_8B, plain.engine, Split()).weights_bytes
    after = footprint(LLAMA_8B, packed.engine, Split()).weights_bytes
    assert before - after == (LLAMA_8B.weights_bytes - LLAMA_8B.tables_bytes) // 2


def test_kv_heads_that_are_fewer_than_gpus_are_repeated() -> None:
    engine = service({"maxModelLen": 8192}, tensor=1).engine
    four, eight, sixteen = (footprint(LLAMA_70B, engine, Split(tensor)) for tensor in (4, 8, 16))
    assert four.kv_bytes == 2 * eight.kv_bytes
    assert sixteen.kv_bytes == eight.kv_bytes
    assert sixteen.weights_bytes > eight.weights_bytes / 2


@pytest.mark.parametrize(
    ("shape", "tensor", "words"),
    [
        (SMOLLM_135M, 2, "its 9 attention heads cannot be shared out evenly by 2 GPUs"),
        (LLAMA_8B, 3, "its 32 attention heads"),
        (
            model_shape(layers=2, hidden=48, inner=48, heads=12, kv_heads=4, vocab=9, context=64),
            6,
            "its 4 heads of keys and values can neither be shared out nor repeated",
        ),
        (
            model_shape(layers=2, hidden=64, inner=50, heads=8, kv_heads=8, vocab=9, context=64),
            4,
            "its MLPs of width 50 cannot be shared out evenly by 4 GPUs",
        ),
    ],
    ids=["heads", "odd", "kv-heads", "mlp"],
)
def test_heads_that_do_not_divide_are_refused(shape: ModelShape, tensor: int, words: str) -> None:
    decision = decide(service(tensor=tensor), shape, [gpus(80)])
    assert (decision.standing, decision.reason) == (Standing.REFUSED, "NotDivisible")
    assert words in decision.message
    assert "parallelism.tensor may be 1" in decision.message
    assert decision.split is None


def test_more_stages_than_layers_are_refused() -> None:
    decision = decide(service(tensor=1, pipeline=40), LLAMA_8B, [gpus(80)])
    assert decision.reason == "NotDivisible"
    assert "its 32 layers cannot be dealt out to 40 stages" in decision.message


def test_a_number_that_cannot_work_is_refused_with_the_remedy() -> None:
    decision = decide(service({"maxModelLen": 131072}, tensor=1), LLAMA_8B, [gpus(22.5)])
    assert (decision.standing, decision.reason) == (Standing.REFUSED, "DoesNotFit")
    assert decision.message == (
        "hf://org/name does not fit 1 × card-22.5: each GPU holds 15.0 of weights + 16.0 of KV "
        "cache for 131072 tokens + about 2.5 to work in = 33.4 GiB, and may use 0.9 of 21.6 = "
        "19.5 GiB; lower engine.maxModelLen to 16656, set engine.quantization: fp8, name a larger "
        "accelerator.product or raise parallelism.tensor"
    )
    shorter = service({"maxModelLen": 16656}, tensor=1)
    assert decide(shorter, LLAMA_8B, [gpus(22.5)]).standing is Standing.FITS


def test_a_number_that_only_the_estimate_speaks_against_is_kept() -> None:
    decision = decide(service({"maxModelLen": 22000}, tensor=1), LLAMA_8B, [gpus(22.5)])
    assert (decision.standing, decision.reason) == (Standing.UNPROVED, "MayNotFit")
    assert chosen(decision) == (1, 1, 1)


def test_a_length_that_was_not_asked_for_is_cut_by_the_worker_so_nothing_is_refused() -> None:
    decision = decide(service(tensor=1), LLAMA_8B, [gpus(22.5)])
    assert (decision.standing, decision.reason) == (Standing.UNPROVED, "MayNotFit")
    assert decide(service(tensor=1), LLAMA_70B, [gpus(80)]).reason == "DoesNotFit"


def test_auto_keeps_pods_to_the_product_that_was_planned_with() -> None:
    kinds = [gpus(22.5, name="L4"), gpus(79.6, name="H100")]
    small = decide(service({"maxModelLen": 8192}, tensor="Auto"), QWEN_06B, kinds)
    assert (chosen(small), small.product) == ((1, 1, 1), "L4-22.5")
    large = decide(service({"maxModelLen": 8192}, tensor="Auto"), QWEN_32B, kinds)
    assert (chosen(large), large.product) == ((1, 1, 1), "H100-79.6")


def test_a_number_that_fits_some_cards_only_is_told_of() -> None:
    kinds = [gpus(22.5, name="L4"), gpus(79.6, name="H100")]
    decision = decide(service({"maxModelLen": 8192}, tensor=1), QWEN_32B, kinds)
    assert (decision.standing, decision.reason) == (Standing.UNPROVED, "FitsSomeNodes")
    assert "that fits H100-79.6, not every GPU" in decision.message


def test_more_gpus_than_any_node_has_are_told_of() -> None:
    decision = decide(service({"maxModelLen": 8192}, tensor=16), LLAMA_70B, [gpus(79.6), gpus(141)])
    assert (decision.standing, decision.reason) == (Standing.UNPROVED, "NodesTooSmall")
    assert "a pod asks for 16 GPUs, and no node that is there has more than 8" in decision.message
    spread = service({"maxModelLen": 8192}, tensor=16, nodes=2)
    assert decide(spread, LLAMA_70B, [gpus(79.6)]).standing is Standing.FITS
    unseen = GpuKind("NVIDIA-H100-80GB-HBM3", 81559 << 20)
    assert decide(service(tensor=16), LLAMA_70B, [unseen]).reason != "NodesTooSmall"


def test_stages_within_a_node_are_the_users_to_ask_for() -> None:
    wanted = service({"maxModelLen": 8192}, tensor="Auto", pipeline=2)
    assert chosen(decide(wanted, LLAMA_70B, [gpus(79.6)])) == (1, 2, 1)
    assert chosen(decide(wanted, LLAMA_70B, [gpus(45)])) == (2, 2, 1)


def test_nodes_that_are_known_bound_what_auto_may_span() -> None:
    wanted = service({"maxModelLen": 8192}, tensor="Auto")
    assert chosen(decide(wanted, LLAMA_405B, [gpus(79.6, num_nodes=2)])) == (8, 2, 2)
    alone = decide(wanted, LLAMA_405B, [gpus(79.6, num_nodes=1)])
    assert (alone.standing, alone.reason) == (Standing.REFUSED, "DoesNotFit")
    assert "does not fit even 8 × card-79.6: each GPU holds" in alone.message
    unseen = GpuKind("NVIDIA-H100-80GB-HBM3", 81559 << 20)
    assert chosen(decide(wanted, LLAMA_405B, [unseen])) == (8, 2, 2)


def test_auto_chooses_nothing_larger_than_what_a_user_may_ask_for() -> None:
    """All that nodes claimed to have was tried, in the operator's loop: for 2^31 GPUs, an hour."""
    wide = replace(LLAMA_405B, num_heads=1 << 20, num_kv_heads=1, intermediate_size=1 << 20)
    tall = replace(LLAMA_405B, num_layers=1 << 10)
    small = service({"maxModelLen": 16, "maxNumSeqs": 1})
    for shape, kind in [(wide, gpus(8, 1 << 20, 1)), (tall, gpus(14, 1, 1 << 10))]:
        decision = decide(small, shape, [kind])
        assert (decision.reason, chosen(decision)) == ("DoesNotFit", None)


def test_what_is_not_known_is_said() -> None:
    auto, number = service(tensor="Auto"), service(tensor=2)
    assert decide(auto, None, []).split is None
    assert decide(auto, None, []).reason == "Inspecting"
    kept = decide(number, None, [])
    assert (chosen(kept), kept.standing, kept.reason) == (
        (2, 1, 1),
        Standing.UNPROVED,
        "Inspecting",
    )
    failed = decide(number, None, [], "no such model")
    assert (failed.reason, failed.message) == ("InspectionFailed", "no such model")
    blind = decide(auto, LLAMA_8B, [])
    assert (blind.standing, blind.reason) == (Standing.REFUSED, "GPUMemoryUnknown")
    assert "name accelerator.product or accelerator.memory, or give tensor as a number" in (
        blind.message
    )
    assert decide(number, LLAMA_8B, []).standing is Standing.UNPROVED


def test_the_cpu_needs_no_plan() -> None:
    resource = inference_service(accelerator={"resource": "none"}, parallelism={"tensor": "Auto"})
    decision = decide(parse_inference_service(resource), None, [])
    assert (decision.standing, chosen(decision)) == (Standing.FITS, (1, 1, 1))


SHAPES = st.builds(
    model_shape,
    layers=st.integers(1, 130),
    hidden=st.integers(1, 64).map(lambda n: 256 * n),
    inner=st.integers(1, 220).map(lambda n: 256 * n),
    heads=st.sampled_from([4, 8, 12, 16, 28, 32, 40, 64, 128]),
    kv_heads=st.sampled_from([1, 2, 4]),
    vocab=st.integers(1000, 260_000),
    context=st.sampled_from([2048, 8192, 131072]),
    is_tied=st.booleans(),
)
KINDS = st.lists(
    st.builds(
        gpus,
        st.sampled_from([15.0, 22.5, 45.0, 79.6, 140.4]),
        st.integers(1, 8),
        st.integers(1, 4),
    ),
    min_size=1,
    max_size=3,
    unique_by=lambda kind: kind.memory_bytes,
)


@given(SHAPES, KINDS, st.sampled_from([None, 4096, 32768]))
def test_auto_fits_and_fewer_never_do(
    shape: ModelShape, kinds: list[GpuKind], length: int | None
) -> None:
    wanted = service({"maxModelLen": length} if length else {}, tensor="Auto")
    decision = decide(wanted, shape, kinds)

    def fits(split: Split, kind: GpuKind) -> bool:
        need = footprint(shape, wanted.engine, split).total_bytes
        room = int(kind.usable_bytes * wanted.engine.gpu_memory_utilization)
        return split_problem(shape, split) is None and need <= room

    on_one_node = [
        (tensor, kind)
        for kind in kinds
        for tensor in range(1, kind.most_per_node + 1)
        if fits(Split(tensor), kind)
    ]
    if decision.split is None:
        assert decision.standing is Standing.REFUSED
        assert not on_one_node
        return
    (kind,) = [kind for kind in kinds if kind.product == decision.product]
    split = decision.split
    assert fits(split, kind)
    assert split.gpus_per_node <= kind.most_per_node
    assert split.nodes <= kind.num_nodes
    if split.nodes == 1:
        assert split.tensor == min(tensor for tensor, _ in on_one_node)
    else:
        assert not on_one_node
        assert not any(
            fits(Split(tensor, split.nodes, split.nodes), kind) for tensor in range(1, split.tensor)
        )


@given(SHAPES, KINDS, st.integers(1, 8), st.sampled_from([4096, 32768]))
def test_a_shorter_length_that_is_advised_fits(
    shape: ModelShape, kinds: list[GpuKind], tensor: int, length: int
) -> None:
    decision = decide(service({"maxModelLen": length}, tensor=tensor), shape, kinds)
    _, _, advice = decision.message.partition("lower engine.maxModelLen to ")
    if not advice:
        return
    shorter = int(advice.split(",")[0].split(" ")[0])
    largest = max(kinds, key=lambda kind: kind.memory_bytes)
    advised = decide(service({"maxModelLen": shorter}, tensor=tensor), shape, [largest])
    assert advised.standing is Standing.FITS


def test_a_shape_survives_the_status_and_nothing_else_passes_for_one() -> None:
    assert read_status(to_status(LLAMA_8B)) == LLAMA_8B
    assert to_status(LLAMA_8B)["numKvHeads"] == 8
    broken: list[object] = [
        None,
        {},
        {**to_status(LLAMA_8B), "weightsBytes": "many"},
        {**to_status(LLAMA_8B), "numHeads": 0},
        {**to_status(LLAMA_8B), "weightsBytes": 10**400},
        {**to_status(LLAMA_8B), "numLayers": True},
    ]
    assert [read_status(values) for values in broken] == [None] * len(broken)
    assert read_report("octavo: no such model") is None
    assert read_report("[]") is None


def node(product: str | None, memory_mib: object, count: int = 8, **labels: str) -> dict[str, Any]:
    gpu = "nvidia.com/gpu"
    found = {f"{gpu}.memory": str(memory_mib), f"{gpu}.count": str(count), **labels}
    if product:
        found[f"{gpu}.product"] = product
    return {"metadata": {"name": "n", "labels": found}, "status": {}}


H100, L4 = "NVIDIA-H100-80GB-HBM3", "NVIDIA-L4"
NODES = [
    node(H100, 81559, 8),
    node(H100, 81559, 8),
    node(H100, 81559, 4),
    node(L4, 23034, 1, zone="a"),
    node(L4, "much"),
    node(None, 15360, 2),
    {"metadata": {"name": "cpu"}},
]


def kinds_for(nodes: list[dict[str, Any]] | None, **accelerator: Any) -> list[GpuKind]:
    parsed = parse_inference_service(inference_service(accelerator=accelerator))
    return list(gpu_kinds(parsed.accelerator, nodes))


def test_nodes_tell_the_kinds_of_gpu() -> None:
    t4 = GpuKind(None, 15360 << 20, 2, 1)
    l4, h100 = GpuKind(L4, 23034 << 20, 1, 1), GpuKind(H100, 81559 << 20, 8, 2)
    assert kinds_for(NODES) == [t4, l4, h100]
    assert kinds_for(NODES, product=H100) == [h100]
    assert kinds_for(NODES, nodeSelector={"zone": "a"}) == [l4]
    assert kinds_for(NODES, nodeSelector={"zone": "b"}) == []
    assert kinds_for(NODES, resource="amd.com/gpu") == []


@pytest.mark.parametrize(
    ("allocatable", "count"), [("8", 8), ("1k", 1000), ("2e0", 2), ("500m", 0), ("-1", 0), ("x", 0)]
)
def test_gpus_of_a_node_are_counted_as_kubernetes_writes_quantities(
    allocatable: str, count: int
) -> None:
    """It writes 1000 as 1k."""
    one = node(L4, 23034, 1000)
    one["status"] = {"allocatable": {"nvidia.com/gpu": allocatable}}
    assert [kind.per_node for kind in kinds_for([one])] == ([count] if count else [])


def test_card_that_may_be_asked_for_more_often_than_it_is_there_is_shared() -> None:
    shared = node(L4, 23034, 1)
    shared["status"] = {"allocatable": {"nvidia.com/gpu": "4"}}
    assert kinds_for([shared]) == [GpuKind(L4, 23034 << 20, 4, 1, is_shared=True)]
    named = node(f"{L4}-SHARED", 23034, 4)
    assert kinds_for([named]) == [GpuKind(f"{L4}-SHARED", 23034 << 20, 4, 1, is_shared=True)]
    assert [kind.is_shared for kind in kinds_for([named], memory="8Gi")] == [True]


@pytest.mark.parametrize("part", ["is_slice", "is_shared"])
def test_model_is_not_split_over_what_may_be_one_card(part: str) -> None:
    kind = replace(gpus(79.6), **{part: True})
    assert chosen(decide(service(tensor="Auto"), QWEN_06B, [kind])) == (1, 1, 1)
    none = decide(service({"maxModelLen": 8192}, tensor="Auto"), LLAMA_70B, [kind])
    assert (none.split, none.standing, none.reason) == (None, Standing.REFUSED, "DoesNotFit")
    assert none.message.endswith(
        "set engine.quantization: fp8 or name a larger accelerator.product"
    )
    staged = decide(service(tensor="Auto", pipeline=2), QWEN_06B, [kind])
    assert (staged.standing, staged.reason) == (Standing.REFUSED, "GPUsNotWhole")
    given = decide(service({"maxModelLen": 8192}, tensor=2), LLAMA_70B, [kind])
    assert (given.standing, given.reason) == (Standing.UNPROVED, "GPUsNotWhole")
    assert "a pod may get the same card twice" in given.message
    assert chosen(given) == (2, 1, 1)


def test_gpu_that_is_shared_comes_after_others_and_is_told() -> None:
    shared, own = replace(gpus(45.0), is_shared=True), gpus(79.6)
    assert decide(service(tensor="Auto"), QWEN_06B, [shared, own]).product == own.product
    for tensor in ("Auto", 1):
        decision = decide(service(tensor=tensor), QWEN_06B, [shared])
        assert (decision.standing, decision.reason) == (Standing.FITS, "Fits")
        assert "what other pods take of its memory is not counted" in decision.message


RESERVED = {"key": "team", "value": "a", "effect": "NoSchedule"}


@pytest.mark.parametrize(
    ("spec", "accelerator", "product"),
    [
        ({}, {}, L4),
        ({"unschedulable": True}, {}, H100),
        ({"taints": [RESERVED]}, {}, H100),
        ({"taints": [{**RESERVED, "effect": "PreferNoSchedule"}]}, {}, L4),
        ({"taints": [{"key": "nvidia.com/gpu", "effect": "NoSchedule"}]}, {}, L4),
        ({"taints": [RESERVED]}, {"tolerations": [{"key": "team", "value": "a"}]}, L4),
        ({"taints": [RESERVED]}, {"tolerations": [{"key": "team", "value": "b"}]}, H100),
        ({"taints": [RESERVED]}, {"tolerations": [{"operator": "Exists"}]}, L4),
        ({"taints": [RESERVED]}, {"tolerations": [{"key": "team", "operator": "Exists"}]}, L4),
    ],
)
def test_auto_leaves_nodes_that_take_no_pods_of_its_to_others(
    spec: dict[str, Any], accelerator: dict[str, Any], product: str
) -> None:
    """Pods are kept to the product that was chosen, so they waited beside GPUs that were free."""
    auto = parse_inference_service(
        inference_service(parallelism={"tensor": "Auto"}, accelerator=accelerator)
    )
    closed = {**node(L4, 23034, 1), "spec": spec}
    kinds = gpu_kinds(auto.accelerator, [closed, node(H100, 81559)])
    assert decide(auto, QWEN_06B, kinds).product == product
    if product == H100:
        only = gpu_kinds(auto.accelerator, [closed])
        assert decide(auto, QWEN_06B, only).product == L4


def test_without_nodes_the_product_or_the_spec_tells() -> None:
    assert kinds_for(None) == []
    assert kinds_for(None, product=H100) == [GpuKind(H100, 81559 << 20)]
    assert kinds_for(None, product="Unheard-Of") == []
    assert kinds_for(None, product="Unheard-Of", memory="64Gi") == [GpuKind("Unheard-Of", 64 * GIB)]
    assert kinds_for(NODES, product=H100, memory="40Gi") == [GpuKind(H100, 40 * GIB, 8, 2)]


def test_every_amount_of_memory_above_nothing_is_taken() -> None:
    assert [kind.memory_bytes for kind in kinds_for(None, memory="0.5")] == [1]


def test_mig_slices_have_labels_of_their_own() -> None:
    slice_ = "nvidia.com/mig-3g.40gb"
    labels = {f"{slice_}.memory": "40192", f"{slice_}.product": "P", f"{slice_}.count": "2"}
    nodes = [{"metadata": {"name": "n", "labels": labels}}]
    assert kinds_for(nodes, resource=slice_) == [GpuKind("P", 40192 << 20, 2, 1, is_slice=True)]
    alike = node("NVIDIA-A100-SXM4-40GB-MIG-3g.20gb", 19968, 16)
    assert [kind.is_slice for kind in kinds_for([alike])] == [True]


def test_room_for_adapters_counts() -> None:
    wanted = service({"lora": {"maxAdapters": 8, "maxRank": 32}}, tensor=1)
    need = footprint(replace(LLAMA_8B), wanted.engine, Split())
    # Rank 32 on every matrix of Llama 8B is 83,886,080 numbers an adapter.
    assert need.adapters_bytes == 8 * 2 * 83_886_080


@pytest.mark.parametrize(
    ("args", "value"),
    [
        ([], None),
        (["--seed", "1"], None),
        (["--max-num-batched-tokens=2048"], 2048),
        (["--max-num-batched-tokens", "2048"], 2048),
        (["--max-num-batched-tokens", "2K"], None),
        (["--max-num-batched-tokens"], None),
        (["--max-num-batched-tokens=" + "9" * 1000], None),
        (["--max-num-batched-tokens=" + "9" * 5000], None),
    ],
    ids=["none", "another", "joined", "apart", "unit", "last", "absurd", "too-long-to-read"],
)
def test_a_smaller_step_takes_less_room(args: list[str], value: int | None) -> None:
    engine = service({"args": args}, tensor=1).engine
    assert engine.number_argument("--max-num-batched-tokens") == value
    usual = service(tensor=1).engine
    less = footprint(LLAMA_8B, engine, Split()).workspace_bytes
    assert (less < footprint(LLAMA_8B, usual, Split()).workspace_bytes) is (value is not None)
