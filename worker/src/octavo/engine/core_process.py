"""The engine in a process of its own: build, then read, step, report until told to stop.

Started by :mod:`octavo.engine.async_engine` as ``python -m octavo.engine.core_process FD``. It
ends when told, when its parent's end of the socket closes, or, with an error, when a step
fails: a half-known device state is not served from.
"""

from __future__ import annotations

import ctypes
import gc
import logging
import os
import signal
import socket
import sys
import time
import traceback

import msgspec

from octavo.config import EngineConfig
from octavo.engine.build import Engine, build_engine
from octavo.engine.messages import (
    Abort,
    EngineChannel,
    FromEngine,
    LoadFailed,
    Ready,
    Refused,
    Shutdown,
    StepReport,
    Submit,
    ToEngine,
)
from octavo.errors import InvalidRequestError, OctavoError, QueueFullError
from octavo.logs import configure_logging

_IDLE_REPORT_S = 1.0
"""An idle engine says this often that it lives."""
_PR_SET_PDEATHSIG = 1


def main() -> int:
    """Entry point; the file descriptor of the socket is the only argument."""
    connection = socket.socket(fileno=int(sys.argv[1]))
    _die_with_parent()
    config = msgspec.json.decode(os.environ.pop("OCTAVO_ENGINE_CONFIG"), type=EngineConfig)
    configure_logging(config.log_format, config.log_level)
    channel = EngineChannel(connection)
    try:
        engine = build_engine(config, channel.send)
    except OctavoError as error:
        channel.send(LoadFailed(type(error).__name__, str(error)))
        channel.flush_blocking()
        return 1
    except Exception as error:  # the process's edge: say what it was before dying
        logging.getLogger(__name__).exception("The engine could not be built")
        channel.send(LoadFailed("ModelLoadError", f"{type(error).__name__}: {error}"))
        channel.flush_blocking()
        return 1
    return _Loop(engine, channel).run()


class _Loop:
    """Reads, steps and reports."""

    def __init__(self, engine: Engine, channel: EngineChannel) -> None:
        self._core = engine.core
        self._channel = channel
        self._info = engine.info

    def run(self) -> int:
        # What lives now lives forever: keep the collector from walking it during steps.
        gc.collect()
        gc.freeze()
        self._channel.send(Ready(self._info))
        try:
            self._serve()
        except EOFError:
            return 0
        except Exception:  # the process's edge: every open request is told, then we go
            message = f"The engine failed: {traceback.format_exc(limit=-1).strip()}"
            logging.getLogger(__name__).exception("The engine failed")
            self._report_last(message)
            return 1
        finally:
            self._core.close()
        return 0

    def _serve(self) -> None:
        last_report = time.monotonic()
        while True:
            idle = not self._core.has_work
            for message in self._channel.receive(wait=idle, timeout_s=_IDLE_REPORT_S):
                if isinstance(message, Shutdown):
                    return
                self._take(message)
            updates = self._core.step() if self._core.has_work else []
            now = time.monotonic()
            if updates or now - last_report > _IDLE_REPORT_S:
                self._channel.send(StepReport(updates, self._core.stats()))
                last_report = now

    def _take(self, message: ToEngine) -> None:
        if isinstance(message, Abort):
            self._core.abort(message.request_ids)
        elif isinstance(message, Submit):
            try:
                self._core.submit(message.requests)
            except OctavoError as error:
                for spec in message.requests:
                    self._channel.send(_refusal(spec.id, error))

    def _report_last(self, message: str) -> None:
        try:
            report: FromEngine = StepReport(self._core.fail_all(message), self._core.stats())
            self._channel.send(report)
            self._channel.flush_blocking()
        except OSError:
            logging.getLogger(__name__).warning("The server was gone before the engine")


def _refusal(request_id: str, error: OctavoError) -> Refused:
    return Refused(
        request_id,
        type(error).__name__,
        str(error),
        param=error.param if isinstance(error, InvalidRequestError) else None,
        retry_after_s=error.retry_after_s if isinstance(error, QueueFullError) else 0.0,
    )


def _die_with_parent() -> None:
    """A terminal's Ctrl-C is the server's to handle; a dead server ends us even mid-step."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


if __name__ == "__main__":
    sys.exit(main())
