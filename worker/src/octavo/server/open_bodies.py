"""What the bodies of all open requests take together.

Each has a bound of its own, but as many as there may be connections fit no memory. One for which
there is no room is refused at once: if it waited, it could hold what others wait for.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from starlette.types import Scope

from octavo.server.errors import ApiError
from octavo.server.limits import FREE_BODY_BYTES, NUM_LONGEST_BODIES

_RETRY_S = 5


class OpenBodies:
    """``max_bytes``: of one body."""

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.most_bytes = NUM_LONGEST_BODIES * max_bytes
        self.held_bytes = 0
        """Without the first of each, which are free."""

    @contextmanager
    def hold(self) -> Iterator[HeldBody]:
        """The body of a request, until that has been answered."""
        body = HeldBody(self)
        try:
            yield body
        finally:
            body.let_go()

    def full(self) -> ApiError:
        """The answer to a body for which there is no room."""
        return ApiError(
            429,
            f"The bodies of this server's open requests take all of the {self.most_bytes} bytes "
            "that they may take together; retry later, or send a request of at most "
            f"{FREE_BODY_BYTES} bytes.",
            code="bodies_full",
            headers={"Retry-After": str(_RETRY_S)},
        )


class HeldBody:
    """One request's."""

    def __init__(self, bodies: OpenBodies) -> None:
        self.bodies = bodies
        self.has_room = True
        """Once there is none, there is none for the rest either."""
        self._held = 0

    def grow(self, size: int) -> bool:
        """It is ``size`` bytes long by now; False where it may not be kept."""
        more = max(0, size - FREE_BODY_BYTES) - self._held
        if not self.has_room or self.bodies.held_bytes + more > self.bodies.most_bytes:
            self.let_go()
            self.has_room = False
            return False
        self._held += more
        self.bodies.held_bytes += more
        return True

    def let_go(self) -> None:
        """Nothing of it is kept any more."""
        self.bodies.held_bytes -= self._held
        self._held = 0


def held_body_of(scope: Scope) -> HeldBody:
    """What is kept of the request's body."""
    body: HeldBody = scope["octavo.body"]
    return body
