"""Text to ids and back, with one vocabulary.

Encoding is the ``tokenizers`` library's. Decoding is our own, on bytes (see
:mod:`octavo.tokenization.token_pieces`), so that streamed and whole texts are the same by
construction; it equals the library's for every text that is valid UTF-8.
"""

from __future__ import annotations

import codecs
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import tokenizers

from octavo.errors import InvalidRequestError, ModelLoadError
from octavo.gguf.container import GGUFContainer
from octavo.grammar import Vocabulary
from octavo.tokenization import gguf_tokenizer, gguf_vocabulary
from octavo.tokenization.token_pieces import BYTES_OF_TOKEN, PieceStyle, Spelling, parse_decoder

_PROBE = "a"
"""Any text: what encoding adds around it are the vocabulary's framing tokens."""
_NAMED = ("bos_token", "eos_token", "unk_token", "pad_token", "sep_token", "cls_token")


@dataclass(frozen=True, slots=True)
class Framing:
    """Ids that encoding puts around a text when asked for special tokens."""

    before: tuple[int, ...] = ()
    after: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Truncation:
    """How a prompt that is too long is made to fit."""

    max_tokens: int
    side: Literal["left", "right"] = "left"
    """Where tokens are left out: a left truncation keeps the prompt's end."""

    def cut(self, token_ids: list[int], num_around: int = 0) -> list[int]:
        """What is kept of a prompt with ``num_around`` more tokens, which stay, around it."""
        room = max(0, self.max_tokens - num_around)
        if len(token_ids) <= room:
            return token_ids
        return token_ids[len(token_ids) - room :] if self.side == "left" else token_ids[:room]


@dataclass(frozen=True, slots=True)
class _Settings:
    """What a tokenizer's files say beside the vocabulary."""

    framing: Framing
    named_tokens: Mapping[str, str] = field(default_factory=dict)


class Tokenizer:
    """A vocabulary and its rules. Safe to use from several threads."""

    def __init__(self, backend: tokenizers.Tokenizer, settings: _Settings) -> None:
        self._backend = backend
        self._framing = settings.framing
        self.named_tokens = settings.named_tokens
        """``bos_token``, ``eos_token``, ... → text, as chat templates expect them."""
        decoder = backend.decoder
        self._style = (
            parse_decoder(decoder.__getstate__().decode())
            if decoder is not None
            else PieceStyle(Spelling.SENTENCEPIECE)
        )
        added = backend.get_added_tokens_decoder()
        self._special_ids = frozenset(id for id, token in added.items() if token.special)
        self._vocab_size = max(backend.get_vocab_size(True), max(added, default=-1) + 1)
        self._bytes: list[bytes | None] = [None] * self._vocab_size

    @classmethod
    def open(cls, path: str | Path) -> Tokenizer:
        """A folder with ``tokenizer.json``, or a ``.gguf`` file.

        Raises ModelLoadError for files that are absent or broken, and UnsupportedModelError for
        a kind of tokenizer that is not known.
        """
        path = Path(path)
        if path.suffix == ".gguf":
            return cls(*_from_gguf(path))
        return cls(*_from_folder(path))

    @property
    def vocab_size(self) -> int:
        """One more than the highest id."""
        return self._vocab_size

    @property
    def special_ids(self) -> frozenset[int]:
        """Ids of special tokens: those that ``skip_special_tokens`` leaves out."""
        return self._special_ids

    @property
    def drops_first_space(self) -> bool:
        """Whether a text's first space is an artefact of encoding, and left out in decoding."""
        return self._style.drops_first_space

    @property
    def eos_token_ids(self) -> list[int]:
        """The id of ``eos_token``, if there is one. The model's own list is the checkpoint's."""
        return self._ids_of("eos_token")

    def encode(
        self,
        text: str,
        add_special_tokens: bool = True,
        truncation: Truncation | None = None,
    ) -> list[int]:
        """Ids of a text; special tokens written out in it become their ids.

        A truncation counts the special tokens around the text, and keeps them. Raises
        InvalidRequestError for a text that is not Unicode (JSON can spell half of a surrogate
        pair, which no UTF-8 text can hold), and for one that the vocabulary's rules give up on:
        they look back ten million times at most, which as many spaces in a row may take.
        """
        try:
            # The one call that lets other threads run meanwhile, as a server's event loop.
            (encoding,) = self._backend.encode_batch_fast([text], add_special_tokens=False)
            ids: list[int] = encoding.ids
        except TypeError as exc:
            raise InvalidRequestError(
                f"The text cannot be encoded: {_surrogate(text)}; send valid Unicode."
            ) from exc
        except BaseException as exc:
            if not _is_librarys(exc):
                raise
            raise InvalidRequestError(
                f"The model's tokenizer cannot encode the text of {len(text)} characters "
                f"({exc!s:.200}); send a shorter one."
            ) from exc
        framing = self._framing if add_special_tokens else Framing()
        if truncation is not None:
            ids = truncation.cut(ids, len(framing.before) + len(framing.after))
        return [*framing.before, *ids, *framing.after]

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        """The text of these ids; bytes that are not UTF-8 become U+FFFD."""
        skipped = self._special_ids if skip_special_tokens else frozenset()
        data = b"".join([self.token_bytes(id) for id in token_ids if id not in skipped])
        if self.drops_first_space and data.startswith(b" "):
            data = data[1:]
        return codecs.decode(data, "utf-8", "replace")

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes one token stands for, not always whole characters; none for an unknown id."""
        if not 0 <= token_id < self._vocab_size:
            return b""
        known = self._bytes[token_id]
        if known is None:
            token = self._backend.id_to_token(token_id)
            known = b"" if token is None else BYTES_OF_TOKEN[self._style.spelling](token)
            self._bytes[token_id] = known
        return known

    def vocabulary(self) -> Vocabulary:
        """Every token's bytes, for grammars."""
        tokens = [self.token_bytes(token_id) for token_id in range(self._vocab_size)]
        return Vocabulary(tokens, sorted(self._special_ids))

    def token_spelling(self, token_id: int) -> str:
        """A token as the vocabulary writes it; empty for an id it does not have."""
        return self._backend.id_to_token(token_id) or ""

    def token_id(self, token: str) -> int | None:
        """The id of a token as the vocabulary spells it."""
        found: int | None = self._backend.token_to_id(token)
        return found

    def _ids_of(self, name: str) -> list[int]:
        token = self.named_tokens.get(name)
        found = None if token is None else self.token_id(token)
        return [] if found is None else [found]


def _surrogate(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError as exc:
        return f"its character {exc.start} is half of a surrogate pair, {text[exc.start]!a}"
    return f"it is a {type(text).__name__}"


def _is_librarys(exc: BaseException) -> bool:
    """It raises plain Exception, and where Rust panics what is none."""
    return isinstance(exc, Exception) or type(exc).__module__ == "pyo3_runtime"


def _from_gguf(path: Path) -> tuple[tokenizers.Tokenizer, _Settings]:
    metadata = GGUFContainer.open(path).metadata
    vocabulary = gguf_vocabulary.parse_vocabulary(metadata)
    architecture = metadata.get("general.architecture")
    backend = gguf_tokenizer.build_tokenizer(vocabulary, str(architecture))
    ids = vocabulary.special_ids
    framing = Framing(
        before=(ids["bos"],) if gguf_tokenizer.adds_bos(vocabulary) and "bos" in ids else (),
        after=(ids["eos"],) if vocabulary.add_eos and "eos" in ids else (),
    )
    named = {f"{key}_token": vocabulary.tokens[token_id] for key, token_id in ids.items()}
    return backend, _Settings(framing, {key: named[key] for key in _NAMED if key in named})


def _from_folder(folder: Path) -> tuple[tokenizers.Tokenizer, _Settings]:
    file = folder / "tokenizer.json"
    if not file.is_file():
        raise ModelLoadError(
            f"{folder} holds no tokenizer.json; add it, or serve token ids with "
            "--skip-tokenizer-init."
        )
    config = read_tokenizer_config(folder)
    named = {name: text for name in _NAMED if (text := _token_text(config.get(name))) is not None}
    try:
        backend = tokenizers.Tokenizer.from_file(str(file))
        backend.no_truncation()
        backend.no_padding()
        return backend, _Settings(_framing(backend, config, named), named)
    except BaseException as exc:
        if not _is_librarys(exc):
            raise
        raise ModelLoadError(
            f"{file} cannot be read as a tokenizer: {exc!s:.500}; fetch the model's files again."
        ) from exc


def read_tokenizer_config(folder: Path) -> dict[str, Any]:
    """The folder's ``tokenizer_config.json``; empty when there is none."""
    file = folder / "tokenizer_config.json"
    if not file.is_file():
        return {}
    try:
        config = json.loads(file.read_bytes())
    except (OSError, ValueError, RecursionError) as exc:
        raise ModelLoadError(f"{file} cannot be read as JSON: {exc}.") from exc
    if not isinstance(config, dict):
        raise ModelLoadError(f"{file} holds no JSON object; fetch the model's files again.")
    return config


def _token_text(value: object) -> str | None:
    """A named token is written as its text, or as an object with its ``content``."""
    if isinstance(value, Mapping):
        value = value.get("content")
    return value if isinstance(value, str) else None


def _framing(
    backend: tokenizers.Tokenizer, config: Mapping[str, Any], named: Mapping[str, str]
) -> Framing:
    """The post-processor's framing, unless ``add_bos_token`` or ``add_eos_token`` say otherwise."""
    plain = backend.encode(_PROBE, add_special_tokens=False).ids
    framed = backend.encode(_PROBE, add_special_tokens=True).ids
    starts = range(len(framed) - len(plain) + 1)
    start = next((at for at in starts if framed[at : at + len(plain)] == plain), 0)
    before, after = tuple(framed[:start]), tuple(framed[start + len(plain) :])
    return Framing(
        before=_override(backend, before, config.get("add_bos_token"), named.get("bos_token")),
        after=_override(backend, after, config.get("add_eos_token"), named.get("eos_token")),
    )


def _override(
    backend: tokenizers.Tokenizer, ids: tuple[int, ...], is_wanted: object, token: str | None
) -> tuple[int, ...]:
    token_id = None if token is None else backend.token_to_id(token)
    if token_id is None or not isinstance(is_wanted, bool) or is_wanted == (token_id in ids):
        return ids
    return (token_id,) if is_wanted else tuple(other for other in ids if other != token_id)
