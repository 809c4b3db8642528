"""Adapters on their way from files to slots, beside a loop that waits for nothing."""

from __future__ import annotations

import shutil
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from octavo.errors import AdapterChangedError, ModelLoadError
from octavo.kernels.adapters import AdapterStack, Packing
from octavo.lora import adapter_store
from octavo.lora.adapter_folder import AdapterFiles, read_adapter
from octavo.lora.adapter_source import AdapterSource, FoundAdapter, find_adapter
from octavo.lora.adapter_store import AdapterStore
from octavo.lora.adapter_weights import AdapterWeights, lay_out
from octavo.lora.outcomes import Filled, FillFailed, Opened, OpenFailed, Outcome
from octavo.lora.reader_threads import AT_A_TIME
from octavo.lora.reading_turns import ReadingTurns
from octavo.models import registry
from octavo.models.decoder import projections_of
from tiny_adapters import make_adapter
from tiny_models import tiny_config

CONFIG = tiny_config("llama")
PROJECTIONS = projections_of(registry.resolve(CONFIG).config)
OTHER = "sha256:" + 64 * "0"


@pytest.fixture
def store() -> Iterator[AdapterStore]:
    stack = AdapterStack.allocate(PROJECTIONS, 1, 16, torch.float32, torch.device("cpu"))
    store = AdapterStore(stack, num_host_entries=1)
    yield store
    store.shut_down()


def outcomes(store: AdapterStore, number: int) -> list[Outcome]:
    news = threading.Event()
    store.when_done(news.set)
    found = store.poll()
    while len(found) < number:
        assert news.wait(60), "nobody woke us"
        news.clear()
        found += store.poll()
    assert len(found) == number
    return found


def outcome(store: AdapterStore) -> Outcome:
    return outcomes(store, 1)[0]


def opened(store: AdapterStore, adapter_id: int, source: AdapterSource) -> Opened:
    store.open(adapter_id, source)
    one = outcome(store)
    assert isinstance(one, Opened), one
    return one


def test_the_rank_that_was_asked_for_is_the_limit_and_not_its_padding(tmp_path: Path) -> None:
    stack = AdapterStack.allocate(PROJECTIONS, 1, 2, torch.float32, torch.device("cpu"))
    store = AdapterStore(stack, num_host_entries=1)
    for adapter_id, rank in enumerate((2, 4)):
        folder = make_adapter(tmp_path / str(rank), CONFIG, rank=rank)
        store.open(adapter_id, AdapterSource(str(folder)))
    first, second = sorted(outcomes(store, 2), key=lambda one: one.adapter_id)
    assert isinstance(first, Opened), first
    assert isinstance(second, OpenFailed)
    assert "rank is 4; this server takes at most 2" in str(second)
    store.shut_down()


class Operations(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.counts[func.overloadpacket.__name__] += 1
        return func(*args, **(kwargs or {}))


def test_a_fill_is_few_calls_and_touches_no_more_than_the_adapter_has() -> None:
    stack = AdapterStack.allocate(PROJECTIONS, 3, 32, torch.float32, torch.device("cpu"))
    for memory in (*stack.a, stack.b):
        memory.fill_(float("nan"))
    ranks = tuple((16, 0, 32, 16)[index % 4] for index in range(len(PROJECTIONS)))
    packing = Packing(tuple(PROJECTIONS), ranks)
    run, table = torch.randn(packing.size + 7), torch.tensor(packing.table)
    adapter = packing.cut(run, table)
    with torch.inference_mode(), Operations() as operations:
        stack.write(1, adapter)
    assert operations.counts["copy_"] == 2
    assert operations.counts["_foreach_copy_"] == 1
    num_parts = sum(size > 0 for size in adapter.sizes_of_a)
    assert sum(operations.counts.values()) <= num_parts + 8
    assert torch.equal(stack.table[1], table)
    assert torch.equal(stack.b[1, : packing.b_size], run[: packing.b_size])
    assert stack.b[1, packing.b_size :].isnan().all()
    for rows, rank, (a, _) in zip(stack.a, ranks, packing.matrices(run), strict=True):
        assert torch.equal(rows[1, :, :rank], a)
        assert rows[1, :, rank:].isnan().all()
        assert rows[[0, 2]].isnan().all()


@pytest.mark.parametrize("num_numbers", [1, 16 * 32, 1 << 20])
def test_a_comes_to_a_device_in_pieces_that_fit_where_it_lands(num_numbers: int) -> None:
    stack = AdapterStack.allocate(PROJECTIONS, 2, 16, torch.float32, torch.device("cpu"))
    largest = max(part.numel() for part in stack.a_of_slots[0])
    stack = replace(stack, landing=torch.empty(max(num_numbers, largest)))
    for memory in stack.a:
        memory.fill_(float("nan"))
    ranks = tuple((16, 0)[index % 3 == 1] for index in range(len(PROJECTIONS)))
    packing = Packing(tuple(PROJECTIONS), ranks)
    run = torch.randn(packing.size)
    stack.write(1, packing.cut(run, torch.tensor(packing.table)))
    for rows, rank, (a, _) in zip(stack.a, ranks, packing.matrices(run), strict=True):
        assert torch.equal(rows[1, :, :rank], a)
        assert rows[1, :, rank:].isnan().all()


def test_files_of_another_digest_than_expected_are_not_kept(
    store: AdapterStore, tmp_path: Path
) -> None:
    path = str(make_adapter(tmp_path, CONFIG))
    store.open(1, AdapterSource(path, digest=OTHER))
    failed = outcome(store)
    assert isinstance(failed, OpenFailed)
    assert isinstance(failed.error, AdapterChangedError)
    assert OTHER in str(failed.error)
    assert not store.in_host_memory()
    digest = opened(store, 2, AdapterSource(path)).digest
    assert digest in str(failed.error)
    assert opened(store, 3, AdapterSource(path, digest=digest)).digest == digest


def test_a_damaged_copy_of_a_known_version_is_changed_and_not_refused_for_good(
    store: AdapterStore, tmp_path: Path
) -> None:
    folder = make_adapter(tmp_path / "sql", CONFIG)
    digest = opened(store, 1, AdapterSource(str(folder))).digest
    weights = folder / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:5000])
    store.open(2, AdapterSource(str(folder), digest=digest))
    failed = outcome(store)
    assert isinstance(failed, OpenFailed)
    assert isinstance(failed.error, AdapterChangedError)


def test_a_source_that_does_not_answer_holds_no_other_up(
    store: AdapterStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = threading.Event()

    def find(source: AdapterSource, download_dir: str | None) -> FoundAdapter:
        if source.path == "hf://slow/adapter":
            answers.wait()
            raise ModelLoadError("too late")
        return find_adapter(source, download_dir)

    monkeypatch.setattr(adapter_store, "find_adapter", find)
    slow = [1, 2, 3]
    for adapter_id in slow:
        store.open(adapter_id, AdapterSource("hf://slow/adapter"))
    first, second = (
        AdapterSource(str(make_adapter(tmp_path / name, CONFIG, seed=seed)))
        for seed, name in enumerate(("first", "second"))
    )
    opened(store, 4, first)
    opened(store, 5, second)  # takes the only entry
    store.fill(4, 0)  # so it is read again
    assert outcome(store) == Filled(4, 0)
    assert store.num_evictions == 2
    answers.set()
    failed = outcomes(store, len(slow))
    assert all(isinstance(one, OpenFailed) for one in failed)
    assert {one.adapter_id for one in failed} == set(slow)


def test_what_is_read_again_comes_from_where_it_was_found(
    store: AdapterStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not from where a revision that moves leads to meanwhile."""
    places = {name: make_adapter(tmp_path / name, CONFIG, seed=ord(name)) for name in "ab"}
    asked: list[AdapterSource] = []

    def find(source: AdapterSource, download_dir: str | None) -> FoundAdapter:
        asked.append(source)
        return FoundAdapter(places[source.revision or "a"], source.revision or "a")

    monkeypatch.setattr(adapter_store, "find_adapter", find)
    first = opened(store, 1, AdapterSource("hf://acme/sql@main"))
    opened(store, 2, AdapterSource("hf://acme/sql", "b"))
    asked.clear()
    store.fill(1, 0)
    assert outcome(store) == Filled(1, 0)
    assert not asked
    shutil.rmtree(places["b"])
    store.fill(2, 0)
    assert isinstance(outcome(store), FillFailed)
    places["a"] = shutil.move(places["a"], tmp_path / "moved")
    opened(store, 3, AdapterSource(str(make_adapter(tmp_path / "c", CONFIG, seed=5)), "a"))
    asked.clear()
    store.fill(1, 0)
    assert outcome(store) == Filled(1, 0)
    assert asked == [AdapterSource("hf://acme/sql", "a", first.digest)]


def test_adapters_in_use_leave_host_memory_last(tmp_path: Path) -> None:
    stack = AdapterStack.allocate(PROJECTIONS, 1, 16, torch.float32, torch.device("cpu"))
    store = AdapterStore(stack, num_host_entries=2)
    path = AdapterSource(str(make_adapter(tmp_path, CONFIG)))
    there = []
    for adapter_id, kept in ((0, set[int]()), (1, {0}), (2, {0}), (3, set()), (4, {2, 3})):
        store.keep(kept)
        opened(store, adapter_id, path)
        there.append(set(store.in_host_memory()))
    # Where all are in use, it is the one copied longest ago.
    assert there == [{0}, {0, 1}, {0, 2}, {2, 3}, {3, 4}]
    store.shut_down()


def test_an_adapter_closed_while_it_is_read_leaves_nothing(
    store: AdapterStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lay_out_closed(*args: Any) -> AdapterWeights:
        store.close(1)
        return lay_out(*args)

    monkeypatch.setattr(adapter_store, "lay_out", lay_out_closed)
    has_ended = threading.Event()
    store.when_done(has_ended.set)
    store.open(1, AdapterSource(str(make_adapter(tmp_path, CONFIG))))
    assert has_ended.wait(60)
    assert store.poll() == []
    assert store.in_host_memory() == []


def test_an_adapter_found_again_elsewhere_is_read_again_from_there(
    store: AdapterStore, tmp_path: Path
) -> None:
    old, new = make_adapter(tmp_path / "old", CONFIG), make_adapter(tmp_path / "new", CONFIG)
    digest = opened(store, 1, AdapterSource(str(old))).digest
    store.open(2, AdapterSource(str(new)), known_digest=digest)
    known = outcome(store)
    assert isinstance(known, Opened)
    assert known.is_known
    shutil.rmtree(old)
    opened(store, 3, AdapterSource(str(make_adapter(tmp_path / "other", CONFIG, seed=9))))
    store.fill(1, 0)
    assert outcome(store) == Filled(1, 0)


def test_files_that_cannot_be_read_to_their_end_hold_no_other_up(
    store: AdapterStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither new adapters nor those that are read again; and conversions stay one at a time."""
    answers = threading.Event()
    stuck: set[Path] = set()
    num_converting, most = 0, 0
    count = threading.Lock()

    def read(folder: Path, *limits: Any) -> AdapterFiles:
        if folder in stuck:
            answers.wait()
        return read_adapter(folder, *limits)

    def lay_out_counted(*args: Any) -> AdapterWeights:
        nonlocal num_converting, most
        with count:
            num_converting += 1
            most = max(most, num_converting)
        time.sleep(0.02)
        with count:
            num_converting -= 1
        return lay_out(*args)

    monkeypatch.setattr(adapter_store, "read_adapter", read)
    monkeypatch.setattr(adapter_store, "lay_out", lay_out_counted)
    monkeypatch.setattr(store, "_turns", ReadingTurns(limit_s=0.01))
    folders = [make_adapter(tmp_path / str(seed), CONFIG, seed=seed) for seed in range(5)]
    sources = [AdapterSource(str(folder)) for folder in folders]
    for adapter_id in range(3):
        opened(store, adapter_id, sources[adapter_id])
    stuck |= {folders[0], folders[3]}
    store.open(3, sources[3])
    store.fill(0, 0)
    opened(store, 4, sources[4])
    store.fill(1, 0)  # it has left host memory for others
    assert outcome(store) == Filled(1, 0)
    answers.set()
    late = outcomes(store, 2)
    assert {one.adapter_id for one in late} == {0, 3}
    assert not any(isinstance(one, OpenFailed | FillFailed) for one in late)
    assert most == 1


def test_adapters_whose_files_never_come_hold_no_other_up_however_many(
    store: AdapterStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = threading.Event()
    stuck = make_adapter(tmp_path / "stuck", CONFIG, seed=1)

    def read(folder: Path, *limits: Any) -> AdapterFiles:
        if folder == stuck:
            answers.wait()
        return read_adapter(folder, *limits)

    monkeypatch.setattr(adapter_store, "read_adapter", read)
    monkeypatch.setattr(store, "_turns", ReadingTurns(limit_s=0.01))
    monkeypatch.setattr(store._openings, "_turns", ReadingTurns(AT_A_TIME, limit_s=0.01))
    num_stuck = 2 * AT_A_TIME
    for adapter_id in range(num_stuck):
        store.open(adapter_id, AdapterSource(str(stuck)))
    opened(store, num_stuck, AdapterSource(str(make_adapter(tmp_path / "other", CONFIG, seed=2))))
    answers.set()
    late = outcomes(store, num_stuck)
    assert {one.adapter_id for one in late} == set(range(num_stuck))
    assert all(isinstance(one, Opened) for one in late)


def test_shutting_down_does_not_wait_for_a_source(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = threading.Event()

    def find(source: AdapterSource, download_dir: str | None) -> FoundAdapter:
        answers.wait()
        return FoundAdapter(tmp_path, None)

    monkeypatch.setattr(adapter_store, "find_adapter", find)
    stack = AdapterStack.allocate(PROJECTIONS, 1, 16, torch.float32, torch.device("cpu"))
    store = AdapterStore(stack, num_host_entries=1)
    store.open(1, AdapterSource("hf://slow/adapter"))
    store.shut_down()
    store.shut_down()
    answers.set()
