"""How much of the hold-out a bundle solves: the one number that most claims are about.

In: a bench and a bundle. Out: a share; nothing that a bundle did not cause counts in it.
"""

from __future__ import annotations

from agentloop.lanes.bench import Bench, Order
from agentloop.records import Bundle


async def solved(bench: Bench, bundle: Bundle, n: int, subject: str = "heldout") -> float:
    """Share of `n` held-out tasks solved, greedily; infrastructure failures do not count."""
    tasks = bench.tasks.draw(n, split="heldout", seed=bench.seed)
    made = await bench.attempt(tasks, bundle, Order(purpose="eval", subject=subject))
    scored = [one for one in made if one.score is not None]
    return sum(one.success for one in scored) / max(len(scored), 1)
