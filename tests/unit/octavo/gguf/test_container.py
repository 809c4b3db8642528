"""Reading GGUF containers: what the gguf package writes, and what nobody should."""

from __future__ import annotations

import struct
import tracemalloc
from pathlib import Path

import gguf
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from octavo.errors import ModelLoadError
from octavo.gguf.container import GGUFContainer
from octavo.gguf.encodings import ENCODINGS


def write_sample(path: Path, alignment: int | None = None) -> Path:
    writer = gguf.GGUFWriter(path, "llama")
    if alignment is not None:
        writer.add_custom_alignment(alignment)
    writer.add_uint8("a.u8", 200)
    writer.add_int8("a.i8", -5)
    writer.add_uint16("a.u16", 65_000)
    writer.add_int16("a.i16", -30_000)
    writer.add_uint32("a.u32", 4_000_000_000)
    writer.add_int32("a.i32", -7)
    writer.add_uint64("a.u64", 1 << 60)
    writer.add_int64("a.i64", -(1 << 60))
    writer.add_float32("a.f32", 0.5)
    writer.add_float64("a.f64", 1e300)
    writer.add_bool("a.yes", True)
    writer.add_string("a.text", "naïve 🎉")
    writer.add_array("a.strings", ["", "Ġthe", "日本"])
    writer.add_array("a.integers", [1, -2, 3])
    writer.add_array("a.floats", [0.25, -4.0])
    writer.add_tensor("vector", np.arange(5, dtype=np.float32))
    writer.add_tensor("matrix", np.arange(6, dtype=np.float16).reshape(2, 3))
    blocks = gguf.quants.quantize(
        np.ones((3, 64), dtype=np.float32), gguf.GGMLQuantizationType.Q4_0
    )
    writer.add_tensor("packed", blocks, raw_dtype=gguf.GGMLQuantizationType.Q4_0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return write_sample(tmp_path_factory.mktemp("gguf") / "sample.gguf").read_bytes()


def test_reads_every_kind_of_field(tmp_path: Path) -> None:
    container = GGUFContainer.open(write_sample(tmp_path / "sample.gguf"))
    assert dict(container.metadata) == {
        "general.architecture": "llama",
        "a.u8": 200,
        "a.i8": -5,
        "a.u16": 65_000,
        "a.i16": -30_000,
        "a.u32": 4_000_000_000,
        "a.i32": -7,
        "a.u64": 1 << 60,
        "a.i64": -(1 << 60),
        "a.f32": 0.5,
        "a.f64": 1e300,
        "a.yes": True,
        "a.text": "naïve 🎉",
        "a.strings": ["", "Ġthe", "日本"],
        "a.integers": [1, -2, 3],
        "a.floats": [0.25, -4.0],
    }


@pytest.mark.parametrize("alignment", [None, 64, 8])
def test_finds_tensors_where_the_package_puts_them(tmp_path: Path, alignment: int | None) -> None:
    path = write_sample(tmp_path / "sample.gguf", alignment)
    container = GGUFContainer.open(path)
    for expected in gguf.GGUFReader(path).tensors:
        info = container.tensors[expected.name]
        assert info.shape == tuple(int(size) for size in reversed(expected.shape))
        assert info.offset == expected.data_offset
        assert info.size_bytes == expected.n_bytes
        assert info.encoding.name == expected.tensor_type.name
    vector = container.tensors["vector"]
    data = container.data[vector.offset : vector.offset + vector.size_bytes]
    assert np.frombuffer(data, dtype=np.float32).tolist() == [0, 1, 2, 3, 4]


def test_block_sizes_are_ggmls() -> None:
    sizes = {
        kind.value: (kind.name, *gguf.GGML_QUANT_SIZES[kind])
        for kind in gguf.GGMLQuantizationType
        if kind.value in ENCODINGS
    }
    ours = {
        number: (encoding.name, encoding.values_per_block, encoding.bytes_per_block)
        for number, encoding in ENCODINGS.items()
    }
    assert ours == sizes


def test_version_2_has_the_same_layout(tmp_path: Path, sample: bytes) -> None:
    path = tmp_path / "v2.gguf"
    path.write_bytes(sample[:4] + struct.pack("<I", 2) + sample[8:])
    assert GGUFContainer.open(path).metadata["a.text"] == "naïve 🎉"


U32, U64 = struct.Struct("<I").pack, struct.Struct("<Q").pack


def text(value: str) -> bytes:
    return U64(len(value.encode())) + value.encode()


def file_of(
    fields: list[bytes] | None = None,
    tensors: list[bytes] | None = None,
    *,
    num_fields: int | None = None,
    num_tensors: int | None = None,
    data: bytes = b"",
) -> bytes:
    fields, tensors = fields or [], tensors or []
    counts = U64(len(tensors) if num_tensors is None else num_tensors)
    counts += U64(len(fields) if num_fields is None else num_fields)
    return b"GGUF" + U32(3) + counts + b"".join(fields) + b"".join(tensors) + data


def tensor(name: str = "t", shape: tuple[int, ...] = (4,), kind: int = 0, offset: int = 0) -> bytes:
    dims = b"".join(U64(size) for size in shape)
    return text(name) + U32(len(shape)) + dims + U32(kind) + U64(offset)


HUGE = (1 << 64) - 1
BROKEN = {
    "empty": (b"", "is empty"),
    "other-magic": (b"GGML" + bytes(60), "does not begin with"),
    "version-1": (b"GGUF" + U32(1) + bytes(60), "version is 1"),
    "big-endian": (b"GGUF" + struct.pack(">I", 3) + bytes(60), "big-endian"),
    "many-fields": (file_of(num_fields=HUGE), "announces"),
    "many-tensors": (file_of(num_tensors=1 << 40), "announces"),
    "many-strings": (file_of([text("a") + U32(9) + U32(8) + U64(1 << 50)]), "announces"),
    "many-integers": (file_of([text("a") + U32(9) + U32(4) + U64(HUGE)]), "announces"),
    "long-string": (file_of([text("a") + U32(8) + U64(1 << 62) + bytes(9)]), "ends after"),
    "long-key": (file_of([U64(1 << 20) + bytes(1 << 20)]), "a name of"),
    "not-utf-8": (file_of([text("a") + U32(8) + U64(2) + b"\xff\xfe"]), "not UTF-8"),
    "unknown-type": (file_of([text("a") + U32(77) + bytes(8)]), "unknown type 77"),
    "nested-array": (file_of([text("a") + U32(9) + U32(9) + U64(0)]), "unsupported type 9"),
    "twice": (file_of([text("a") + U32(0) + b"\1"] * 2), "there twice"),
    "alignment": (
        file_of([text("general.alignment") + U32(4) + U32(12)]),
        "general.alignment is 12",
    ),
    "tensor-twice": (file_of(tensors=[tensor()] * 2, data=bytes(256)), "there twice"),
    "tensor-past-end": (file_of(tensors=[tensor(shape=(1 << 20,))], data=bytes(99)), "ends at"),
    "tensor-huge": (file_of(tensors=[tensor(shape=(HUGE,) * 4)], data=bytes(99)), "ends at"),
    "tensor-offset": (file_of(tensors=[tensor(offset=1 << 62)], data=bytes(99)), "ends at"),
    "tensor-unaligned": (file_of(tensors=[tensor(offset=4)], data=bytes(99)), "not aligned"),
    "tensor-empty": (file_of(tensors=[tensor(shape=(4, 0))], data=bytes(99)), "empty shape"),
    "tensor-5d": (file_of(tensors=[tensor(shape=(1,) * 5)], data=bytes(99)), "5 dimensions"),
    "tensor-unknown": (file_of(tensors=[tensor(kind=250)], data=bytes(99)), "encoding 250"),
    "tensor-blocks": (file_of(tensors=[tensor(shape=(33, 2), kind=2)]), "not a multiple"),
}


@pytest.mark.parametrize(("content", "said"), BROKEN.values(), ids=BROKEN.keys())
def test_broken_file_is_named_with_its_fault(tmp_path: Path, content: bytes, said: str) -> None:
    path = tmp_path / "broken.gguf"
    path.write_bytes(content)
    with pytest.raises(ModelLoadError, match=said) as caught:
        GGUFContainer.open(path)
    assert str(path) in str(caught.value)


def test_absent_file_is_a_load_error(tmp_path: Path) -> None:
    with pytest.raises(ModelLoadError, match="cannot be read: No such file"):
        GGUFContainer.open(tmp_path / "absent.gguf")


def test_every_truncation_is_a_load_error(tmp_path: Path, sample: bytes) -> None:
    path = tmp_path / "cut.gguf"
    for size in range(1, len(sample) - 32, 7):  # the last 32 bytes may be padding
        path.write_bytes(sample[:size])
        with pytest.raises(ModelLoadError):
            GGUFContainer.open(path)


@settings(
    max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_damaged_file_never_crashes_nor_allocates_much(
    tmp_path: Path, sample: bytes, data: st.DataObject
) -> None:
    damaged = bytearray(sample)
    for _ in range(data.draw(st.integers(1, 4))):
        position = data.draw(st.integers(0, len(damaged) - 9))
        patch = data.draw(
            st.one_of(
                st.binary(min_size=1, max_size=8),
                st.integers(0, HUGE).map(U64),
                st.integers(0, 300).map(U32),
            )
        )
        damaged[position : position + len(patch)] = patch
    path = tmp_path / "damaged.gguf"
    path.write_bytes(damaged)
    tracemalloc.start()
    try:
        container = GGUFContainer.open(path)
    except ModelLoadError:
        pass
    else:
        size = len(damaged)
        assert all(info.offset + info.size_bytes <= size for info in container.tensors.values())
    finally:
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert peak < 4 << 20
