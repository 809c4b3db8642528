"""A model family: a checkpoint's configuration, understood, and how to build its model."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Protocol

import torch

from octavo.kernels.interface import Kernels
from octavo.models.decoder_builder import WeightNames, build_decoder
from octavo.models.decoder_config import DecoderConfig
from octavo.models.interface import CausalLM, WeightSource

_ROTARY_BUFFER = re.compile(r"rotary_emb\.(inv_freq|cos_cached|sin_cached)$")
"""Tables that old checkpoints store beside the weights they can be computed from."""


class ModelFamily(Protocol):
    """What the registry gives for a ``config.json``; third parties implement it too."""

    @property
    def config(self) -> DecoderConfig:
        """The architecture's shape."""

    def build(
        self,
        weights: WeightSource,
        kernels: Kernels,
        dtype: torch.dtype,
        device: torch.device,
        max_model_len: int,
    ) -> CausalLM:
        """Pull the weights and prepare them for the device.

        ``max_model_len``: positions the model must be able to serve. Raises
        :class:`octavo.errors.WeightError` for an absent or ill-shaped tensor.
        """

    def can_ignore(self, name: str) -> bool:
        """Whether a tensor of the checkpoint may be left unread."""

    def abridged(self) -> ModelFamily:
        """The same with as few layers as have one of every kind: its steps launch every kernel
        that those of the whole do."""


@dataclass(frozen=True, slots=True)
class DecoderFamily:
    """A family served by the shared decoder."""

    config: DecoderConfig
    names: WeightNames
    other_prefixes: tuple[str, ...] = ()
    """Where else checkpoints keep the decoder than at ``names.prefix``."""
    ignored_prefixes: tuple[str, ...] = ()
    """Parts of a larger model that a decoder does not need, such as a vision tower."""

    def build(
        self,
        weights: WeightSource,
        kernels: Kernels,
        dtype: torch.dtype,
        device: torch.device,
        max_model_len: int,
    ) -> CausalLM:
        names = self._names_in(weights)
        return build_decoder(self.config, names, weights, kernels, dtype, device, max_model_len)

    def can_ignore(self, name: str) -> bool:
        if self.config.is_tied and name == self.names.head:
            return True  # some checkpoints store the tied head a second time
        return name.startswith(self.ignored_prefixes) or _ROTARY_BUFFER.search(name) is not None

    def abridged(self) -> ModelFamily:
        return replace(self, config=self.config.abridged())

    def _names_in(self, weights: WeightSource) -> WeightNames:
        prefixes = (self.names.prefix, *self.other_prefixes)
        found = (prefix for prefix in prefixes if f"{prefix}embed_tokens.weight" in weights)
        # Where none is found, the first is what the error for a missing tensor shall name.
        return replace(self.names, prefix=next(found, self.names.prefix))
