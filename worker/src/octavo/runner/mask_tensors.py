"""Token masks on their way to the device.

The host writes them while the device computes the logits they apply to; a copy on a stream of its
own brings them over meanwhile. One buffer is enough: the next step's masks follow from the tokens
that this step draws, so nobody writes before the device has read.
"""

from __future__ import annotations

import torch
from torch import Tensor

from octavo.batch import MaskMemory


class MaskTensors:
    """Masks of at most ``num_masks`` rows: ``[num_masks, ceil(vocab / 32)], int32``."""

    def __init__(self, num_masks: int, vocab_size: int, device: torch.device) -> None:
        num_words = -(-vocab_size // 32)
        is_cuda = device.type == "cuda"
        self._host = torch.zeros(num_masks, num_words, dtype=torch.int32, pin_memory=is_cuda)
        self._device = torch.empty_like(self._host, device=device) if is_cuda else self._host
        self._stream = torch.cuda.Stream(device) if is_cuda else None  # type: ignore[no-untyped-call]
        if self._stream is not None:
            # The memory may be that of steps under way: the first copy comes after them.
            self._stream.wait_stream(torch.cuda.current_stream(device))
        self.memory = MaskMemory(self._host.data_ptr(), num_masks, num_words)

    def upload(self, count: int) -> Tensor:
        """The first ``count`` masks on the device, for what is launched next."""
        if self._stream is not None:
            with torch.cuda.stream(self._stream):
                self._device[:count].copy_(self._host[:count], non_blocking=True)
            torch.cuda.current_stream().wait_stream(self._stream)
        return self._device
