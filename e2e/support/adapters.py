"""Small LoRA adapters for the demo model, and the ConfigMap that brings them into pods.

Made here, byte by byte, so that a story needs neither a hub nor torch: an adapter of rank 1 on the
value projections is 90 KiB, far below what a ConfigMap holds.
"""

from __future__ import annotations

import base64
import json
import random
import struct

from cluster import Object

DEMO_MODEL = "demo://smollm2-135m-instruct"
MOUNT = "/e2e-adapters"
_NUM_LAYERS = 30
_HIDDEN = 576
_VALUES = 192
"""Of SmolLM2 135M: three heads for keys and values of 64 each."""


def adapter_files(seed: int, hidden: int = _HIDDEN) -> dict[str, bytes]:
    """`adapter_config.json` and `adapter_model.safetensors`, as PEFT saves them.

    `hidden` other than the demo model's makes an adapter of another base model.
    """
    source = random.Random(seed)
    header: dict[str, object] = {}
    data = bytearray()
    for layer in range(_NUM_LAYERS):
        name = f"base_model.model.model.layers.{layer}.self_attn.v_proj"
        for part, shape in (("lora_A", [1, hidden]), ("lora_B", [_VALUES, 1])):
            values = [source.uniform(-0.2, 0.2) for _ in range(shape[0] * shape[1])]
            begin = len(data)
            data += struct.pack(f"<{len(values)}f", *values)
            place = {"dtype": "F32", "shape": shape, "data_offsets": [begin, len(data)]}
            header[f"{name}.{part}.weight"] = place
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    config = {
        "peft_type": "LORA",
        "r": 1,
        "lora_alpha": 2,
        "target_modules": ["v_proj"],
        "bias": "none",
        "task_type": "CAUSAL_LM",
    }
    return {
        "adapter_config.json": json.dumps(config).encode(),
        "adapter_model.safetensors": struct.pack("<Q", len(text)) + text + bytes(data),
    }


def config_map(name: str, namespace: str, adapters: dict[str, dict[str, bytes]]) -> Object:
    """A ConfigMap with the files of adapters, by their names."""
    binary = {
        f"{adapter}.{file}": base64.b64encode(content).decode()
        for adapter, files in adapters.items()
        for file, content in files.items()
    }
    metadata = {"name": name, "namespace": namespace}
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "binaryData": binary}


def pod_overlay(config_map: Object) -> Object:
    """`spec.template` that mounts each adapter of the ConfigMap at MOUNT/NAME."""
    name = config_map["metadata"]["name"]
    items = [
        {"key": key, "path": key.replace(".", "/", 1)} for key in sorted(config_map["binaryData"])
    ]
    volume = {"name": "e2e-adapters", "configMap": {"name": name, "items": items}}
    mount = {"name": "e2e-adapters", "mountPath": MOUNT, "readOnly": True}
    return {
        "spec": {
            "volumes": [volume],
            "containers": [{"name": "worker", "volumeMounts": [mount]}],
        }
    }
