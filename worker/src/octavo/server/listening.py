"""The socket the server listens on, taken before anything slow is begun."""

from __future__ import annotations

import contextlib
import errno
import resource
import socket
from collections.abc import Iterator

from octavo.errors import ConfigError

_BACKLOG = 2048
_MOST_FILES = 65_536
"""Each connection is one; idle ones take little else."""


def open_listener(host: str, port: int) -> socket.socket:
    """Bind and listen; ``port`` 0 takes any free one.

    Raises ConfigError when the port is in use, not allowed, or the host is not one of this
    machine's.
    """
    try:
        family, _, _, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except socket.gaierror as error:
        raise ConfigError(
            f"host is {host!r}, which cannot be resolved ({error.strerror}); "
            "use 127.0.0.1 for this machine only or 0.0.0.0 for every interface."
        ) from None
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        # A restart must not wait for the kernel to forget old connections.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(_BACKLOG)
    except OSError as error:
        listener.close()
        raise ConfigError(_reason(error, host, port)) from None
    listener.setblocking(False)
    return listener


def accept_waiting(listener: socket.socket) -> Iterator[socket.socket]:
    """The connections that nobody has accepted yet. A socket that is closed resets those."""
    with contextlib.suppress(OSError):  # BlockingIOError: these were all
        while True:
            connection, _ = listener.accept()
            connection.setblocking(False)
            yield connection


def allow_many_connections() -> None:
    """Let this process open as many files as it may ask for.

    Where 1,024 is what it gets without asking, as many idle connections would lock out all others,
    probes among them.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _MOST_FILES if hard == resource.RLIM_INFINITY else min(hard, _MOST_FILES)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def base_url(listener: socket.socket) -> str:
    """Where a client on this machine finds the server."""
    host, port = listener.getsockname()[:2]
    if host in ("0.0.0.0", "::"):
        host = "127.0.0.1"
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _reason(error: OSError, host: str, port: int) -> str:
    match error.errno:
        case errno.EADDRINUSE:
            return (
                f"Port {port} on {host} is in use; stop what listens there, "
                "or choose another with --port."
            )
        case errno.EACCES:
            return f"Port {port} needs privileges; choose one above 1023 with --port."
        case errno.EADDRNOTAVAIL:
            return (
                f"host is {host!r}, which is no address of this machine; use 127.0.0.1 or 0.0.0.0."
            )
        case _:
            return f"Cannot listen on {host}:{port}: {error.strerror}."
