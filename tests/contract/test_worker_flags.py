"""The worker's command line, as the operator, scripts and users of vLLM rely on it."""

from __future__ import annotations

import subprocess
import sys

import pytest

from octavo.cli import build_parser, flags_of
from octavo.cli.configs import engine_config, server_config
from octavo.cli.parser import parse_arguments
from octavo.cli.serve_flags import QUANTIZATIONS
from octavo.cli.vllm_flags import refusal
from octavo.config import EngineConfig, ServerConfig
from octavo_operator.reconcile.features import WORKER_QUANTIZATIONS

PROMISED = {
    "--host --port --served-model-name --dtype --device --max-model-len --max-num-seqs",
    "--max-num-batched-tokens --gpu-memory-utilization --kv-cache-memory-bytes --block-size",
    "--load-format --seed --enable-prefix-caching --no-enable-prefix-caching --api-key",
    "--api-key-file --revision --download-dir --hf-overrides --skip-tokenizer-init",
    "--enable-lora --max-loras --max-lora-rank --max-cpu-loras --lora-modules",
    "--lora-state --lora-wanted",
    "--quantization --chat-template --shutdown-timeout --shutdown-delay --kernels --num-threads",
    "--tensor-parallel-size --enforce-eager --enable-log-requests --help",
}
# What the operator writes for a service that sets everything.
OPERATORS = (
    "serve demo://smollm2-135m-instruct --host 0.0.0.0 --port 8000 --served-model-name smollm2 "
    "--revision main --device cpu --tensor-parallel-size 1 --max-model-len 4096 --dtype bfloat16 "
    "--quantization gguf --gpu-memory-utilization 0.85 --no-enable-prefix-caching "
    "--max-num-seqs 32 --shutdown-timeout 60 --shutdown-delay 5 --download-dir /var/cache/octavo"
)


def test_all_promised_flags_are_there() -> None:
    flags = flags_of(build_parser(), "serve")
    assert {flag for line in PROMISED for flag in line.split()} <= flags


def test_operators_command_is_understood() -> None:
    parsed = parse_arguments(build_parser(), OPERATORS.split())
    assert engine_config(parsed) == EngineConfig(
        model="demo://smollm2-135m-instruct",
        revision="main",
        download_dir="/var/cache/octavo",
        load_format="gguf",
        dtype="bfloat16",
        device="cpu",
        max_model_len=4096,
        max_num_seqs=32,
        gpu_memory_utilization=0.85,
        enable_prefix_caching=False,
    )
    assert server_config(parsed, {}) == ServerConfig(
        host="0.0.0.0",
        port=8000,
        served_model_names=("smollm2",),
        shutdown_timeout_s=60.0,
        shutdown_delay_s=5.0,
    )


def test_defaults_are_those_of_the_configuration() -> None:
    parsed = parse_arguments(build_parser(), ["serve", "m"])
    assert engine_config(parsed) == EngineConfig(model="m")
    assert server_config(parsed, {}) == ServerConfig()


def test_no_flag_is_both_known_and_refused() -> None:
    known = flags_of(build_parser(), "serve")
    reasons = {flag: refusal(flag) for flag in known if not flag.startswith("--no-")}
    assert {flag for flag, reason in reasons.items() if reason and "always" not in reason} == set()


@pytest.mark.parametrize("command", ["version", "serve --help", "chat --help", "fetch --help"])
def test_commands_that_compute_nothing_do_not_import_torch(command: str) -> None:
    script = (
        "import sys; sys.path[:0] = sys.argv[1].split(':'); from octavo.cli import main\n"
        "try: main(sys.argv[2:])\n"
        "except SystemExit as end: assert not end.code, end.code\n"
        "assert 'torch' not in sys.modules and 'fastapi' not in sys.modules"
    )
    subprocess.run(
        [sys.executable, "-c", script, ":".join(sys.path), *command.split()],
        check=True,
        capture_output=True,
    )


def test_servers_process_does_not_import_torch() -> None:
    script = (
        "import sys; sys.path[:0] = sys.argv[1].split(':')\n"
        "import octavo.server.lifecycle, octavo.cli.serve_display, octavo.server.app\n"
        "heavy = {'torch', 'numpy', 'transformers', 'triton'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", script, ":".join(sys.path)], check=True)


@pytest.mark.parametrize(
    "flag", ["--pipeline-parallel-size", "--nnodes", "--node-rank", "--master-addr", "--headless"]
)
def test_what_the_operator_writes_for_groups_of_pods_is_refused_by_name(
    flag: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """The operator says so in FeaturesReady; a worker that can split a model makes this fail."""
    with pytest.raises(SystemExit):
        parse_arguments(build_parser(), ["serve", "m", flag, "2"])
    assert flag in capsys.readouterr().err


def test_operator_knows_which_quantizations_the_worker_serves() -> None:
    assert frozenset(QUANTIZATIONS) == WORKER_QUANTIZATIONS
