"""``octavo chat``: a conversation in the terminal with any OpenAI-compatible server."""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable
from typing import Any, TextIO

from octavo.cli.chat_client import ChatClient, ChatFailedError
from octavo.cli.configs import API_KEY_VARIABLE

_FENCE = '"""'
_HELP = """\
/reset   forget the conversation
/retry   answer the last message anew
/help    show this
/exit    leave (so does Ctrl-D)
Ctrl-C stops an answer. End a line with \\ to go on in the next one, or write several lines
between two lines of \"\"\"."""


def run(parsed: argparse.Namespace) -> int:
    """Talk until the user leaves. Raises OctavoError when the server cannot be reached."""
    client = ChatClient(parsed.url, parsed.api_key or os.environ.get(API_KEY_VARIABLE))
    model = parsed.model or client.model_names()[0]
    options = {"max_tokens": parsed.max_tokens, "temperature": parsed.temperature}
    body = {"model": model, **{name: value for name, value in options.items() if value is not None}}
    if sys.stdin.isatty():
        _enable_line_editing()
        print(f"Talking to {model} at {parsed.url}. /help lists commands, Ctrl-D leaves.")
    chat = Chat(client, body, parsed.system, sys.stdout)
    return chat.run(input, is_interactive=sys.stdin.isatty())


class Chat:
    """A conversation, and the commands that steer it."""

    def __init__(
        self, client: ChatClient, body: dict[str, Any], system: str | None, output: TextIO
    ) -> None:
        self._client = client
        self._body = body
        self._output = output
        self._beginning = [] if system is None else [{"role": "system", "content": system}]
        self.messages: list[dict[str, str]] = list(self._beginning)

    def run(self, read_line: Callable[[str], str], *, is_interactive: bool) -> int:
        """Read messages until the end; returns 1 when the last answer failed."""
        status = 0
        while True:
            try:
                message = read_message(read_line, "> " if is_interactive else "")
            except EOFError:
                self._say("" if is_interactive else None)
                return status
            except KeyboardInterrupt:
                self._say("(Ctrl-D or /exit leaves)")
                continue
            if message == "/exit":
                return status
            status = self._take(message.strip(), is_interactive)

    def _take(self, message: str, is_interactive: bool) -> int:
        match message:
            case "":
                return 0
            case "/reset":
                self.messages = list(self._beginning)
                self._say("(forgotten)")
            case "/help":
                self._say(_HELP)
            case "/retry":
                if self.messages and self.messages[-1]["role"] == "assistant":
                    self.messages.pop()
                if self.messages and self.messages[-1]["role"] == "user":
                    return self._answer(is_interactive)
                self._say("(there is nothing to answer yet)")
            case _ if message.startswith("/") and message[1:].isalpha():
                self._say(f"(there is no command {message}; /help lists them)")
            case _:
                self.messages.append({"role": "user", "content": message})
                return self._answer(is_interactive)
        return 0

    def _answer(self, is_interactive: bool) -> int:
        """Stream an answer; keep what came, also when it was stopped."""
        texts: list[str] = []
        num_tokens: int | None = None
        started_s = time.monotonic()
        pieces = self._client.stream({**self._body, "messages": self.messages})
        status = 0
        try:
            for piece in pieces:
                texts.append(piece.text)
                self._output.write(piece.text)
                self._output.flush()
                num_tokens = piece.completion_tokens or num_tokens
        except KeyboardInterrupt:
            self._output.write(" (stopped)")
        except ChatFailedError as error:
            self._output.write(f"({error})")
            status = 1
        finally:
            # Leaving the generator closes the connection, and that stops the server.
            pieces.close()
        self._say("")
        if texts:
            self.messages.append({"role": "assistant", "content": "".join(texts)})
        else:
            self.messages.pop()
        if is_interactive and num_tokens:
            rate = num_tokens / max(1e-9, time.monotonic() - started_s)
            self._say(f"\x1b[2m({num_tokens} tokens, {rate:.1f} a second)\x1b[0m")
        return status

    def _say(self, text: str | None) -> None:
        if text is not None:
            self._output.write(f"{text}\n")
            self._output.flush()


def read_message(read_line: Callable[[str], str], prompt: str) -> str:
    """One message, of one or several lines. Raises EOFError at the end of the input."""
    line = read_line(prompt)
    more = ". " if prompt else ""
    if line.strip() == _FENCE:
        lines = []
        while (line := read_line(more)).strip() != _FENCE:
            lines.append(line)
        return "\n".join(lines)
    lines = [line]
    while lines[-1].endswith("\\"):
        lines[-1] = lines[-1][:-1]
        lines.append(read_line(more))
    return "\n".join(lines)


def _enable_line_editing() -> None:
    """Arrow keys and history, where Python has readline."""
    try:
        import readline  # noqa: F401
    except ImportError:
        return
