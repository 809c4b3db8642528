"""What chat and text completions have in common: how to sample, how to answer.

Every number, list and string has a bound, checked before any work is done. ``null`` means the
default, as in OpenAI's API.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from octavo.sampling_params import MAX_LOGPROBS, MAX_N, SamplingParams
from octavo.server.limits import MAX_TIMEOUT_S
from octavo.server.protocol.unsupported import STREAM_OPTIONS, Unsupported, settle
from octavo.tokenization.tokenizer import Truncation

MAX_INT32 = 2**31 - 1
MAX_STOPS = 64
MAX_STOP_CHARS = 1024
MAX_STOP_TOKEN_IDS = 1024
MAX_LOGIT_BIASES = 4096
MAX_ALLOWED_TOKEN_IDS = 16384
MAX_BAD_WORDS = 256
MAX_BAD_WORD_CHARS = 256
MAX_METADATA = 16


def _as_list(value: object) -> object:
    """One string is a list of one."""
    return [value] if isinstance(value, str) else value


def at_most(most: int, value: object) -> object:
    """Counted before the members are looked at: each one that is wrong would be reported."""
    if isinstance(value, dict) and len(value) > most:
        raise ValueError(f"it has {len(value)} members; at most {most} are allowed. Send fewer.")
    return value


def _some(value: int) -> int:
    if not value:
        raise ValueError("it is 0; keep at least 1 token, or as many as fit with -1.")
    return value


TokenId = Annotated[int, Field(ge=0, le=MAX_INT32)]
StopString = Annotated[str, Field(min_length=1, max_length=MAX_STOP_CHARS)]
BadWord = Annotated[str, Field(pattern=r"\S", max_length=MAX_BAD_WORD_CHARS)]
BadWords = Annotated[list[BadWord], Field(max_length=MAX_BAD_WORDS)]
Metadata = Annotated[
    dict[Annotated[str, Field(max_length=64)], Annotated[str, Field(max_length=512)]],
    Field(max_length=MAX_METADATA),
    BeforeValidator(partial(at_most, MAX_METADATA)),
]
StopStrings = Annotated[list[StopString], Field(max_length=MAX_STOPS)]
StopTokenIds = Annotated[list[TokenId], Field(max_length=MAX_STOP_TOKEN_IDS)]
LogprobCount = Annotated[int, Field(ge=0, le=MAX_LOGPROBS)]
PositiveCount = Annotated[int, Field(ge=1, le=MAX_INT32)]
KeptTokens = Annotated[int, Field(ge=-1, le=MAX_INT32), AfterValidator(_some)]
"""Of a prompt; -1: as many as fit."""


_SAID_OF_FIELDS = frozenset({"title", "description", "default"})


def _nullable(described: dict[str, Any]) -> dict[str, Any]:
    """A field's schema, and null."""
    told = {key: value for key, value in described.items() if key in _SAID_OF_FIELDS}
    form = {key: value for key, value in described.items() if key not in _SAID_OF_FIELDS}
    forms = form["anyOf"] if list(form) == ["anyOf"] else [form]
    if {"type": "null"} not in forms:
        forms = [*forms, {"type": "null"}]
    return {"anyOf": forms, **told}


class StrictModel(BaseModel):
    """Unknown fields are errors; nothing is converted; no NaN, no infinity."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


class StreamOptions(StrictModel):
    """What a stream tells beside the text."""

    include_usage: bool | None = Field(False, description="Send a last chunk with the usage.")
    continuous_usage_stats: bool | None = Field(
        False, description="Send the usage so far with every chunk."
    )


class RequestBody(StrictModel):
    """A body with a table of known fields that do nothing here."""

    unsupported: ClassVar[Mapping[str, Unsupported]] = {}

    @classmethod
    def settle_unsupported(cls, document: dict[str, Any]) -> None:
        """Drop the harmless known fields; raise ApiError for one that cannot be honoured."""
        settle(document, cls.unsupported)

    @model_validator(mode="before")
    @classmethod
    def _null_is_the_default(cls, document: Any) -> Any:
        if not isinstance(document, dict):
            return document
        return {
            name: value
            for name, value in document.items()
            if value is not None or not cls._is_optional(name)
        }

    @classmethod
    def _is_optional(cls, name: str) -> bool:
        field = cls.model_fields.get(name)
        return field is not None and not field.is_required()

    @classmethod
    def __get_pydantic_json_schema__(cls, schema: Any, handler: Any) -> dict[str, Any]:
        written: dict[str, Any] = handler.resolve_ref_schema(handler(schema))
        for name, described in written["properties"].items():
            if cls._is_optional(name):
                written["properties"][name] = _nullable(described)
        for name, field in cls.unsupported.items():
            written["properties"][name] = field.json_schema()
        return written


ModelName = Annotated[
    str | None,
    Field(
        max_length=512,
        description="One of the names in /v1/models; the served model if left out.",
    ),
]


class EngineBody(RequestBody):
    """The fields of every body that the engine works for."""

    model: ModelName = None
    priority: int = Field(
        0, ge=-MAX_INT32, le=MAX_INT32, description="Requests with a lower number run sooner."
    )
    cache_salt: str | None = Field(
        None,
        min_length=1,
        max_length=256,
        description="Cached prompts are shared only between requests with the same salt.",
    )
    timeout: float | None = Field(
        None,
        gt=0,
        le=MAX_TIMEOUT_S,
        description="Seconds for the whole answer, queueing included; what there is by then is "
        "returned with stop_reason 'deadline'.",
    )
    request_id: str | None = Field(
        None, pattern=r"^[!-~]{1,128}$", description="Becomes part of the answer's id."
    )
    metadata: Metadata | None = Field(None, description="Taken, and not used.")
    user: str | None = Field(None, max_length=1024, description="Taken, and not used.")
    safety_identifier: str | None = Field(None, max_length=1024, description="Taken, and not used.")
    prompt_cache_key: str | None = Field(
        None, max_length=1024, description="Taken, and not needed: equal prompts share their cache."
    )

    @property
    def is_streamed(self) -> bool:
        """Whether the answer comes in pieces."""
        return False


class SamplingBody(EngineBody):
    """The fields of every body that text is generated for."""

    temperature: float | None = Field(
        None, ge=0, le=100, description="0 takes the most likely token every time."
    )
    top_p: float | None = Field(None, gt=0, le=1)
    top_k: int | None = Field(None, ge=-1, le=MAX_INT32, description="0 or -1: every token.")
    min_p: float | None = Field(None, ge=0, le=1)
    repetition_penalty: float | None = Field(None, gt=0, le=100)
    presence_penalty: float | None = Field(0.0, ge=-2, le=2)
    frequency_penalty: float | None = Field(0.0, ge=-2, le=2)
    logit_bias: (
        Annotated[
            dict[
                Annotated[str, Field(pattern=r"^[0-9]{1,9}$")],
                Annotated[float, Field(ge=-100, le=100)],
            ],
            Field(max_length=MAX_LOGIT_BIASES),
            BeforeValidator(partial(at_most, MAX_LOGIT_BIASES)),
        ]
        | None
    ) = None
    seed: int | None = Field(None, ge=-(2**63), le=2**63 - 1)
    stop: Annotated[
        StopStrings,
        BeforeValidator(_as_list, json_schema_input_type=StopString | StopStrings),
    ] = []
    stop_token_ids: StopTokenIds = []
    include_stop_str_in_output: bool = False
    ignore_eos: bool = False
    min_tokens: int = Field(0, ge=0, le=MAX_INT32)
    skip_special_tokens: bool = True
    spaces_between_special_tokens: bool = Field(
        True, description="Taken, and not used: special tokens are written as they are."
    )
    allowed_token_ids: (
        Annotated[list[TokenId], Field(min_length=1, max_length=MAX_ALLOWED_TOKEN_IDS)] | None
    ) = Field(None, description="The only token ids that may be generated.")
    bad_words: BadWords = Field([], description="Words that are not generated.")
    stream: bool | None = False

    @property
    def is_streamed(self) -> bool:
        """See :class:`EngineBody`."""
        return bool(self.stream)

    def sampling_params(
        self,
        defaults: Mapping[str, float],
        *,
        max_tokens: int | None,
        logprobs: int | None,
        prompt_logprobs: int | None = None,
        n: int = 1,
    ) -> SamplingParams:
        """As the engine takes it. ``defaults`` are the model's, for what the request leaves out.

        Raises InvalidRequestError for values that do not go together.
        """

        def given(name: str, otherwise: float) -> float:
            value = getattr(self, name)
            return defaults.get(name, otherwise) if value is None else value

        return SamplingParams(
            n=n,
            temperature=given("temperature", 1.0),
            top_p=given("top_p", 1.0),
            top_k=int(given("top_k", 0)),
            min_p=given("min_p", 0.0),
            repetition_penalty=given("repetition_penalty", 1.0),
            presence_penalty=self.presence_penalty or 0.0,
            frequency_penalty=self.frequency_penalty or 0.0,
            logit_bias={int(key): bias for key, bias in (self.logit_bias or {}).items()},
            seed=self.seed,
            stop=self.stop,
            stop_token_ids=self.stop_token_ids,
            include_stop_str_in_output=self.include_stop_str_in_output,
            ignore_eos=self.ignore_eos,
            max_tokens=max_tokens,
            min_tokens=self.min_tokens,
            skip_special_tokens=self.skip_special_tokens,
            logprobs=logprobs,
            prompt_logprobs=prompt_logprobs,
            allowed_token_ids=self.allowed_token_ids or (),
            bad_words=self.bad_words,
        )


class GenerationBody(SamplingBody):
    """The fields both kinds of completion take."""

    n: int | None = Field(1, ge=1, le=MAX_N, description="Choices to generate for the prompt.")
    prompt_logprobs: LogprobCount | None = Field(
        None, description="Tell the log probabilities of the prompt's tokens, so many of each."
    )
    truncate_prompt_tokens: KeptTokens | None = Field(
        None, description="Keep so many tokens of the prompt; -1: as many as fit."
    )
    truncation_side: Literal["left", "right"] | None = Field(
        None, description="Where truncate_prompt_tokens leaves tokens out; left if left out."
    )
    stream_options: StreamOptions | None = None
    return_token_ids: bool | None = False
    return_tokens_as_token_ids: bool | None = Field(
        False, description="Write tokens as token_id:17 in log probabilities."
    )

    @classmethod
    def settle_unsupported(cls, document: dict[str, Any]) -> None:
        """See :meth:`RequestBody.settle_unsupported`."""
        super().settle_unsupported(document)
        options = document.get("stream_options")
        if isinstance(options, dict):
            settle(options, STREAM_OPTIONS, "stream_options.")

    @model_validator(mode="after")
    def _options_need_a_stream(self) -> GenerationBody:
        if self.stream_options is not None and not self.stream:
            raise ValueError(
                "stream_options is set and stream is not true; "
                "set stream to true or leave stream_options out."
            )
        return self

    @model_validator(mode="after")
    def _prompt_fields_agree(self) -> GenerationBody:
        if self.truncation_side is not None and self.truncate_prompt_tokens is None:
            raise ValueError(
                f"truncation_side is {self.truncation_side!r} and truncate_prompt_tokens is not "
                "set; send both or none."
            )
        if self.prompt_logprobs is not None and self.stream:
            raise ValueError(
                f"prompt_logprobs is {self.prompt_logprobs} and stream is true; a stream does not "
                "tell them: leave one of them out."
            )
        return self

    def truncation(self, max_model_len: int, max_tokens: int | None) -> Truncation | None:
        """How to cut the prompt, as the request asks."""
        limit = self.truncate_prompt_tokens
        if limit is None:
            return None
        if limit == -1:
            limit = max(1, max_model_len - (1 if max_tokens is None else max_tokens))
        return Truncation(limit, self.truncation_side or "left")
