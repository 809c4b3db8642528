"""What is known of adapters in pods: what a pod itself lists, and how attempts to load have gone.

The list is the truth; attempts only tell when to try again, and why it has not worked.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

FIRST_RETRY_S: Final = 2.0
LONGEST_RETRY_S: Final = 300.0
UNLOAD: Final = "unload"
"""Stands for the source in the key of an unload."""

SOURCE_NOT_MOUNTED: Final = "SourceNotMounted"
SECRET_NOT_IN_PODS: Final = "SecretNotInPods"
PERMANENT_REASONS: Final = frozenset(
    {
        "AdapterRefused",
        "SourceNotFound",
        "SourceForbidden",
        "SourceChanged",
        SOURCE_NOT_MOUNTED,
        SECRET_NOT_IN_PODS,
    }
)
"""The same source in the same pod fails again."""


@dataclass(frozen=True, slots=True)
class ListedAdapter:
    """An adapter as a pod lists it. digest and revision are None where it does not know them; of
    what is not loaded they are what it was told, if it was.

    state: known, loading, ready, failed or draining, in the worker's words.
    """

    name: str
    path: str
    state: str
    digest: str | None = None
    revision: str | None = None
    message: str = ""


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a load did not work: a stable reason and a sentence."""

    reason: str
    message: str

    @property
    def is_permanent(self) -> bool:
        """Whether trying the same again in the same pod is useless."""
        return self.reason in PERMANENT_REASONS


def gravest(failures: Sequence[Failure]) -> Failure | None:
    """The first that is permanent, or else the first."""
    first = failures[0] if failures else None
    return next((failure for failure in failures if failure.is_permanent), first)


@dataclass(frozen=True, slots=True)
class AttemptKey:
    """What makes an attempt another one: a new pod, a container restarted in place, other files."""

    pod_uid: str
    container_id: str
    name: str
    source: str


@dataclass(frozen=True, slots=True)
class Attempt:
    """How the latest of `count` attempts ended. failure is None after success.

    retry_at_s: not to be tried again before, by the monotonic clock; after a success, too, for a
    pod that does not list what it says it has loaded. digest, revision: what was loaded.
    """

    count: int
    failure: Failure | None
    retry_at_s: float = 0.0
    digest: str | None = None
    revision: str | None = None

    def is_due(self, now_s: float) -> bool:
        """Whether to try again, where the pod does not list what it should."""
        is_hopeless = self.failure is not None and self.failure.is_permanent
        return not is_hopeless and self.retry_at_s <= now_s


def failed_attempt(before: Attempt | None, failure: Failure, now_s: float) -> Attempt:
    """The attempt after `before` has failed; pauses grow, and there is no last attempt."""
    count = (before.count if before is not None and before.failure is not None else 0) + 1
    return Attempt(count, failure, now_s + _pause_s(count))


def succeeded_attempt(
    before: Attempt | None, now_s: float, digest: str | None = None, revision: str | None = None
) -> Attempt:
    """The attempt after `before` has succeeded."""
    count = (before.count if before is not None and before.failure is None else 0) + 1
    return Attempt(count, None, now_s + _pause_s(count), digest, revision)


def _pause_s(count: int) -> float:
    pause_s: float = min(FIRST_RETRY_S * 2 ** min(count - 1, 16), LONGEST_RETRY_S)
    return pause_s
