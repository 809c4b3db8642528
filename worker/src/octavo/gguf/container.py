"""A GGUF file, mapped into memory: its metadata, and where its tensors lie.

Every count, length and offset in the file is checked against the file's size before anything is
allocated or read, so a truncated or hostile file gives a ModelLoadError. (A file that shrinks
*while* it is mapped ends the process, as with every memory map: replace files, never truncate.)

Source: the GGUF specification, ``docs/gguf.md`` of the ggml repository.
"""

from __future__ import annotations

import math
import mmap
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from octavo.errors import ModelLoadError
from octavo.gguf.encodings import ENCODINGS, Encoding

MAGIC = b"GGUF"
_VERSIONS = (2, 3)
_MAX_DIMENSIONS = 4
_MAX_KEY_BYTES = 65_535
_DEFAULT_ALIGNMENT = 32
_STRING, _ARRAY = 8, 9
_SCALARS = {
    0: struct.Struct("<B"),
    1: struct.Struct("<b"),
    2: struct.Struct("<H"),
    3: struct.Struct("<h"),
    4: struct.Struct("<I"),
    5: struct.Struct("<i"),
    6: struct.Struct("<f"),
    7: struct.Struct("<?"),
    10: struct.Struct("<Q"),
    11: struct.Struct("<q"),
    12: struct.Struct("<d"),
}
_U32 = _SCALARS[4]
_U64 = _SCALARS[10]
# The smallest a thing can be in a file: what counts are checked against.
_MIN_STRING_BYTES = 8
_MIN_FIELD_BYTES = _MIN_STRING_BYTES + 4 + 1
_MIN_TENSOR_BYTES = _MIN_STRING_BYTES + 4 + 4 + 8

Scalar = bool | int | float | str


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """One tensor's place in the file.

    ``shape`` is in the order of rows first (ggml writes it the other way round): a matrix is
    ``(num_rows, num_columns)``. ``offset`` counts from the start of the file.
    """

    name: str
    shape: tuple[int, ...]
    encoding: Encoding
    offset: int
    size_bytes: int


class GGUFContainer:
    """An open GGUF file. ``metadata`` and ``tensors`` are complete; tensor data stays mapped.

    ``data`` is a private, copy-on-write map: views of it are zero-copy and keep it alive.
    """

    def __init__(
        self,
        path: Path,
        data: mmap.mmap,
        metadata: Mapping[str, Scalar | list[Scalar]],
        tensors: Mapping[str, TensorInfo],
    ) -> None:
        self.path = path
        self.data = data
        self.metadata = metadata
        self.tensors = tensors

    @classmethod
    def open(cls, path: Path) -> GGUFContainer:
        """Map and read a file. Raises ModelLoadError, naming the file and what is wrong with it."""
        data = _map_file(path)
        try:
            metadata, tensors = _Reader(path, data).read()
        except BaseException:
            data.close()
            raise
        return cls(path, data, metadata, tensors)


def _map_file(path: Path) -> mmap.mmap:
    try:
        with path.open("rb") as file:
            # Private and writable rather than read-only: torch refuses read-only buffers.
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
    except ValueError as exc:
        raise ModelLoadError(f"{path} is empty; download the model again.") from exc
    except OSError as exc:
        raise ModelLoadError(f"{path} cannot be read: {exc.strerror or exc}.") from exc


class _Reader:
    """Walks the file once, from the front, checking as it goes."""

    def __init__(self, path: Path, data: mmap.mmap) -> None:
        self._path = path
        self._data = data
        self._size = len(data)
        self._position = 0

    def read(self) -> tuple[dict[str, Scalar | list[Scalar]], dict[str, TensorInfo]]:
        self._check_header()
        num_tensors = self._count("tensors", _MIN_TENSOR_BYTES)
        num_fields = self._count("metadata fields", _MIN_FIELD_BYTES)
        metadata = self._read_metadata(num_fields)
        alignment = metadata.get("general.alignment", _DEFAULT_ALIGNMENT)
        if not isinstance(alignment, int) or alignment <= 0 or alignment & (alignment - 1):
            self._fail(f"general.alignment is {alignment!r:.80}, not a power of two")
        return metadata, self._read_tensors(num_tensors, alignment)

    def _check_header(self) -> None:
        if self._take(4) != MAGIC:
            self._fail("it does not begin with 'GGUF'")
        version = self._scalar(_U32)
        if version not in _VERSIONS:
            swapped = int.from_bytes(int(version).to_bytes(4, "little"), "big")
            if swapped in _VERSIONS:
                self._fail("it is a big-endian file; convert it on a little-endian machine")
            self._fail(f"its version is {version}; versions 2 and 3 can be read")

    def _read_metadata(self, num_fields: int) -> dict[str, Scalar | list[Scalar]]:
        metadata: dict[str, Scalar | list[Scalar]] = {}
        for _ in range(num_fields):
            key = self._string(_MAX_KEY_BYTES)
            if key in metadata:
                self._fail(f"the metadata field {key!r:.80} is there twice")
            kind = int(self._scalar(_U32))
            metadata[key] = self._array() if kind == _ARRAY else self._value(kind)
        return metadata

    def _read_tensors(self, count: int, alignment: int) -> dict[str, TensorInfo]:
        entries = [self._tensor_entry() for _ in range(count)]
        start = -(-self._position // alignment) * alignment
        tensors: dict[str, TensorInfo] = {}
        for name, shape, encoding, relative_offset in entries:
            if name in tensors:
                self._fail(f"the tensor {name!r:.80} is there twice")
            if relative_offset % alignment:
                self._fail(f"the tensor {name!r:.80} is not aligned to {alignment} bytes")
            if shape[-1] % encoding.values_per_block:
                self._fail(
                    f"the tensor {name!r:.80} has rows of {shape[-1]} values, which is not a "
                    f"multiple of {encoding.name}'s block of {encoding.values_per_block}"
                )
            size = math.prod(shape) // encoding.values_per_block * encoding.bytes_per_block
            offset = start + relative_offset
            if offset + size > self._size:
                self._fail(
                    f"the tensor {name!r:.80} ends at byte {offset + size}, but the file has "
                    f"{self._size}"
                )
            tensors[name] = TensorInfo(name, shape, encoding, offset, size)
        return tensors

    def _tensor_entry(self) -> tuple[str, tuple[int, ...], Encoding, int]:
        name = self._string(_MAX_KEY_BYTES)
        num_dimensions = int(self._scalar(_U32))
        if not 1 <= num_dimensions <= _MAX_DIMENSIONS:
            self._fail(f"the tensor {name!r:.80} has {num_dimensions} dimensions, not 1 to 4")
        shape = tuple(int(self._scalar(_U64)) for _ in range(num_dimensions))[::-1]
        if not all(shape):
            self._fail(f"the tensor {name!r:.80} has the empty shape {shape}")
        type_id = int(self._scalar(_U32))
        encoding = ENCODINGS.get(type_id)
        if encoding is None:
            self._fail(f"the tensor {name!r:.80} has the unknown encoding {type_id}")
        return name, shape, encoding, int(self._scalar(_U64))

    def _count(self, what: str, min_bytes_each: int) -> int:
        count = int(self._scalar(_U64))
        if count * min_bytes_each > self._size - self._position:
            self._fail(f"it announces {count} {what}, more than the rest of the file can hold")
        return count

    def _value(self, kind: int) -> Scalar:
        if kind == _STRING:
            return self._string()
        if kind not in _SCALARS:
            self._fail(f"a metadata field has the unknown type {kind}")
        return self._scalar(_SCALARS[kind])

    def _array(self) -> list[Scalar]:
        kind = int(self._scalar(_U32))
        if kind == _STRING:
            return self._strings(self._count("strings", _MIN_STRING_BYTES))
        if kind not in _SCALARS:
            self._fail(f"a metadata field is an array of the unsupported type {kind}")
        item = _SCALARS[kind]
        count = self._count("array items", item.size)
        values = struct.unpack_from(f"<{count}{item.format[1:]}", self._data, self._position)
        self._position += count * item.size
        return list(values)

    def _strings(self, count: int) -> list[Scalar]:
        """A vocabulary has hundreds of thousands: the loop's names are local for speed."""
        data, position, size = self._data, self._position, self._size
        unpack: Callable[..., tuple[int]] = _U64.unpack_from
        strings: list[Scalar] = []
        try:
            for _ in range(count):
                start = position + 8
                (length,) = unpack(data, position)
                position = start + length
                if position > size:
                    self._fail_at_end()
                strings.append(data[start:position].decode())
        except struct.error:
            self._fail_at_end()
        except UnicodeDecodeError as exc:
            raise self._error("a string in it is not UTF-8") from exc
        self._position = position
        return strings

    def _string(self, max_bytes: int | None = None) -> str:
        length = int(self._scalar(_U64))
        if max_bytes is not None and length > max_bytes:
            self._fail(f"it has a name of {length} bytes; the longest allowed is {max_bytes}")
        try:
            return self._take(length).decode()
        except UnicodeDecodeError as exc:
            raise self._error("a string in it is not UTF-8") from exc

    def _scalar(self, layout: struct.Struct) -> bool | int | float:
        value: bool | int | float
        (value,) = layout.unpack(self._take(layout.size))
        return value

    def _take(self, size: int) -> bytes:
        end = self._position + size
        if end > self._size:
            self._fail_at_end()
        taken = self._data[self._position : end]
        self._position = end
        return taken

    def _fail_at_end(self) -> NoReturn:
        self._fail(f"it ends after {self._size} bytes, in the middle of its table of contents")

    def _fail(self, what: str) -> NoReturn:
        raise self._error(what)

    def _error(self, what: str) -> ModelLoadError:
        return ModelLoadError(
            f"{self._path} cannot be read as a GGUF file: {what}; download the model again."
        )
