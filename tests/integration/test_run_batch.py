"""``octavo run-batch``: a file of requests in, a file of answers out."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from octavo.cli import main
from octavo.cli.batch_output import BatchOutput
from octavo.errors import ConfigError
from octavo.structured.trial import MAX_WAITING
from tiny_models import make_tiny_model

LIMITS = ("--max-model-len", "128", "--num-threads", "1", "--log-level", "error")
CHAT = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 3}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model("llama", tmp_path_factory.mktemp("model"))


def asked(custom_id: str, body: dict[str, Any], url: str = "/v1/completions") -> str:
    return json.dumps({"custom_id": custom_id, "method": "POST", "url": url, "body": body})


def run(model: Path, source: Path, target: Path, *flags: str) -> int:
    return main(["run-batch", str(model), "-i", str(source), "-o", str(target), *LIMITS, *flags])


def answers(target: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in target.read_text().splitlines()]


def test_each_line_is_answered_as_a_server_would(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, target = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    lines = [
        asked("chat", CHAT, "/v1/chat/completions"),
        asked("text", {"prompt": "hi", "max_tokens": 3, "ignore_eos": True}),
        "",
        asked("vector", {"input": "hi"}, "/v1/embeddings"),
        asked("model", {"prompt": "hi", "model": "other"}),
        asked("text", {"prompt": "again"}),
        asked("stream", {"prompt": "hi", "stream": True}),
        asked("url", {}, "/v1/audio"),
        '{"custom_id": "torn", ',
        '{"url": "/v1/completions", "body": {}}',
        '{"custom_id": "body", "url": "/v1/completions", "body": 5}',
        '{"custom_id": "get", "method": "GET", "url": "/v1/completions", "body": {}}',
    ]
    source.write_bytes(b"\xef\xbb\xbf" + "\r\n".join(lines).encode())
    assert run(model, source, target) == 1
    found = answers(target)
    assert len(found) == len(lines) - 1
    served = {one["custom_id"]: one["response"] for one in found if one["response"]}
    assert {name: each["status_code"] for name, each in served.items()} == {
        "chat": 200,
        "text": 200,
        "vector": 200,
        "model": 404,
    }
    assert served["text"]["body"]["usage"]["completion_tokens"] == 3
    assert len(served["vector"]["body"]["data"][0]["embedding"]) == 32
    assert all(each["request_id"] for each in served.values())
    errors = sorted(one["error"]["message"] for one in found if one["error"])
    for message, words in zip(
        errors,
        [
            "Line 10 has no custom_id",
            "Line 11: body is 5",
            "Line 12: method is 'GET'",
            "Line 6 has the custom_id of line 2",
            "Line 7: body asks for a stream",
            "Line 8: url is '/v1/audio'; it must be one of /v1/chat/completions",
            "Line 9 is not valid JSON",
        ],
        strict=True,
    ):
        assert message.startswith(words)
    assert "8 of 11 lines failed" in capsys.readouterr().err


def test_lines_with_more_new_grammars_than_may_be_tried_wait_for_their_turn(
    model: Path, tmp_path: Path
) -> None:
    source, target = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    count = 2 * MAX_WAITING
    source.write_text(
        "\n".join(
            asked(str(n), {"prompt": "hi", "structured_outputs": {"choice": [f"a{n}"]}})
            for n in range(count)
        )
    )
    assert run(model, source, target) == 0
    assert len(answers(target)) == count


def test_a_batch_goes_on_where_it_was_killed(model: Path, tmp_path: Path) -> None:
    source, target = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    whole = {"custom_id": "1", "response": {"status_code": 200}, "error": None}
    source.write_text("\n".join(asked(str(n), {"prompt": "hi", "max_tokens": 2}) for n in range(3)))
    target.write_text(json.dumps(whole) + "\n" + '{"custom_id": "2", "respo')
    assert run(model, source, target) == 2
    assert target.read_text().endswith("respo")
    assert run(model, source, target, "--resume") == 0
    first, *others = answers(target)
    assert first == whole
    assert sorted(one["custom_id"] for one in others) == ["0", "2"]
    before = target.read_bytes()
    assert run(model, source, target, "--resume") == 0
    assert target.read_bytes() == before


def test_an_engine_that_dies_ends_the_batch_and_spoils_no_line(model: Path, tmp_path: Path) -> None:
    source, target = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    body = {"prompt": "hi", "max_tokens": 100, "ignore_eos": True}
    source.write_text("\n".join(asked(str(number), body) for number in range(5000)))
    command = [sys.executable, "-m", "octavo", "run-batch", str(model), *LIMITS]
    command += ["-i", str(source), "-o", str(target)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        while not (target.exists() and target.stat().st_size):
            assert process.poll() is None
            time.sleep(0.02)
        (engine,) = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        os.kill(int(engine), signal.SIGKILL)
        _, words = process.communicate()
    assert process.returncode == 1
    assert "The engine has died; with --resume the same command goes on." in words
    assert 0 < len(answers(target)) < 5000
    assert {one["response"]["status_code"] for one in answers(target)} == {200}


@pytest.mark.parametrize(
    ("source", "target", "flags", "words"),
    [
        ("nowhere", "new", [], "nowhere, which cannot be read: No such file"),
        ("in", "there", [], "there, which is there; remove it, or add --resume"),
        ("in", "there", ["--resume"], "there, whose line 1 is no answer of a batch"),
        ("in", "in", ["--resume"], "in, the input file; choose another"),
        ("in", "no/folder", [], "no/folder, which cannot be written: No such file"),
    ],
)
def test_files_that_cannot_be_used_are_refused_before_the_model_is_loaded(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    source: str,
    target: str,
    flags: list[str],
    words: str,
) -> None:
    (tmp_path / "in").write_text(asked("1", {"prompt": "hi"}))
    (tmp_path / "there").write_text("mine\n")
    assert run(tmp_path / "no model", tmp_path / source, tmp_path / target, *flags) == 2
    assert words in capsys.readouterr().err
    assert (tmp_path / "there").read_text() == "mine\n"


def test_a_full_disk_ends_the_batch_with_whole_lines(tmp_path: Path) -> None:
    answer = {"custom_id": "1", "response": {"status_code": 200}, "error": None}
    target = tmp_path / "out"
    with BatchOutput(target, resumes=False) as output:
        output.write(answer)
        inner = output._file

        class Full:
            def __getattr__(self, name: str) -> Any:
                return getattr(inner, name)

            def write(self, data: bytes) -> int:
                return inner.write(data[:5])

        output._file = Full()  # type: ignore[assignment]
        with pytest.raises(ConfigError, match=r"No space left on device.*--resume"):
            output.write(answer)
    assert answers(target) == [answer]
