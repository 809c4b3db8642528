"""What the server and its clients are told of a loaded model. Torch-free."""

from __future__ import annotations

import msgspec

from octavo.pooling_params import Pooling


class ModelInfo(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of the model once it is loaded."""

    name: str
    """The model as it was given: a folder, a file or a name on the hub."""
    max_model_len: int
    """Most tokens, prompt and output together, of one request."""
    vocab_size: int
    """Token ids are below it."""
    hidden_size: int = 0
    """Components of an embedding."""
    pooling: Pooling = "last"
    """How embeddings are made unless a request says otherwise."""
    embedding_dimensions: list[int] | None = []
    """Fewer components that an embedding may be cut to, by the model's own word; None: any."""
    has_tokenizer: bool
    """False: only token ids go in and come out."""
    eos_token_ids: list[int]
    created: int
    """When it was loaded, in seconds since 1970."""
    sampling_defaults: dict[str, float] = {}
    """What generation_config.json says for parameters a request leaves out."""
    architecture: str = ""
    dtype: str = ""
    device: str = ""
    kernels: str = ""
    """Which implementation of the kernels computes."""
    block_size: int = 16
    num_blocks: int = 0
    max_num_seqs: int = 0
    enable_prefix_caching: bool = True
    can_constrain: bool = False
    """Whether output can be made to follow a grammar."""
