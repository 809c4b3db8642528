"""An address for each pod on this machine.

On Linux the whole of 127.0.0.0/8 is local, so each pod has an IP of its own and listens on its own
port, as in a cluster. Elsewhere only 127.0.0.1 is; pods then share it and get free ports.
"""

from __future__ import annotations

import errno
import socket
from dataclasses import replace
from typing import Final

from octavo_operator.address import Address
from octavo_operator.errors import LocalError

_FIRST: Final = 1
_LAST: Final = 250


class AddressPool:
    """Hands out addresses that nobody listens on; also skips those of another local run."""

    def __init__(self, network: str = "127.42.0") -> None:
        self._network = network
        self._taken: set[Address] = set()

    def take(self, port: int, other_port: int) -> Address:
        """A free address, with `port` where the machine allows it, and `other_port` free then."""
        for number in range(_FIRST, _LAST):
            address = Address(f"{self._network}.{number}", port)
            if address in self._taken:
                continue
            failure = _bind_failure(address) or _bind_failure(replace(address, port=other_port))
            if failure is None:
                self._taken.add(address)
                return address
            if failure == errno.EADDRNOTAVAIL:
                break
        return self._take_any_port()

    def give_back(self, address: Address) -> None:
        self._taken.discard(address)

    def _take_any_port(self) -> Address:
        for _ in range(20):
            with socket.socket() as probe:
                probe.bind(("127.0.0.1", 0))
                address = Address("127.0.0.1", probe.getsockname()[1])
            if address not in self._taken:
                self._taken.add(address)
                return address
        raise LocalError("no free port is left on 127.0.0.1; stop some programs and try again")


def _bind_failure(address: Address) -> int | None:
    """The errno of trying to listen there, None when it works."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((address.host, address.port))
            probe.listen(1)
        except OSError as error:
            return error.errno or errno.EIO
    return None
