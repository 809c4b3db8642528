"""Small LoRA adapters, and the ConfigMap that brings them into pods.

Made here, byte by byte, so that a story needs neither a hub nor torch: for the demo model an
adapter of rank 1 on the value projections is 90 KiB, far below what a ConfigMap holds.
"""

from __future__ import annotations

import base64
import json
import random
import struct

from cluster import Object
from environment import ValueShape

MOUNT = "/e2e-adapters"


def adapter_files(shape: ValueShape, seed: int) -> dict[str, bytes]:
    """`adapter_config.json` and `adapter_model.safetensors` for a model of `shape`, as of PEFT."""
    source = random.Random(seed)
    header: dict[str, object] = {}
    data = bytearray()
    for layer in range(shape.num_layers):
        name = f"base_model.model.model.layers.{layer}.self_attn.v_proj"
        for part, size in (("lora_A", [1, shape.hidden]), ("lora_B", [shape.values, 1])):
            values = [source.uniform(-0.4, 0.4) for _ in range(size[0] * size[1])]
            begin = len(data)
            data += struct.pack(f"<{len(values)}f", *values)
            place = {"dtype": "F32", "shape": size, "data_offsets": [begin, len(data)]}
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
