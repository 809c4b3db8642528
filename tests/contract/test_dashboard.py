"""The Grafana dashboard: known fields only, panels that fit, queries of metrics that exist."""

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

FILE = REPOSITORY / "charts" / "octavo" / "files" / "dashboards" / "inference-service.json"
DASHBOARD: dict[str, Any] = json.loads(FILE.read_text(encoding="utf-8"))
PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
VARIABLES = {"$namespace": "models", "$service": "chat", "$__rate_interval": "5m"}


def queries() -> Iterator[tuple[str, str]]:
    for panel in PANELS:
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


def test_grafanas_own_model_knows_every_field() -> None:
    read = Dashboard.from_json(DASHBOARD)
    assert list(lost(DASHBOARD, json.loads(JSONEncoder().encode(read)))) == []
    assert list(lost({**DASHBOARD, "titel": "x"}, json.loads(JSONEncoder().encode(read))))


def test_panels_have_places_of_their_own() -> None:
    ids = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(ids) == len(set(ids))
    places = [panel["gridPos"] for panel in DASHBOARD["panels"]]
    for place in places:
        assert 0 <= place["x"] <= place["x"] + place["w"] <= 24
    for one, other in combinations(places, 2):
        is_beside = one["x"] + one["w"] <= other["x"] or other["x"] + other["w"] <= one["x"]
        is_above = one["y"] + one["h"] <= other["y"] or other["y"] + other["h"] <= one["y"]
        assert is_beside or is_above, (one, other)


def test_every_panel_says_what_it_shows() -> None:
    assert len({panel["title"] for panel in PANELS}) == len(PANELS)
    for panel in PANELS:
        assert panel["description"]
        assert panel["fieldConfig"]["defaults"]["unit"]


@pytest.mark.parametrize(("name", "expression"), list(queries()), ids=lambda text: text[:40])
async def test_query_reads_metrics_that_are_exposed(name: str, expression: str) -> None:
    read = metrics_in(expression)
    assert read
    assert read <= await worker_samples() | operator_samples()


async def test_variables_read_metrics_that_are_exposed() -> None:
    exposed = await worker_samples()
    variables = DASHBOARD["templating"]["list"]
    asked = [item["query"]["query"] for item in variables if item["type"] == "query"]
    assert len(asked) == 2
    for query in asked:
        assert metrics_in(query) <= exposed
    assert LABEL_SERVICE.replace(".", "_").replace("/", "_") in asked[1]


@pytest.mark.skipif(not has_promtool(), reason=HOW_TO_GET)
def test_promtool_accepts_every_query() -> None:
    rules = [
        {"record": f"panel:{index}", "expr": filled(expression)}
        for index, (_, expression) in enumerate(queries())
    ]
    assert "$" not in json.dumps(rules)
    check_rules({"groups": [{"name": "dashboard", "rules": rules}]})
