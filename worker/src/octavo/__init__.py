"""Octavo: a paged-attention LLM inference engine with an OpenAI-compatible server.

Public face: :class:`LLM` for offline inference, :class:`SamplingParams` and
:class:`LoRARequest`. They are imported on first use, so that ``import octavo`` costs nothing to a
program that only wants the version (the server's process, for one, never imports torch).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from octavo.version import __version__

if TYPE_CHECKING:
    from octavo.llm import LLM
    from octavo.lora.request import LoRARequest
    from octavo.sampling_params import SamplingParams

__all__ = ["LLM", "LoRARequest", "SamplingParams", "__version__"]


def __getattr__(name: str) -> object:
    if name == "LLM":
        from octavo.llm import LLM

        return LLM
    if name == "LoRARequest":
        from octavo.lora.request import LoRARequest

        return LoRARequest
    if name == "SamplingParams":
        from octavo.sampling_params import SamplingParams

        return SamplingParams
    raise AttributeError(f"module 'octavo' has no attribute {name!r}")
