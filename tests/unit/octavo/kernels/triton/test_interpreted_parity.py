"""Triton's programs, run by its interpreter, against the reference."""

import pytest

import kernel_parity
from interpreted_cases import TIMEOUT_S, errors_of

pytestmark = pytest.mark.timeout(2 * TIMEOUT_S)


@pytest.fixture(scope="module")
def errors(request: pytest.FixtureRequest) -> dict[str, list[str | None]]:
    """Of each case that was asked for."""
    names = [
        item.callspec.params["case"]
        for item in request.session.items
        if item.path == request.path and hasattr(item, "callspec")
    ]
    return errors_of(kernel_parity.__file__, names)


@pytest.mark.parametrize("case", kernel_parity.CASES | kernel_parity.ENGINE_CASES)
def test_interpreted_program_agrees_with_the_reference(
    case: str, errors: dict[str, list[str | None]]
) -> None:
    failures = [error for error in errors[case] if error is not None]
    assert not failures, "\n".join(failures)
    assert len(errors[case]) == len(kernel_parity.dtypes_of(case))
