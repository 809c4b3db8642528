"""What is told of an error comes through the wall, whatever it quotes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from octavo.engine.carried_errors import (
    from_adapter_failure,
    from_load_failure,
    from_refusal,
    to_adapter_failure,
    to_load_failure,
    to_refusal,
)
from octavo.engine.messages import FromEngine
from octavo.errors import AdapterError, OctavoError

WAYS: list[tuple[Callable[[Any], Any], Callable[[Any], OctavoError]]] = [
    (lambda error: to_adapter_failure(1, error), from_adapter_failure),
    (lambda error: to_refusal("a", error), from_refusal),
    (to_load_failure, from_load_failure),
]
FILE_NAME = b"caf\xe9".decode(errors="surrogateescape")
"""As Python spells the name of a file that is not UTF-8."""


@pytest.mark.parametrize(("to", "back"), WAYS, ids=("adapter", "request", "load"))
def test_errors_that_quote_what_is_no_text_come_through(
    to: Callable[[Any], Any], back: Callable[[Any], OctavoError]
) -> None:
    sent = msgspec.msgpack.encode(to(AdapterError(f"{FILE_NAME} is not a folder.")))
    error = back(msgspec.msgpack.decode(sent, type=FromEngine))
    assert isinstance(error, AdapterError)
    assert str(error) == r"caf\udce9 is not a folder."


@pytest.mark.parametrize(("to", "back"), WAYS, ids=("adapter", "request", "load"))
def test_of_a_long_error_the_reason_and_the_remedy_come_through(
    to: Callable[[Any], Any], back: Callable[[Any], OctavoError]
) -> None:
    error = back(to(AdapterError(f"It holds {'x' * 1_000_000}; copy it again.")))
    assert str(error).startswith("It holds xxx")
    assert str(error).endswith("xxx; copy it again.")
    assert len(str(error)) < 10_000
