"""Another version of an adapter: tried on one pod first, never mixed with the old one, and the way
back.
"""

from __future__ import annotations

import asyncio

from adapter_stage import (
    adapter_stage,
    counts,
    lora_adapter,
)
from eventually import eventually
from inference_services import condition_message, conditions
from octavo_operator.labels import ANNOTATION_RESOLVE


async def test_new_version_is_tried_on_one_pod_first() -> None:
    async with adapter_stage() as stage:
        old = stage.put("hf://org/sql", "v1")
        pods = await stage.serve(3)
        await stage.apply(lora_adapter(revision="v1"))
        await stage.settled()
        new = stage.put("hf://org/sql", "v2")
        stage.workers.sources.hanging.add("hf://org/sql")
        stage.workers.loads.clear()
        await stage.apply(lora_adapter(revision="v2"))
        await eventually(lambda: bool(stage.workers.loads))

        async def is_told() -> bool:
            return await stage.ready() == ("False", "Resolving")

        await eventually(is_told)
        assert [stage.served(pod) for pod in pods] == [{"sql": old}] * 3
        adapter = await stage.adapter()
        assert counts(adapter) == (3, 3, 0)
        assert adapter["status"]["resolvedDigest"] == old
        stage.workers.sources.hanging.clear()
        await stage.settled()
        assert [stage.served(pod) for pod in pods] == [{"sql": new}] * 3
        first, *others = [body for _, body in stage.workers.loads]
        assert (first["revision"], "digest" in first) == ("v2", False)
        assert [body["digest"] for body in others] == [new, new]
        assert (await stage.adapter())["status"]["resolvedDigest"] == new


async def test_pods_that_come_meanwhile_do_not_try_it_as_well() -> None:
    async with adapter_stage() as stage:
        await stage.serve(1)
        names = [f"a{number}" for number in range(5)]
        for name in names:
            stage.put(f"hf://org/{name}", name)
            stage.workers.sources.hanging.add(f"hf://org/{name}")
        await stage.apply(*(lora_adapter(name, f"hf://org/{name}") for name in names))
        await eventually(lambda: len(stage.workers.loads) == 5)
        pods = [await stage.add_pod() for _ in range(3)]

        async def are_seen() -> bool:
            return all([counts(await stage.adapter(name)) == (4, 0, 0) for name in names])

        await eventually(are_seen)
        # What that pass has begun, if anything, has reached a worker by then.
        await asyncio.sleep(0.05)
        assert len(stage.workers.loads) == 5
        stage.workers.sources.hanging.clear()
        await stage.settled()
        assert [set(stage.served(pod)) for pod in pods] == [set(names)] * 3


async def test_version_that_is_refused_reaches_one_pod_only_and_replaces_nothing() -> None:
    async with adapter_stage() as stage:
        old = stage.put("/adapters/v1", "v1")
        stage.put("/adapters/v2", "refused")
        pods = await stage.serve(3)
        await stage.apply(lora_adapter(uri="file:///adapters/v1"))
        await stage.settled()
        stage.workers.loads.clear()
        await stage.apply(lora_adapter(uri="file:///adapters/v2"))
        await stage.settled()
        assert len(stage.workers.loads) == 1
        assert [stage.served(pod) for pod in pods] == [{"sql": old}] * 3
        adapter = await stage.adapter()
        assert conditions(adapter)["Ready"] == ("False", "AdapterRefused")
        told = f"this server takes at most 16; pods serve {old} on"
        assert told in condition_message(adapter, "SourceResolved")
        assert counts(adapter) == (3, 3, 1)
        # A pod that comes now gets what the others have, not what was refused.
        added = await stage.add_pod()
        await stage.settled()
        assert stage.served(added) == {"sql": old}
        # Rolling back is setting the source back: nothing has to be loaded for it.
        stage.workers.loads.clear()
        await stage.apply(lora_adapter(uri="file:///adapters/v1"))
        await stage.settled()
        assert stage.workers.loads == []
        assert await stage.ready() == ("True", "Loaded")


async def test_source_that_moves_does_not_mix_versions(quick_retries: None) -> None:
    """A pod that comes later asks for the files that the others have, and no others."""
    async with adapter_stage() as stage:
        stage.put("/adapters/sql", "v1")
        (pod,) = await stage.serve(1)
        await stage.apply(lora_adapter(uri="file:///adapters/sql"))
        await stage.settled()
        new = stage.put("/adapters/sql", "v2")
        added = await stage.add_pod()
        await stage.settled()
        assert stage.served(added) == {"sql": None}  # 503: others have it
        num_loads = len(stage.workers.loads)
        for _ in range(5):
            await stage.look()
        assert len(stage.workers.loads) == num_loads
        adapter = await stage.adapter()
        assert conditions(adapter)["Ready"] == ("False", "SourceChanged")
        assert new in condition_message(adapter, "Ready")
        await stage.apply(
            lora_adapter(uri="file:///adapters/sql", annotations={ANNOTATION_RESOLVE: "2"})
        )
        await stage.settled()
        assert [stage.served(each) for each in (pod, added)] == [{"sql": new}] * 2


async def test_digest_in_the_spec_pins_what_a_source_stands_for() -> None:
    """And is the way back to a version, whatever the source has become since."""
    async with adapter_stage() as stage:
        first = stage.put("/adapters/sql", "v1")
        pods = await stage.serve(2)
        await stage.apply(lora_adapter(uri="file:///adapters/sql"))
        await stage.settled()
        second = stage.put("/adapters/sql", "v2")
        stage.workers.loads.clear()
        await stage.apply(lora_adapter(uri="file:///adapters/sql", digest=first))
        await stage.settled()
        # Every pod has it already; nobody takes what is there now.
        assert [stage.served(pod) for pod in pods] == [{"sql": first}] * 2
        assert await stage.ready() == ("True", "Loaded")
        added = await stage.add_pod()
        await stage.settled()
        assert await stage.ready() == ("False", "SourceChanged")
        assert stage.served(added) == {"sql": None}  # 503: others have it
        await stage.apply(lora_adapter(uri="file:///adapters/sql", digest=second))
        await stage.settled()
        assert [stage.served(pod) for pod in (*pods, added)] == [{"sql": second}] * 3
        await stage.apply(lora_adapter(uri="file:///adapters/sql", digest=f"sha256:{'0' * 64}"))
        await stage.settled()
        assert await stage.ready() == ("False", "SourceChanged")
        assert [stage.served(pod) for pod in (*pods, added)] == [{"sql": second}] * 3
