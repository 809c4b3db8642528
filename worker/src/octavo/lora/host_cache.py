"""Adapters in host memory, in so many entries; who has not been copied for longest is dropped, and
last of all who is kept.

Knows memory and who has it; nothing of files, slots or streams. Threads write adapters into it
while the loop copies others from it: an entry that is written or read is busy, and stays whose it
is, until it is released.
"""

from __future__ import annotations

import threading
from collections.abc import Collection
from dataclasses import dataclass

import torch

from octavo.errors import ModelLoadError
from octavo.kernels.adapters import AdapterStack, PackedAdapter
from octavo.lora.adapter_weights import AdapterWeights
from octavo.lora.locked_memory import LockedMemory

_WIDEST_BYTES = 4
"""Of a number in an adapter's file."""


@dataclass(frozen=True, slots=True)
class HeldAdapter:
    """An adapter that stays where it is until its entry is released."""

    entry: int
    adapter: PackedAdapter


def largest_file_bytes(stack: AdapterStack) -> int:
    """What the largest adapter that fits may take in its file."""
    return stack.slot_size * _WIDEST_BYTES


class HostCache:
    """Adapters by id. Thread-safe."""

    def __init__(self, stack: AdapterStack, num_entries: int) -> None:
        is_cuda = stack.b.is_cuda
        num_numbers = num_entries * stack.slot_size
        self._locked: LockedMemory | None = None
        # Locked once and for all: that stops the device's other work. On the CPU pages are mapped
        # when first written.
        if is_cuda:
            self._locked = LockedMemory(num_numbers * stack.b.element_size())
            numbers = self._locked.bytes.view(stack.b.dtype)
        else:
            numbers = torch.empty(num_numbers, dtype=stack.b.dtype)
        self._weights = numbers.view(num_entries, stack.slot_size)
        self._tables = torch.zeros(
            num_entries, *stack.table.shape[1:], dtype=torch.int64, pin_memory=is_cuda
        )
        self._lock = threading.Condition()
        self._holders: list[int | None] = [None] * num_entries
        self._entries: dict[int, int] = {}
        """Of the adapters that can be copied: not of one that is being written."""
        self._adapters: list[PackedAdapter | None] = [None] * num_entries
        self._last_used = [0] * num_entries
        self._kept: frozenset[int] = frozenset()
        """Adapters that are dropped last."""
        self._busy: set[int] = set()
        """Entries that are being written, or copied from."""
        self._uses = 0
        self._is_stopping = False
        self.num_evictions = 0
        """Adapters that were dropped for others."""

    @property
    def bytes_per_number(self) -> int:
        return self._weights.element_size()

    def __contains__(self, adapter_id: int) -> bool:
        with self._lock:
            return adapter_id in self._entries

    def adapters(self) -> list[int]:
        """Ids of those that are there, or being written."""
        with self._lock:
            return [holder for holder in self._holders if holder is not None]

    @torch.inference_mode()
    def put(self, adapter_id: int, weights: AdapterWeights) -> None:
        """Write an adapter into an empty entry, or that of the one copied longest ago.

        Waits while all are busy; raises ModelLoadError when the cache is stopped meanwhile.
        """
        entry = self._take_entry(adapter_id)
        try:
            run, table, packing = self._weights[entry], self._tables[entry], weights.layout.packing
            weights.copy_into(run)
            table.copy_(torch.tensor(packing.table, dtype=torch.int64))
            adapter = packing.cut(run, table)
        except BaseException:
            self.forget(adapter_id)
            self.release(entry)
            raise
        with self._lock:
            self._adapters[entry] = adapter
            self._use(entry)
            if self._holders[entry] == adapter_id:  # else it was forgotten meanwhile
                self._entries[adapter_id] = entry
        self.release(entry)

    def keep(self, adapter_ids: Collection[int]) -> None:
        """From now on drop these, and no others, only where there is nothing else to drop: they may
        be needed on the device again when their files are not what they were."""
        with self._lock:
            self._kept = frozenset(adapter_ids)

    def hold(self, adapter_id: int) -> HeldAdapter | None:
        """An adapter to copy from; None if it is not there. :meth:`release` its entry."""
        with self._lock:
            entry = self._entries.get(adapter_id)
            if entry is None:
                return None
            adapter = self._adapters[entry]
            assert adapter is not None, "who has an entry was written"
            self._busy.add(entry)
            self._use(entry)
            return HeldAdapter(entry, adapter)

    def release(self, entry: int) -> None:
        """An entry is no longer written or read."""
        with self._lock:
            self._busy.discard(entry)
            self._lock.notify_all()

    def forget(self, adapter_id: int) -> None:
        """Its entry is nobody's; nobody gets it while it is busy."""
        with self._lock:
            self._entries.pop(adapter_id, None)
            self._holders = [None if held == adapter_id else held for held in self._holders]

    def check_integrity(self, read: set[int]) -> None:
        """Raise AssertionError unless exactly the entries ``read`` are busy, and each has at most
        one holder; while nothing is being written."""
        with self._lock:
            assert self._busy == read, f"entries {self._busy} are busy, {read} are copied from"
            for adapter_id, entry in self._entries.items():
                assert self._holders[entry] == adapter_id, f"{adapter_id} lost its entry"

    def stop(self) -> None:
        """Who waits for an entry gets none."""
        with self._lock:
            self._is_stopping = True
            self._lock.notify_all()

    def _use(self, entry: int) -> None:
        self._uses += 1
        self._last_used[entry] = self._uses

    def _take_entry(self, adapter_id: int) -> int:
        with self._lock:
            while not (free := [e for e in range(len(self._holders)) if e not in self._busy]):
                if self._is_stopping:
                    raise ModelLoadError("The server is shutting down.")
                self._lock.wait()
            entry = min(free, key=self._worth)
            holder = self._holders[entry]
            if holder is not None:
                del self._entries[holder]
                self.num_evictions += 1
            self._holders[entry] = adapter_id
            self._busy.add(entry)
            return entry

    def _worth(self, entry: int) -> tuple[bool, bool, int]:
        holder = self._holders[entry]
        return holder is not None, holder in self._kept, self._last_used[entry]
