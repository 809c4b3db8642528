"""From a config to an engine that can step: files, weights, KV cache, warm-up, in phases.

The only place that knows all the rooms. Each phase is reported as it starts and ends, so that a
user sees where the time goes.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import msgspec
import torch

from octavo.batch import BatchPlan, RowAdmission
from octavo.config import EngineConfig, SchedulerConfig
from octavo.engine.adapter_control import AdapterControl
from octavo.engine.compiler_process import CompilerProcess, CompileTask, use_kernel_cache
from octavo.engine.core import EngineCore
from octavo.engine.interface import ModelInfo
from octavo.engine.messages import FilesFound, FromEngine, PhaseFinished, PhaseStarted
from octavo.errors import ConfigError, InvalidRequestError
from octavo.grammar import Vocabulary
from octavo.kernels.adapters import Adapters, AdapterStack
from octavo.kernels.interface import Kernels
from octavo.kernels.select import rows_for_adapters, select_adapters, select_kernels
from octavo.loading.checkpoint import Checkpoint, open_checkpoint
from octavo.lora.adapter_store import AdapterStore
from octavo.models import registry
from octavo.models.family import ModelFamily
from octavo.models.interface import CausalLM
from octavo.runner.card_memory import CardMemory, CudaMemory, explained_shortage
from octavo.runner.cgroup import num_usable_cpus
from octavo.runner.cuda_graphs import StepGraphs
from octavo.runner.kv_tensors import KVTensors
from octavo.runner.memory import kv_budget
from octavo.runner.model_runner import ModelRunner
from octavo.runner.rows import Rows
from octavo.runner.step_shapes import StepShapes
from octavo.runner.trial_steps import CardUse, try_steps
from octavo.sampling.sampler import Sampler
from octavo.sampling_params import SamplingParams
from octavo.scheduler.scheduler import Scheduler
from octavo.structured.compiler import GrammarCompiler
from octavo.tokenization.chat_template import ChatTemplate
from octavo.tokenization.tokenizer import Tokenizer

_log = logging.getLogger(__name__)

_NUM_GRAPHS_AT_START = 7
"""The largest, then one decode and one short prompt for each kind of draw."""
Report = Callable[[FromEngine], None]
_SAMPLING_DEFAULTS = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")
DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}

_MAX_MASK_THREADS = 16
"""The masks of 128 rows take some 8 ms of one: more save little of a step."""


@dataclass(frozen=True, slots=True)
class Engine:
    """An engine in this process, and what is known of its model."""

    core: EngineCore
    info: ModelInfo
    checkpoint: Checkpoint

    def open_tokenizer(self) -> Tokenizer | None:
        """The model's tokenizer; None where the engine was built without."""
        path = self.checkpoint.tokenizer_path
        return Tokenizer.open(path) if path is not None and self.info.has_tokenizer else None

    def open_chat_template(self, tokenizer: Tokenizer) -> ChatTemplate | None:
        """The model's chat template, if it has one."""
        path = self.checkpoint.tokenizer_path
        return None if path is None else ChatTemplate.open(path, tokenizer)


def build_engine(
    config: EngineConfig,
    report: Report | None = None,
    vocabulary: Vocabulary | None = None,
    compiler: CompilerProcess | None = None,
) -> Engine:
    """Load the model and everything around it.

    ``vocabulary``: what grammars are matched against, where the model's tokenizer is not opened.
    ``compiler``: one that was prepared before torch was imported.
    ``report`` is told of phases as they begin and end. Raises errors of
    :mod:`octavo.errors` that say what is wrong with the model, the options or the memory.
    """
    phases = _Phases(report or (lambda message: None))
    device = _resolve_device(config)
    _set_threads(config, device)
    use_kernel_cache(config)
    with phases("files", config.model):
        checkpoint = open_checkpoint(
            config.model,
            revision=config.revision,
            download_dir=config.download_dir,
            load_format=config.load_format,
            hf_overrides=config.hf_overrides,
            needs_tokenizer=not config.skip_tokenizer_init,
        )
        family = registry.resolve(checkpoint.hf_config)
    phases.tell(FilesFound(None if config.skip_tokenizer_init else checkpoint.tokenizer_path))
    dtype = resolve_dtype(config, checkpoint, device)
    max_model_len = resolve_max_model_len(config, family)
    compiler = compiler or CompilerProcess()
    compiler.compile(
        _compile_task(config, checkpoint, dtype, max_model_len) if device.type == "cuda" else None
    )
    kernels = select_kernels(device, config.kernels, config.batch_invariant)
    card = CudaMemory(device) if device.type == "cuda" else None
    with (
        phases("weights", f"{config.model} as {dtype} on {device}"),
        explained_shortage(card, "the model's weights", "serve a smaller or a packed model"),
    ):
        model = _load_model(family, checkpoint, kernels, dtype, device, max_model_len)
    # On the CPU activations, and so keys and values, are float32 whatever the weights' dtype.
    kv_dtype = torch.float32 if device.type == "cpu" else dtype
    limits = step_limits(config, device, max_model_len)
    use_graphs = device.type == "cuda" and not config.enforce_eager
    with explained_shortage(card, "LoRA adapters", "lower --max-loras or --max-lora-rank"):
        stack = adapter_stack(config, model, kv_dtype, device)

    def runner_of(limits: SchedulerConfig, captured_tokens: int) -> ModelRunner:
        return make_runner(model, kernels, limits, kv_dtype, device, captured_tokens, stack)

    use, captured_tokens = None, limits.max_num_batched_tokens if use_graphs else 0
    if card is not None:
        with phases("kernels", f"steps of {limits.max_num_batched_tokens} tokens"):
            compiler.wait()
            use = try_steps(lambda: runner_of(limits, captured_tokens), limits, card)
        captured_tokens = min(captured_tokens, use.captured_tokens())
    limits = _with_kv_cache(limits, config, model, kv_dtype, card, use)
    with (
        phases("kv_cache", f"{limits.num_blocks} blocks of {limits.block_size} tokens"),
        explained_shortage(card, "the KV cache", "lower --gpu-memory-utilization"),
    ):
        runner = runner_of(limits, captured_tokens)
    with phases("graphs" if use_graphs else "warmup"):
        started_s = time.perf_counter()
        _warm_up(runner, limits, device)
        warm_up_s = time.perf_counter() - started_s
    scheduler = Scheduler(limits)
    info = _model_info(config, checkpoint, family, model, kernels, limits, dtype, device)
    grammars = _grammars(info, checkpoint, vocabulary)
    if grammars is not None:
        info = msgspec.structs.replace(info, can_constrain=True)
    control = None if stack is None else _make_adapter_control(config, scheduler, stack)
    core = EngineCore(scheduler, runner, limits.max_tokens_in_flight, grammars, control)
    if device.type == "cpu":  # elsewhere most of it was compiling
        core.pace.record(1, warm_up_s)
    return Engine(core, info, checkpoint)


class _Phases:
    """Times the phases of loading and tells whoever listens."""

    def __init__(self, report: Report) -> None:
        self.tell = report

    @contextlib.contextmanager
    def __call__(self, name: str, detail: str = "") -> Iterator[None]:
        self.tell(PhaseStarted(name, detail))
        started = time.perf_counter()
        yield
        seconds = time.perf_counter() - started
        self.tell(PhaseFinished(name, seconds))
        _log.debug("%s: %.2f s (%s)", name, seconds, detail)


def _resolve_device(config: EngineConfig) -> torch.device:
    has_cuda = torch.cuda.is_available()
    if config.device == "cuda" and not has_cuda:
        raise ConfigError(
            "device is 'cuda', but torch sees no CUDA device: check nvidia-smi and that torch is "
            "a CUDA build, or use --device cpu."
        )
    return torch.device("cuda" if config.device != "cpu" and has_cuda else "cpu")


def _set_threads(config: EngineConfig, device: torch.device) -> None:
    if config.num_threads is not None:
        torch.set_num_threads(config.num_threads)
    elif device.type == "cpu":
        torch.set_num_threads(num_usable_cpus())


def open_configuration(config: EngineConfig) -> Checkpoint:
    """Of the model only its configuration is read, and fetched."""
    return open_checkpoint(
        config.model,
        revision=config.revision,
        download_dir=config.download_dir,
        load_format="dummy",
        hf_overrides=config.hf_overrides,
        needs_tokenizer=False,
    )


def resolve_dtype(
    config: EngineConfig, checkpoint: Checkpoint, device: torch.device
) -> torch.dtype:
    """How dense weights are stored on a device."""
    if config.dtype != "auto":
        return DTYPES[config.dtype]
    if device.type == "cpu":
        return torch.float32
    # float32 checkpoints are training artefacts: served in bfloat16, as everywhere.
    return torch.bfloat16 if checkpoint.dtype is torch.float32 else checkpoint.dtype


def resolve_max_model_len(config: EngineConfig, family: ModelFamily) -> int:
    """Most tokens of a request, as far as the model goes. Raises ConfigError past that."""
    longest = family.config.context_len
    if config.max_model_len == 1:
        raise ConfigError(
            "max_model_len is 1; a request has at least one token of prompt and one of output, "
            "so it must be at least 2."
        )
    if config.max_model_len is None:
        return longest
    if config.max_model_len > longest:
        raise ConfigError(
            f"max_model_len is {config.max_model_len}, but the model was made for {longest} "
            "positions: lower it, or extend the model with --hf-overrides and a rope scaling."
        )
    return config.max_model_len


def _compile_task(
    config: EngineConfig, checkpoint: Checkpoint, dtype: torch.dtype, max_model_len: int
) -> CompileTask | None:
    """What this card needs compiled; None where it runs none of Triton's programs."""
    if config.kernels not in ("auto", "triton"):
        return None
    name = str(dtype).removeprefix("torch.")
    capability = torch.cuda.get_device_capability()
    return CompileTask(config, checkpoint.hf_config, name, max_model_len, capability)


def _load_model(
    family: ModelFamily,
    checkpoint: Checkpoint,
    kernels: Kernels,
    dtype: torch.dtype,
    device: torch.device,
    max_model_len: int,
) -> CausalLM:
    weights = checkpoint.open_weights(device, dtype)
    model = family.build(weights, kernels, dtype, device, max_model_len)
    weights.check_all_used(family.can_ignore)
    return model


def step_limits(config: EngineConfig, device: torch.device, max_model_len: int) -> SchedulerConfig:
    """All limits but the cache's: it has one block yet, enough to try steps with."""
    is_cuda = device.type == "cuda"
    look_ahead = is_cuda if config.look_ahead is None else config.look_ahead
    return SchedulerConfig(
        max_model_len=max_model_len,
        max_num_seqs=config.max_num_seqs or (256 if is_cuda else 64),
        max_num_batched_tokens=config.max_num_batched_tokens or (8192 if is_cuda else 1024),
        max_num_waiting=config.max_num_waiting,
        max_queue_tokens=config.max_queue_tokens,
        block_size=config.block_size,
        num_blocks=1,
        enable_prefix_caching=config.enable_prefix_caching,
        max_tokens_in_flight=int(look_ahead),
        num_adapter_slots=config.max_loras if config.enable_lora else 0,
        max_num_batched_tokens_while_decoding=config.max_num_batched_tokens_while_decoding,
    )


def _with_kv_cache(
    limits: SchedulerConfig,
    config: EngineConfig,
    model: CausalLM,
    kv_dtype: torch.dtype,
    card: CardMemory | None,
    use: CardUse | None,
) -> SchedulerConfig:
    """The limits with the cache's size, and what follows from it and from the steps tried."""
    budget = kv_budget(
        config,
        model,
        dtype=kv_dtype,
        max_model_len=limits.max_model_len,
        max_num_seqs=limits.max_num_seqs,
        card=card,
        use=use,
    )
    max_model_len, capacity = limits.max_model_len, budget.num_blocks * config.block_size
    if config.max_model_len is None and capacity < max_model_len:
        _log.warning(
            "max_model_len is reduced from %d to %d: the KV cache holds no more. "
            "Set --max-model-len, or give the cache more memory.",
            max_model_len,
            capacity,
        )
        max_model_len = capacity
    while_decoding = limits.max_num_batched_tokens_while_decoding
    if while_decoding is None and use is not None:
        while_decoding = use.budget_while_decoding()
    return replace(
        limits,
        num_blocks=budget.num_blocks,
        max_model_len=max_model_len,
        max_num_batched_tokens_while_decoding=while_decoding,
    )


def adapter_stack(
    config: EngineConfig, model: CausalLM, dtype: torch.dtype, device: torch.device
) -> AdapterStack | None:
    """Room for adapters; None where none are taken."""
    if not config.enable_lora:
        return None
    products = model.adapted
    stack = AdapterStack.allocate(
        model.projections,
        config.max_loras,
        config.max_lora_rank,
        dtype,
        device,
        lambda index, num_rows: rows_for_adapters(products[index], num_rows),
    )
    if device.type == "cuda":
        torch.cuda.empty_cache()  # of the places that weights were moved from
    return stack


def make_runner(
    model: CausalLM,
    kernels: Kernels,
    limits: SchedulerConfig,
    kv_dtype: torch.dtype,
    device: torch.device,
    captured_tokens: int,
    stack: AdapterStack | None = None,
) -> ModelRunner:
    """A runner and all its tensors on the device; 0 ``captured_tokens``: no step is captured."""
    kv = KVTensors(model, limits.num_blocks, limits.block_size, kv_dtype, device)
    # One row more than requests can have: padding lanes of captured steps run on it.
    num_rows = limits.max_num_seqs + 1
    rows = Rows(num_rows, limits.max_model_len, limits.block_size, device)
    sampler = Sampler(kernels, model.vocab_size, num_rows, device)
    adapters: Adapters | None = None if stack is None else select_adapters(kernels, stack)
    graphs = None
    if captured_tokens:
        shapes = StepShapes(
            limits.max_num_seqs, captured_tokens, adapters.uses if adapters is not None else ()
        )
        graphs = StepGraphs(
            model,
            kernels,
            kv,
            rows,
            sampler,
            shapes,
            limits.max_num_seqs,
            limits.max_model_len,
            adapters,
        )
    return ModelRunner(model, kv, rows, sampler, graphs, adapters)


def _make_adapter_control(
    config: EngineConfig, scheduler: Scheduler, stack: AdapterStack
) -> AdapterControl:
    num_host_entries = config.max_cpu_loras or 2 * config.max_loras
    store = AdapterStore(stack, num_host_entries, config.download_dir)
    return AdapterControl(scheduler, store, config.lora_wait_s)


def _warm_up(runner: ModelRunner, limits: SchedulerConfig, device: torch.device) -> None:
    """One small step, and the first captured ones: first calls pay for lazy set-up that no
    request should wait for. The other graphs are captured when the engine is idle."""
    length = min(2, limits.max_model_len - 1)
    admission = RowAdmission(
        row=0,
        token_ids=[0] * length,
        num_prompt_tokens=length,
        num_cached_tokens=0,
        params=SamplingParams(),
        seed=0,
        stop_token_ids=frozenset(),
        block_ids=[0],
    )
    plan = BatchPlan(
        admissions=[admission], rows=[0], starts=[0], num_tokens=[length], samples=[True]
    )
    runner.execute(plan).result()
    runner.execute(BatchPlan(released_rows=[0])).result()
    for _ in range(_NUM_GRAPHS_AT_START):
        runner.prepare_next()
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _grammars(
    info: ModelInfo, checkpoint: Checkpoint, vocabulary: Vocabulary | None
) -> GrammarCompiler | None:
    """None where there is no vocabulary, or no token that could end a text. Nothing is loaded
    before the first grammar comes."""

    def from_tokenizer() -> Vocabulary:
        assert checkpoint.tokenizer_path is not None
        return Tokenizer.open(checkpoint.tokenizer_path).vocabulary()

    if not info.eos_token_ids or not (info.has_tokenizer or vocabulary):
        return None
    source = from_tokenizer if vocabulary is None else lambda: vocabulary
    num_threads = min(num_usable_cpus(), _MAX_MASK_THREADS)
    return GrammarCompiler(source, info.vocab_size, info.eos_token_ids, num_threads)


def _model_info(
    config: EngineConfig,
    checkpoint: Checkpoint,
    family: ModelFamily,
    model: CausalLM,
    kernels: Kernels,
    limits: SchedulerConfig,
    dtype: torch.dtype,
    device: torch.device,
) -> ModelInfo:
    return ModelInfo(
        name=config.model,
        max_model_len=limits.max_model_len,
        vocab_size=model.vocab_size,
        hidden_size=family.config.hidden_size,
        pooling=checkpoint.embedding.pooling,
        embedding_dimensions=checkpoint.embedding.dimensions,
        has_tokenizer=not config.skip_tokenizer_init and checkpoint.tokenizer_path is not None,
        eos_token_ids=checkpoint.eos_token_ids,
        created=int(time.time()),
        sampling_defaults=_sampling_defaults(checkpoint),
        architecture=_architecture(checkpoint),
        dtype=str(dtype).removeprefix("torch."),
        device=device.type,
        kernels=kernels.name,
        block_size=limits.block_size,
        num_blocks=limits.num_blocks,
        max_num_seqs=limits.max_num_seqs,
        enable_prefix_caching=limits.enable_prefix_caching,
    )


def _sampling_defaults(checkpoint: Checkpoint) -> dict[str, float]:
    """What generation_config.json recommends, as far as it can be served."""
    defaults: dict[str, float] = {}
    for name in _SAMPLING_DEFAULTS:
        value: Any = checkpoint.generation_config.get(name)
        if value is None:
            continue
        try:
            SamplingParams(**{name: value})
        except InvalidRequestError as error:
            _log.warning("generation_config.json is not followed: %s", error)
        else:
            defaults[name] = value
    return defaults


def _architecture(checkpoint: Checkpoint) -> str:
    names = checkpoint.hf_config.get("architectures")
    return str(names[0]) if isinstance(names, list) and names else ""
