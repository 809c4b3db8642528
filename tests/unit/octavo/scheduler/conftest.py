from collections.abc import Iterator

import pytest

from octavo.scheduler import prefix_sharers


@pytest.fixture(autouse=True, scope="module")
def share_prefixes_of_any_size() -> Iterator[None]:
    """So that toys of a few blocks share; the runner checks what every plan says of it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prefix_sharers, "MIN_SHARED_BLOCKS", 1)
        patch.setattr(prefix_sharers, "MIN_TOKENS_SAVED", 1)
        yield
