"""The options of an engine in this process, as its user writes them, to a configuration.

Who comes from vLLM brings its names: those that ask for what is always so are taken.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Mapping
from typing import Any, get_type_hints

import msgspec

from octavo.config import EngineConfig
from octavo.errors import ConfigError

_ALWAYS_SO: Mapping[str, object] = {
    "data_parallel_size": 1,
    "disable_log_stats": True,
    "enable_chunked_prefill": True,
    "enable_sleep_mode": False,
    "pipeline_parallel_size": 1,
    "quantization": None,
    "speculative_config": None,
    "tensor_parallel_size": 1,
    "tokenizer": None,
    "tokenizer_mode": "auto",
    "trust_remote_code": False,
}
"""Options of vLLM that have one value here."""

_OF_SERVERS = {
    "lora_modules": "name adapters with lora_request",
    "lora_state": "name adapters with lora_request",
    "lora_wanted": "name adapters with lora_request",
}
"""Fields that nothing reads without a server, and what to do instead."""

_TYPES: Mapping[str, Any] = {
    name: type_ for name, type_ in get_type_hints(EngineConfig).items() if name not in _OF_SERVERS
}


def offline_config(
    model: object, defaults: Mapping[str, Any], options: Mapping[str, Any]
) -> EngineConfig:
    """``defaults``: values for options that are not given.

    Raises ConfigError for an option that there is not, or that has not a value of its kind.
    """
    if not model or not isinstance(model, str | os.PathLike):
        raise ConfigError(
            f"model is {model!r:.120}; it must be a folder, a .gguf file, ORG/NAME on the hub or "
            "demo://NAME."
        )
    values = {name: _checked(name, value) for name, value in options.items()}
    known = {name: value for name, value in values.items() if name in _TYPES}
    return EngineConfig(model=os.fsdecode(model), **{**defaults, **known})


def _checked(name: str, value: Any) -> Any:
    if name in _OF_SERVERS:
        raise ConfigError(f"{name} is an option of servers; {_OF_SERVERS[name]}.")
    if name in _ALWAYS_SO:
        if value != _ALWAYS_SO[name]:
            raise ConfigError(
                f"{name} is {value!r:.120}, and can only be {_ALWAYS_SO[name]!r} here; leave it "
                "out."
            )
        return value
    if name not in _TYPES:
        close = difflib.get_close_matches(name, [*_TYPES, *_ALWAYS_SO], n=1)
        remedy = f"did you mean {close[0]}?" if close else f"there are {', '.join(_TYPES)}."
        raise ConfigError(f"LLM has no option {name}; {remedy}")
    if isinstance(value, os.PathLike):
        value = os.fsdecode(value)
    try:
        return msgspec.convert(value, _TYPES[name])
    except msgspec.ValidationError as error:
        raise ConfigError(f"{name} is {value!r:.120}, which is of a wrong type: {error}.") from None
