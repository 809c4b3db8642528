"""A stand-in for `octavo serve`: honours the flags and probes of the contract, serves no model.

Run as a script. Behaviour is set by variables: FAKE_LOAD_S (seconds until ready), FAKE_ANSWER_S
(seconds an answer takes), FAKE_CRASH (a message to die with at start), FAKE_DOWNLOAD (a file name
to leave in the download folder), FAKE_IGNORE_SIGTERM,
FAKE_CRASH_WITH (an argument to die of),
FAKE_IDLE_S (seconds to add to the idle time once it has answered).

With --enable-lora it takes adapters on its admin port, from folders whose files it does not look
into: what the file `adapter` in them says stands for them. With --lora-state it has after a restart
what it had before. A request for a model that is neither its own nor an adapter gets 404.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import threading
import time
from collections import UserDict
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from fake_adapter_table import AdapterTable, Answer, Sources


class _Folders(UserDict[str, str]):
    """Contents of adapters by folder, read each time."""

    def __missing__(self, folder: str) -> str:
        file = Path(folder) / "adapter"
        return file.read_text(encoding="utf-8") if file.exists() else "missing"

    def __contains__(self, folder: object) -> bool:
        return True


class _Worker(ThreadingHTTPServer):
    daemon_threads = False
    block_on_close = True
    request_queue_size = 128
    is_ready = False
    served_name = ""
    answer_s = 0.0
    num_open = 0
    num_answered = 0
    idle_since_s = time.monotonic()
    adapters: AdapterTable | None = None
    state_file: Path | None = None

    def change_adapters(self, path: str, body: dict[str, Any]) -> Answer:
        """A load or an unload, remembered."""
        assert self.adapters is not None
        answer = self.adapters.answer("POST", path, body)
        if self.state_file is not None:
            entries = json.dumps(self.adapters.entries)
            self.state_file.with_suffix(".new").write_text(entries, encoding="utf-8")
            self.state_file.with_suffix(".new").replace(self.state_file)
        return answer

    def knows(self, model: str) -> bool:
        return (
            model == self.served_name or model in (self.adapters or AdapterTable(Sources())).entries
        )

    def load(self) -> dict[str, float]:
        idle_s = 0.0 if self.num_open else time.monotonic() - self.idle_since_s
        if not self.num_open and self.num_answered:
            idle_s += float(os.environ.get("FAKE_IDLE_S", "0"))
        return {"open_requests": self.num_open, "idle_s": idle_s}


class _AdminPort(ThreadingHTTPServer):
    daemon_threads = True
    worker: _Worker


class _Handler(BaseHTTPRequestHandler):
    server: _Worker | _AdminPort
    protocol_version = "HTTP/1.0"

    @property
    def worker(self) -> _Worker:
        return self.server.worker if isinstance(self.server, _AdminPort) else self.server

    def do_GET(self) -> None:
        if self.path == "/health/live":
            self._answer(200, {})
        elif self.path == "/health/loaded":
            self._answer(200 if self.worker.is_ready else 503, {})
        elif self.path == "/health/ready":
            adapters = self.worker.adapters
            is_held = adapters is not None and adapters.is_held
            self._answer(200 if self.worker.is_ready and not is_held else 503, {})
        elif self.path == "/health/startup":
            self._answer(200, {"state": "ready", "phase": "", "phases_s": {"weights": 0.2}})
        elif self.path == "/health/load":
            self._answer(200, self.worker.load())
        elif self.path == "/v1/adapters" and self.worker.adapters is not None:
            self._answer(*self.worker.adapters.listing())
        else:
            self._answer(200, {"argv": sys.argv[1:], "environment": dict(os.environ)})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.path.endswith(("_lora_adapter", "/v1/adapters/complete")):
            self._answer(*self.worker.change_adapters(self.path, body))
            return
        if not self.worker.knows(body.get("model", self.worker.served_name)):
            self._answer(404, {"error": {"code": "model_not_found"}})
            return
        adapters = self.worker.adapters
        held = dict(adapters.entries) if adapters is not None else {}
        self.worker.num_open += 1
        time.sleep(self.worker.answer_s)
        answer = {"model": self.worker.served_name, "echo": body, "pid": os.getpid()}
        self._answer(200, {**answer, "digest": held.get(body.get("model"), {}).get("digest")})
        self.worker.num_open -= 1
        self.worker.num_answered += 1
        self.worker.idle_since_s = time.monotonic()

    def _answer(self, status: int, body: object) -> None:
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: object) -> None:
        pass


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("command", choices=["serve"])
    parser.add_argument("model")
    parser.add_argument("--host", required=True)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--admin-host")
    parser.add_argument("--admin-port", type=int)
    parser.add_argument("--served-model-name", required=True)
    parser.add_argument("--enable-lora", action="store_true")
    parser.add_argument("--lora-state", type=Path)
    parser.add_argument("--lora-wanted", type=Path)
    parser.add_argument("--download-dir", type=Path)
    parser.add_argument("--shutdown-delay", type=float, default=0.0)
    options, _ = parser.parse_known_args()
    if os.environ.get("FAKE_CRASH_WITH", "no such argument") in sys.argv:
        sys.exit(3)
    if "FAKE_CRASH" in os.environ:
        print("INFO reading config.json", flush=True)
        print(os.environ["FAKE_CRASH"], file=sys.stderr, flush=True)
        sys.exit(3)
    server = _Worker((options.host, options.port), _Handler)
    server.served_name = options.served_model_name
    server.answer_s = float(os.environ.get("FAKE_ANSWER_S", "0"))
    if options.enable_lora:
        server.adapters = AdapterTable(Sources(_Folders()))
        server.state_file = options.lora_state
        if options.lora_state is not None and options.lora_state.exists():
            server.adapters.entries = json.loads(options.lora_state.read_text(encoding="utf-8"))
            server.adapters.is_held = False
        elif options.lora_wanted is None:
            server.adapters.is_held = False
        elif options.lora_wanted.exists():
            for entry in json.loads(options.lora_wanted.read_text(encoding="utf-8"))["adapters"]:
                server.adapters.want(entry)
    if options.admin_port is not None:
        admin = _AdminPort((options.admin_host, options.admin_port), _Handler)
        admin.worker = server
        threading.Thread(target=admin.serve_forever, daemon=True).start()

    def drain(*_: object) -> None:
        server.is_ready = False
        if "FAKE_IGNORE_SIGTERM" not in os.environ:
            threading.Thread(target=leave).start()

    def leave() -> None:
        time.sleep(options.shutdown_delay)
        server.shutdown()

    def load() -> None:
        print("INFO loading weights", flush=True)
        if "FAKE_DOWNLOAD" in os.environ:
            (options.download_dir / os.environ["FAKE_DOWNLOAD"]).touch()
        time.sleep(float(os.environ.get("FAKE_LOAD_S", "0.2")))
        print("INFO ready", flush=True)
        server.is_ready = True

    signal.signal(signal.SIGTERM, drain)
    threading.Thread(target=load, daemon=True).start()
    server.serve_forever(poll_interval=0.02)
    server.server_close()


if __name__ == "__main__":
    main()
