"""What to attempt, and one exchange with a model."""

from __future__ import annotations

from dataclasses import field
from typing import Any, Literal

from agentloop.records.base import Json, record


@record
class Task:
    """One thing to attempt. Only `id` and `prompt` ever enter the graph."""

    id: str
    prompt: str
    expected: Json = None
    """The answer, for the grader alone."""
    family: str = "default"
    """A label for reports; learners must not read it."""
    data: dict[str, Json] = field(default_factory=dict)
    """Whatever the grader or the world needs (a generator's metadata, hidden tests)."""


@record
class ArtifactRef:
    """A file by content: an observation or an action that is not text (image, array)."""

    sha256: str
    media_type: str
    bytes: int


@record
class Observation:
    """What a world shows: text, or an artifact; `done` ends the episode. Never a reward."""

    text: str
    artifact: ArtifactRef | None = None
    done: bool = False


@record
class ToolCall:
    """A model's wish to call a tool."""

    id: str
    name: str
    arguments: dict[str, Json]


@record
class ToolSpec:
    """What a model is told about a tool: `parameters` is a JSON schema of one object."""

    name: str
    description: str
    parameters: dict[str, Json]
    examples: str = ""
    """Worked examples of calling it (`Question: ...`), for a model that does not know how."""


@record
class Message:
    """One chat message."""

    role: Literal["system", "user", "assistant", "tool"]
    content: str
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str | None = None
    name: str | None = None
    artifact: ArtifactRef | None = None
    token_ids: tuple[int, ...] | None = None
    """The exact ids the engine sampled for an assistant message; a conversation is continued with
    them, never with a re-tokenised text."""


@record
class Sampling:
    """How to sample; `temperature` 0 is greedy. `top_k` 0 means all."""

    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    max_tokens: int = 256
    seed: int | None = None
    stop: tuple[str, ...] = ()


@record
class OwnSampling(Sampling):
    """What an agent set itself; the rest is the workflow's to say."""

    given: frozenset[str] = frozenset()
    """The names of its fields, since a value may equal the default and still be meant."""

    @classmethod
    def of(cls, **given: Any) -> OwnSampling:
        """Of the fields that are set."""
        return cls(**given, given=frozenset(given))


@record
class Request:
    """One call of a model. `policy` names a served adapter, `None` the base model."""

    messages: tuple[Message, ...]
    tools: tuple[ToolSpec, ...] = ()
    sampling: Sampling = Sampling()
    policy: str | None = None
    key: str = ""
    """Names the call for good: one that the journal knows is answered from it, not paid again."""


@record
class Usage:
    """What was used: tokens, US dollars, model calls."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0
    usd: float = 0.0
    calls: int = 0
    unpriced: int = 0
    """Calls among them without a known price: with any, `usd` is a lower bound."""

    @property
    def tokens(self) -> int:
        """Prompt and completion tokens."""
        return self.prompt_tokens + self.completion_tokens

    def __add__(self, other: Usage) -> Usage:
        return Usage(
            prompt_tokens=self.prompt_tokens + other.prompt_tokens,
            completion_tokens=self.completion_tokens + other.completion_tokens,
            cached_tokens=self.cached_tokens + other.cached_tokens,
            usd=self.usd + other.usd,
            calls=self.calls + other.calls,
            unpriced=self.unpriced + other.unpriced,
        )


@record
class Completion:
    """A model's reply. Ids and log-probs are `None` when the endpoint does not give them; such a
    reply is never usable for ratio-based learning."""

    message: Message
    finish_reason: str
    usage: Usage
    model: str
    policy: str | None = None
    prompt_ids: tuple[int, ...] | None = None
    completion_ids: tuple[int, ...] | None = None
    logprobs: tuple[float, ...] | None = None
    """One per completion id, under the sampling distribution."""
    seconds: float = 0.0
    redacted: bool = False
    """A secret was found in the prompt or the reply: ids and log-probs, which spell it, were taken
    out."""
    cached: bool = False
    """Answered from the response cache: its tokens were paid for by an earlier call."""
    fallback: str = ""
    """The spec of the fallback that answered; empty for the model that was asked."""
    sampling: Sampling | None = None
    """How it was sampled, when it was not this request that did: the beginning of a fork."""


@record
class Endpoint:
    """Where a served model answers."""

    base_url: str
    token: str
    model: str
