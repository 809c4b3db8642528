"""``octavo serve``: configuration, port, engine, server, in this order.

The port is taken before the model is loaded, so that a port in use is told in a moment.
"""

from __future__ import annotations

import argparse
import os
import sys

from octavo.cli.configs import engine_config, server_config
from octavo.cli.serve_display import ServeDisplay
from octavo.engine.async_engine import AsyncEngine
from octavo.logs import configure_logging
from octavo.server import lifecycle
from octavo.server.listening import base_url, open_listener


def run(parsed: argparse.Namespace) -> int:
    """Serve until a signal. Returns the exit status; raises OctavoError when it cannot begin."""
    engine_settings = engine_config(parsed)
    server_settings = server_config(parsed, os.environ)
    configure_logging(parsed.log_format, parsed.log_level)
    with open_listener(server_settings.host, server_settings.port) as listener:
        is_plain = parsed.log_format == "json"
        display = ServeDisplay(sys.stderr, base_url(listener), is_plain=is_plain)
        engine = AsyncEngine(engine_settings, server_settings.chat_template)
        return lifecycle.run(engine, server_settings, listener, display)
