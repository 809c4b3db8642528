"""Tools a model may call, and calls it has made, in OpenAI's shapes."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Discriminator, Field, Tag, model_validator

from octavo.server.protocol.fields import StrictModel
from octavo.structured.json_schema import MAX_SCHEMA_CHARS
from octavo.tokenization.chat_template import shown_arguments
from octavo.tools.formats import Tool

MAX_TOOLS = 128
MAX_CALLS = 128
_FunctionName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]{1,64}$")]
_ANY_OBJECT: dict[str, Any] = {"type": "object", "properties": {}}


class FunctionDefinition(StrictModel):
    """A function and the JSON schema of its arguments."""

    name: _FunctionName
    description: str | None = Field(None, max_length=16_384)
    parameters: dict[str, Any] | None = Field(None, description="None takes no arguments.")
    strict: bool | None = Field(
        None, description="Let arguments follow the schema also with tool_choice auto."
    )


class ChatTool(StrictModel):
    """A tool; only functions are known."""

    type: Literal["function"]
    function: FunctionDefinition

    def to_tool(self) -> Tool:
        """The same for the parsers and grammars."""
        function = self.function
        return Tool(
            function.name,
            function.description,
            function.parameters or _ANY_OBJECT,
            is_strict=bool(function.strict),
        )


class FunctionName(StrictModel):
    """A function by its name."""

    name: _FunctionName


class NamedToolChoice(StrictModel):
    """The function that is to be called."""

    type: Literal["function"] = "function"
    function: FunctionName


class AllowedTools(StrictModel):
    """Some of the tools, and whether one of them must be called."""

    mode: Literal["auto", "required"]
    tools: Annotated[list[NamedToolChoice], Field(min_length=1, max_length=MAX_TOOLS)]


class AllowedToolChoice(StrictModel):
    """The functions that may be called."""

    type: Literal["allowed_tools"]
    allowed_tools: AllowedTools


def _kind_of_choice(value: Any) -> str:
    """Which of the objects it is meant to be; in brackets, as no field's name is."""
    kind = value.get("type") if isinstance(value, dict) else getattr(value, "type", None)
    return "[allowed]" if kind == "allowed_tools" else "[named]"


ToolChoice = (
    Literal["none", "auto", "required"]
    | Annotated[
        Annotated[NamedToolChoice, Tag("[named]")] | Annotated[AllowedToolChoice, Tag("[allowed]")],
        Discriminator(_kind_of_choice),
    ]
    | None
)


class CalledFunction(StrictModel):
    """A function and its arguments as the text of a JSON object."""

    name: _FunctionName
    arguments: str = Field(max_length=MAX_SCHEMA_CHARS)

    def for_template(self) -> dict[str, Any]:
        """As chat templates read it."""
        return {"name": self.name, "arguments": shown_arguments(self.arguments)}


class MessageToolCall(StrictModel):
    """A call in an assistant's earlier message."""

    id: str = Field(min_length=1, max_length=256)
    type: Literal["function"] = "function"
    function: CalledFunction
    index: int | None = Field(None, ge=0, le=MAX_CALLS, description="Of a streamed call; not used.")


Tools = Annotated[list[ChatTool], Field(max_length=MAX_TOOLS)] | None


class ToolsBody(StrictModel):
    """The fields that say which tools may be called."""

    parameters_field: ClassVar[str] = "function.parameters"
    """Where a tool has its schema, as this API's clients write it."""

    tools: Tools = None
    tool_choice: ToolChoice = Field(
        None, description="auto if there are tools, none if there are not."
    )
    parallel_tool_calls: bool | None = Field(
        True,
        description="Whether the answer may hold several calls; of a function that tool_choice "
        "names it holds one.",
    )
    include_reasoning: bool = Field(True, description="Whether the answer tells the thoughts.")

    @model_validator(mode="after")
    def _choice_and_tools_agree(self) -> ToolsBody:
        names = [tool.function.name for tool in self.tools or ()]
        if len(names) > len(set(names)):
            raise ValueError("two of the tools have the same name; give each its own.")
        for chosen in self._chosen_names():
            if chosen not in names:
                raise ValueError(
                    f"tool_choice names {chosen!r}, which is none of the tools "
                    f"({', '.join(names)})."
                )
        if self.tool_choice == "required" and not names:
            raise ValueError("tool_choice is 'required' and there are no tools; send some.")
        return self

    @property
    def is_named(self) -> bool:
        """Whether one function is to be called."""
        return isinstance(self.tool_choice, NamedToolChoice)

    @property
    def may_call_twice(self) -> bool:
        """Whether the answer may hold more than one call."""
        return self.parallel_tool_calls is not False and not self.is_named

    @property
    def is_call_forced(self) -> bool:
        """Whether the answer must be a call."""
        choice = self.tool_choice
        if isinstance(choice, AllowedToolChoice):
            return choice.allowed_tools.mode == "required"
        return bool(self.tools) and (self.is_named or choice == "required")

    def usable_tools(self) -> list[Tool]:
        """Those the model may call, and is told of."""
        if self.tool_choice == "none":
            return []
        tools = [tool.to_tool() for tool in self.tools or ()]
        if isinstance(self.tool_choice, AllowedToolChoice):
            return [tool for tool in tools if tool.name in self._chosen_names()]
        return tools

    def schema_fields(self) -> dict[str, str]:
        """The field that holds the schema of each tool's arguments, by the tool's name."""
        names = [tool.function.name for tool in self.tools or ()]
        return {name: f"tools[{i}].{self.parameters_field}" for i, name in enumerate(names)}

    def _chosen_names(self) -> list[str]:
        """Of the tools that tool_choice names."""
        choice = self.tool_choice
        if isinstance(choice, AllowedToolChoice):
            return [each.function.name for each in choice.allowed_tools.tools]
        return [choice.function.name] if isinstance(choice, NamedToolChoice) else []

    def forced_tools(self) -> list[Tool]:
        """Those of which one must be called."""
        tools = self.usable_tools()
        if isinstance(self.tool_choice, NamedToolChoice):
            return [tool for tool in tools if tool.name == self.tool_choice.function.name]
        return tools
