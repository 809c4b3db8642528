"""A captured step serves batches that it was not captured with."""

import pytest
import torch

import kernel_parity
from kernel_parity import AttentionShape, Trial
from octavo.kernels.reference import ReferenceKernels
from octavo.kernels.triton import TritonKernels


def test_captured_decode_attention_follows_the_lengths_on_the_device() -> None:
    torch.manual_seed(int(torch.seed() % 2**31))
    trial = Trial(torch.device("cuda"), torch.bfloat16, 0)
    shape = AttentionShape(
        ((2000, 1), (5, 1), (900, 1), (63, 1)), 4, group_size=4, num_kv_heads=2, head_dim=128
    )
    batch, num_blocks = kernel_parity.attention_batch(trial, shape)
    keys, values = kernel_parity.paged_cache(trial, shape, batch, num_blocks)
    q = trial.randn(4, 8, 128)
    kernels = TritonKernels(trial.device)
    kernels.paged_attention(q, keys, values, batch, 0.3, None)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = kernels.paged_attention(q, keys, values, batch, 0.3, None)
    for lengths in [[2001, 6, 901, 64], [1, 0, 17, 16], [1024, 3, 900, 1]]:
        batch.context_lens.copy_(torch.tensor(lengths, dtype=torch.int32))
        q.normal_()
        out.fill_(float("nan"))
        graph.replay()
        expected = ReferenceKernels().paged_attention(
            q, keys.nan_to_num(), values.nan_to_num(), batch, 0.3, None
        )
        trial.assert_close(out, expected)


@pytest.mark.parametrize("name", ["greedy", "random", "all-filters"])
def test_captured_sampling_follows_the_parameters_on_the_device(name: str) -> None:
    torch.manual_seed(int(torch.seed() % 2**31))
    trial = Trial(torch.device("cuda"), torch.float32, 0)
    batch = kernel_parity.SAMPLING_BATCHES[name](trial, 9)
    logits = 3 * torch.randn(9, 128256, device=trial.device)
    kernels = TritonKernels(trial.device)
    kernels.sample(logits, batch)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        ids = kernels.sample(logits, batch)
    for _ in range(3):
        logits.normal_(std=3)
        batch.seeds.random_()
        batch.positions.random_(0, 10000)
        ids.fill_(-1)
        graph.replay()
        kernel_parity.assert_same_draw(ids, logits, batch)


def test_a_split_sequence_gives_the_same_bits_every_time() -> None:
    trial = Trial(torch.device("cuda"), torch.bfloat16, 0)
    shape = AttentionShape(((7000, 1),), 1, group_size=4, num_kv_heads=8, head_dim=128)
    batch, num_blocks = kernel_parity.attention_batch(trial, shape)
    keys, values = kernel_parity.paged_cache(trial, shape, batch, num_blocks)
    q = trial.randn(1, 32, 128)
    kernels = TritonKernels(trial.device)
    first = kernels.paged_attention(q, keys, values, batch, 0.3, None)
    for _ in range(200):
        again = kernels.paged_attention(q, keys, values, batch, 0.3, None)
        assert torch.equal(again, first)
