"""The engine in a process of its own: build, then read, step, report until told to stop.

Started by :mod:`octavo.engine.async_engine` as ``python -m octavo.engine.core_process FD``. It
ends when told, when its parent's end of the socket closes, or, with an error, when a step
fails: a half-known device state is not served from.
"""

from __future__ import annotations

import contextlib
import ctypes
import faulthandler
import gc
import logging
import os
import signal
import socket
import sys
import time

import msgspec

from octavo.config import EngineConfig
from octavo.engine.bytecode import warn_unless_kept
from octavo.engine.carried_errors import to_adapter_failure, to_load_failure, to_refusal
from octavo.engine.compiler_process import CompilerProcess
from octavo.engine.core import EngineCore
from octavo.engine.engine_channel import EngineChannel, ServerGoneError
from octavo.engine.head_start import HeadStart, may_use_gpu, open_card
from octavo.engine.messages import (
    WHERE_SIGNAL,
    Abort,
    CloseAdapter,
    Inspect,
    Inspected,
    OpenAdapter,
    PhaseFinished,
    PhaseStarted,
    Ready,
    Shutdown,
    StepReport,
    Submit,
    ToEngine,
)
from octavo.engine.model_info import ModelInfo
from octavo.engine.process_age import seconds_since_process_start
from octavo.engine.step_pace import COMPILATION_LIMIT_S, SHORTEST_LIMIT_S
from octavo.errors import OctavoError, RequestFailedError
from octavo.logs import configure_logging
from octavo.outputs import RequestUpdate

_log = logging.getLogger(__name__)
_IDLE_REPORT_S = 1.0
"""An idle engine says this often that it lives. After the first such quiet it loads what grammars
need."""
_QUIET_S = 0.05
"""How long nothing has to happen before the engine prepares for later steps: a client that asks
again as soon as it is answered must not wait for that each time, nor may threads that convert
adapters, which need the interpreter, too."""
_STATS_S = 0.1
"""How old the statistics may be that a busy engine has told: nobody reads them at every step."""
SWITCH_INTERVAL_S = 0.0005
"""How long a thread that reads adapters or compiles grammars may keep the interpreter from the loop
that wants it. It is 5 ms by default: as long as a step."""
_PR_SET_PDEATHSIG = 1


def main() -> int:
    """Entry point; the file descriptor of the socket is the only argument."""
    connection = socket.socket(fileno=int(sys.argv[1]))
    _die_with_parent(connection)
    # The server asks by this signal where we are stuck, before it ends us. It prints functions
    # and lines, never values.
    faulthandler.register(WHERE_SIGNAL, all_threads=True)
    config = msgspec.json.decode(os.environ.pop("OCTAVO_ENGINE_CONFIG"), type=EngineConfig)
    configure_logging(config.log_format, config.log_level)
    channel = EngineChannel(connection)
    try:
        channel.send(PhaseStarted("import", "torch"))
        head_start, compiler = HeadStart(), CompilerProcess()
        if may_use_gpu(config):
            head_start.begin(open_card)
        compiler.prepare(config)
        gc.disable()  # importing leaves no garbage, and it would be looked for in all of torch
        # Not at the top: torch takes seconds, in which signals and the parent's end must count.
        import torch

        from octavo.engine.build import build_engine

        gc.enable()
        warn_unless_kept(torch)
        channel.send(PhaseFinished("import", seconds_since_process_start()))
        engine = build_engine(config, channel.send, compiler=compiler, head_start=head_start)
    except ServerGoneError:
        return 0  # the server was stopped while we loaded
    except Exception as error:  # the process's edge: say what it was before dying
        if not isinstance(error, OctavoError):
            _log.exception("The engine could not be built")
        with contextlib.suppress(ServerGoneError):
            channel.send(to_load_failure(error))
            channel.flush_blocking()
        return 1
    return EngineLoop(engine.core, engine.info, channel).run()


class EngineLoop:
    """Reads, steps and reports."""

    def __init__(self, core: EngineCore, info: ModelInfo, channel: EngineChannel) -> None:
        self._core = core
        self._channel = channel
        self._info = info

    def run(self) -> int:
        # What lives now lives forever: keep the collector from walking it during steps.
        gc.collect()
        gc.freeze()
        sys.setswitchinterval(SWITCH_INTERVAL_S)
        try:
            self._tell_of_compilations()
            self._channel.send(Ready(self._info))
            self._serve()
        except ServerGoneError:
            return 0
        except Exception:  # the process's edge: our end is what tells the server
            _log.exception("The engine failed")
            with contextlib.suppress(ServerGoneError):
                self._channel.flush_blocking()  # tokens of the steps before
            return 1
        finally:
            self._core.close()
        return 0

    def _tell_of_compilations(self) -> None:
        """A kernel that is compiled at its first use may keep a step for minutes."""
        if self._info.kernels != "triton":
            return
        from octavo.kernels.triton.launch import before_each_compilation

        before_each_compilation(
            lambda: self._channel.send(StepReport([], limit_s=COMPILATION_LIMIT_S))
        )

    def _serve(self) -> None:
        core, last_report, last_stats = self._core, time.monotonic(), 0.0
        is_prepared, quiet_s = False, 0.0
        while True:
            longest_s = _IDLE_REPORT_S if is_prepared or core.has_work else quiet_s
            messages = self._channel.receive(min(core.sleep_s, longest_s), core.waker)
            for message in messages:
                if isinstance(message, Shutdown):
                    return
                self._take(message)
            updates: list[RequestUpdate] = []
            if core.has_work:
                limit_s = core.plan()
                if limit_s > SHORTEST_LIMIT_S:  # say so before nothing more can be said
                    self._channel.send(StepReport([], limit_s=limit_s))
                updates, quiet_s = core.advance(), _QUIET_S
            elif messages or core.is_reading_adapters:
                quiet_s = _QUIET_S
            elif not is_prepared:
                is_prepared, quiet_s = not core.prepare_next(), 0.0
            else:
                core.prepare_grammars()
            self._tell_of_adapters()
            now = time.monotonic()
            has_settled = bool(updates) and not core.has_work
            if updates or now - last_report > _IDLE_REPORT_S:
                is_due = has_settled or now - last_stats > _STATS_S
                stats = core.stats() if is_due else None
                self._channel.send(StepReport(updates, stats, core.limit_under_way_s))
                last_report, last_stats = now, now if is_due else last_stats

    def _tell_of_adapters(self) -> None:
        """Before a step's updates: a refusal tells more than the end of the request that comes with
        it. Whoever hears that an adapter is there may ask where, so that is told before."""
        events = self._core.take_adapter_events()
        if events:
            self._channel.send(StepReport([], self._core.stats(), self._core.limit_under_way_s))
        for event in events:
            self._channel.send(event)

    def _take(self, message: ToEngine) -> None:
        if isinstance(message, Abort):
            self._core.abort(message.request_ids)
        elif isinstance(message, Inspect):
            self._channel.send(Inspected(message.serial, self._core.inspect()))
        elif isinstance(message, Submit):
            try:
                self._core.submit(message.requests)
            except OctavoError as error:
                self._refuse(message, error)
            except Exception as error:  # one bad request never stops the others
                _log.exception("A request could not be taken in")
                self._core.abort([spec.id for spec in message.requests])
                self._refuse(message, RequestFailedError(f"{type(error).__name__}: {error}"))
        elif isinstance(message, OpenAdapter):
            try:
                self._core.open_adapter(message.adapter_id, message.source, message.known_digest)
            except OctavoError as error:
                self._channel.send(to_adapter_failure(message.adapter_id, error))
        elif isinstance(message, CloseAdapter):
            self._core.close_adapter(message.adapter_id)

    def _refuse(self, submitted: Submit, error: OctavoError) -> None:
        for spec in submitted.requests:
            self._channel.send(to_refusal(spec.id, error))


def _die_with_parent(connection: socket.socket) -> None:
    """A terminal's Ctrl-C is the server's to handle; a dead server ends us even mid-step."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    # Had it died before that call, nobody would tell us any more.
    with contextlib.suppress(BlockingIOError):
        if not connection.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT):
            sys.exit(0)


if __name__ == "__main__":
    sys.exit(main())
