"""``python -m watched_serve SOCKET serve ...``: the command line, and a second door beside it.

Who connects to the Unix socket is told how many tasks, threads and objects the server's process
has: what no route tells, and no other process can count.
"""

from __future__ import annotations

import asyncio
import gc
import json
import socket
import sys
import threading

from octavo.cli import main
from octavo.server.lifecycle import Lifecycle


async def _tell(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    gc.collect()
    counts = {
        "tasks": len(asyncio.all_tasks()),
        "threads": threading.active_count(),
        "objects": len(gc.get_objects()),
    }
    writer.write(json.dumps(counts).encode())
    writer.close()


def _add_door(path: str) -> None:
    run = Lifecycle.run

    async def run_with_door(lifecycle: Lifecycle, *sockets: socket.socket) -> int:
        async with await asyncio.start_unix_server(_tell, path):
            return await run(lifecycle, *sockets)

    Lifecycle.run = run_with_door  # type: ignore[method-assign]


if __name__ == "__main__":
    _add_door(sys.argv[1])
    sys.exit(main(sys.argv[2:]))
