"""The list of adapters that the operator writes for new pods, as the worker reads it."""

from __future__ import annotations

from pathlib import Path

from inference_services import inference_service
from octavo.engine.adapter_state import AdapterStateFile
from octavo_operator.manifests.adapter_list import WantedAdapter, adapter_list
from octavo_operator.resources.inference_service import parse_inference_service


def test_list_is_what_a_worker_reads(tmp_path: Path) -> None:
    service = parse_inference_service(inference_service(engine={"lora": {}}))
    wanted = [
        WantedAdapter("sql", "hf://org/sql", "c1", "sha256:1", is_lazy=False),
        WantedAdapter('ünïcode "name"', "/adapters/x", None, "sha256:2", is_lazy=True),
    ]
    for adapters in ([], wanted):
        (text,) = adapter_list(service, adapters)["data"].values()
        file = tmp_path / "wanted.json"
        file.write_text(text)
        read = AdapterStateFile(file).read()
        assert [
            WantedAdapter(one.name, one.path, one.revision, str(one.digest), one.lazy)
            for one in read
        ] == adapters
