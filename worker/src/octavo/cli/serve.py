"""``octavo serve``: configuration, port, engine, server, in this order.

The port is taken before the model is loaded, so that a port in use is told in a moment.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys

from octavo.cli.configs import engine_config, server_config
from octavo.cli.serve_display import ServeDisplay
from octavo.engine.async_engine import AsyncEngine
from octavo.logs import configure_logging, log_event
from octavo.server import lifecycle
from octavo.server.listening import base_url, open_listener

_logger = logging.getLogger("octavo.server")


def run(parsed: argparse.Namespace) -> int:
    """Serve until a signal. Returns the exit status; raises OctavoError when it cannot begin."""
    engine_settings = engine_config(parsed)
    server_settings = server_config(parsed, os.environ)
    configure_logging(
        parsed.log_format, parsed.log_level, withholds_messages=not parsed.log_prompts
    )
    with open_listener(server_settings.host, server_settings.port) as listener:
        is_plain = parsed.log_format == "json"
        display = ServeDisplay(sys.stderr, base_url(listener), is_plain=is_plain)
        engine = AsyncEngine(engine_settings, server_settings.chat_template)
        if server_settings.admin_port is None:
            return lifecycle.run(engine, server_settings, listener, display)
        with open_listener(server_settings.admin_host, server_settings.admin_port) as admin:
            log_event(_logger, "admin port", url=base_url(admin))
            return lifecycle.run(engine, server_settings, listener, display, admin)
