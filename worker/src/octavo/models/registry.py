"""From a checkpoint's ``config.json`` to the family that serves it.

Knows the names of architectures and where their files are; imports only the one asked for.
A third party adds an architecture by an entry point of the group ``octavo.models`` whose name is
the architecture's and whose object is a function from the configuration to a
:class:`octavo.models.family.ModelFamily`::

    [project.entry-points."octavo.models"]
    FooForCausalLM = "foo.octavo_model:family"

Entry points are looked at only for a name that is not built in, and Octavo's own names cannot be
overridden. Code from a model's own folder (``auto_map``) is never run.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from importlib.metadata import entry_points
from typing import cast

from octavo.errors import ConfigError, UnsupportedModelError
from octavo.models.family import ModelFamily

ENTRY_POINT_GROUP = "octavo.models"

FamilyParser = Callable[[Mapping[str, object]], ModelFamily]
"""Understands a ``config.json``; raises :class:`octavo.errors.ConfigError` where it cannot."""

_MODULES = {
    "Gemma3ForCausalLM": "octavo.models.gemma3",
    "Gemma3ForConditionalGeneration": "octavo.models.gemma3",
    "LlamaForCausalLM": "octavo.models.llama",
    "MistralForCausalLM": "octavo.models.mistral",
    "Qwen2ForCausalLM": "octavo.models.qwen2",
    "Qwen3ForCausalLM": "octavo.models.qwen3",
}
_BY_MODEL_TYPE = {
    "gemma3": "Gemma3ForConditionalGeneration",
    "gemma3_text": "Gemma3ForCausalLM",
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
}
"""For files that name no architecture."""


def resolve(hf_config: Mapping[str, object]) -> ModelFamily:
    """The family that serves this ``config.json``, its configuration parsed and checked.

    Raises :class:`octavo.errors.UnsupportedModelError` for an unknown architecture, listing what
    is supported, and :class:`octavo.errors.ConfigError` for values that cannot be served.
    """
    names = _architectures(hf_config)
    for name in names:
        if name in _MODULES:
            module = importlib.import_module(_MODULES[name])
            return cast(FamilyParser, module.family)(hf_config)
    for name in names:
        for entry_point in entry_points(group=ENTRY_POINT_GROUP, name=name):
            return cast(FamilyParser, entry_point.load())(hf_config)
    raise UnsupportedModelError(
        f"The model's architecture is {' or '.join(names)}, which is not supported; "
        f"supported: {', '.join(supported_architectures())}. "
        f"A package can add one through the entry-point group {ENTRY_POINT_GROUP!r}."
    )


def supported_architectures() -> list[str]:
    """Built-in architectures and those of installed packages, sorted."""
    installed = {entry_point.name for entry_point in entry_points(group=ENTRY_POINT_GROUP)}
    return sorted(_MODULES.keys() | installed)


def _architectures(hf_config: Mapping[str, object]) -> list[str]:
    names = hf_config.get("architectures")
    if isinstance(names, list) and names and all(isinstance(name, str) for name in names):
        return names
    model_type = hf_config.get("model_type")
    if names is None and isinstance(model_type, str):
        return [_BY_MODEL_TYPE.get(model_type, model_type)]
    raise ConfigError(
        f"architectures is {names!r} in the model's config.json; it must be a list of names, "
        f"or be left out and model_type be given (it is {model_type!r})."
    )
