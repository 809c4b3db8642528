"""The worker's command line: the whole contract between the operator and `octavo serve`."""

from __future__ import annotations

from typing import Final

from octavo_operator.resources.engine import Engine
from octavo_operator.resources.inference_service import InferenceService
from octavo_operator.resources.lora_capacity import LoraCapacity
from octavo_operator.resources.model_uri import (
    BucketModel,
    DemoModel,
    FileModel,
    HubModel,
    ImageModel,
    ModelSource,
    VolumeModel,
)

WORKER_PORT: Final = 8000
ADMIN_PORT: Final = 8001
"""Of metrics, and of what only the operator may do; the NetworkPolicy keeps others off it."""

NO_ADMIN_KEY: Final = "0" * 64
"""A hash that no key has."""

MODEL_MOUNT: Final = "/models"
CACHE_MOUNT: Final = "/var/cache/octavo"
ENDPOINT_REMOVAL_S: Final = 5
"""A stopping pod keeps taking requests this long, until every node has dropped it from its tables.

The worker does it itself and not a preStop hook: it can tell clients that keep their connections to
connect elsewhere, and readiness is red meanwhile.
"""

FOLLOWER_FLAG: Final = "--headless"
"""Of all pods of a group but the first: there is no API to serve."""

API_KEY_MOUNT: Final = "/etc/octavo/api-keys"
STATE_MOUNT: Final = "/var/lib/octavo"
"""What a container needs to remember of before its restart in place; it goes with the pod."""

LORA_STATE_FILE: Final = f"{STATE_MOUNT}/adapters.json"
ADAPTER_LIST_MOUNT: Final = "/etc/octavo/adapters"
ADAPTER_LIST_KEY: Final = "wanted.json"
LORA_WANTED: Final = "--lora-wanted"
ENABLE_LORA: Final = "--enable-lora"
LORA_MODULES: Final = "--lora-modules"


def worker_command(service: InferenceService, admin_key_sha256: str) -> list[str]:
    """The container's command, program and arguments in one list."""
    return [
        "octavo",
        "serve",
        model_argument(service.model.source),
        "--host",
        "0.0.0.0",
        "--port",
        str(WORKER_PORT),
        "--served-model-name",
        service.model.served_name,
        *_option("--revision", service.model.revision),
        *(["--device", "cpu"] if service.accelerator.is_cpu else []),
        *_split(service),
        *_engine_options(service.engine, is_cpu=service.accelerator.is_cpu),
        *_option("--shutdown-delay", ENDPOINT_REMOVAL_S),
        *_option("--shutdown-timeout", service.rollout.drain_s),
        *(["--download-dir", CACHE_MOUNT] if _downloads(service) else []),
        *_api_keys(service),
        *_admin_options(service, admin_key_sha256),
        *service.engine.args,
    ]


def fetch_command(service: InferenceService) -> list[str]:
    """The command that brings the model to the cache volume, and checks what is there."""
    return [
        "octavo",
        "fetch",
        model_argument(service.model.source),
        *_option("--revision", service.model.revision),
        "--download-dir",
        CACHE_MOUNT,
    ]


def model_argument(source: ModelSource) -> str:
    """What the worker is told to serve: a hub name, a path in its container, or a demo URI."""
    match source:
        case HubModel(repository=repository):
            return repository
        case VolumeModel(path=path):
            return f"{MODEL_MOUNT}/{path}" if path else MODEL_MOUNT
        case ImageModel():
            return MODEL_MOUNT
        case FileModel(path=path):
            return path
        case DemoModel(name=name):
            return f"demo://{name}"
        case BucketModel(bucket=bucket, prefix=prefix):
            return f"s3://{bucket}/{prefix}"


def is_downloaded(source: ModelSource) -> bool:
    """Whether the worker fetches the files itself and so needs a cache to put them in."""
    return isinstance(source, HubModel | DemoModel | BucketModel)


def _downloads(service: InferenceService) -> bool:
    """Adapters come from the hub or a bucket too."""
    return is_downloaded(service.model.source) or service.engine.lora is not None


def api_key_paths(service: InferenceService) -> list[str]:
    """One folder a Secret, in the order of the spec; each file in it holds one accepted key.

    Folders, since only the Secret knows its keys, and the operator does not read Secrets.
    """
    return [f"{API_KEY_MOUNT}/{index}" for index in range(len(service.api_keys))]


def _split(service: InferenceService) -> list[str]:
    """The names are vLLM's. Of a group of pods each is told its rank and the first one's address,
    by variables that LeaderWorkerSet sets and kubelet puts in."""
    split = service.parallelism
    tensor = split.tensor or 1
    group = ["--node-rank", "$(LWS_WORKER_INDEX)", "--master-addr", "$(LWS_LEADER_ADDRESS)"]
    return [
        *(_option("--tensor-parallel-size", tensor) if tensor > 1 else []),
        *(_option("--pipeline-parallel-size", split.pipeline) if split.pipeline > 1 else []),
        *([*_option("--nnodes", split.nodes), *group] if split.nodes > 1 else []),
    ]


def _engine_options(engine: Engine, *, is_cpu: bool) -> list[str]:
    return [
        *_option("--max-model-len", engine.max_model_len),
        *_option("--dtype", engine.dtype),
        *_option("--quantization", engine.quantization),
        *([] if is_cpu else _option("--gpu-memory-utilization", engine.gpu_memory_utilization)),
        *([] if engine.prefix_caching else ["--no-enable-prefix-caching"]),
        *_option("--max-num-seqs", engine.max_num_seqs),
        *_lora_options(engine.lora),
    ]


def _lora_options(lora: LoraCapacity | None) -> list[str]:
    """Room for adapters; which ones is no part of it, since they are loaded into running pods."""
    if lora is None:
        return []
    return [
        ENABLE_LORA,
        *_option("--max-loras", lora.max_adapters),
        *_option("--max-lora-rank", lora.max_rank),
        *_option("--lora-state", LORA_STATE_FILE),
        *_option(LORA_WANTED, f"{ADAPTER_LIST_MOUNT}/{ADAPTER_LIST_KEY}"),
    ]


def _api_keys(service: InferenceService) -> list[str]:
    paths = api_key_paths(service)
    return ["--api-key-file", *paths] if paths else []


def _admin_options(service: InferenceService, admin_key_sha256: str) -> list[str]:
    """Metrics stay on the API's port too where an endpoint picker of a gateway looks for them."""
    return [
        *("--admin-host", "0.0.0.0", "--admin-port", str(ADMIN_PORT)),
        *("--admin-key-sha256", admin_key_sha256),
        *([] if service.inference_pool else ["--metrics-on-admin-port"]),
    ]


def _option(flag: str, value: object) -> list[str]:
    return [] if value is None else [flag, str(value)]
