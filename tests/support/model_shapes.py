"""The shapes of published models, computed from the numbers in their config.json."""

from __future__ import annotations

from octavo_operator.placement.model_shape import ModelShape


def model_shape(
    *,
    layers: int,
    hidden: int,
    inner: int,
    heads: int,
    kv_heads: int,
    vocab: int,
    context: int,
    head_dim: int = 128,
    is_tied: bool = False,
    experts: int = 1,
) -> ModelShape:
    """A decoder in bfloat16; norms, a millionth of it, are left out."""
    attention = hidden * (heads + 2 * kv_heads) * head_dim + heads * head_dim * hidden
    mlp = 3 * hidden * inner * experts
    table_bytes = 2 * vocab * hidden
    tables_bytes = table_bytes * (1 if is_tied else 2)
    return ModelShape(
        architecture="LlamaForCausalLM",
        num_layers=layers,
        hidden_size=hidden,
        intermediate_size=inner,
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=head_dim,
        vocab_size=vocab,
        context_len=context,
        is_tied=is_tied,
        dtype="bfloat16",
        weights_bytes=2 * layers * (attention + mlp) + tables_bytes,
        table_bytes=table_bytes,
        kv_bytes_per_token=4 * layers * kv_heads * head_dim,
    )


def _llama(layers: int, hidden: int, inner: int, heads: int) -> ModelShape:
    return model_shape(
        layers=layers,
        hidden=hidden,
        inner=inner,
        heads=heads,
        kv_heads=8,
        vocab=128256,
        context=131072,
    )


LLAMA_8B = _llama(32, 4096, 14336, 32)
LLAMA_70B = _llama(80, 8192, 28672, 64)
LLAMA_405B = _llama(126, 16384, 53248, 128)
QWEN_06B = model_shape(
    layers=28,
    hidden=1024,
    inner=3072,
    heads=16,
    kv_heads=8,
    vocab=151936,
    context=40960,
    is_tied=True,
)
QWEN_32B = model_shape(
    layers=64, hidden=5120, inner=25600, heads=64, kv_heads=8, vocab=151936, context=40960
)
MIXTRAL_8X7B = model_shape(
    layers=32,
    hidden=4096,
    inner=14336,
    heads=32,
    kv_heads=8,
    vocab=32000,
    context=32768,
    experts=8,
)
SMOLLM_135M = model_shape(
    layers=30,
    hidden=576,
    inner=1536,
    heads=9,
    kv_heads=3,
    vocab=49152,
    context=8192,
    head_dim=64,
    is_tied=True,
)

PUBLISHED_PARAMETERS = {
    "LLAMA_8B": (LLAMA_8B, 8_030_261_248),
    "LLAMA_70B": (LLAMA_70B, 70_553_706_496),
    "LLAMA_405B": (LLAMA_405B, 405_853_388_800),
    "QWEN_06B": (QWEN_06B, 596_049_920),
    "QWEN_32B": (QWEN_32B, 32_762_123_264),
    "MIXTRAL_8X7B": (MIXTRAL_8X7B, 46_702_792_704),
    "SMOLLM_135M": (SMOLLM_135M, 134_515_008),
}
