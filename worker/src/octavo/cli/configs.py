"""From parsed arguments, and the environment, to the two configurations. Read once, here."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path

from octavo.config import EngineConfig, ServerConfig
from octavo.errors import ConfigError

API_KEY_VARIABLE = "OCTAVO_API_KEY"
_MAX_KEY_FILE_BYTES = 1024 * 1024
_SAME_NAMES = (
    "model",
    "revision",
    "download_dir",
    "skip_tokenizer_init",
    "hf_overrides",
    "dtype",
    "device",
    "kernels",
    "max_model_len",
    "max_num_seqs",
    "max_num_batched_tokens",
    "max_num_batched_tokens_while_decoding",
    "max_num_waiting",
    "max_queue_tokens",
    "block_size",
    "gpu_memory_utilization",
    "kv_cache_memory_bytes",
    "enable_prefix_caching",
    "seed",
    "num_threads",
    "enforce_eager",
    "log_format",
    "log_level",
)
"""Flags and fields of EngineConfig that have one name."""


def engine_config(parsed: argparse.Namespace) -> EngineConfig:
    """Raises ConfigError for values that cannot be served."""
    if parsed.tensor_parallel_size != 1:
        raise ConfigError(
            f"--tensor-parallel-size is {parsed.tensor_parallel_size}; only 1 is supported yet. "
            "Run more replicas, or choose a model that fits one GPU."
        )
    return EngineConfig(
        load_format=_load_format(parsed), **{name: getattr(parsed, name) for name in _SAME_NAMES}
    )


def server_config(parsed: argparse.Namespace, environment: Mapping[str, str]) -> ServerConfig:
    """Raises ConfigError for values that cannot be served."""
    if not 0 <= parsed.port <= 65535:
        raise ConfigError(f"--port is {parsed.port}; ports go from 0 (any free one) to 65535.")
    for flag in ("shutdown_timeout", "shutdown_delay"):
        if not getattr(parsed, flag) >= 0:
            raise ConfigError(
                f"--{flag.replace('_', '-')} is {getattr(parsed, flag)}; it is a number of "
                "seconds, 0 or more."
            )
    if parsed.chat_template is not None and not Path(parsed.chat_template).is_file():
        raise ConfigError(
            f"--chat-template is {parsed.chat_template!r}, which is no file; give a file's path."
        )
    return ServerConfig(
        host=parsed.host,
        port=parsed.port,
        served_model_names=tuple(parsed.served_model_name),
        api_keys=_api_keys(parsed, environment),
        chat_template=parsed.chat_template,
        shutdown_timeout_s=parsed.shutdown_timeout,
        shutdown_delay_s=parsed.shutdown_delay,
        max_body_bytes=parsed.max_body_bytes,
        log_requests=parsed.enable_log_requests,
    )


def _load_format(parsed: argparse.Namespace) -> str:
    """``--quantization gguf`` asks for GGUF weights, ``none`` for any others."""
    load_format: str = parsed.load_format
    if parsed.quantization == "gguf":
        if load_format not in ("auto", "gguf"):
            raise ConfigError(
                f"--quantization is gguf and --load-format is {load_format}; leave one of them out."
            )
        return "gguf"
    if parsed.quantization == "none" and (load_format == "gguf" or parsed.model.endswith(".gguf")):
        raise ConfigError(
            "--quantization is none and the weights are GGUF, which are packed; "
            "leave it out, or serve the model from safetensors."
        )
    return load_format


def _api_keys(parsed: argparse.Namespace, environment: Mapping[str, str]) -> tuple[str, ...]:
    keys = list(parsed.api_key)
    if environment.get(API_KEY_VARIABLE):
        keys.append(environment[API_KEY_VARIABLE])
    for path in parsed.api_key_file:
        keys += _keys_in(Path(path))
    for key in keys:
        if not key or not key.isascii() or not key.isprintable() or " " in key:
            raise ConfigError(
                "An API key is empty or holds a space or a character that HTTP headers cannot "
                "carry; use printable ASCII characters."
            )
    return tuple(dict.fromkeys(keys))


def _keys_in(path: Path) -> list[str]:
    """Keys of one file, or of all files in a folder (as a Kubernetes Secret is mounted).

    No key in it is an error: whoever names a file means to lock the door.
    """
    try:
        files = _visible_files(path) if path.is_dir() else [path]
        keys = [key for file in files for key in _keys_of_file(file)]
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not text"
        raise ConfigError(f"--api-key-file {path} cannot be read: {reason}.") from None
    if not keys:
        raise ConfigError(f"--api-key-file {path} holds no key; write one a line.")
    return keys


def _visible_files(folder: Path) -> list[Path]:
    """Without the dot-files among which Kubernetes keeps the versions of a Secret."""
    return sorted(file for file in folder.iterdir() if file.name[0] != "." and file.is_file())


def _keys_of_file(path: Path) -> list[str]:
    if path.stat().st_size > _MAX_KEY_FILE_BYTES:
        raise ConfigError(f"--api-key-file {path} is larger than 1 MiB; list keys only.")
    lines = (line.strip() for line in path.read_text("utf-8").splitlines())
    return [line for line in lines if line and not line.startswith("#")]
