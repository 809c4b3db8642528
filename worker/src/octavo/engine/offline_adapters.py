"""Adapters of an engine in this process, by the names that its user gives them."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from tqdm import tqdm

from octavo.engine.carried_errors import from_adapter_failure
from octavo.engine.core import EngineCore
from octavo.engine.held_interrupt import HeldInterrupt
from octavo.engine.messages import AdapterFailed, AdapterOpened, Refused
from octavo.errors import InvalidRequestError, OctavoError
from octavo.lora.adapter_source import AdapterSource, FileChange, last_change
from octavo.lora.request import LoRARequest
from octavo.request import AdapterGeneration


@dataclass(frozen=True, slots=True)
class _Loaded:
    path: str
    change: FileChange
    """When its files were last changed, as of before they were read."""
    adapter: AdapterGeneration


class OfflineAdapters:
    """Called while no request is open."""

    def __init__(self, core: EngineCore) -> None:
        self._core = core
        self._ids = itertools.count(1)
        self._loaded: dict[str, _Loaded] = {}
        """By name."""

    def load(
        self, requests: Sequence[LoRARequest], use_tqdm: bool = False
    ) -> list[AdapterGeneration]:
        """Load those that are not there, side by side; one for each request.

        A name that stands for another path, or for files that have changed, is loaded anew.
        Raises InvalidRequestError for a name with two paths, AdapterError or ModelLoadError for the
        first that cannot be loaded: the others are there then.
        """
        wanted: dict[str, LoRARequest] = {}
        for request in requests:
            first = wanted.setdefault(request.lora_name, request)
            if first.path != request.path:
                raise InvalidRequestError(
                    f"lora_request has the name {request.lora_name!r} for {first.path!r} and for "
                    f"{request.path!r}; give each adapter a name of its own.",
                    "lora_request",
                )
        errors = self._read([one for one in wanted.values() if not self._is_there(one)], use_tqdm)
        for name in wanted:
            if name in errors:
                raise errors[name]
        return [self._loaded[request.lora_name].adapter for request in requests]

    def unload(self, name: str) -> None:
        """Forget an adapter; names that are not loaded are ignored."""
        known = self._loaded.pop(name, None)
        if known is not None:
            self._core.close_adapter(known.adapter.id)

    def _is_there(self, request: LoRARequest) -> bool:
        known = self._loaded.get(request.lora_name)
        if known is None or known.path != request.path:
            return False
        change = last_change(AdapterSource(request.path))
        return change is None or change == known.change

    def _read(self, requests: Sequence[LoRARequest], use_tqdm: bool) -> dict[str, OctavoError]:
        """What could not be loaded, by name, and why."""
        errors: dict[str, OctavoError] = {}
        reading: dict[int, LoRARequest] = {}
        changes = {
            request.lora_name: last_change(AdapterSource(request.path)) for request in requests
        }
        try:
            with HeldInterrupt() as interrupt:
                for request in requests:
                    id_ = next(self._ids)
                    self._core.open_adapter(id_, AdapterSource(request.path))
                    reading[id_] = request
                for event in tqdm(
                    self._events_of(reading, interrupt),
                    desc="Loading adapters",
                    total=len(requests),
                    disable=not use_tqdm or len(requests) < 2,
                    leave=False,
                ):
                    request = reading.pop(event.adapter_id)
                    if isinstance(event, AdapterFailed):
                        errors[request.lora_name] = from_adapter_failure(event)
                    else:
                        adapter = AdapterGeneration(event.adapter_id, event.digest)
                        self._put(request, changes[request.lora_name], adapter)
        finally:
            for id_ in reading:  # left early
                self._core.close_adapter(id_)
        return errors

    def _events_of(
        self, reading: Mapping[int, object], interrupt: HeldInterrupt
    ) -> Iterator[AdapterOpened | AdapterFailed]:
        """Of those whose numbers are there, until none is."""
        while reading:
            interrupt.check()
            for event in self._core.take_adapter_events():
                if not isinstance(event, Refused) and event.adapter_id in reading:
                    yield event
            if reading:
                self._core.step()

    def _put(self, request: LoRARequest, change: FileChange, adapter: AdapterGeneration) -> None:
        self.unload(request.lora_name)
        self._loaded[request.lora_name] = _Loaded(request.path, change, adapter)
