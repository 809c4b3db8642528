"""Where something listens."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, order=True)
class Address:
    """A host (an IP, in a cluster) and a TCP port."""

    host: str
    port: int

    @property
    def url(self) -> str:
        """Of HTTP there, without a path."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"http://{host}:{self.port}"
