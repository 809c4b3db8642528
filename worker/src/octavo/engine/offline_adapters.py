"""Adapters of an engine in this process, by the names that its user gives them."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from tqdm import tqdm

from octavo.engine.carried_errors import from_adapter_failure
from octavo.engine.core import EngineCore
from octavo.engine.messages import AdapterFailed, Refused
from octavo.errors import InvalidRequestError, OctavoError
from octavo.lora.adapter_source import AdapterSource
from octavo.lora.request import LoRARequest
from octavo.request import AdapterGeneration


class OfflineAdapters:
    """Called while no request is open."""

    def __init__(self, core: EngineCore) -> None:
        self._core = core
        self._ids = itertools.count(1)
        self._loaded: dict[str, tuple[str, AdapterGeneration]] = {}
        """Name → path and what was loaded from there."""

    def load(
        self, requests: Sequence[LoRARequest], use_tqdm: bool = False
    ) -> list[AdapterGeneration]:
        """Load those that are not there, side by side; one for each request.

        A name that stands for another path is loaded anew. Raises InvalidRequestError for a name
        with two paths, AdapterError or ModelLoadError for the first that cannot be loaded: the
        others are there then.
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
        for error in errors:
            if error is not None:
                raise error
        return [self._loaded[request.lora_name][1] for request in requests]

    def unload(self, name: str) -> None:
        """Forget an adapter; names that are not loaded are ignored."""
        known = self._loaded.pop(name, None)
        if known is not None:
            self._core.close_adapter(known[1].id)

    def _is_there(self, request: LoRARequest) -> bool:
        known = self._loaded.get(request.lora_name)
        return known is not None and known[0] == request.path

    def _read(self, requests: Sequence[LoRARequest], use_tqdm: bool) -> list[OctavoError | None]:
        """What each could not be loaded for."""
        errors: list[OctavoError | None] = [None] * len(requests)
        reading: dict[int, int] = {}
        is_shown = use_tqdm and len(requests) > 1
        try:
            for place, request in enumerate(requests):
                id_ = next(self._ids)
                self._core.open_adapter(id_, AdapterSource(request.path))
                reading[id_] = place
            with tqdm(
                total=len(requests), desc="Loading adapters", disable=not is_shown, leave=False
            ) as bar:
                while reading:
                    for event in self._core.take_adapter_events():
                        if isinstance(event, Refused) or event.adapter_id not in reading:
                            continue
                        place = reading.pop(event.adapter_id)
                        bar.update()
                        if isinstance(event, AdapterFailed):
                            errors[place] = from_adapter_failure(event)
                        else:
                            generation = AdapterGeneration(event.adapter_id, event.digest)
                            self._put(requests[place], generation)
                    if reading:
                        self._core.step()
        finally:
            for id_ in reading:  # left early
                self._core.close_adapter(id_)
        return errors

    def _put(self, request: LoRARequest, adapter: AdapterGeneration) -> None:
        self.unload(request.lora_name)
        self._loaded[request.lora_name] = (request.path, adapter)
