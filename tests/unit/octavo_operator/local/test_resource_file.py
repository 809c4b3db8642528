"""The file of `-f`, read as kubectl would read it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from octavo_operator.errors import LocalError
from octavo_operator.local.resource_file import ResourceFile, read_resource_file

SERVICE = """\
apiVersion: serving.octavo.dev/v1alpha1
kind: InferenceService
metadata: {name: chat, namespace: models}
spec:
  model: {uri: "file:///model"}
  replicas: 1
  engine: {lora: {}}
"""
ADAPTER = """\
---
apiVersion: serving.octavo.dev/v1alpha1
kind: LoRAAdapter
metadata: {name: sql, namespace: models}
spec: {serviceRef: {name: chat}, servedName: chat-sql, source: {uri: "file:///sql"}}
"""
SECRET = "---\nkind: Secret\nmetadata: {name: keys}\nstringData: {one: first}\n"


def read(tmp_path: Path, text: str) -> ResourceFile:
    path = tmp_path / "service.yaml"
    path.write_text(text)
    return read_resource_file(path)


def test_values_that_look_like_dates_and_keys_that_look_like_numbers_are_text(
    tmp_path: Path,
) -> None:
    labels = "  template: {metadata: {annotations: {8080: http, true: x, day: 2024-01-31}}}\n"
    resource = read(tmp_path, f"{SERVICE}{labels}").resource
    annotations = resource["spec"]["template"]["metadata"]["annotations"]
    assert annotations == {"8080": "http", "true": "x", "day": "2024-01-31"}
    json.dumps(resource, sort_keys=True)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (f"{SERVICE}metadata: {{name: other}}\n", "key 'metadata' is there twice at line 8"),
        (f"{SERVICE}data: !!binary aGk=\n", "tag 'tag:yaml.org,2002:binary' at line 8"),
        ("[" * 3000, "it is nested too deeply"),
        (f"{SERVICE}{ADAPTER}{ADAPTER}", "holds 2 LoRAAdapters named sql; rename all but one"),
        (f"{SERVICE}{SECRET}{SECRET}", "holds 2 Secrets named keys; rename all but one"),
        (
            f"{SERVICE}{ADAPTER.replace('models', 'default')}",
            "LoRAAdapter sql is in namespace default, but the service of this file is in models",
        ),
        (f"{SERVICE}---\nkind: Secret\ndata: {{}}\n", "a Secret without metadata.name; name it"),
        (f"{SERVICE}---\nkind: Secret\nmetadata: [a]\n", "a Secret without metadata.name"),
        (f"{SERVICE}{SECRET.replace('{one: first}', '[one]')}", "stringData is no mapping"),
        (f"{SERVICE}{SECRET.replace('first', '')}", "stringData.one is no text; quote its value"),
        (f"{SERVICE}{SECRET.replace('one:', '../one:')}", "'../one' cannot be a key"),
        (f"{SERVICE}{SECRET.replace('stringData', 'data')}", "is not base64; use stringData"),
    ],
)
def test_file_that_says_nothing_certain_is_refused_in_a_sentence(
    tmp_path: Path, text: str, words: str
) -> None:
    with pytest.raises(LocalError) as caught:
        read(tmp_path, text)
    assert words in str(caught.value)


def test_keys_that_a_merge_brings_may_be_overridden(tmp_path: Path) -> None:
    text = SERVICE.replace("{lora: {}}", "{<<: {maxNumSeqs: 8, dtype: float32}, maxNumSeqs: 4}")
    engine = read(tmp_path, text).resource["spec"]["engine"]
    assert engine == {"maxNumSeqs": 4, "dtype": "float32"}


def test_resources_that_local_mode_does_not_know_are_named(tmp_path: Path) -> None:
    found = read(tmp_path, f"{SERVICE}---\nkind: Job\nmetadata: x\n---\nkind: Job\nmetadata: x\n")
    assert found.ignored == ("Job", "Job")
