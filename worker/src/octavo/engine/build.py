"""From a config to an engine that can step: files, weights, KV cache, warm-up, in phases.

The only place that knows all the rooms. Each phase is reported as it starts and ends, so that a
user sees where the time goes.
"""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass, replace

import msgspec
import torch

from octavo.config import EngineConfig, SchedulerConfig
from octavo.engine.adapter_control import AdapterControl
from octavo.engine.compiler_process import CompilerProcess, CompileTask, use_kernel_cache
from octavo.engine.core import EngineCore
from octavo.engine.head_start import HeadStart, learn_compiler, open_products
from octavo.engine.messages import FilesFound
from octavo.engine.model_description import describe_model
from octavo.engine.model_info import ModelInfo
from octavo.engine.named_adapters import check_named_adapters
from octavo.engine.phases import Phases, Report
from octavo.engine.resolution import (
    dtype_name,
    resolve_device,
    resolve_dtype,
    resolve_max_model_len,
    step_limits,
)
from octavo.engine.runner_builder import adapter_stack, make_runner, warm_up
from octavo.errors import OutOfMemoryError
from octavo.grammar import Vocabulary
from octavo.kernels.adapters import AdapterStack
from octavo.kernels.interface import Kernels
from octavo.kernels.select import select_kernels
from octavo.loading.checkpoint import Checkpoint, open_checkpoint
from octavo.lora.adapter_store import AdapterStore, most_bytes_read
from octavo.models import registry
from octavo.models.family import ModelFamily
from octavo.models.interface import CausalLM
from octavo.runner.card_memory import CardMemory, CudaMemory, explained_shortage
from octavo.runner.cgroup import memory_bytes_left, num_usable_cpus
from octavo.runner.memory import kv_budget
from octavo.runner.model_runner import ModelRunner
from octavo.runner.trial_steps import CardUse, try_steps
from octavo.scheduler.scheduler import Scheduler
from octavo.structured.compiler import GrammarCompiler
from octavo.tokenization.chat_template import ChatTemplate
from octavo.tokenization.tokenizer import Tokenizer

_log = logging.getLogger(__name__)
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
    head_start: HeadStart | None = None,
) -> Engine:
    """Load the model and everything around it.

    ``vocabulary``: what grammars are matched against, where the model's tokenizer is not opened.
    ``compiler`` and ``head_start``: what was begun before torch was imported.
    ``report`` is told of phases as they begin and end. Raises errors of
    :mod:`octavo.errors` that say what is wrong with the model, the options or the memory.
    """
    phases = Phases(report or (lambda message: None))
    head_start = head_start or HeadStart()
    device = resolve_device(config)
    if device.type == "cuda":
        head_start.begin(open_products)
    _set_threads(config, device)
    use_kernel_cache(config)
    check_named_adapters(config.lora_modules, config.max_lora_rank)
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
    if kernels.name == "triton":
        head_start.begin(learn_compiler)
    card = CudaMemory(device) if device.type == "cuda" else None
    with (
        phases("weights", f"{config.model} as {dtype} on {device}"),
        explained_shortage(card, "the model's weights", "serve a smaller or a packed model"),
    ):
        model = _load_model(family, checkpoint, kernels, dtype, device, max_model_len)
    kv_dtype = model.activation_dtype
    limits = step_limits(config, device, max_model_len)
    use_graphs = device.type == "cuda" and not config.enforce_eager
    with explained_shortage(card, "LoRA adapters", "lower --max-loras or --max-lora-rank"):
        stack = adapter_stack(config, model, device)

    def runner_of(limits: SchedulerConfig, captured_tokens: int) -> ModelRunner:
        return make_runner(model, kernels, limits, kv_dtype, device, captured_tokens, stack)

    use, captured_tokens = None, limits.max_num_batched_tokens if use_graphs else 0
    if card is not None:
        with phases("kernels", f"steps of {limits.max_num_batched_tokens} tokens"):
            compiler.wait()
            head_start.wait()
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
        warm_up(runner, limits, device)
        warm_up_s = time.perf_counter() - started_s
    scheduler = Scheduler(limits)
    info = describe_model(config, checkpoint, family, model, kernels, limits, dtype, device)
    grammars = _grammars(info, checkpoint, vocabulary)
    if grammars is not None:
        info = msgspec.structs.replace(info, can_constrain=True)
    control = None
    if stack is not None:
        control = _make_adapter_control(config, scheduler, stack, phases)
    core = EngineCore(scheduler, runner, limits.max_tokens_in_flight, grammars, control)
    if device.type == "cpu":  # elsewhere most of it was compiling
        core.pace.record(1, warm_up_s)
    return Engine(core, info, checkpoint)


def _set_threads(config: EngineConfig, device: torch.device) -> None:
    if config.num_threads is not None:
        torch.set_num_threads(config.num_threads)
    elif device.type == "cpu":
        torch.set_num_threads(num_usable_cpus())


def _compile_task(
    config: EngineConfig, checkpoint: Checkpoint, dtype: torch.dtype, max_model_len: int
) -> CompileTask | None:
    """What this card needs compiled; None where it runs none of Triton's programs."""
    if config.kernels not in ("auto", "triton"):
        return None
    capability = torch.cuda.get_device_capability()
    return CompileTask(config, checkpoint.hf_config, dtype_name(dtype), max_model_len, capability)


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


def _make_adapter_control(
    config: EngineConfig, scheduler: Scheduler, stack: AdapterStack, phases: Phases
) -> AdapterControl:
    num_host_entries = config.max_cpu_loras or 2 * config.max_loras
    if stack.b.is_cuda:
        _check_host_memory(num_host_entries, stack)
    with phases("adapter_memory", f"{num_host_entries} adapters"):
        store = AdapterStore(stack, num_host_entries, config.download_dir)
    return AdapterControl(scheduler, store, config.longest_lora_wait_s)


def _check_host_memory(num_adapters: int, stack: AdapterStack) -> None:
    """Theirs is taken at once, that of files when they are read; and whoever takes more than the
    container may have is killed."""
    needed = num_adapters * stack.slot_size * stack.b.element_size()
    reading, left = most_bytes_read(stack), memory_bytes_left()
    if left is not None and needed + reading > left:
        raise OutOfMemoryError(
            f"There is no room for {num_adapters} LoRA adapters in host memory: they may take "
            f"{needed / 2**30:.2f} GiB and their files {reading / 2**30:.2f} while they are read, "
            f"and this container has {left / 2**30:.2f} left: lower --max-cpu-loras or "
            "--max-lora-rank, or raise the container's memory limit."
        )


def _grammars(
    info: ModelInfo, checkpoint: Checkpoint, vocabulary: Vocabulary | None
) -> GrammarCompiler | None:
    """None where there is no vocabulary, or no token that could end a text. Nothing is loaded
    before the engine has been idle for a second or the first grammar comes."""

    def from_tokenizer() -> Vocabulary:
        assert checkpoint.tokenizer_path is not None
        return Tokenizer.open(checkpoint.tokenizer_path).vocabulary()

    if not info.eos_token_ids or not (info.has_tokenizer or vocabulary):
        return None
    source = from_tokenizer if vocabulary is None else lambda: vocabulary
    num_threads = min(num_usable_cpus(), _MAX_MASK_THREADS)
    return GrammarCompiler(source, info.vocab_size, info.eos_token_ids, num_threads)
