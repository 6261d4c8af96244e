"""For tests with real models: SmolLM2, adapters of it, rollouts, and the trainer's log-probs."""

from __future__ import annotations

import asyncio
import operator
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, TypedDict

import pytest
from langgraph.graph import END, START, StateGraph
from langgraph.runtime import Runtime

from agentloop.errors import MissingDependency
from agentloop.graphs.context import RunContext, lent
from agentloop.graphs.messages import to_dict, to_message
from agentloop.graphs.run import Runner
from agentloop.models.openai_compatible import OpenAICompatible
from agentloop.records import (
    Attempt,
    Completion,
    Endpoint,
    Episode,
    Limits,
    Message,
    Request,
    Row,
    Sampling,
    Task,
)
from agentloop.serving.vllm import find_python
from agentloop.serving.weights import SMOLLM2
from agentloop.training.examples import IGNORED, Example, example
from agentloop.trajectories import codec
from agentloop.trajectories.chat_format import render
from agentloop.workspace import carried, model_cache

SYSTEM = "You tell stories. Write in plain words, use many details, and never repeat yourself."
ABOUT = ("a lighthouse", "two foxes", "a late train", "the first snow", "a lost key", "a baker")
TURNS = 3


def smollm2() -> Path:
    """The prepared model, or the reason to skip."""
    folder = model_cache() / SMOLLM2
    if not (folder / "config.json").is_file():
        pytest.skip("SmolLM2 is not installed; run: agentloop setup local")
    return folder


def vllm_python() -> Path:
    """vLLM's interpreter, or the reason to skip."""
    try:
        return find_python([carried()])
    except MissingDependency as missing:
        pytest.skip(str(missing))


def make_adapter(base: Path, folder: Path, seed: int) -> Path:
    """A LoRA adapter whose random update is far from nothing, in peft's own format."""
    import peft
    import torch
    from transformers import AutoModelForCausalLM

    torch.manual_seed(seed)
    config = peft.LoraConfig(r=8, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM")
    with warnings.catch_warnings():  # peft asks transformers for something deprecated
        warnings.simplefilter("ignore", FutureWarning)
        model = peft.get_peft_model(AutoModelForCausalLM.from_pretrained(base), config)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                weight.normal_(std=0.01)
    model.save_pretrained(folder, safe_serialization=True)
    return folder


@dataclass
class Watched:
    """A model that keeps what it replied."""

    inner: OpenAICompatible
    replies: list[Completion] = field(default_factory=list)

    async def complete(self, request: Request) -> Completion:
        done = await self.inner.complete(request)
        self.replies.append(done)
        return done


class State(TypedDict, total=False):
    messages: Annotated[list[dict[str, Any]], operator.add]


async def _turn(state: State, runtime: Runtime[RunContext]) -> State:
    messages = tuple(to_message(message) for message in state["messages"])
    reply = (await lent(runtime).model.complete(Request(messages=messages))).message
    more = Message(role="user", content="Go on with the story.")
    return {"messages": [to_dict(reply), to_dict(more)]}


def _enough(state: State) -> str:
    return END if len(state["messages"]) > 2 * TURNS else "turn"


CONVERSATION = (
    StateGraph(State, context_schema=RunContext)
    .add_node("turn", _turn)
    .add_edge(START, "turn")
    .add_conditional_edges("turn", _enough, ["turn", END])
    .compile(name="conversation")
)


def attempts(n: int, policy: str | None, sampling: Sampling, run: str) -> list[Attempt]:
    """Orders for stories of `TURNS` turns."""
    return [
        Attempt(
            task=Task(id=f"{run}-{at}", prompt=f"Tell me of {ABOUT[at % len(ABOUT)]}."),
            bundle="bundle", system=SYSTEM, sampling=sampling, purpose="collect", run=run,
            sample=at, policy=policy,
        )
        for at in range(n)
    ]  # fmt: skip


async def roll_out(
    endpoint: Endpoint, orders: Sequence[Attempt], watched: Watched | None = None, many: int = 64
) -> list[Episode]:
    """Real rollouts on a real server."""
    transport = OpenAICompatible(
        endpoint.base_url, endpoint.token, model=endpoint.model,
        extensions=True, native_tools=False, timeout=300,
    )  # fmt: skip
    if watched is not None:
        watched.inner = transport
    try:
        return await Runner(CONVERSATION, native_tools=False).run(
            orders, model=watched or transport, concurrency=many, limits=Limits(seconds=1_000)
        )
    finally:
        await transport.close()
        await asyncio.sleep(0)


class Recomputed:
    """The trainer's view: transformers in float32, and its chat rendering."""

    def __init__(self, base: Path, adapters: dict[str, Path]) -> None:
        from peft import PeftModel
        from transformers import AutoModelForCausalLM, AutoTokenizer

        self.tokenizer = AutoTokenizer.from_pretrained(base, local_files_only=True)

        def load() -> Any:
            return AutoModelForCausalLM.from_pretrained(base, dtype="float32")

        self.models = {None: load()}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            for name, folder in adapters.items():
                self.models[name] = PeftModel.from_pretrained(load(), folder)

    def example(self, row: Row) -> Example:
        """What is trained on."""
        return example(
            row, lambda messages: render(self.tokenizer, [codec.to_json(one) for one in messages])
        )

    def logprobs(
        self, rows: Sequence[Row], policy: str | None, temperatures: Sequence[float]
    ) -> list[list[float]]:
        """For each row the log-probs of its sampled tokens under `policy`."""
        import torch

        out: list[list[float]] = []
        for row, temperature in zip(rows, temperatures, strict=True):
            made = self.example(row)
            where = [i for i, label in enumerate(made.labels) if label != IGNORED]
            before = torch.tensor([i - 1 for i in where])
            ids = torch.tensor([made.labels[i] for i in where])
            with torch.no_grad():
                logits = self.models[policy](
                    input_ids=torch.tensor([made.input_ids]), logits_to_keep=before
                ).logits[0]
            table = (logits / temperature).double().log_softmax(-1)
            out.append(table.gather(1, ids[:, None])[:, 0].tolist())
        return out


def stored(row: Row) -> list[float]:
    """The log-probs that a row carries for its sampled tokens."""
    pairs = zip(row.logprobs, row.sampled, strict=True)
    return [value for values, sampled in pairs if sampled for value in values]


def differences(
    trainer: Recomputed, rows: Sequence[Row], policy: str | None, temperatures: Sequence[float]
) -> list[float]:
    """Absolute differences, one per sampled token."""
    again = trainer.logprobs(rows, policy, temperatures)
    return [
        abs(a - b)
        for row, values in zip(rows, again, strict=True)
        for a, b in zip(stored(row), values, strict=True)
    ]
