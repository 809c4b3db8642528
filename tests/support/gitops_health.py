"""The health checks under gitops/, evaluated as Argo CD (Lua) and Flux (CEL) would."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import celpy
import lupa
import yaml

from crd_schema import REPOSITORY

_FOLDER = REPOSITORY / "gitops"
_PREFIX = "resource.customizations.health.serving.octavo.dev_"


def argo_health(resource: Mapping[str, Any]) -> str:
    """Healthy, Progressing, Degraded or Suspended."""
    scripts = yaml.safe_load((_FOLDER / "argocd-cm.yaml").read_text(encoding="utf-8"))["data"]
    lua = lupa.LuaRuntime(register_eval=False)
    lua.globals().obj = lua.table_from(resource, recursive=True)
    answer = lua.execute(scripts[_PREFIX + resource["kind"]])
    assert isinstance(answer["message"], str)
    return str(answer["status"])


def flux_health(resource: Mapping[str, Any]) -> str:
    """Current, Failed or InProgress; expressions are asked in Flux's order."""
    document = yaml.safe_load((_FOLDER / "flux-kustomization.yaml").read_text(encoding="utf-8"))
    (check,) = (
        item
        for item in document["spec"]["healthCheckExprs"]
        if (item["apiVersion"], item["kind"]) == (resource["apiVersion"], resource["kind"])
    )
    assert set(check) == {"apiVersion", "kind", "current", "failed"}
    if _holds(check["failed"], resource):
        return "Failed"
    return "Current" if _holds(check["current"], resource) else "InProgress"


def _holds(expression: str, resource: Mapping[str, Any]) -> bool:
    environment = celpy.Environment()
    program = environment.program(environment.compile(expression))
    names = {"status": {}, **resource}
    activation = {name: celpy.json_to_cel(value) for name, value in names.items()}
    return bool(program.evaluate(activation))
