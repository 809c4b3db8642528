"""Triton's programs on the device: the unit suite's cases again, and larger ones."""

from functools import partial

import pytest
import torch

import kernel_parity
from kernel_parity import AttentionShape, Trial

FLOAT16_CASES = [
    "norm-2x1000", "activation-2x1000", "linear-17x200x320", "rope-3/3x96r96", "decode-group3",
    "decode-head128-block8", "prefill-head128-block8", "mixed-group7", "decode-shared-all",
    "sampling-mixed", "products-70x64x48",
]  # fmt: skip
"""One of each kernel: programs for float16 are those for bfloat16 but for a type."""
FLOAT32_CASES = [
    *FLOAT16_CASES, "linear-65x64x128", "rope-decode-x80", "decode-group12", "decode-window7",
    "decode-head80-block16", "prefill-head80-block16", "prefill-prefix", "mixed-window40",
    "mixed-shared", "decode-shared-window", "decode-long", "attention-in-chunks-window20",
    "fp8-cache", "products-5x100x33",
]  # fmt: skip
"""Programs for float32 multiply without tensor cores, and take as long to compile as those for
bfloat16, which is what a card serves. The interpreter runs all cases in both."""

LARGE: dict[str, kernel_parity.Run] = {
    "norm-8b": partial(kernel_parity.norms, num_tokens=513, size=4096),
    "norm-wide": partial(kernel_parity.norms, num_tokens=3, size=16384),
    "activation-8b": partial(kernel_parity.activations, num_tokens=300, size=14336),
    "rope-8b": partial(
        kernel_parity.rope,
        heads=(32, 8),
        head_dim=128,
        rotary_dim=128,
        has_norm=True,
        num_tokens=700,
    ),
    "decode-8b": partial(
        kernel_parity.attention,
        shape=AttentionShape(
            tuple((13 * row % 900, 1) for row in range(70)),
            70,
            group_size=4,
            num_kv_heads=8,
            head_dim=128,
            num_padding=10,
        ),
    ),
    "mixed-8b": partial(
        kernel_parity.attention,
        shape=AttentionShape(
            ((700, 1), (3, 1), (0, 1000), (511, 300), (64, 2), (0, 129)),
            2,
            group_size=4,
            num_kv_heads=8,
            head_dim=128,
            num_padding=2,
        ),
    ),
    "mixed-gemma": partial(
        kernel_parity.attention,
        shape=AttentionShape(
            ((700, 1), (0, 800), (600, 200)), 1, group_size=4, num_kv_heads=1, head_dim=256,
            window=512,
        ),
    ),
    **{
        f"sampling-{name}-{vocab_size}": partial(
            kernel_parity.sampling, vocab_size=vocab_size, num_rows=num_rows, batch=batch
        )
        for name, batch in kernel_parity.SAMPLING_BATCHES.items()
        for vocab_size, num_rows in [(128256, 64), (262144, 5)]
    },
    **{
        f"products-{rows}x{inputs}x{outputs}": partial(
            kernel_parity.products, num_inputs=inputs, num_outputs=outputs, num_rows=rows
        )
        for inputs, outputs, rows in [
            (4096, 6144, 600), (14336, 4096, 300), (4096, 28672, 130), (1000, 777, 301)
        ]
    },
    "chunks-8b": partial(kernel_parity.attention_in_chunks, length=3000, head_dim=128),
    "chunks-gemma": partial(
        kernel_parity.attention_in_chunks, length=1500, head_dim=256, window=512
    ),
    "noise-128256": partial(kernel_parity.noise, num_rows=64, vocab_size=128256),
}  # fmt: skip
LARGE_FLOAT32_CASES = [
    "norm-8b", "activation-8b", "rope-8b", "decode-8b", "mixed-8b", "mixed-gemma", "chunks-8b",
    "products-600x4096x6144", "products-301x1000x777",
]  # fmt: skip
"""Sampling reads float32 whatever the model computes in."""


@pytest.mark.parametrize(
    ("case", "dtype"),
    [
        *((case, torch.bfloat16) for case in kernel_parity.CASES),
        *((case, torch.float32) for case in FLOAT32_CASES),
        *((case, torch.float16) for case in FLOAT16_CASES),
    ],
    ids=str,
)
def test_program_agrees_with_the_reference(case: str, dtype: torch.dtype) -> None:
    seed = int(torch.seed() % 2**31)
    print(f"seed {seed}")
    kernel_parity.check(case, torch.device("cuda"), dtype, seed)


@pytest.mark.parametrize(
    ("case", "dtype"),
    [
        *((case, torch.bfloat16) for case in LARGE),
        *((case, torch.float32) for case in LARGE_FLOAT32_CASES),
    ],
    ids=str,
)
def test_program_agrees_with_the_reference_on_large_shapes(case: str, dtype: torch.dtype) -> None:
    seed = int(torch.seed() % 2**31)
    print(f"seed {seed}")
    LARGE[case](Trial(torch.device("cuda"), dtype, seed))
