"""``octavo serve``: configuration, port, engine, server, in this order.

The port is taken before the model is loaded, so that a port in use is told in a moment; the
engine's process is started before the HTTP server is imported, and imports torch meanwhile.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import gc
import logging
import os
import sys

from octavo.cli.configs import engine_config, server_config
from octavo.cli.serve_display import ServeDisplay
from octavo.config import EngineConfig, ServerConfig
from octavo.engine.async_engine import AsyncEngine
from octavo.logs import configure_logging, log_event
from octavo.server.event_loop import new_event_loop
from octavo.server.listening import allow_many_connections, base_url, open_listener

_logger = logging.getLogger("octavo.server")


def run(parsed: argparse.Namespace) -> int:
    """Serve until a signal. Returns the exit status; raises OctavoError when it cannot begin."""
    engine_settings = engine_config(parsed)
    server_settings = server_config(parsed, os.environ)
    configure_logging(
        parsed.log_format, parsed.log_level, withholds_messages=not parsed.log_prompts
    )
    is_plain = parsed.log_format == "json"
    with asyncio.Runner(loop_factory=new_event_loop) as runner:
        return runner.run(_serve(engine_settings, server_settings, is_plain))


async def _serve(
    engine_settings: EngineConfig, server_settings: ServerConfig, is_plain: bool
) -> int:
    allow_many_connections()
    with contextlib.ExitStack() as sockets:
        listener = sockets.enter_context(open_listener(server_settings.host, server_settings.port))
        admin = None
        if server_settings.admin_port is not None:
            admin = sockets.enter_context(
                open_listener(server_settings.admin_host, server_settings.admin_port)
            )
            log_event(_logger, "admin port", url=base_url(admin))
        display = ServeDisplay(sys.stderr, base_url(listener), is_plain=is_plain)
        engine = AsyncEngine(engine_settings, server_settings.chat_template)
        await engine.start()
        try:
            from octavo.server.lifecycle import Lifecycle

            lifecycle = Lifecycle(engine, server_settings, display)
            # What was imported lives forever: the collector would stop all streams to walk it.
            gc.collect()
            gc.freeze()
        except BaseException:
            await engine.close()
            raise
        return await lifecycle.run(listener, admin)
