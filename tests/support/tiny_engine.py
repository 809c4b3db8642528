"""An engine core around a tiny random model, without files, processes or text."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec
import torch
from safetensors.torch import load_file

from dict_weights import DictWeights
from octavo.batch import BatchPlan, Runner
from octavo.config import SchedulerConfig
from octavo.engine.core import EngineCore
from octavo.engine.messages import RequestSpec
from octavo.grammar import Grammar, Vocabulary
from octavo.kernels.interface import Kernels
from octavo.kernels.reference import ReferenceKernels
from octavo.models import registry
from octavo.models.interface import CausalLM
from octavo.outputs import RequestUpdate
from octavo.runner.cuda_graphs import StepGraphs
from octavo.runner.kv_tensors import KVTensors
from octavo.runner.model_runner import ModelRunner
from octavo.runner.rows import Rows
from octavo.runner.step_shapes import StepShape, StepShapes
from octavo.sampling.sampler import Sampler
from octavo.sampling_params import SamplingParams
from octavo.scheduler.scheduler import Scheduler
from octavo.structured.compiler import GrammarCompiler
from tiny_models import EOS_TOKEN_ID, SPECIAL_TOKENS, VOCAB_SIZE, make_tiny_model

MAX_MODEL_LEN = 128


class TinyEngine:
    """Weights loaded once; every :meth:`generate` runs on a fresh core."""

    def __init__(
        self,
        folder: Path,
        family: str = "llama",
        kernels: Kernels | None = None,
        device: str = "cpu",
        dtype: torch.dtype = torch.float32,
        **config: object,
    ) -> None:
        folder = make_tiny_model(family, folder, **config)
        self.device = torch.device(device)
        self.kernels = kernels or ReferenceKernels()
        self.dtype = dtype
        hf_config = json.loads((folder / "config.json").read_text())
        tensors = load_file(folder / "model.safetensors")
        weights = DictWeights({name: value.to(self.device) for name, value in tensors.items()})
        self.model: CausalLM = registry.resolve(hf_config).build(
            weights, self.kernels, dtype, self.device, MAX_MODEL_LEN
        )

    def core(
        self,
        *,
        max_num_seqs: int = 4,
        max_num_batched_tokens: int = 64,
        max_num_batched_tokens_while_decoding: int | None = None,
        num_blocks: int = 64,
        block_size: int = 16,
        look_ahead: int = 0,
        graphs: type[StepGraphs] | None = None,
        enable_prefix_caching: bool = True,
        wrap_runner: Callable[[Runner], Runner] = lambda runner: runner,
        grammars: GrammarCompiler | None = None,
    ) -> EngineCore:
        """A core with these limits."""
        limits = SchedulerConfig(
            max_model_len=MAX_MODEL_LEN,
            max_num_seqs=max_num_seqs,
            max_num_batched_tokens=max_num_batched_tokens,
            max_num_waiting=100,
            block_size=block_size,
            num_blocks=num_blocks,
            enable_prefix_caching=enable_prefix_caching,
            max_tokens_in_flight=look_ahead,
            max_num_batched_tokens_while_decoding=max_num_batched_tokens_while_decoding,
        )
        runner = self.runner(limits, graphs)
        core = EngineCore if enable_prefix_caching else UnsharingCore
        return core(Scheduler(limits), wrap_runner(runner), look_ahead, grammars)

    def runner(self, limits: SchedulerConfig, graphs: type[StepGraphs] | None) -> ModelRunner:
        """A runner with memory of its own."""
        num_rows = limits.max_num_seqs + 1
        kv = KVTensors(self.model, limits.num_blocks, limits.block_size, self.dtype, self.device)
        rows = Rows(num_rows, limits.max_model_len, limits.block_size, self.device)
        sampler = Sampler(self.kernels, self.model.vocab_size, num_rows, self.device)
        captured = graphs and graphs(
            self.model,
            self.kernels,
            kv,
            rows,
            sampler,
            StepShapes(limits.max_num_seqs, limits.max_num_batched_tokens),
            limits.max_num_seqs,
            limits.max_model_len,
        )
        return ModelRunner(self.model, kv, rows, sampler, captured)

    def generate(
        self, prompts: Sequence[list[int]], params: SamplingParams, core: EngineCore
    ) -> list[list[int]]:
        """Token ids of each prompt, all submitted at once; integrity checked at the end."""
        for index, prompt in enumerate(prompts):
            core.submit([request_spec(str(index), prompt, params, seed=index)])
        updates = run_to_end(core)
        core.check_integrity()
        return [tokens_of(updates, str(index)) for index in range(len(prompts))]


class UnsharingCore(EngineCore):
    """Its requests come as intake prepares them where prefixes are not shared."""

    def submit(self, specs: list[RequestSpec]) -> None:
        super().submit([msgspec.structs.replace(spec, cache_key=None) for spec in specs])


class UncapturedGraphs(StepGraphs):
    """Runs the padded steps eagerly where there is no CUDA to capture them."""

    def run(self, plan: BatchPlan, shape: StepShape) -> torch.Tensor:
        # On CUDA the ids are copied to the host in stream order, before the next run.
        return super().run(plan, shape).clone()

    def _capture(self, shape: StepShape) -> torch.cuda.CUDAGraph:
        class Replay:
            def replay(self) -> None:
                step()

        def step() -> None:
            self.step(shape)

        return Replay()  # type: ignore[return-value]


def byte_vocabulary() -> Vocabulary:
    """The tiny models' vocabulary."""
    special = dict(enumerate(SPECIAL_TOKENS, start=256))
    tokens = [special.get(id, bytes([id % 256])) for id in range(260)]
    pieces = [token.encode() if isinstance(token, str) else token for token in tokens]
    return Vocabulary(pieces, sorted(special))


def byte_grammars(num_threads: int = 2) -> GrammarCompiler:
    """Grammars over the tiny models' vocabulary."""
    return GrammarCompiler(byte_vocabulary, VOCAB_SIZE, [EOS_TOKEN_ID], num_threads)


def request_spec(
    request_id: str,
    prompt: list[int],
    params: SamplingParams,
    *,
    seed: int = 0,
    leader_id: str | None = None,
    cache_key: bytes | None = b"tests",
    timeout_s: float | None = None,
    grammar: Grammar | None = None,
    eos_token_ids: Sequence[int] = (),
) -> RequestSpec:
    """A request as intake would prepare it, without its hashes (the scheduler adds them)."""
    return RequestSpec(
        id=request_id,
        prompt_token_ids=prompt,
        params=params,
        seed=seed,
        stop_token_ids=list(params.stop_token_ids),
        eos_token_ids=list(eos_token_ids),
        cache_key=cache_key,
        leader_id=leader_id,
        timeout_s=timeout_s,
        grammar=grammar,
    )


def run_to_end(core: EngineCore, max_steps: int = 2000) -> list[RequestUpdate]:
    """Step until nothing is left to do."""
    updates: list[RequestUpdate] = []
    for _ in range(max_steps):
        if not core.has_work:
            return updates
        updates += core.step()
    raise AssertionError(f"still working after {max_steps} steps")


def tokens_of(updates: list[RequestUpdate], request_id: str) -> list[int]:
    """What one request generated."""
    return [
        token
        for update in updates
        if update.request_id == request_id
        for token in update.new_token_ids
    ]
