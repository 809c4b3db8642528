"""``python -m fake_server_process [STEP_S]``: the server as a process of its own, fake engine
inside. Prints its URL, then serves until a signal."""

from __future__ import annotations

import asyncio
import sys

from fake_engine import FakeEngine
from octavo.cli.serve_display import ServeDisplay
from octavo.config import ServerConfig
from octavo.logs import configure_logging
from octavo.server.event_loop import new_event_loop
from octavo.server.lifecycle import Lifecycle
from octavo.server.listening import base_url, open_listener


def main() -> int:
    configure_logging("json")
    with open_listener("127.0.0.1", 0) as listener:
        print(base_url(listener), flush=True)
        engine = FakeEngine(step_s=float(sys.argv[1]) if len(sys.argv) > 1 else 0.0)
        display = ServeDisplay(sys.stderr, base_url(listener))
        lifecycle = Lifecycle(engine, ServerConfig(shutdown_timeout_s=60.0), display)
        with asyncio.Runner(loop_factory=new_event_loop) as runner:
            return runner.run(lifecycle.run(listener))


if __name__ == "__main__":
    sys.exit(main())
