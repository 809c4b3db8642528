"""One helm for all chart tests."""

from __future__ import annotations

import pytest

from helm_binary import Helm, find_helm


@pytest.fixture(scope="session")
def helm() -> Helm:
    """A real helm; the tests fail, not skip, where there is none."""
    return find_helm()
