"""A runner with all its tensors, and the steps that ready it for the first request.

Knows what a runner is made of; knows nothing of files or of how memory is shared out.
"""

from __future__ import annotations

import torch

from octavo.batch import BatchPlan
from octavo.config import EngineConfig, SchedulerConfig
from octavo.kernels.adapters import Adapters, AdapterStack
from octavo.kernels.interface import Kernels
from octavo.kernels.select import rows_for_adapters, select_adapters
from octavo.models.interface import CausalLM
from octavo.runner.cuda_graphs import StepGraphs
from octavo.runner.kv_tensors import KVTensors
from octavo.runner.model_runner import ModelRunner
from octavo.runner.rows import Rows
from octavo.runner.step_shapes import StepShapes
from octavo.runner.trial_steps import run_largest_step, trial_plan
from octavo.sampling.sampler import Sampler
from octavo.sampling_params import SamplingParams

_NUM_GRAPHS_AT_START = 7
"""The largest, then one decode and one short prompt for each kind of draw."""


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


def adapter_stack(
    config: EngineConfig, model: CausalLM, device: torch.device
) -> AdapterStack | None:
    """Room for adapters; None where none are taken."""
    if not config.enable_lora:
        return None
    products = model.adapted
    stack = AdapterStack.allocate(
        model.projections,
        config.max_loras,
        config.max_lora_rank,
        model.activation_dtype,
        device,
        lambda index, num_rows: rows_for_adapters(products[index], num_rows),
    )
    if device.type == "cuda":
        torch.cuda.empty_cache()  # of the places that weights were moved from
    return stack


def warm_up(runner: ModelRunner, limits: SchedulerConfig, device: torch.device) -> None:
    """One small step, on CUDA the largest, and the first captured ones: first calls pay for lazy
    set-up that no request should wait for. Other graphs are captured when the engine is idle."""
    length = min(2, limits.max_model_len - 1)
    plan = trial_plan([length], SamplingParams())
    runner.execute(plan).result()
    runner.execute(BatchPlan(released_rows=plan.rows)).result()
    if device.type == "cuda":
        run_largest_step(runner, limits)
    for _ in range(_NUM_GRAPHS_AT_START):
        runner.prepare_next()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
