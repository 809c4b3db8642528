"""What takes long to make and several files look at."""

from __future__ import annotations

import os
from typing import Any

import pytest
import torch

from octavo.loading.demo_model import fetch_demo_model


@pytest.fixture(scope="session")
def transformers_demo_model() -> Any:
    """The demo model as transformers reads it, in float32; who adds to it takes it away again."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    from transformers import AutoModelForCausalLM

    path = fetch_demo_model()
    return AutoModelForCausalLM.from_pretrained(
        path.parent, gguf_file=path.name, dtype=torch.float32
    ).eval()
