"""`chat_model()`: a LangChain chat model that is whatever model the current rollout is lent.

An existing LangChain or LangGraph agent puts `agentloop.chat_model()` where its own model stood;
its calls are then logged, limited, and given the bundle's instruction and skills. Works in async
nodes and, through a bridge to the event loop, in synchronous ones.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from langchain_core.callbacks import (
    AsyncCallbackManagerForLLMRun,
    CallbackManagerForLLMRun,
)
from langchain_core.language_models import BaseChatModel, LanguageModelInput
from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.outputs import ChatGeneration, ChatResult
from langchain_core.runnables import Runnable
from langchain_core.tools import BaseTool
from langchain_core.utils.function_calling import convert_to_openai_tool

from agentloop.graphs.context import current
from agentloop.graphs.messages import to_langchain, to_message
from agentloop.records import Completion, OwnSampling, Request, ToolSpec


def chat_model(
    *,
    max_tokens: int | None = None,
    temperature: float | None = None,
    top_p: float | None = None,
    stop: Sequence[str] = (),
) -> BaseChatModel:
    """The current rollout's model for LangChain; what is given here wins over the workflow's
    decoding. Calling it outside a rollout raises `UsageError`."""
    given = {"max_tokens": max_tokens, "temperature": temperature, "top_p": top_p}
    settings = {name: value for name, value in given.items() if value is not None}
    return LentChatModel(settings=settings, stops=tuple(stop))


class LentChatModel(BaseChatModel):
    """See `chat_model`, which makes it."""

    settings: dict[str, Any] = {}  # noqa: RUF012 -- a pydantic field, copied per instance
    stops: tuple[str, ...] = ()

    @property
    def _llm_type(self) -> str:
        return "agentloop"

    def bind_tools(
        self,
        tools: Sequence[dict[str, Any] | type | Callable[..., Any] | BaseTool],
        *,
        tool_choice: str | None = None,
        **kwargs: Any,
    ) -> Runnable[LanguageModelInput, AIMessage]:
        """Offer `tools`. A `tool_choice` that names one offers only that one; a model cannot be
        made to call it."""
        offered = [convert_to_openai_tool(tool) for tool in tools]
        names = [tool["function"]["name"] for tool in offered]
        if tool_choice in names:
            offered = [offered[names.index(tool_choice)]]
        return self.bind(tools=offered)

    async def _agenerate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        return _result(await current().model.complete(self._request(messages, stop, kwargs)))

    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        request = self._request(messages, stop, kwargs)
        return _result(current().model.complete_from_thread(request))

    def _request(
        self, messages: list[BaseMessage], stop: list[str] | None, kwargs: dict[str, Any]
    ) -> Request:
        called = {
            name: kwargs[name]
            for name in ("max_tokens", "temperature", "top_p")
            if kwargs.get(name) is not None
        }
        stops = (*self.stops, *(stop or ()))
        own = {**self.settings, **called, **({"stop": stops} if stops else {})}
        return Request(
            messages=tuple(to_message(message) for message in messages),
            tools=tuple(_spec(tool["function"]) for tool in kwargs.get("tools") or ()),
            sampling=OwnSampling.of(**own),
        )


def _spec(function: dict[str, Any]) -> ToolSpec:
    empty = {"type": "object", "properties": {}}
    return ToolSpec(
        name=function["name"],
        description=function.get("description", ""),
        parameters=function.get("parameters", empty),
    )


def _result(completion: Completion) -> ChatResult:
    return ChatResult(generations=[ChatGeneration(message=to_langchain(completion))])
