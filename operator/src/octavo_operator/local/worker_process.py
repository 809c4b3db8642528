"""One operating system process with its log: started, watched, stopped, never left behind."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import sys
from collections import deque
from collections.abc import Callable
from typing import Final

from octavo_operator.errors import WorkerFailedError
from octavo_operator.local.container import LocalContainer

KEPT_LINES: Final = 40
_LONGEST_LINE: Final = 2**16
_DIE_WITH_PARENT: Final = (
    sys.executable,
    "-IS",
    "-c",
    "import ctypes, os, sys; ctypes.CDLL(None).prctl(1, 15); os.execv(sys.argv[1], sys.argv[1:])",
)
"""Linux: have the kernel send SIGTERM to the worker when this program is killed and cannot.

Asked for between start and exec of the worker (PR_SET_PDEATHSIG is 1), in a process of its own
rather than a preexec_fn, which is unsafe beside threads.
"""


class WorkerProcess:
    """A running container. `on_line` gets each log line, and whether it will be overwritten."""

    def __init__(
        self, process: asyncio.subprocess.Process, on_line: Callable[[str, bool], None]
    ) -> None:
        self._process = process
        self._on_line = on_line
        self.last_lines: deque[str] = deque(maxlen=KEPT_LINES)
        self._reader = asyncio.create_task(self._read_log())

    @classmethod
    async def start(
        cls, container: LocalContainer, on_line: Callable[[str, bool], None]
    ) -> WorkerProcess:
        """In a session of its own, so that the terminal's Ctrl-C reaches only this program."""
        program = shutil.which(
            container.command[0], path=container.environment.get("PATH", os.defpath)
        )
        if program is None:
            raise WorkerFailedError(
                f"{container.command[0]} is not a program that can be run; is the package octavo "
                f"installed in this Python environment?"
            )
        command = (program, *container.command[1:])
        try:
            process = await asyncio.create_subprocess_exec(
                *(_DIE_WITH_PARENT if sys.platform == "linux" else ()),
                *command,
                env=dict(container.environment),
                cwd=container.folder,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.STDOUT,
                start_new_session=True,
            )
        except OSError as error:
            raise WorkerFailedError(f"{program} cannot be run: {error.strerror}") from error
        return cls(process, on_line)

    @property
    def pid(self) -> int:
        return self._process.pid

    async def wait(self) -> int:
        """The exit code, once the process has ended and its log is read; negative for a signal."""
        code = await self._process.wait()
        self._kill_group()
        await self._reader
        return code

    async def stop(self, grace_s: float) -> int:
        """SIGTERM, and SIGKILL after `grace_s`; the exit code."""
        if self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self._process.send_signal(signal.SIGTERM)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(grace_s):
                    await self._process.wait()
        self._kill_group()
        return await self.wait()

    def kill(self) -> None:
        """SIGKILL at once."""
        self._kill_group()

    def _kill_group(self) -> None:
        """The process and whatever it has started: they share its group."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)

    async def _read_log(self) -> None:
        assert self._process.stdout is not None
        pending = b""
        while chunk := await self._process.stdout.read(_LONGEST_LINE):
            pending += chunk
            *lines, pending = pending.splitlines(keepends=True) or [b""]
            if pending.endswith((b"\n", b"\r")) or len(pending) > _LONGEST_LINE:
                lines.append(pending)
                pending = b""
            for line in lines:
                self._take_line(line)
        if pending:
            self._take_line(pending)

    def _take_line(self, raw: bytes) -> None:
        text = raw.decode(errors="replace").rstrip()
        if not text:
            return
        is_transient = raw.endswith(b"\r")
        if not is_transient:
            self.last_lines.append(text)
        self._on_line(text, is_transient)
