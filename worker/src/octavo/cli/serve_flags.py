"""Every flag of ``octavo serve``: names (vLLM's where the meaning is the same), units, defaults.

Knows the command line only; what the values mean together is checked by :mod:`octavo.config`.
"""

from __future__ import annotations

import argparse

from octavo.cli.values import count, count_or_auto, dtype, json_object, lora_module
from octavo.cli.vllm_flags import ALWAYS_SO
from octavo.config import (
    DEVICES,
    DTYPES,
    KERNELS,
    LOAD_FORMATS,
    REASONING_PARSERS,
    TOOL_CALL_PARSERS,
    EngineConfig,
    ServerConfig,
)
from octavo.logs import LOG_FORMATS, LOG_LEVELS

QUANTIZATIONS = ("auto", "none", "gguf")
MODEL_HELP = (
    "a folder with config.json, a .gguf file, ORG/NAME on the Hugging Face hub, s3://BUCKET/PREFIX "
    "or demo://NAME for a small model to try things with (demo://smollm2-135m-instruct)"
)
_ENGINE = EngineConfig(model="")
_SERVER = ServerConfig()


def add_serve_flags(parser: argparse.ArgumentParser) -> None:
    """Add the model and all flags, in groups."""
    parser.add_argument("model", metavar="MODEL", help=MODEL_HELP)
    _add_model_flags(parser.add_argument_group("model"))
    _add_http_flags(parser.add_argument_group("HTTP"))
    _add_capacity_flags(parser.add_argument_group("capacity"))
    _add_memory_flags(parser.add_argument_group("memory"))
    _add_adapter_flags(parser.add_argument_group("LoRA adapters"))
    _add_device_flags(parser.add_argument_group("device"))
    _add_log_flags(parser.add_argument_group("logging"))
    for flag in ALWAYS_SO:
        parser.add_argument(flag, action="store_true", help=argparse.SUPPRESS)


def add_source_flags(group: argparse._ActionsContainer) -> None:
    """Where a model's files come from and go to."""
    group.add_argument("--revision", help="branch, tag or commit on the hub (default: main)")
    group.add_argument(
        "--download-dir", metavar="DIR", help="where downloads are kept (default: the user's cache)"
    )


def _add_model_flags(group: argparse._ActionsContainer) -> None:
    add_source_flags(group)
    group.add_argument(
        "--load-format",
        choices=LOAD_FORMATS,
        default="auto",
        help="kind of weights; dummy makes random ones of the shape in config.json (default: auto)",
    )
    group.add_argument(
        "--dtype",
        type=dtype,
        choices=DTYPES,
        default="auto",
        help="number format of weights and cache; auto: float32 on a CPU, else the checkpoint's "
        "(default: auto)",
    )
    group.add_argument(
        "--quantization",
        "-q",
        type=str.lower,
        choices=QUANTIZATIONS,
        default="auto",
        help="how the weights are packed; GGUF's is the only packing known (default: auto)",
    )
    group.add_argument(
        "--max-model-len",
        type=count_or_auto,
        metavar="TOKENS",
        help="most tokens of a request, prompt and answer together (default: what the model was "
        "made for, or less if the KV cache is small)",
    )
    group.add_argument(
        "--hf-overrides",
        type=json_object,
        default={},
        metavar="JSON",
        help="values that replace those in config.json, e.g. '{\"rope_theta\": 1e6}'",
    )
    group.add_argument(
        "--skip-tokenizer-init",
        action="store_true",
        help="take and return token ids only; needs no tokenizer files",
    )
    group.add_argument(
        "--chat-template", metavar="FILE", help="a Jinja template that replaces the model's own"
    )
    group.add_argument(
        "--tool-call-parser",
        choices=TOOL_CALL_PARSERS,
        help="how the model writes calls of tools (default: as its chat template tells)",
    )
    group.add_argument(
        "--reasoning-parser",
        choices=REASONING_PARSERS,
        help="how the model marks its thoughts (default: as its chat template tells)",
    )
    group.add_argument(
        "--seed",
        type=int,
        default=_ENGINE.seed,
        metavar="NUMBER",
        help="base of the seeds of requests that bring none: the same ones in the same order are "
        "answered alike (default: random seeds)",
    )


def _add_http_flags(group: argparse._ActionsContainer) -> None:
    group.add_argument(
        "--host",
        default=_SERVER.host,
        help="address to listen on; 0.0.0.0: all of this machine's (default: %(default)s)",
    )
    group.add_argument(
        "--port",
        type=int,
        default=_SERVER.port,
        help="port to listen on; 0: any free one (default: %(default)s)",
    )
    group.add_argument(
        "--served-model-name",
        nargs="+",
        default=[],
        metavar="NAME",
        help="names that requests may use; the first is shown in metrics (default: MODEL)",
    )
    group.add_argument(
        "--api-key",
        nargs="+",
        action="extend",
        default=[],
        metavar="KEY",
        help="accepted bearer tokens, asked for on every route but health; the environment "
        "variable OCTAVO_API_KEY adds one (default: none is asked for)",
    )
    group.add_argument(
        "--api-key-file",
        nargs="+",
        action="extend",
        default=[],
        metavar="PATH",
        help="files with one key a line, or folders of such files; options such as name=TEAM, "
        "max-running=N, tokens-per-minute=N or admin may follow a key; read again on change",
    )
    group.add_argument(
        "--admin-port",
        type=int,
        metavar="PORT",
        help="port for /v1/requests, cancelling and adapters; 0: any free one (default: they are "
        "on the main port, behind the key in the environment variable OCTAVO_ADMIN_KEY or one "
        "marked admin, and for this machine only where there is none)",
    )
    group.add_argument(
        "--admin-host",
        default=_SERVER.admin_host,
        metavar="HOST",
        help="address of the admin port; any other than this machine's own opens it to whoever "
        "can reach it, so set an admin key (default: %(default)s)",
    )
    group.add_argument(
        "--admin-key-sha256",
        nargs="+",
        action="extend",
        default=[],
        metavar="HEX",
        help="SHA-256 hashes of keys that open the admin port and nothing else; unlike a key, a "
        "hash may be seen by anybody (default: none)",
    )
    group.add_argument(
        "--metrics-on-admin-port",
        action="store_true",
        help="serve /metrics on the admin port only (default: on both)",
    )
    group.add_argument(
        "--shutdown-timeout",
        type=float,
        default=_SERVER.shutdown_timeout_s,
        metavar="SECONDS",
        help="how long open requests may run on after Ctrl-C or SIGTERM (default: %(default)s)",
    )
    group.add_argument(
        "--shutdown-delay",
        type=float,
        default=_SERVER.shutdown_delay_s,
        metavar="SECONDS",
        help="how long new requests are still taken after Ctrl-C or SIGTERM, while /health/ready "
        "already says no (default: %(default)s)",
    )
    group.add_argument(
        "--max-body-bytes",
        type=count,
        default=_SERVER.max_body_bytes,
        metavar="BYTES",
        help="larger request bodies are refused (default: 10 MiB)",
    )


def _add_capacity_flags(group: argparse._ActionsContainer) -> None:
    group.add_argument(
        "--max-num-seqs",
        type=count,
        metavar="REQUESTS",
        help="most requests running at once (default: 256 on CUDA, 64 on a CPU)",
    )
    group.add_argument(
        "--max-num-batched-tokens",
        type=count,
        metavar="TOKENS",
        help="most tokens computed in one step; less makes running answers steadier, more makes "
        "prompts faster (default: 8192 on CUDA, 1024 on a CPU)",
    )
    group.add_argument(
        "--max-num-batched-tokens-while-decoding",
        type=count,
        metavar="TOKENS",
        help="the same for a step in which answers are being written, who all wait for its end "
        "(default: 2048 on CUDA, or fewer where they take long; no such limit on a CPU)",
    )
    group.add_argument(
        "--max-num-waiting",
        "--max-queue-requests",
        type=count,
        default=_ENGINE.max_num_waiting,
        metavar="REQUESTS",
        help="requests that may wait; the next gets HTTP 429 (default: %(default)s)",
    )
    group.add_argument(
        "--max-queue-tokens",
        type=count,
        default=_ENGINE.max_queue_tokens,
        metavar="TOKENS",
        help="prompt tokens that may wait, all requests together; the next request gets HTTP 429 "
        "(default: 4M)",
    )
    group.add_argument(
        "--enable-prefix-caching",
        action=argparse.BooleanOptionalAction,
        default=_ENGINE.enable_prefix_caching,
        help="compute equal beginnings of prompts once (default: on)",
    )


def _add_memory_flags(group: argparse._ActionsContainer) -> None:
    group.add_argument(
        "--gpu-memory-utilization",
        type=float,
        default=_ENGINE.gpu_memory_utilization,
        metavar="SHARE",
        help="share of the GPU's memory to use, weights included, above 0 up to 1 "
        "(default: %(default)s)",
    )
    group.add_argument(
        "--kv-cache-memory-bytes",
        type=count,
        metavar="BYTES",
        help="size of the KV cache, e.g. 4GiB (default: what --gpu-memory-utilization leaves; on "
        "a CPU what --max-num-seqs needs, at most 4 GiB)",
    )
    group.add_argument(
        "--block-size",
        type=int,
        default=_ENGINE.block_size,
        metavar="TOKENS",
        help="tokens in one block of the KV cache: 8, 16, 32, 64 or 128 (default: %(default)s)",
    )


def _add_adapter_flags(group: argparse._ActionsContainer) -> None:
    group.add_argument(
        "--enable-lora", action="store_true", help="take LoRA adapters (docs/lora.md)"
    )
    group.add_argument(
        "--max-loras",
        type=count,
        default=_ENGINE.max_loras,
        metavar="ADAPTERS",
        help="adapters on the device at once (default: %(default)s)",
    )
    group.add_argument(
        "--max-lora-rank",
        type=count,
        default=_ENGINE.max_lora_rank,
        metavar="RANK",
        help="adapters of a larger rank are refused; 1 to 256 (default: %(default)s)",
    )
    group.add_argument(
        "--max-cpu-loras",
        type=count,
        metavar="ADAPTERS",
        help="adapters kept in host memory; others are read from their files again when asked for "
        "(default: twice --max-loras)",
    )
    group.add_argument(
        "--lora-modules",
        nargs="+",
        type=lora_module,
        default=[],
        metavar="NAME=PATH",
        help="adapters to load before serving: folders, hf://ORG/NAME[@REVISION] or "
        "s3://BUCKET/PREFIX",
    )
    group.add_argument(
        "--lora-state",
        metavar="FILE",
        help="remember adapters loaded over the API here, and load them again at the start "
        "(default: they are forgotten)",
    )
    group.add_argument(
        "--lora-wanted",
        metavar="FILE",
        help="what a server that has no --lora-state yet shall have, in the same form; it is ready "
        "when POST /v1/adapters/complete says that nothing is missing, or when nobody asks "
        "(docs/lora.md)",
    )
    group.add_argument(
        "--lora-wait-timeout",
        type=float,
        default=_ENGINE.lora_wait_s,
        metavar="SECONDS",
        help="how long a request waits for an adapter that is not loaded yet (default: "
        "%(default)s)",
    )


def _add_device_flags(group: argparse._ActionsContainer) -> None:
    group.add_argument(
        "--device",
        choices=DEVICES,
        default="auto",
        help="auto: CUDA where there is one, else the CPU (default: auto)",
    )
    group.add_argument(
        "--tensor-parallel-size",
        "-tp",
        type=int,
        default=1,
        metavar="GPUS",
        help="GPUs that share the model; only 1 is supported yet (default: 1)",
    )
    group.add_argument(
        "--num-threads",
        type=count,
        metavar="THREADS",
        help="CPU threads of the engine (default: all cores it may use)",
    )
    group.add_argument(
        "--enforce-eager",
        action="store_true",
        help="run every step eagerly instead of replaying CUDA graphs, for debugging",
    )
    group.add_argument(
        "--kernel-cache-dir",
        metavar="DIR",
        help="where compiled kernels are kept and found (default: $TRITON_CACHE_DIR, or a folder "
        "in the user's home)",
    )
    group.add_argument(
        "--batch-invariant",
        action="store_true",
        help="give a request the same bits whatever else is computed with it; slower",
    )
    group.add_argument(
        "--kernels",
        choices=KERNELS,
        default="auto",
        help="implementation of the kernels, for tests and bug reports (default: auto)",
    )


def _add_log_flags(group: argparse._ActionsContainer) -> None:
    group.add_argument(
        "--log-level", choices=LOG_LEVELS, default="info", help="least level (default: %(default)s)"
    )
    group.add_argument(
        "--log-format",
        choices=LOG_FORMATS,
        default="text",
        help="json: one object a line (default: %(default)s)",
    )
    group.add_argument(
        "--enable-log-requests",
        action=argparse.BooleanOptionalAction,
        default=_SERVER.log_requests,
        help="log a line a request, never its prompt or answer (default: off)",
    )
    group.add_argument(
        "--log-prompts",
        action="store_true",
        help="log the body of every request, and what unexpected errors say, which may quote it; "
        "for debugging (default: off)",
    )
