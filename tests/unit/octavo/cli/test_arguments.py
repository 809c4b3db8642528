"""Values and mistakes on the command line."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

import pytest

from octavo.cli import build_parser, main
from octavo.cli.configs import engine_config, server_config
from octavo.cli.parser import parse_arguments
from octavo.cli.values import count, count_or_auto
from octavo.config import EngineConfig, ServerConfig
from octavo.errors import ConfigError
from octavo.server.keys import KeyRing
from octavo.version import __version__


def parse(*arguments: str) -> argparse.Namespace:
    return parse_arguments(build_parser(), ["serve", "m", *arguments])


def both_configs(parsed: argparse.Namespace) -> tuple[EngineConfig, ServerConfig]:
    return engine_config(parsed), server_config(parsed, {})


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("4096", 4096),
        ("4k", 4000),
        ("4K", 4096),
        ("4KiB", 4096),
        ("1.5k", 1500),
        ("2GiB", 2 * 2**30),
        ("2g", 2 * 10**9),
        ("2 GB", 2 * 2**30),
        ("0", 0),
    ],
)
def test_count_is_read(text: str, number: int) -> None:
    assert count(text) == number


@pytest.mark.parametrize("text", ["", "x", "-4", "4x", "1.5", "1e6", "0x10"])
def test_count_is_refused(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError):
        count(text)


@pytest.mark.parametrize("text", ["auto", "-1"])
def test_auto_is_no_count(text: str) -> None:
    assert count_or_auto(text) is None


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--lora-dtype", "auto"], ["--lora-dtype", "dtype of the model"]),
        (["--lora-modules", "sql"], ["'sql' does not name an adapter", "NAME=PATH"]),
        (["--trust-remote-code"], ["never run"]),
        (["--kv-cache-dtype=fp8"], ["--kv-cache-dtype"]),
        (["--all2all-backend", "x"], ["--all2all-backend", "flag of vLLM"]),
        (["--no-enable-chunked-prefill"], ["always the case"]),
        (["--max-modl-len", "5"], ["--max-modl-len", "did you mean --max-model-len?"]),
        (["--zzz"], ["unknown flag --zzz"]),
        (["--max-model-le", "5"], ["unknown flag --max-model-le"]),
        (["more"], ["unexpected: more"]),
        (["--quantization", "awq"], ["'awq'", "gguf"]),
        (["--dtype", "int8"], ["'int8'", "bfloat16"]),
        (["--max-model-len", "many"], ["'many'", "4k"]),
        (["--hf-overrides", "[1]"], ["not a JSON object"]),
        (["--hf-overrides", "{"], ["not valid JSON"]),
    ],
)
def test_mistake_is_named(
    capsys: pytest.CaptureFixture[str], arguments: list[str], words: list[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        main(["serve", "m", *arguments])
    assert end.value.code == 2
    message = capsys.readouterr().err
    for word in words:
        assert word in message, message


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--tensor-parallel-size", "2"], "is 2; only 1"),
        (["--enable-lora", "--lora-modules", "a=/1", "a=/2"], "has 'a' twice"),
        (["--enable-lora", "--lora-modules", "a,b=/1"], "'a,b'.* holds no comma"),
        (
            ["--served-model-name", "a", "b", "--lora-modules", "b=/1"],
            "'b'.* the base model's name",
        ),
        (["--port", "70000"], "70000; ports go from 0"),
        (["--shutdown-timeout", "-1"], "seconds"),
        (["--shutdown-timeout", "nan"], "seconds"),
        (["--chat-template", "/no/such/file"], "no file"),
        (["--block-size", "7"], "block_size is 7"),
        (["--gpu-memory-utilization", "2"], "above 0 and at most 1"),
        (["--max-num-seqs", "0"], "max_num_seqs is 0"),
        (["--api-key-file", "/no/such/file"], "No such file"),
        (["--api-key", "a b"], "space"),
        (["--api-key", ""], "empty"),
        (["--quantization", "gguf", "--load-format", "dummy"], "leave one of them out"),
        (["--quantization", "none", "--load-format", "gguf"], "packed"),
    ],
)
def test_value_that_cannot_be_served_is_named(arguments: list[str], words: str) -> None:
    parsed = parse(*arguments)
    with pytest.raises(ConfigError, match=words):
        both_configs(parsed)


def test_vllms_short_dtypes_are_known() -> None:
    assert engine_config(parse("--dtype", "half")).dtype == "float16"
    assert engine_config(parse("--dtype", "float")).dtype == "float32"


def test_keys_come_from_flags_environment_files_and_folders(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text("# people\nkey-3\n\n  key-4  \n")
    folder = tmp_path / "secret"
    (folder / "..data").mkdir(parents=True)
    (folder / ".hidden").write_text("not-a-key")
    (folder / "b").write_text("key-6\n")
    (folder / "a").write_text("key-5")
    parsed = parse("--api-key", "key-1", "key-1", "--api-key-file", str(file), str(folder))
    config = server_config(parsed, {"OCTAVO_API_KEY": "key-2"})
    assert config.api_keys == ("key-1", "key-2")
    assert config.api_key_files == (str(file), str(folder))
    keys = KeyRing(config.api_keys, config.admin_keys, config.api_key_files)
    assert all(keys.find(f"key-{number}".encode()) for number in range(1, 7))
    assert keys.find(b"not-a-key") is None


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--admin-port", "70000"], "--admin-port is 70000"),
        (["--metrics-on-admin-port"], "needs an --admin-port"),
        (["--admin-key-sha256", "ab" * 32], "needs an --admin-port"),
        (["--admin-port", "1", "--admin-key-sha256", "secret"], "64 hexadecimal digits"),
    ],
)
def test_admin_flags_that_make_no_sense_are_refused(flags: list[str], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        server_config(parse(*flags), {})


def test_admin_settings_reach_the_server() -> None:
    flags = ["--admin-port", "9000", "--admin-host", "0.0.0.0", "--metrics-on-admin-port"]
    flags += ["--admin-key-sha256", "ab" * 32, "cd" * 32]
    config = server_config(parse(*flags), {"OCTAVO_ADMIN_KEY": "root"})
    assert config.admin_key_hashes == ("ab" * 32, "cd" * 32)
    assert (config.admin_port, config.admin_host) == (9000, "0.0.0.0")
    assert config.metrics_on_admin_port
    assert config.admin_keys == ("root",)


def test_key_file_without_a_key_does_not_open_the_door(tmp_path: Path) -> None:
    for empty in (tmp_path / "file", tmp_path / "folder"):
        if empty.name == "file":
            empty.write_text("# nothing\n")
        else:
            empty.mkdir()
        with pytest.raises(ConfigError, match="holds no key"):
            server_config(parse("--api-key-file", str(empty)), {})


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["version"]) == 0
    assert capsys.readouterr().out.startswith("octavo ")


def test_version_is_a_flag_too(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--version"])
    assert ended.value.code == 0
    assert capsys.readouterr().out == f"octavo {__version__}\n"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["serv", "x"], "unknown command serv; did you mean serve?"),
        (
            ["bench"],
            "unknown command bench; there are serve, chat, run-batch, fetch, inspect, warm",
        ),
        (["--port", "1", "serve", "x"], "--port stands before the command; write 'octavo COMMAND"),
        (["chat", "--modle", "x"], "did you mean --model? ('octavo chat --help' lists all)"),
        (["chat", "--temperature", "-1"], "'-1' is no temperature; write a number from 0 to 2"),
        (["chat", "--temperature", "nan"], "'nan' is no temperature"),
        (["chat", "--temperature", "warm"], "'warm' is no temperature"),
        (["chat", "--max-tokens", "0"], "'0' is too few; write 1 or more, or leave it out"),
    ],
)
def test_what_cannot_be_run_is_refused_with_a_remedy(
    capsys: pytest.CaptureFixture[str], arguments: list[str], words: str
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    assert words in capsys.readouterr().err


def test_help_groups_flags_and_gives_examples(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["serve", "--help"])
    text = capsys.readouterr().out
    for heading in ("model:", "HTTP:", "capacity:", "memory:", "device:", "logging:", "examples:"):
        assert f"\n{heading}" in text
    assert "--enable-chunked-prefill" not in text


def test_an_argument_that_is_not_utf_8_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    """As the name of a folder may be; the engine is told of it as text."""
    assert main(["serve", os.fsdecode(b"caf\xe9")]) == 2
    assert r"The argument 'caf\udce9' is not UTF-8; rename" in capsys.readouterr().err
