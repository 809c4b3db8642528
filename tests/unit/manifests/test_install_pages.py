"""What docs/install.md and docs/inference-service.md tell people to write is accepted."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import pytest
import yaml

from crd_rules import admission_errors
from crd_schema import REPOSITORY, Schema, crd_of_kind, root_schema
from helm_binary import Helm

DOCS = REPOSITORY / "docs"
PAGES = (
    *("install.md", "inference-service.md", "monitoring.md", "gitops.md", "runbooks/README.md"),
    *sorted(f"runbooks/{path.name}" for path in (DOCS / "runbooks").glob("*-*.md")),
)


def snippets(page: str) -> list[dict[str, Any]]:
    text = (DOCS / page).read_text(encoding="utf-8")
    return [
        yaml.safe_load(block) for block in re.findall(r"```yaml\n(.*?)```", text, flags=re.DOTALL)
    ]


def test_every_values_snippet_renders(helm: Helm) -> None:
    found = snippets("install.md")
    assert found
    for values in found:
        assert helm.template(REPOSITORY / "charts" / "octavo", values)


def test_every_set_flag_names_a_value_of_the_chart() -> None:
    values = yaml.safe_load((REPOSITORY / "charts/octavo/values.yaml").read_text())
    flags = re.findall(r"--set '?([\w.]+)=", (DOCS / "install.md").read_text(encoding="utf-8"))
    assert flags
    for flag in flags:
        node = values
        for name in flag.split("."):
            node = node[name]


def test_every_resource_snippet_is_accepted() -> None:
    found = snippets("inference-service.md")
    assert found
    for snippet in found:
        document = {"metadata": {"name": "chat"}, **snippet}
        assert admission_errors(crd_of_kind("InferenceService"), document) == []


def test_table_lists_every_field_with_its_default_and_meaning() -> None:
    text = (DOCS / "inference-service.md").read_text(encoding="utf-8")
    table = text.split("| field of `spec` |")[1].splitlines()[2:]
    assert table == list(_rows(root_schema(crd_of_kind("InferenceService"))["properties"]["spec"]))


def _rows(node: Schema, prefix: str = "") -> Iterator[str]:
    for name, child in node["properties"].items():
        if child.get("type") == "object" and "properties" in child:
            yield from _rows(child, f"{prefix}{name}.")
        else:
            default = f"`{json.dumps(child['default'])}`" if "default" in child else ""
            yield f"| `{prefix}{name}` | {default} | {child['description']} |"


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_to_files_of_the_repository(page: str) -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", (DOCS / page).read_text(encoding="utf-8")):
        assert ((DOCS / page).parent / target).resolve().exists(), target
