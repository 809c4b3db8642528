"""What an answer must follow: OpenAI's ``response_format`` and vLLM's ``structured_outputs``."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from pydantic import Field, model_validator

from octavo.grammar import StructuredOutputs
from octavo.sampling_params import SamplingParams
from octavo.server.protocol.fields import StrictModel
from octavo.structured.json_schema import MAX_SCHEMA_CHARS
from octavo.structured.regex_size import MAX_REGEX_CHARS
from octavo.structured.translate import MAX_CHOICES, MAX_GRAMMAR_CHARS

_SchemaText = Annotated[str, Field(max_length=MAX_SCHEMA_CHARS)]
_Trigger = Annotated[str, Field(max_length=1024)]
_Choice = Annotated[str, Field(max_length=MAX_GRAMMAR_CHARS)]
_Object = dict[str, Any]
_FORMAT = "response_format"


class JsonSchemaFormat(StrictModel):
    """A schema with a name, as OpenAI wraps it."""

    name: str = Field(pattern=r"^[A-Za-z0-9_.-]{1,64}$")
    description: str | None = Field(None, max_length=8192, description="Not shown to the model.")
    schema_: _Object | bool | None = Field(
        None, alias="schema", description="Draft 2020-12; any JSON object if left out."
    )
    strict: bool | None = Field(None, description="Schemas are always followed strictly.")


class ResponseFormat(StrictModel):
    """What the text must be."""

    type: Literal["text", "json_object", "json_schema", "structural_tag"]
    json_schema: JsonSchemaFormat | None = None
    structures: list[_Object] | None = Field(None, max_length=256)
    triggers: list[_Trigger] | None = Field(None, max_length=256)

    @model_validator(mode="after")
    def _has_what_its_type_needs(self) -> ResponseFormat:
        if (self.type == "json_schema") != (self.json_schema is not None):
            raise ValueError(
                f"type is {self.type!r}; json_schema belongs to type 'json_schema', and must be "
                "there."
            )
        is_tag = self.type == "structural_tag"
        if is_tag != (self.structures is not None) or is_tag != (self.triggers is not None):
            raise ValueError(
                f"type is {self.type!r}; structures and triggers belong to type 'structural_tag' "
                "and must be there."
            )
        return self

    def to_structured_outputs(self) -> StructuredOutputs | None:
        """The same in the engine's terms; None where any text will do."""
        match self.type:
            case "json_object":
                return StructuredOutputs(json_object=True, asked_by=_FORMAT)
            case "json_schema":
                assert self.json_schema is not None
                if self.json_schema.schema_ is None:
                    return StructuredOutputs(json_object=True, asked_by=_FORMAT)
                return StructuredOutputs(json=self.json_schema.schema_, asked_by=_FORMAT)
            case "structural_tag":
                tag = {"structures": self.structures, "triggers": self.triggers}
                return StructuredOutputs(structural_tag=tag, asked_by=_FORMAT)
        return None


class StructuredOutputsBody(StrictModel):
    """Exactly one of json, regex, choice, grammar, json_object and structural_tag."""

    json_: _Object | bool | _SchemaText | None = Field(None, alias="json")
    regex: str | None = Field(None, max_length=MAX_REGEX_CHARS)
    choice: list[_Choice] | None = Field(None, min_length=1, max_length=MAX_CHOICES)
    grammar: str | None = Field(
        None, max_length=MAX_GRAMMAR_CHARS, description="In Lark's notation, or in GBNF."
    )
    json_object: bool | None = None
    structural_tag: _Object | _SchemaText | None = None
    disable_any_whitespace: bool = False
    disable_additional_properties: bool = False
    whitespace_pattern: str | None = Field(None, max_length=256)

    def to_structured_outputs(self) -> StructuredOutputs:
        """The same in the engine's terms; raises InvalidRequestError for none or several."""
        return StructuredOutputs(
            json=self.json_,
            regex=self.regex,
            choice=self.choice,
            grammar=self.grammar,
            json_object=self.json_object,
            structural_tag=self.structural_tag,
            disable_any_whitespace=self.disable_any_whitespace,
            disable_additional_properties=self.disable_additional_properties,
            whitespace_pattern=self.whitespace_pattern,
        )


class ConstrainedBody(StrictModel):
    """The fields that say what an answer must follow."""

    response_format: ResponseFormat | None = None
    structured_outputs: StructuredOutputsBody | None = None

    @model_validator(mode="after")
    def _one_constraint(self) -> ConstrainedBody:
        is_free = self.response_format is None or self.response_format.type == "text"
        if self.structured_outputs is not None and not is_free:
            raise ValueError(
                "response_format and structured_outputs are both set; an answer can follow one of "
                "them: leave the other out."
            )
        return self

    def asked_structure(self) -> StructuredOutputs | None:
        """What the answer must follow; None for nothing."""
        if self.structured_outputs is not None:
            return self.structured_outputs.to_structured_outputs()
        if self.response_format is not None:
            return self.response_format.to_structured_outputs()
        return None

    def constrain(self, params: SamplingParams) -> SamplingParams:
        """The parameters with what the answer must follow."""
        asked = self.asked_structure()
        if asked is None:
            return params
        return msgspec.structs.replace(params, structured_outputs=asked)
