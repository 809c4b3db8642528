"""From parsed arguments, and the environment, to the two configurations. Read once, here."""

from __future__ import annotations

import argparse
import re
from collections.abc import Mapping
from pathlib import Path

from octavo.config import EngineConfig, ServerConfig
from octavo.errors import ConfigError, InvalidRequestError
from octavo.lora.adapter_name import check_adapter_name
from octavo.server.keys import KeyRing

API_KEY_VARIABLE = "OCTAVO_API_KEY"
ADMIN_KEY_VARIABLE = "OCTAVO_ADMIN_KEY"
TRACE_VARIABLES = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
"""OpenTelemetry's own; its SDK reads the rest of them."""
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
    "kernel_cache_dir",
    "batch_invariant",
    "enable_lora",
    "max_loras",
    "max_lora_rank",
    "max_cpu_loras",
    "lora_state",
    "lora_wanted",
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
    if parsed.lora_state is not None and not Path(parsed.lora_state).parent.is_dir():
        raise ConfigError(
            f"--lora-state is {parsed.lora_state!r}, in a folder that is not there; make it first."
        )
    return EngineConfig(
        load_format=_load_format(parsed),
        lora_modules=_lora_modules(parsed),
        lora_wait_s=parsed.lora_wait_timeout,
        **{name: getattr(parsed, name) for name in _SAME_NAMES},
    )


def server_config(parsed: argparse.Namespace, environment: Mapping[str, str]) -> ServerConfig:
    """Raises ConfigError for values that cannot be served."""
    if not 0 <= parsed.port <= 65535:
        raise ConfigError(f"--port is {parsed.port}; ports go from 0 (any free one) to 65535.")
    if parsed.admin_port is not None and not 0 <= parsed.admin_port <= 65535:
        raise ConfigError(
            f"--admin-port is {parsed.admin_port}; ports go from 0 (any free one) to 65535."
        )
    for flag in ("metrics_on_admin_port", "admin_key_sha256"):
        if getattr(parsed, flag) and parsed.admin_port is None:
            raise ConfigError(f"--{flag.replace('_', '-')} needs an --admin-port; give one.")
    for digest in parsed.admin_key_sha256:
        if re.fullmatch("[0-9a-f]{64}", digest) is None:
            raise ConfigError(
                f"--admin-key-sha256 is {digest[:80]!r}; give the 64 hexadecimal digits of a "
                "key's SHA-256, in lower case."
            )
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
        admin_keys=_given(environment, ADMIN_KEY_VARIABLE),
        api_key_files=_key_files(parsed),
        admin_port=parsed.admin_port,
        admin_host=parsed.admin_host,
        admin_key_hashes=tuple(parsed.admin_key_sha256),
        metrics_on_admin_port=parsed.metrics_on_admin_port,
        exports_traces=any(environment.get(name) for name in TRACE_VARIABLES),
        log_prompts=parsed.log_prompts,
        chat_template=parsed.chat_template,
        tool_call_parser=parsed.tool_call_parser,
        reasoning_parser=parsed.reasoning_parser,
        shutdown_timeout_s=parsed.shutdown_timeout,
        shutdown_delay_s=parsed.shutdown_delay,
        max_body_bytes=parsed.max_body_bytes,
        log_requests=parsed.enable_log_requests,
    )


def _lora_modules(parsed: argparse.Namespace) -> tuple[tuple[str, str], ...]:
    names: set[str] = set()
    base = getattr(parsed, "served_model_name", ()) or (parsed.model,)
    for name, _ in parsed.lora_modules:
        if name in base:
            raise ConfigError(
                f"--lora-modules has {name!r}, which is the base model's name; choose another."
            )
        if name in names:
            raise ConfigError(f"--lora-modules has {name!r} twice; leave one of them out.")
        try:
            check_adapter_name(name)
        except InvalidRequestError as error:
            raise ConfigError(f"--lora-modules: {error}") from error
        names.add(name)
    return tuple(parsed.lora_modules)


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
    keys = tuple(dict.fromkeys([*parsed.api_key, *_given(environment, API_KEY_VARIABLE)]))
    for key in (*keys, *_given(environment, ADMIN_KEY_VARIABLE)):
        if not key or not key.isascii() or not key.isprintable() or " " in key:
            raise ConfigError(
                "An API key is empty or holds a space or a character that HTTP headers cannot "
                "carry; use printable ASCII characters."
            )
    return keys


def _given(environment: Mapping[str, str], name: str) -> tuple[str, ...]:
    return (environment[name],) if environment.get(name) else ()


def _key_files(parsed: argparse.Namespace) -> tuple[str, ...]:
    """The paths, once it is known that they can be read and hold keys."""
    paths = tuple(parsed.api_key_file)
    KeyRing(paths=paths)
    return paths
