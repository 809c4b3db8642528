"""LoRA's programs, run by Triton's interpreter, against the reference."""

import pytest

import adapter_parity
from interpreted_cases import TIMEOUT_S, errors_of

pytestmark = pytest.mark.timeout(2 * TIMEOUT_S)


@pytest.fixture(scope="module")
def errors() -> dict[str, list[str | None]]:
    return errors_of(adapter_parity.__file__, list(adapter_parity.ADAPTER_CASES))


@pytest.mark.parametrize("case", adapter_parity.ADAPTER_CASES)
def test_interpreted_program_agrees_with_the_reference(
    case: str, errors: dict[str, list[str | None]]
) -> None:
    failures = [error for error in errors[case] if error is not None]
    assert not failures, "\n".join(failures)
    assert len(errors[case]) == 2  # float32 and bf16
