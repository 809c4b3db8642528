"""Token masks reach the device however busy it is when the first ones come."""

from __future__ import annotations

import torch

from octavo.runner.mask_tensors import MaskTensors


def test_the_first_masks_come_after_what_their_memory_was_for() -> None:
    device = torch.device("cuda")
    torch.cuda._sleep(200_000_000)  # a step under way
    scratch = torch.empty(16, 4008, dtype=torch.int32, device=device)
    scratch.zero_()
    del scratch  # its memory is free to be had, and not yet written
    masks = MaskTensors(16, 4008 * 32, device)
    masks._host.fill_(-1)
    assert bool((masks.upload(16) == -1).all())
