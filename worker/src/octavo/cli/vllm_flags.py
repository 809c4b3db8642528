"""Flags of vLLM's server that Octavo does not have: each is refused by name, with a reason.

Flags that ask for what Octavo always does are accepted (:data:`ALWAYS_SO`).
"""

from __future__ import annotations

ALWAYS_SO = (
    "--enable-auto-tool-choice",
    "--enable-chunked-prefill",
    "--enable-prompt-tokens-details",
    "--enable-request-id-headers",
    "--enable-tokenizer-info-endpoint",
    "--disable-fastapi-docs",
)
"""vLLM's switches for what is always the case here: prefill is chunked, usage tells cached
tokens, answers carry X-Request-Id, /tokenizer_info is there, a model may call the tools it is
given, there are no documentation pages."""

_ONE_DEVICE = "one device serves a model; run more replicas instead"
_PROXY = "put a proxy in front of the server for it"
_OWN_TOKENIZER = "the tokenizer comes with the model"
_REASONS = {
    "--model": "give the model as the first argument",
    "--trust-remote-code": "code from a model's folder is never run; leave it out",
    "--code-revision": "code from a model's folder is never run; leave it out",
    "--lora-dtype": "adapters have the dtype of the model",
    "--fully-sharded-loras": _ONE_DEVICE,
    "--pipeline-parallel-size": _ONE_DEVICE,
    "--data-parallel-size": _ONE_DEVICE,
    "--enable-expert-parallel": _ONE_DEVICE,
    "--api-server-count": "one server process is enough for one device",
    "--kv-cache-dtype": "the KV cache has the dtype of the model",
    "--num-gpu-blocks-override": "set the size with --kv-cache-memory-bytes",
    "--cpu-offload-gb": "weights are not offloaded; use packed weights or a smaller model",
    "--swap-space": "preempted requests are computed again, not swapped",
    "--tokenizer": _OWN_TOKENIZER,
    "--tokenizer-mode": _OWN_TOKENIZER,
    "--tokenizer-revision": _OWN_TOKENIZER,
    "--speculative-config": "speculative decoding is not supported yet",
    "--structured-outputs-config": "structured outputs have nothing to set",
    "--guided-decoding-backend": "there is one library for grammars here",
    "--limit-mm-per-prompt": "only text is taken",
    "--scheduling-policy": "requests always run by priority, then by arrival",
    "--generation-config": "defaults are those of the model's own generation_config.json",
    "--override-generation-config": "send the values with each request",
    "--disable-log-requests": "requests are logged only with --enable-log-requests",
    "--disable-log-stats": "statistics are on /metrics only, never in the log",
    "--uvicorn-log-level": "use --log-level",
    "--ssl-keyfile": _PROXY,
    "--ssl-certfile": _PROXY,
    "--allowed-origins": _PROXY,
    "--root-path": _PROXY,
    "--config": "give flags on the command line",
}

_OTHERS = """
--additional-config --aggregate-engine-logging --all2all-backend --allow-credentials
--allow-deprecated-quantization --allowed-headers --allowed-local-media-path
--allowed-media-domains --allowed-methods --async-scheduling --attention-backend
--attention-config --calculate-kv-scales --chat-template-content-format
--collect-detailed-traces --compilation-config --config-format --convert
--cp-kv-cache-interleave-size --cpu-distributed-timeout-seconds --cpu-offload-params
--cudagraph-capture-sizes --cudagraph-metrics --data-parallel-address --data-parallel-backend
--data-parallel-external-lb --data-parallel-hybrid-lb --data-parallel-multi-port-external-lb
--data-parallel-rank --data-parallel-rpc-port --data-parallel-size-local
--data-parallel-start-rank --dbo-decode-token-threshold --dbo-prefill-token-threshold
--dcp-comm-backend --dcp-kv-cache-interleave-size --decode-context-parallel-size
--default-mm-loras --device-ids --diffusion-config --disable-cascade-attn
--disable-chunked-mm-input --disable-custom-all-reduce --disable-frontend-multiprocessing
--disable-hybrid-kv-cache-manager --disable-nccl-for-dp-synchronization --disable-sliding-window
--disable-uvicorn-access-log --distributed-executor-backend --distributed-timeout-seconds
--ec-transfer-config --enable-cumem-allocator --enable-dbo --enable-elastic-ep
--enable-ep-weight-filter --enable-eplb --enable-flashinfer-autotune
--enable-force-include-usage --enable-layerwise-nvtx-tracing --enable-log-outputs
--enable-logging-iteration-details --enable-mamba-cache-stochastic-rounding
--enable-mfu-metrics --enable-mixed-moe-lora-format --enable-mm-embeds --enable-prompt-embeds
--enable-return-routed-experts --enable-server-load-tracking --enable-sleep-mode
--enable-ssl-refresh --enable-tower-connector-lora
--eplb-config --exclude-tools-when-tool-choice-none --expert-placement-strategy
--fail-on-environ-validation --gdn-prefill-backend --h11-max-header-count
--h11-max-incomplete-event-size --headless --hf-config-path --hf-token --ignore-patterns
--interleave-mm-strings --io-processor-plugin --ir-op-priority --jit-monitor-verbose
--kernel-config --kv-cache-dtype-skip-layers --kv-cache-metrics --kv-cache-metrics-sample
--kv-events-config --kv-offloading-backend --kv-offloading-size --kv-sharing-fast-prefill
--kv-transfer-config --language-model-only --linear-backend --log-config-file
--logits-processors --logprobs-mode --long-prefill-token-threshold --lora-target-modules
--mamba-backend --mamba-block-size --mamba-cache-dtype --mamba-cache-mode
--mamba-cache-philox-rounds --mamba-ssm-cache-dtype --master-addr --master-port
--max-cudagraph-capture-size --max-log-len --max-logprobs --max-long-partial-prefills
--max-num-partial-prefills --max-parallel-loading-workers --media-io-kwargs --middleware
--mm-encoder-attn-backend --mm-encoder-attn-dtype --mm-encoder-fp8-scale-path
--mm-encoder-fp8-scale-save-margin --mm-encoder-fp8-scale-save-path --mm-encoder-only
--mm-encoder-tp-mode --mm-processor-cache-gb --mm-processor-cache-type --mm-processor-kwargs
--mm-shm-cache-max-object-size-mb --mm-tensor-ipc --model-impl --model-loader-extra-config
--moe-backend --nnodes --node-rank --numa-bind --numa-bind-cpus --numa-bind-nodes
--offload-backend --offload-group-size --offload-num-in-group --offload-params
--offload-prefetch-step --optimization-level --otlp-traces-endpoint --override-attention-dtype
--performance-mode --pooler-config --prefill-context-parallel-size --prefill-schedule-interval
--prefix-caching-hash-algo --profiler-config --pt-load-map-location --quantization-config
--ray-workers-use-nsight --reasoning-config --reasoning-parser-plugin --renderer-num-workers
--response-role --return-tokens-as-token-ids --runner --safetensors-load-strategy
--safetensors-prefetch-block-size --safetensors-prefetch-num-threads --scheduler-cls
--scheduler-reserve-full-isl --show-hidden-metrics-for-version --skip-mm-profiling
--spec-method --spec-model --spec-tokens --specialize-active-lora --ssl-ca-certs
--ssl-cert-reqs --stream-interval --tool-parser-plugin --tool-server --ubatch-size --uds
--use-fp64-gumbel --use-tqdm-on-load --video-pruning-rate --watermark
--weight-transfer-config --worker-cls --worker-extension-cls
"""

_OTHER_NAMES = frozenset(_OTHERS.split())


def refusal(flag: str) -> str | None:
    """Why this flag of vLLM is refused; None when it is none of vLLM's."""
    name = flag.partition("=")[0]
    positive = f"--{name.removeprefix('--no-')}" if name.startswith("--no-") else name
    if positive in ALWAYS_SO:
        return f"{name} cannot be honoured: {positive} is always the case in Octavo."
    if positive in _REASONS:
        return f"{name} is not supported: {_REASONS[positive]}."
    if positive in _OTHER_NAMES:
        return f"{name} is a flag of vLLM that Octavo does not have; leave it out."
    return None
