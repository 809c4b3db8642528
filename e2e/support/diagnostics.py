"""All there is to know of a namespace, written to a folder when a story has failed."""

from __future__ import annotations

from pathlib import Path

import yaml

from cluster import ApiError, Cluster, Object

KINDS = (
    "inferenceservices",
    "loraadapters",
    "deployments",
    "replicasets",
    "pods",
    "services",
    "serviceaccounts",
    "endpointslices",
    "poddisruptionbudgets",
    "networkpolicies",
    "horizontalpodautoscalers",
    "jobs",
    "leases",
    "events",
)


def dump_namespace(cluster: Cluster, namespace: str, folder: Path) -> None:
    """Objects by kind, events in order, and each container's log and the one before."""
    folder.mkdir(parents=True, exist_ok=True)
    for plural in KINDS:
        try:
            found = cluster.list_all(plural, namespace)
        except ApiError as error:
            (folder / f"{plural}.txt").write_text(str(error), encoding="utf-8")
            continue
        for item in found:
            item["metadata"].pop("managedFields", None)
        text = yaml.safe_dump_all(found, sort_keys=False)
        (folder / f"{plural}.yaml").write_text(text, encoding="utf-8")
        if plural == "events":
            (folder / "events.txt").write_text(_timeline(found), encoding="utf-8")
        if plural == "pods":
            for pod in found:
                _dump_logs(cluster, pod, folder)


def _timeline(events: list[Object]) -> str:
    rows = []
    for event in events:
        when = event.get("lastTimestamp") or event.get("eventTime") or ""
        about = event["involvedObject"]
        rows.append(
            f"{when} {event.get('type')} {event.get('reason')} "
            f"{about.get('kind')}/{about.get('name')}: {event.get('message')}"
        )
    return "\n".join(sorted(rows)) + "\n"


def _dump_logs(cluster: Cluster, pod: Object, folder: Path) -> None:
    metadata, spec = pod["metadata"], pod["spec"]
    for container in [*(spec.get("initContainers") or ()), *spec["containers"]]:
        for suffix, query in (("", {}), (".previous", {"previous": "true"})):
            text = cluster.log(metadata["namespace"], metadata["name"], container["name"], **query)
            name = f"{metadata['name']}.{container['name']}{suffix}.log"
            (folder / name).write_text(text, encoding="utf-8")
