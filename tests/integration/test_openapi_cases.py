"""Bodies made up from ``/openapi.json``, valid and not, against a real server.

No answer is a 5xx, and each has a status, a content type and a shape that the document tells.
``OCTAVO_OPENAPI_CASES=2000`` runs that many cases; a tenth of it is what a usual run takes.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
import requests
from hypothesis import HealthCheck, Phase, given, settings

from served_model import ServedModel, served_model
from tiny_models import make_tiny_model

schemathesis = pytest.importorskip("schemathesis")
from schemathesis import GenerationMode  # noqa: E402
from schemathesis.checks import (  # noqa: E402
    load_all_checks,
    not_a_server_error,
)
from schemathesis.specs.openapi.checks import (  # noqa: E402
    content_type_conformance,
    negative_data_rejection,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

pytestmark = pytest.mark.timeout(3600)

NUM_CASES = int(os.environ.get("OCTAVO_OPENAPI_CASES", "200"))
CHECKS = [
    not_a_server_error,  # first: a made-up timeout of no time at all is rightly a 504
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
]


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServedModel]:
    """Short contexts, so that what asks for all it may have is soon answered."""
    folder = tmp_path_factory.mktemp("openapi")
    model = make_tiny_model("llama", folder / "model")
    flags = ("--served-model-name", "tiny", "--max-model-len", "64")
    with served_model(model, folder / "log", *flags) as served:
        yield served
        assert not [event for event in served.events() if event["level"] == "error"]
        assert served.stop() == 0


def test_no_case_meets_a_failure_or_an_answer_that_is_not_described(served: ServedModel) -> None:
    load_all_checks()
    schema = schemathesis.openapi.from_url(f"{served.url}/openapi.json")
    operations = [result.ok() for result in schema.get_all_operations()]
    with_body = [operation for operation in operations if operation.body]
    assert len(with_body) >= 6
    modes = [GenerationMode.POSITIVE, GenerationMode.NEGATIVE]
    share = -(-NUM_CASES // (len(with_body) * len(modes)))
    statuses: Counter[int] = Counter()
    with requests.Session() as session:
        for operation in operations:
            for mode in modes if operation in with_body else modes[:1]:
                _run(operation, mode, share, session, statuses)
    assert sum(statuses.values()) >= NUM_CASES
    # Both kinds were met: answers, and refusals.
    assert statuses[200] > NUM_CASES / 20, statuses
    assert statuses[400] > NUM_CASES / 20, statuses
    print(f"{sum(statuses.values())} cases: {dict(sorted(statuses.items()))}")
    tokens = {"prompt": "x", "max_tokens": 1}
    assert requests.post(f"{served.url}/v1/completions", json=tokens, timeout=60).ok


def _run(
    operation: Any,
    mode: Any,
    num_cases: int,
    session: requests.Session,
    statuses: Counter[int],
) -> None:
    """``num_cases`` of one operation, fewer where there are no more different ones."""
    checks = CHECKS + ([negative_data_rejection] if mode is GenerationMode.NEGATIVE else [])

    @settings(
        max_examples=num_cases,
        deadline=None,
        database=None,
        derandomize=True,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(case=operation.as_strategy(generation_mode=mode))
    def ask(case: Any) -> None:
        if mode is GenerationMode.POSITIVE and isinstance(case.body, dict):
            case.body.pop("model", None)  # no made-up name is one of ours: all would be 404
        response = case.call(session=session, timeout=120)
        statuses[response.status_code] += 1
        has_asked_for_it = isinstance(case.body, dict) and "timeout" in case.body
        is_late = response.status_code == 504 and has_asked_for_it
        case.validate_response(response, checks=checks[is_late:])

    ask()
