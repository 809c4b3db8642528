"""`spec.engine`: options of the inference engine that the operator knows by name."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Final

from octavo_operator.errors import ResourceError
from octavo_operator.resources.fields import Fields
from octavo_operator.resources.lora_capacity import LoraCapacity, parse_lora_capacity

DTYPES: Final = ("auto", "bfloat16", "float16", "float32")

DEFAULT_GPU_MEMORY_UTILIZATION: Final = Decimal("0.9")
DEFAULT_MAX_NUM_SEQS: Final = 256

_MOST_DIGITS: Final = 18
"""Of a number that fits 64 bits in any case."""

OWNED_FLAGS: Final = frozenset(
    {
        "--host",
        "--port",
        "--model",
        "--served-model-name",
        "--revision",
        "--device",
        "--tensor-parallel-size",
        "--pipeline-parallel-size",
        *("--nnodes", "--node-rank", "--master-addr", "--master-port", "--headless"),
        "--max-model-len",
        "--dtype",
        "--quantization",
        "--gpu-memory-utilization",
        "--enable-prefix-caching",
        "--no-enable-prefix-caching",
        "--max-num-seqs",
        "--shutdown-delay",
        "--shutdown-timeout",
        "--download-dir",
        "--api-key",
        "--api-key-file",
        "--admin-port",
        "--admin-host",
        "--admin-key-sha256",
        "--metrics-on-admin-port",
        "--enable-lora",
        "--max-loras",
        "--max-lora-rank",
        "--lora-state",
        "--lora-wanted",
    }
)
"""Flags the operator writes itself; the same flag in `engine.args` would contradict the spec."""


@dataclass(frozen=True, slots=True)
class Engine:
    """Engine options; None leaves the choice to the worker, or to the model.

    max_model_len: tokens of prompt and answer together.
    gpu_memory_utilization: share of the device's memory to use, in (0, 1].
    max_num_seqs: requests decoded together.
    speculative: passed through for a later release; empty when not asked for.
    args: appended to the worker's command as they are.
    """

    max_model_len: int | None
    dtype: str
    quantization: str | None
    gpu_memory_utilization: Decimal
    prefix_caching: bool
    max_num_seqs: int
    speculative: Mapping[str, Any]
    lora: LoraCapacity | None
    args: tuple[str, ...]

    def argument(self, flag: str) -> str | None:
        """The value of a flag in `args`, written as one item or as two; None when it is absent."""
        for index, arg in enumerate(self.args):
            name, is_joined, value = arg.partition("=")
            if name == flag and is_joined:
                return value
            if arg == flag and index + 1 < len(self.args):
                return self.args[index + 1]
        return None

    def number_argument(self, flag: str) -> int | None:
        """The same, where it is a plain number that the worker may take; it knows other spellings,
        too."""
        value = (self.argument(flag) or "").lstrip("0")
        return int(value) if value.isdecimal() and len(value) <= _MOST_DIGITS else None


def parse_engine(fields: Fields) -> Engine:
    """`spec.engine`; raises ResourceError."""
    engine = Engine(
        max_model_len=fields.optional_integer("maxModelLen", 16, 16_777_216),
        dtype=fields.choice("dtype", DTYPES) or DTYPES[0],
        quantization=_parse_flag_value(fields, "quantization"),
        gpu_memory_utilization=(
            fields.fraction("gpuMemoryUtilization") or DEFAULT_GPU_MEMORY_UTILIZATION
        ),
        prefix_caching=fields.boolean("prefixCaching", True),
        max_num_seqs=fields.integer("maxNumSeqs", DEFAULT_MAX_NUM_SEQS, 1, 65_536),
        speculative=fields.opaque("speculative"),
        lora=fields.optional_section("lora", parse_lora_capacity),
        args=fields.strings("args"),
    )
    for index, arg in enumerate(engine.args):
        _refuse_owned_flag(fields.path_of(f"args[{index}]"), arg)
    fields.note_unknown()
    return engine


def _parse_flag_value(fields: Fields, name: str) -> str | None:
    value = fields.string(name, max_length=32)
    if value is not None and not re.fullmatch(r"[a-z][a-z0-9_-]*", value):
        raise fields.error(name, f"is {value!r}", "give a name in lower case, such as fp8")
    return value


def _refuse_owned_flag(field: str, arg: str) -> None:
    flag = arg.partition("=")[0].replace("_", "-")
    if flag in OWNED_FLAGS:
        raise ResourceError(
            field,
            f"is {arg!r}, which the operator sets itself",
            "use the field of the resource that stands for it",
        )
