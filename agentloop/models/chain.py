"""The wrappers in their one order: `chain` puts them around a transport.

In: a transport and what a workflow says about retries, rate and budget. Out: a `ports.Model` whose
every attempt waits its turn, is checked against the budget, and stands in the ledger.
"""

from __future__ import annotations

from agentloop.models.limits import Limited, Rate
from agentloop.models.meter import Meter, Metered
from agentloop.models.retry import ATTEMPTS, DEADLINE, Retrying
from agentloop.ports import Model


def chain(
    transport: Model,
    meter: Meter,
    *,
    model: str = "",
    rate: Rate | None = None,
    attempts: int = ATTEMPTS,
    deadline: float = DEADLINE,
) -> Model:
    """`Retrying(Limited(Metered(transport)))`. `model` is the name its price is looked up by;
    `deadline` in seconds is for all attempts of one call, without waiting for a turn."""
    metered = Metered(transport, meter, model=model)
    return Retrying(Limited(metered, rate or Rate()), attempts=attempts, deadline=deadline)
