"""Random outputs under three hundred schemas: whatever ends validates."""

from __future__ import annotations

import json
import random

import jsonschema
import pytest

from octavo.grammar import StructuredOutputs
from octavo.structured.translate import translate
from schema_families import Schema, schemas
from tiny_engine import byte_grammars
from tiny_models import EOS_TOKEN_ID

MAX_TOKENS = 600
SCHEMAS = schemas()
_GRAMMARS = byte_grammars()


def draw(schema: Schema, seed: int) -> str | None:
    """A text of tokens drawn evenly from what is allowed; None where the tokens are used up."""
    asked = StructuredOutputs(json=schema, disable_any_whitespace=seed % 2 == 0)
    follower = _GRAMMARS.follow(translate(asked), [EOS_TOKEN_ID], 0)
    while not follower.is_ready:
        pass
    assert follower.error is None, f"{schema}: {follower.error}"
    choose = random.Random(seed)
    data = bytearray()
    for _ in range(MAX_TOKENS):
        mask = follower.matcher.compute_bitmask()
        allowed = [i for i in range(8 * len(mask)) if mask[i // 8] >> (i % 8) & 1]
        assert allowed, f"nothing may follow {bytes(data)!r} in {schema}"
        # Evenly over all bytes texts would rarely end: an end is taken where there is one.
        closing = [i for i in allowed if i == EOS_TOKEN_ID or chr(i) in '"}]']
        token_id = choose.choice(closing if closing and choose.random() < 0.4 else allowed)
        assert follower.accept(token_id)
        if follower.has_ended:
            follower.release()
            return data.decode()
        data.append(token_id)
    follower.release()
    return None


@pytest.mark.parametrize("part", range(6))
def test_every_output_that_ends_validates(part: int) -> None:
    num_cut = 0
    for number, schema in enumerate(SCHEMAS[part::6]):
        text = draw(schema, seed=number)
        if text is None:
            num_cut += 1
            continue
        document = json.loads(text)
        checker = jsonschema.Draft202012Validator.FORMAT_CHECKER
        jsonschema.Draft202012Validator(schema, format_checker=checker).validate(document)
    assert num_cut <= 2, f"{num_cut} of {len(SCHEMAS[part::6])} were cut"
    assert _GRAMMARS.num_open == 0
