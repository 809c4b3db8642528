"""Every option of the engine and of the server, resolved.

Parsed once at the door (``cli`` or ``llm``); everyone below gets a frozen value. A field that
says *auto* holds ``None`` until the engine resolves it, by returning a new config.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from octavo.errors import ConfigError

LOAD_FORMATS = ("auto", "safetensors", "gguf", "dummy")
DTYPES = ("auto", "float32", "bfloat16", "float16")
DEVICES = ("auto", "cpu", "cuda")
TOOL_CALL_PARSERS = ("hermes", "llama3_json", "mistral", "pythonic")
REASONING_PARSERS = ("none", "think", "magistral", "qwen3", "deepseek_r1")
KERNELS = ("auto", "reference", "cpu", "triton")
MAX_LORA_RANK = 256
MAX_LORA_WAIT_S = 3600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineConfig:
    """What the engine needs to load a model and to run it."""

    model: str
    """A folder, a ``.gguf`` file, ``ORG/NAME`` on the Hugging Face hub, or ``demo://NAME``."""
    revision: str | None = None
    """Branch, tag or commit on the hub; None: the default branch."""
    download_dir: str | None = None
    """Where downloads are kept; None: the user's cache folder."""
    load_format: str = "auto"
    """``dummy`` makes random weights of the shape in config.json, for benchmarks."""
    skip_tokenizer_init: bool = False
    """Serve token ids only; works with a folder that holds nothing but config.json."""
    hf_overrides: dict[str, object] = field(default_factory=dict)
    """Values that replace those of config.json, e.g. fewer layers in a test."""
    dtype: str = "auto"
    """auto: float32 on the CPU (bfloat16 is no faster there), the checkpoint's own on CUDA."""
    device: str = "auto"
    """auto: cuda where there is one, else cpu."""
    kernels: str = "auto"
    """Which implementation of the kernels; auto follows the device. For tests and reports."""
    max_model_len: int | None = None
    """Most tokens, prompt and output together, of one request; None: what the model was made for,
    reduced with a warning to what the KV cache can hold."""
    max_num_seqs: int | None = None
    """Most requests running at once; None: 256 on CUDA, 64 on the CPU."""
    max_num_batched_tokens: int | None = None
    """Token budget of one step; None: 8192 on CUDA, 1024 on the CPU."""
    max_num_batched_tokens_while_decoding: int | None = None
    """The budget, decodes included, of a step in which some request decodes: each of them waits
    for the whole step. None: 2048 on CUDA, or fewer where so many take long (measured at start);
    the same as max_num_batched_tokens on the CPU."""
    max_num_waiting: int = 4096
    """Requests that may wait; the next one is refused with HTTP 429."""
    max_queue_tokens: int = 4 * 1024 * 1024
    """Prompt tokens that may wait, all requests together; the next is refused with HTTP 429."""
    block_size: int = 16
    """Tokens in one block of the KV cache."""
    gpu_memory_utilization: float = 0.9
    """Share of the card's memory this engine may use, weights included (CUDA only)."""
    kv_cache_memory_bytes: int | None = None
    """Size of the KV cache; None: what gpu_memory_utilization leaves on CUDA, and on the CPU
    what max_num_seqs requests of max_model_len need, at most 4 GiB."""
    enable_prefix_caching: bool = True
    """Share the KV blocks of equal prompt beginnings between requests."""
    seed: int | None = None
    """Base of the seeds of requests that bring none: the same ones in the same order are answered
    alike. None: they get random ones."""
    num_threads: int | None = None
    """CPU threads of the engine process; None: all cores it may use."""
    enforce_eager: bool = False
    """Run every step eagerly instead of replaying CUDA graphs; for debugging."""
    kernel_cache_dir: str | None = None
    """Where compiled kernels are kept and found (CUDA only); None: where Triton keeps them,
    ``TRITON_CACHE_DIR`` or a folder in the user's home."""
    batch_invariant: bool = False
    """Give a request the same bits whatever else is in the batch, at some cost of speed."""
    log_format: str = "text"
    """Of the engine process's log lines: text or json."""
    log_level: str = "info"
    """debug, info, warning or error."""
    look_ahead: bool | None = None
    """Plan a step while the device runs the one before; None: on CUDA only."""
    enable_lora: bool = False
    """Take LoRA adapters. Costs the memory of max_loras of them; steps without one cost the
    same."""
    max_loras: int = 8
    """Adapters on the device at once: so many different ones can be in a batch."""
    max_lora_rank: int = 16
    """Adapters of a larger rank are refused; 1 to 256. Memory on the device grows with it."""
    max_cpu_loras: int | None = None
    """Adapters kept in host memory, ready to be copied to the device; None: twice max_loras.
    Others are read from their files again when a request asks for them."""
    lora_modules: tuple[tuple[str, str], ...] = ()
    """Names and folders (or ORG/NAME on the hub) of adapters to load before serving."""
    lora_state: str | None = None
    """A file that remembers adapters loaded over the API, which are loaded again at the start."""
    lora_wanted: str | None = None
    """A file of the same form, written by others: what a new server, one whose lora_state is not
    there yet, shall have. It is ready when told that nothing is missing, or when nobody asks."""
    lora_wait_s: float | None = 30.0
    """How long a request waits for an adapter that is not loaded yet, or for a slot; then HTTP 503.
    None: as long as it takes."""

    def __post_init__(self) -> None:
        self._check_choice("load_format", self.load_format, LOAD_FORMATS)
        self._check_choice("dtype", self.dtype, DTYPES)
        self._check_choice("device", self.device, DEVICES)
        self._check_choice("kernels", self.kernels, KERNELS)
        for name in (
            "max_model_len",
            "max_num_seqs",
            "max_num_batched_tokens",
            "max_num_batched_tokens_while_decoding",
            "num_threads",
            "max_num_waiting",
            "max_queue_tokens",
            "kv_cache_memory_bytes",
            "max_loras",
        ):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(
                    f"{name} is {value}; it must be at least 1 (leave it out for auto)."
                )
        self._check_adapters()
        if self.block_size not in (8, 16, 32, 64, 128):
            raise ConfigError(
                f"block_size is {self.block_size}; it must be 8, 16, 32, 64 or 128 "
                "(leave it out for 16)."
            )
        if not 0.0 < self.gpu_memory_utilization <= 1.0:
            raise ConfigError(
                f"gpu_memory_utilization is {self.gpu_memory_utilization}; "
                "it is a share of the card's memory, above 0 and at most 1."
            )

    @property
    def longest_lora_wait_s(self) -> float:
        """:attr:`lora_wait_s` as a number, which JSON cannot write where there is no end."""
        return math.inf if self.lora_wait_s is None else self.lora_wait_s

    def _check_adapters(self) -> None:
        if self.lora_modules and not self.enable_lora:
            raise ConfigError("--lora-modules needs --enable-lora; add it.")
        for flag, file in (("state", self.lora_state), ("wanted", self.lora_wanted)):
            if file is not None and not self.enable_lora:
                raise ConfigError(f"--lora-{flag} needs --enable-lora; add it.")
        if not 1 <= self.max_lora_rank <= MAX_LORA_RANK:
            raise ConfigError(
                f"max_lora_rank is {self.max_lora_rank}; it must be 1 to {MAX_LORA_RANK}."
            )
        if self.max_cpu_loras is not None and self.max_cpu_loras < self.max_loras:
            raise ConfigError(
                f"max_cpu_loras is {self.max_cpu_loras}, fewer than max_loras, which is "
                f"{self.max_loras}; raise it, or leave it out for twice max_loras."
            )
        if self.lora_wait_s is not None and not 0 < self.lora_wait_s <= MAX_LORA_WAIT_S:
            raise ConfigError(
                f"lora_wait_s is {self.lora_wait_s}; it is seconds, above 0 and at most "
                f"{MAX_LORA_WAIT_S:.0f}."
            )

    @staticmethod
    def _check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
        if value not in choices:
            raise ConfigError(f"{name} is {value!r}; choose one of {', '.join(choices)}.")


@dataclass(frozen=True, slots=True)
class SchedulerConfig:
    """The resolved limits the scheduler works under; every field counts what its name says."""

    max_model_len: int
    max_num_seqs: int
    max_num_batched_tokens: int
    max_num_waiting: int
    block_size: int
    num_blocks: int
    enable_prefix_caching: bool
    """Whether requests share the blocks of equal beginnings: intake gives them keys accordingly."""
    max_queue_tokens: int = 4 * 1024 * 1024
    max_tokens_in_flight: int = 1
    """Steps planned ahead of the one whose result is known; 0: none (CPU)."""
    num_adapter_slots: int = 0
    """Adapters on the device at once; 0: none are taken."""
    max_num_batched_tokens_while_decoding: int | None = None
    """The token budget of a step in which some request decodes; None: the same as any other."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerConfig:
    """What the HTTP server needs beside the engine."""

    host: str = "127.0.0.1"
    port: int = 8000
    served_model_names: tuple[str, ...] = ()
    """Names clients may use; the first is the one answers carry. Empty: the model as given."""
    api_keys: tuple[str, ...] = ()
    """Accepted bearer tokens; with no file either, none is asked for."""
    admin_keys: tuple[str, ...] = ()
    """Bearer tokens that open the routes of administrators, too."""
    api_key_files: tuple[str, ...] = ()
    """Files of keys, or folders of such files; read again when they change."""
    admin_port: int | None = None
    """Port of the routes of administrators; None: they are on the main one."""
    admin_host: str = "127.0.0.1"
    """Address of that port. Another one opens it to whoever reaches it and, where there is an
    admin key, has that."""
    admin_key_hashes: tuple[str, ...] = ()
    """SHA-256 hashes, in hexadecimal, of keys that open the admin port and nothing else."""
    metrics_on_admin_port: bool = False
    """Whether /metrics is on the admin port only."""
    exports_traces: bool = False
    """Whether an OpenTelemetry collector is told of each request; the variables of its SDK say
    where it is and how to speak to it."""
    log_prompts: bool = False
    """Whether prompts, and messages of unexpected errors, which may quote them, are logged."""
    tool_call_parser: str | None = None
    """How the model writes calls of tools (hermes, llama3_json, mistral, pythonic); None: as the
    marks in its chat template tell."""
    reasoning_parser: str | None = None
    """How the model marks its thoughts; None: as its template tells. ``qwen3`` and ``deepseek_r1``
    are vLLM's names for ``think``."""
    chat_template: str | None = None
    """A file that replaces the model's own chat template."""
    shutdown_timeout_s: float = 30.0
    """How long open requests may run on after SIGTERM."""
    shutdown_delay_s: float = 0.0
    """How long new requests are still taken after SIGTERM, each on its last connection: while a
    load balancer learns that this server leaves, it goes on sending."""
    max_body_bytes: int = 10 * 1024 * 1024
    """Larger request bodies are refused with HTTP 413."""
    log_requests: bool = False
    """Log a line a request (never its prompt)."""
