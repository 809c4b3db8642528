"""The Grafana dashboards: known fields only, panels that fit, queries of metrics that exist."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from itertools import combinations
from typing import Any

import pytest
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.dashboard import Dashboard

from crd_schema import REPOSITORY
from exposed_metrics import metrics_in, operator_samples, worker_samples
from octavo_operator.labels import LABEL_SERVICE
from promtool_binary import HOW_TO_GET, check_rules, has_promtool

FOLDER = REPOSITORY / "charts" / "octavo" / "files" / "dashboards"
DASHBOARDS: dict[str, dict[str, Any]] = {
    file.stem: json.loads(file.read_text(encoding="utf-8")) for file in FOLDER.glob("*.json")
}
each_dashboard = pytest.mark.parametrize("name", sorted(DASHBOARDS))
VARIABLES = {"$namespace": "models", "$service": "chat", "$__rate_interval": "5m"}


def panels(name: str) -> list[dict[str, Any]]:
    return [panel for panel in DASHBOARDS[name]["panels"] if panel["type"] != "row"]


def queries() -> Iterator[tuple[str, str]]:
    for name in sorted(DASHBOARDS):
        for panel in panels(name):
            for target in panel["targets"]:
                yield f"{panel['title']}-{target['refId']}", target["expr"]


def filled(expression: str) -> str:
    for name, value in VARIABLES.items():
        expression = expression.replace(name, value)
    return expression


def lost(ours: Any, kept: Any, path: str = "") -> Iterator[str]:
    """Fields of ours that the model of Grafana's schema does not know."""
    if isinstance(ours, Mapping):
        for key, value in ours.items():
            if not isinstance(kept, Mapping) or key not in kept:
                yield f"{path}.{key}"
            else:
                yield from lost(value, kept[key], f"{path}.{key}")
    elif isinstance(ours, list):
        assert isinstance(kept, list)
        assert len(kept) == len(ours)
        for index, (left, right) in enumerate(zip(ours, kept, strict=True)):
            yield from lost(left, right, f"{path}[{index}]")
    elif ours != kept:
        yield f"{path} is {ours!r} and read as {kept!r}"


@each_dashboard
def test_grafanas_own_model_knows_every_field(name: str) -> None:
    dashboard = DASHBOARDS[name]
    read = Dashboard.from_json(dashboard)
    assert list(lost(dashboard, json.loads(JSONEncoder().encode(read)))) == []
    assert list(lost({**dashboard, "titel": "x"}, json.loads(JSONEncoder().encode(read))))


@each_dashboard
def test_panels_have_places_of_their_own(name: str) -> None:
    ids = [panel["id"] for panel in DASHBOARDS[name]["panels"]]
    assert len(ids) == len(set(ids))
    places = [panel["gridPos"] for panel in DASHBOARDS[name]["panels"]]
    for place in places:
        assert 0 <= place["x"] <= place["x"] + place["w"] <= 24
    for one, other in combinations(places, 2):
        is_beside = one["x"] + one["w"] <= other["x"] or other["x"] + other["w"] <= one["x"]
        is_above = one["y"] + one["h"] <= other["y"] or other["y"] + other["h"] <= one["y"]
        assert is_beside or is_above, (one, other)


@each_dashboard
def test_every_panel_says_what_it_shows(name: str) -> None:
    assert len({panel["title"] for panel in panels(name)}) == len(panels(name))
    for panel in panels(name):
        assert panel["description"]
        assert panel["fieldConfig"]["defaults"]["unit"]


@pytest.mark.parametrize(("name", "expression"), list(queries()), ids=lambda text: text[:40])
async def test_query_reads_metrics_that_are_exposed(name: str, expression: str) -> None:
    read = metrics_in(expression)
    assert read
    assert read <= await worker_samples() | operator_samples()


@each_dashboard
async def test_variables_read_metrics_that_are_exposed(name: str) -> None:
    exposed = await worker_samples() | operator_samples()
    variables = DASHBOARDS[name]["templating"]["list"]
    asked = [item["query"]["query"] for item in variables if item["type"] == "query"]
    assert asked
    for query in asked:
        assert metrics_in(query) <= exposed
    if name == "inference-service":
        assert LABEL_SERVICE.replace(".", "_").replace("/", "_") in asked[1]


@pytest.mark.skipif(not has_promtool(), reason=HOW_TO_GET)
def test_promtool_accepts_every_query() -> None:
    rules = [
        {"record": f"panel:{index}", "expr": filled(expression)}
        for index, (_, expression) in enumerate(queries())
    ]
    assert "$" not in json.dumps(rules)
    check_rules({"groups": [{"name": "dashboard", "rules": rules}]})
