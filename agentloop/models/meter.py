"""What calls cost, and the stop before the budget is passed: `Meter`, and `Metered` around a model.

In: completions; out: `Usage` in all and per model or policy. A limit is checked before each call,
so it can be passed by no more than the calls in flight. An unknown price is said, never guessed.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import replace

from agentloop.errors import BudgetReached, ModelError
from agentloop.ports import Model
from agentloop.records import Budget, Completion, Request, Usage

Prices = Mapping[str, tuple[float, float]]
"""Model name (`*` for any other) -> US dollars per million prompt and completion tokens."""
FREE: Prices = {"*": (0.0, 0.0)}
"""For models that run here."""

# Endpoints name the dated snapshot that answered: gpt-4o-mini-2024-07-18 for gpt-4o-mini.
_SNAPSHOT = re.compile(r"-(\d{4}-\d{2}-\d{2}|\d{8})$")


class Meter:
    """One ledger for all models of a run; shared by every `Metered`."""

    def __init__(
        self,
        budget: Budget | None = None,
        prices: Prices | None = None,
        *,
        spent: Usage | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`spent` is what the run had used before this process took it up."""
        self.budget, self._prices, self._clock = budget or Budget(), prices or {}, clock
        self._started = clock()
        self.total = spent or Usage()
        self.by_model: dict[str, Usage] = {}
        """Usage per policy, or per model where the base answered."""
        self.failed_calls = 0
        """Attempts without a reply; they are in `total.calls` too."""
        self.priced = True
        """Whether every call so far had a known price; if not, `total.usd` is a lower bound."""

    @property
    def seconds(self) -> float:
        """Wall time since the meter was made."""
        return self._clock() - self._started

    def check(self) -> None:
        """Raises `BudgetReached` when dollars, tokens or seconds are spent."""
        spent = (
            ("usd", self.total.usd, self.budget.usd),
            ("tokens", self.total.tokens, self.budget.tokens),
            ("seconds", self.seconds, self.budget.seconds),
        )
        for name, value, limit in spent:
            if limit is not None and value >= limit:
                raise BudgetReached(f"the budget of {limit:g} {name} is reached ({value:g} used)")

    def charge(self, completion: Completion) -> Completion:
        """Add what `completion` used; returns it with `usage.usd` filled in from the prices."""
        usage = completion.usage
        if not usage.usd:
            usd = self._usd(completion.model, usage.prompt_tokens, usage.completion_tokens)
            self.priced = self.priced and usd is not None
            usage = replace(usage, usd=usd or 0.0)
        self._add(completion.policy or completion.model, usage)
        return replace(completion, usage=usage)

    def charge_failure(self, calls: int) -> None:
        """Count `calls` attempts that brought no reply (what they cost is not known)."""
        self.failed_calls += calls
        self._add("", Usage(calls=calls))

    def estimate(
        self, calls: int, prompt_tokens: int, completion_tokens: int, *, model: str
    ) -> float | None:
        """US dollars for `calls` calls with that many tokens each; `None` when `model` has no
        price."""
        usd = self._usd(model, prompt_tokens, completion_tokens)
        return None if usd is None else calls * usd

    def _add(self, name: str, usage: Usage) -> None:
        self.total += usage
        if name:
            self.by_model[name] = self.by_model.get(name, Usage()) + usage

    def _usd(self, model: str, prompt_tokens: int, completion_tokens: int) -> float | None:
        """Cached prompt tokens count in full: an upper bound, since discounts differ."""
        names = (model, _SNAPSHOT.sub("", model), "*")
        price = next((self._prices[name] for name in names if name in self._prices), None)
        if price is None:
            return None
        return (prompt_tokens * price[0] + completion_tokens * price[1]) / 1e6


class Metered:
    """A model whose calls are checked and charged."""

    def __init__(self, inner: Model, meter: Meter) -> None:
        self._inner, self.meter = inner, meter

    async def complete(self, request: Request) -> Completion:
        """One reply. Raises `BudgetReached` before the call, or its `ModelError`."""
        self.meter.check()
        try:
            completion = await self._inner.complete(request)
        except ModelError as error:
            self.meter.charge_failure(error.calls)
            raise
        except asyncio.CancelledError:
            self.meter.charge_failure(1)
            raise
        return self.meter.charge(completion)
