"""Another model when one is down: `Fallbacks` over models in order of preference.

In: a `Request`; out: the first model's `Completion`, else the next one's, marked with its name.
A request that names a policy is never given to another model: its reply would be trained on as if
that policy had sampled it. Nor is one that the first model refused as too long: it is not down. A
model that hangs has only its share of the rollout's time, or no other would ever be asked.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from agentloop.deadline import leaving_time
from agentloop.errors import ModelError
from agentloop.ports import Model
from agentloop.records import Completion, Request


class Fallbacks:
    """Models tried in turn; each one is a chain of its own, with its own retries."""

    def __init__(self, models: Sequence[tuple[str, Model]]) -> None:
        """(spec, model) pairs, the one that is meant first; at least one."""
        self._models = tuple(models)

    async def complete(self, request: Request) -> Completion:
        """One reply. Raises the first model's `ModelError`, with what the others said, when all
        fail; its `calls` are those of all. `BudgetReached` and `context_overflow` pass."""
        (_, first), *others = self._models
        if request.policy is not None:
            return await first.complete(request)
        left = len(others)
        try:
            with leaving_time(left):
                return await first.complete(request)
        except ModelError as error:
            if error.reason == "context_overflow":
                raise
            cause, calls = error, error.calls
        said = [str(cause)]
        for name, model in others:
            left -= 1
            try:
                with leaving_time(left):
                    completion = await model.complete(request)
            except ModelError as error:
                calls += error.calls
                said.append(f"fallback `{name}`: {error}")
                continue
            usage = replace(completion.usage, calls=completion.usage.calls + calls)
            return replace(completion, usage=usage, fallback=name)
        raise ModelError("; ".join(said), reason=cause.reason, calls=calls) from cause
