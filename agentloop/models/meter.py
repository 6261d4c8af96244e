"""What calls cost, and the stop before the budget is passed: `Meter`, and `Metered` around a model.

In: completions; out: `Usage` in all and per model or policy. Before each call the most that it can
cost is set aside, so calls in flight together cannot pass a limit; only a call that is alone may,
by its own cost, so that no budget is left half used. An unknown price is said, never guessed.
"""

from __future__ import annotations

import asyncio
import math
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import NamedTuple

from agentloop.errors import BudgetReached, ModelError
from agentloop.models.deadline import off_the_clock
from agentloop.models.limits import most_tokens
from agentloop.ports import Model
from agentloop.records import Budget, Completion, Request, Usage

Prices = Mapping[str, tuple[float, float]]
"""Model name (`*` for any other) -> US dollars per million prompt and completion tokens."""
FREE: Prices = {"*": (0.0, 0.0)}
"""For models that run here."""

# Endpoints name the dated snapshot that answered: gpt-4o-mini-2024-07-18 for gpt-4o-mini.
_SNAPSHOT = re.compile(r"-(\d{4}-\d{2}-\d{2}|\d{8})$")


class Share(NamedTuple):
    """What is set aside for one call in flight."""

    usd: float = 0.0
    tokens: int = 0


NOTHING = Share()


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
        self._in_flight = 0
        self._aside = NOTHING
        self._dearest = 0.0
        """The largest cost of one call so far, for models whose price only the reply tells."""
        self._waiting: list[asyncio.Future[None]] = []

    @property
    def priced(self) -> bool:
        """Whether every call so far had a known price; if not, `total.usd` is a lower bound."""
        return not self.total.unpriced

    @property
    def seconds(self) -> float:
        """Wall time since the meter was made."""
        return self._clock() - self._started

    def check(self) -> None:
        """Raises `BudgetReached` when dollars, tokens or seconds are spent, or when nothing but
        dollars is limited and a call had no price: such a budget would never end."""
        budget = self.budget
        if budget.usd is not None and budget.tokens is None and self.total.unpriced:
            raise BudgetReached(
                f"the budget of {budget.usd:g} usd cannot be kept: {self.total.unpriced} calls "
                "have no known price; add `prices`, or limit `budget.tokens` as well"
            )
        for name, limit, value in (
            ("usd", budget.usd, self.total.usd),
            ("tokens", budget.tokens, self.total.tokens),
            ("seconds", budget.seconds, self.seconds if budget.seconds is not None else 0.0),
        ):
            if limit is not None and value >= limit:
                raise BudgetReached(f"the budget of {limit:g} {name} is reached ({value:g} used)")

    async def admit(self, request: Request, model: str = "") -> Share:
        """Set aside the most that a call can cost; give it back with `release`. While others are in
        flight it waits until there is room; alone, a call needs only an unspent budget. Raises
        `BudgetReached`."""
        self.check()
        share = self._most(request, model)
        while self._in_flight and not self._fits(share):
            turn = asyncio.get_running_loop().create_future()
            self._waiting.append(turn)
            with off_the_clock():
                await turn
            self.check()
        self._in_flight += 1
        self._aside = Share(self._aside.usd + share.usd, self._aside.tokens + share.tokens)
        return share

    def release(self, share: Share) -> None:
        """The call is over and charged."""
        self._in_flight -= 1
        self._aside = (
            Share(self._aside.usd - share.usd, self._aside.tokens - share.tokens)
            if self._in_flight
            else NOTHING  # no rounding error is left behind
        )
        waiting, self._waiting = self._waiting, []
        for turn in waiting:
            if not turn.done():
                turn.set_result(None)

    def charge(self, completion: Completion) -> Completion:
        """Add what `completion` used; returns it with `usage.usd` filled in from the prices."""
        usage = completion.usage
        if not usage.usd:
            usd = self._usd(completion.model, usage.prompt_tokens, usage.completion_tokens)
            if usd is None:
                usage = replace(usage, unpriced=usage.calls)
            elif usd:
                usage = replace(usage, usd=usd)
        self._dearest = max(self._dearest, usage.usd)
        self._add(completion.policy or completion.model, usage)
        return completion if usage is completion.usage else replace(completion, usage=usage)

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

    def _most(self, request: Request, model: str) -> Share:
        budget = self.budget
        if budget.usd is None and budget.tokens is None:
            return NOTHING
        prompt, reply = most_tokens(request)
        usd = None if budget.usd is None else self._usd(request.policy or model, prompt, reply)
        return Share(self._dearest if usd is None else usd, prompt + reply)

    def _fits(self, share: Share) -> bool:
        most_usd, most_tokens = self.budget.usd or math.inf, self.budget.tokens or math.inf
        return (
            self.total.usd + self._aside.usd + share.usd <= most_usd
            and self.total.tokens + self._aside.tokens + share.tokens <= most_tokens
        )

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
    """A model whose calls are checked and charged. Inside `Retrying` every attempt is a call."""

    def __init__(self, inner: Model, meter: Meter, *, model: str = "") -> None:
        """`model` is the name to look the price up by, before a reply says which one answered."""
        self._inner, self.meter, self._model = inner, meter, model

    async def complete(self, request: Request) -> Completion:
        """One reply. Raises `BudgetReached` before the call, or its `ModelError`."""
        share = await self.meter.admit(request, self._model)
        try:
            completion = await self._inner.complete(request)
        except ModelError as error:
            self.meter.charge_failure(error.calls)
            raise
        except asyncio.CancelledError:
            self.meter.charge_failure(1)
            raise
        else:
            return self.meter.charge(completion)
        finally:
            self.meter.release(share)
