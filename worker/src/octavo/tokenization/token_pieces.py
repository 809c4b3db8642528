"""What bytes each token stands for.

A text is the bytes of its tokens, one after the other, read as UTF-8; that is what makes
streaming exact. Two vocabularies write bytes differently: byte-level BPE (GPT-2, Llama 3, Qwen)
spells each byte as one printable character, SentencePiece (Llama 2, Mistral, Gemma) spells text
as it is, a space as ``▁`` and a byte outside its vocabulary as ``<0x0A>``.
"""

from __future__ import annotations

import enum
import json
import re
from collections.abc import Callable
from dataclasses import dataclass

from octavo.errors import UnsupportedModelError

SPACE = "▁"
_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")


class Spelling(enum.Enum):
    """How a vocabulary writes bytes."""

    BYTE_LEVEL = "byte-level"
    SENTENCEPIECE = "sentencepiece"


@dataclass(frozen=True, slots=True)
class PieceStyle:
    """A vocabulary's spelling, and whether the text's first space is an artefact of encoding."""

    spelling: Spelling
    drops_first_space: bool = False


def _byte_alphabet() -> dict[str, int]:
    """GPT-2's spelling: printable bytes as themselves, the others from U+0100 upwards."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = (byte for byte in range(256) if byte not in printable)
    alphabet = {chr(byte): byte for byte in printable}
    alphabet.update((chr(0x100 + index), byte) for index, byte in enumerate(others))
    return alphabet


BYTE_OF_CHARACTER = _byte_alphabet()


def byte_level_bytes(token: str) -> bytes:
    """Bytes of a byte-level token; a token with any other character stands for its own text."""
    try:
        return bytes([BYTE_OF_CHARACTER[character] for character in token])
    except KeyError:
        return token.encode()


def sentencepiece_bytes(token: str) -> bytes:
    """Bytes of a SentencePiece token."""
    match = _BYTE_TOKEN.fullmatch(token)
    if match:
        return bytes([int(match[1], 16)])
    return token.replace(SPACE, " ").encode()


BYTES_OF_TOKEN: dict[Spelling, Callable[[str], bytes]] = {
    Spelling.BYTE_LEVEL: byte_level_bytes,
    Spelling.SENTENCEPIECE: sentencepiece_bytes,
}


def parse_decoder(decoder_json: str) -> PieceStyle:
    """The style of a ``tokenizer.json``'s decoder.

    Raises UnsupportedModelError for decoders that are not of the two kinds above, such as
    WordPiece's, whose text is not the bytes of its tokens.
    """
    decoder = json.loads(decoder_json)
    steps = decoder["decoders"] if decoder["type"] == "Sequence" else [decoder]
    kinds = [step["type"] for step in steps]
    if kinds == ["ByteLevel"]:
        return PieceStyle(Spelling.BYTE_LEVEL)
    if kinds == ["Metaspace"]:
        drops = steps[0].get("prepend_scheme", "always") != "never"
        return PieceStyle(Spelling.SENTENCEPIECE, drops_first_space=drops)
    if _is_sentencepiece(steps):
        drops = any(step["type"] == "Strip" and step["start"] == 1 for step in steps)
        return PieceStyle(Spelling.SENTENCEPIECE, drops_first_space=drops)
    raise UnsupportedModelError(
        f"The tokenizer's decoder is {' + '.join(kinds)}, which cannot be streamed; supported: "
        "ByteLevel, Metaspace, and Replace + ByteFallback + Fuse (+ Strip)."
    )


def _is_sentencepiece(steps: list[dict[str, object]]) -> bool:
    for step in steps:
        match step:
            case {"type": "Replace", "pattern": {"String": "▁"}, "content": " "}:
                pass
            case {"type": "ByteFallback" | "Fuse"}:
                pass
            case {"type": "Strip", "content": " ", "start": 0 | 1, "stop": 0}:
                pass
            case _:
                return False
    return any(step["type"] == "Replace" for step in steps)
