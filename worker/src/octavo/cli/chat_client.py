"""A client of OpenAI's chat API with nothing but the standard library; streams one answer."""

from __future__ import annotations

import http.client
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import msgspec

from octavo.errors import ConfigError, OctavoError

_CONNECT_TIMEOUT_S = 10.0


class ChatFailedError(OctavoError):
    """The server could not be reached, or refused; the message says why."""


@dataclass(slots=True)
class AnswerPiece:
    """New text; or, at the end, how many tokens the whole answer has."""

    text: str = ""
    completion_tokens: int | None = None


class ChatClient:
    """One server, as ``--url`` names it."""

    def __init__(self, url: str, api_key: str | None) -> None:
        parts = urlsplit(url if "://" in url else f"http://{url}")
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ConfigError(f"--url is {url!r}; write it like http://127.0.0.1:8000.")
        self._url = url
        self._is_https = parts.scheme == "https"
        self._host = parts.hostname
        self._port = parts.port
        self._path = parts.path.rstrip("/").removesuffix("/v1")
        self._headers = {"Content-Type": "application/json"}
        if api_key:
            self._headers["Authorization"] = f"Bearer {api_key}"

    def model_names(self) -> list[str]:
        """The names the server offers. Raises ChatFailedError."""
        with self._request("GET", "/v1/models") as response:
            listing = msgspec.json.decode(response.read())
        return [card["id"] for card in listing["data"]]

    def stream(self, body: dict[str, Any]) -> Generator[AnswerPiece, None, None]:
        """The answer to a chat body, piece by piece. Closing it stops the answer.

        Raises ChatFailedError.
        """
        body = {**body, "stream": True, "stream_options": {"include_usage": True}}
        with self._request("POST", "/v1/chat/completions", body) as response:
            try:
                yield from _pieces(response)
            except (OSError, http.client.HTTPException) as error:
                raise ChatFailedError(f"The connection broke: {error}.") from error

    def _request(
        self, method: str, path: str, body: dict[str, Any] | None = None
    ) -> http.client.HTTPResponse:
        kind = http.client.HTTPSConnection if self._is_https else http.client.HTTPConnection
        connection = kind(self._host, self._port, timeout=_CONNECT_TIMEOUT_S)
        data = None if body is None else msgspec.json.encode(body)
        try:
            connection.connect()
            # An answer may take its time, a connection may not.
            connection.sock.settimeout(None)
            connection.request(
                method, self._path + path, data, {**self._headers, "Connection": "close"}
            )
            response = connection.getresponse()
        except (OSError, http.client.HTTPException) as error:
            connection.close()
            raise ChatFailedError(
                f"No server answers at {self._url} ({error}); start one with 'octavo serve MODEL', "
                "or give --url."
            ) from error
        if response.status != 200:
            with response:
                raise ChatFailedError(_reason(response.status, response.read()))
        return response


def _pieces(response: http.client.HTTPResponse) -> Iterator[AnswerPiece]:
    for line in response:
        if not line.startswith(b"data:"):
            continue
        data = line[5:].strip()
        if data == b"[DONE]":
            return
        chunk = msgspec.json.decode(data)
        if "error" in chunk:
            raise ChatFailedError(str(chunk["error"].get("message", "The server failed.")))
        for choice in chunk["choices"]:
            if text := choice["delta"].get("content"):
                yield AnswerPiece(text)
        if usage := chunk.get("usage"):
            yield AnswerPiece(completion_tokens=usage["completion_tokens"])


def _reason(status: int, body: bytes) -> str:
    try:
        return str(msgspec.json.decode(body)["error"]["message"])
    except (msgspec.DecodeError, KeyError, TypeError):
        return f"The server answered with HTTP {status}."
