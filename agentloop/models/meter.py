"""What calls cost, and the stop before the budget is passed: `Meter`, and `Metered` around a model.

In: completions; out: `Usage` in all and per model or policy. Before each call the most that it can
cost is set aside, so calls in flight together cannot pass a limit; only a call that is alone may,
by its own cost, so that no budget is left half used. An unknown price is said, never guessed. An
attempt that brought no reply has cost what its answer told. One that ended without such an answer
(cancelled, past its deadline, connection lost) may be billed though nobody says so: its prompt,
estimated, counts towards the budget, and apart from what is known to be used.
"""

from __future__ import annotations

import asyncio
import math
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import NamedTuple

from agentloop.deadline import off_the_clock
from agentloop.errors import UNTOLD, BudgetReached, ModelError
from agentloop.models.limits import most_tokens
from agentloop.ports import Model
from agentloop.records import Budget, Completion, Request, Usage

Prices = Mapping[str, tuple[float, float]]
"""Model name (`*` for any other) -> US dollars per million prompt and completion tokens."""
FREE: Prices = {"*": (0.0, 0.0)}
"""For models that run here."""
_BYTES_PER_TOKEN = 4
"""Of English text, roughly (OpenAI, "What are tokens and how to count them?")."""

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
        unconfirmed: Usage | None = None,
        seconds: float = 0.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`spent`, `unconfirmed` and `seconds` are what the run had used before this process took
        it up."""
        self.budget, self._prices, self._clock = budget or Budget(), prices or {}, clock
        self._started = clock() - seconds
        self.total = spent or Usage()
        self.by_model: dict[str, Usage] = {}
        """Usage per policy, or per model where the base answered."""
        self.failed_calls = 0
        """Attempts without a reply; they are in `total.calls` too."""
        self.unconfirmed = unconfirmed or Usage()
        """Attempts that ended without an answer, and what their prompts may have cost by an
        estimate; not in `total`."""
        self.on_unanswered: Callable[[Usage, bool], None] | None = None
        """Told what an attempt without a reply used and whether that is known, if there is somebody
        to tell: a journal has only replies."""
        self._in_flight = 0
        self._aside = NOTHING
        self._dearest: float | None = None
        """The largest cost of one call so far, for models whose price only the reply tells; before
        the first reply such a call goes alone."""
        self.uncounted = 0
        """Replies that did not say how many tokens they took."""
        self._waiting: list[asyncio.Future[None]] = []

    @property
    def priced(self) -> bool:
        """Whether every call so far had a known price; if not, `total.usd` is a lower bound."""
        return not self.total.unpriced

    @property
    def seconds(self) -> float:
        """Wall time since the meter was made, and what the run had used before."""
        return self._clock() - self._started

    def check(self) -> None:
        """Raises `BudgetReached` when dollars, tokens or seconds are spent, or when a budget would
        never end: replies without token counts, or nothing but dollars limited and no price."""
        budget = self.budget
        if budget.tokens is not None and self.uncounted:
            raise BudgetReached(
                f"the budget of {budget.tokens} tokens cannot be kept: {self.uncounted} replies "
                "came without token counts; limit `budget.seconds` or `budget.rollouts` instead"
            )
        if budget.usd is not None and budget.tokens is None and self.total.unpriced:
            raise BudgetReached(
                f"the budget of {budget.usd:g} usd cannot be kept: {self.total.unpriced} calls "
                "have no known price; add `prices`, or limit `budget.tokens` as well"
            )
        for name, limit, known, guessed in (
            ("usd", budget.usd, self.total.usd, self.unconfirmed.usd),
            ("tokens", budget.tokens, self.total.tokens, self.unconfirmed.tokens),
            ("seconds", budget.seconds, self.seconds if budget.seconds is not None else 0.0, 0.0),
        ):
            if limit is not None and known + guessed >= limit:
                cut = f", and about {guessed:g} by attempts without an answer" if guessed else ""
                raise BudgetReached(
                    f"the budget of {limit:g} {name} is reached ({known:g} used{cut})"
                )

    async def admit(self, request: Request, model: str = "") -> Share:
        """Set aside the most that a call can cost; give it back with `release`. While others are in
        flight it waits until there is room; alone, a call needs only an unspent budget. Raises
        `BudgetReached`."""
        limited = self.budget.usd is not None or self.budget.tokens is not None
        most = most_tokens(request) if limited else (0, 0)
        while True:
            self.check()
            share = self._share(*most, request.policy or model) if limited else NOTHING
            if not self._in_flight or self._fits(share):
                break
            turn = asyncio.get_running_loop().create_future()
            self._waiting.append(turn)
            with off_the_clock():
                await turn
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

    def charge(self, completion: Completion, model: str = "") -> Completion:
        """Add what `completion` used; returns it with `usage.usd` filled in from the prices.
        `model` is the name that was asked for, for a reply whose own name has no price."""
        usage, names = completion.usage, (completion.model, model)
        if not usage.tokens:
            self.uncounted += 1
        if not usage.usd:
            usd = self._usd(usage.prompt_tokens, usage.completion_tokens, *names)
            if usd is None or (not usage.tokens and self._usd(1, 1, *names)):
                usage = replace(usage, unpriced=usage.calls)
            elif usd:
                usage = replace(usage, usd=usd)
        self._dearest = max(self._dearest or 0.0, usage.usd)
        self._add(completion.policy or completion.model, usage)
        return completion if usage is completion.usage else replace(completion, usage=usage)

    def charge_failure(
        self, calls: int, bill: tuple[int, int] | None = None, *, model: str = ""
    ) -> None:
        """Count `calls` attempts that brought no reply; with `bill` the last of them has used so
        many prompt and completion tokens of `model` nevertheless."""
        self.failed_calls += calls
        self._add("", Usage(calls=calls))
        if bill is not None:
            usd = self._usd(*bill, model)
            usage = Usage(
                prompt_tokens=bill[0], completion_tokens=bill[1], usd=usd or 0.0,
                unpriced=int(usd is None),
            )  # fmt: skip
            self._add(model, usage)
            self._tell(usage, True)

    def charge_unconfirmed(self, request: Request, model: str = "") -> None:
        """An attempt was cut off: whoever was asked may bill its prompt, about a token for four
        bytes, at the price of `model` (0 when that is not known). What it would have replied is
        not guessed."""
        tokens = most_tokens(request)[0] // _BYTES_PER_TOKEN
        usd = self._usd(tokens, 0, request.policy or model) or 0.0
        usage = Usage(calls=1, prompt_tokens=tokens, usd=usd)
        self.unconfirmed += usage
        self._tell(usage, False)

    def estimate(
        self, calls: int, prompt_tokens: int, completion_tokens: int, *, model: str
    ) -> float | None:
        """US dollars for `calls` calls with that many tokens each; `None` when `model` has no
        price."""
        usd = self._usd(prompt_tokens, completion_tokens, model)
        return None if usd is None else calls * usd

    def _share(self, prompt: int, reply: int, model: str) -> Share:
        if self.budget.usd is None:
            return Share(0.0, prompt + reply)
        usd = self._usd(prompt, reply, model)
        if usd is None:  # the reply will tell
            usd = self.budget.usd if self._dearest is None else self._dearest
        return Share(usd, prompt + reply)

    def _fits(self, share: Share) -> bool:
        most_usd, most_tokens = self.budget.usd or math.inf, self.budget.tokens or math.inf
        usd = self.total.usd + self.unconfirmed.usd + self._aside.usd
        tokens = self.total.tokens + self.unconfirmed.tokens + self._aside.tokens
        return usd + share.usd <= most_usd and tokens + share.tokens <= most_tokens

    def _tell(self, usage: Usage, known: bool) -> None:
        if self.on_unanswered is not None:
            self.on_unanswered(usage, known)

    def _add(self, name: str, usage: Usage) -> None:
        self.total += usage
        if name:
            self.by_model[name] = self.by_model.get(name, Usage()) + usage

    def _usd(self, prompt_tokens: int, completion_tokens: int, *models: str) -> float | None:
        """By the first of `models` that has a price. Cached prompt tokens count in full: an upper
        bound, since discounts differ."""
        prices = self._prices
        price = prices.get("*")
        for model in models if prices else ():
            found = prices.get(model) or prices.get(_SNAPSHOT.sub("", model))
            if found is not None:
                price = found
                break
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
        except BaseException as error:  # however it ended: the attempt was made
            self._charge(request, error)
            raise
        else:
            return self.meter.charge(completion, self._model)
        finally:
            self.meter.release(share)

    def _charge(self, request: Request, error: BaseException) -> None:
        calls, bill = 1, None
        if isinstance(error, ModelError):
            calls, bill = error.calls, error.bill
        elif isinstance(error, asyncio.CancelledError):  # given up while it was under way
            bill = UNTOLD
        if bill == UNTOLD:
            self.meter.charge_failure(calls)
            self.meter.charge_unconfirmed(request, self._model)
        else:
            self.meter.charge_failure(calls, bill, model=request.policy or self._model)
