"""What `agentloop check quickstart` measures beyond the cycle's own report.

Goes in: a check run. Comes out: the report's numbers, the trained policy alone on what it
practised, the same untouched agent with a person's two worked examples per family, and a family
that was never practised before and after.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace

from agentloop.checks.run import CheckRun, measure_cycle
from agentloop.lanes.bench import Bench, Order
from agentloop.lanes.heldout import split
from agentloop.records import Bundle, Episode, Instruction, Task
from agentloop.store.archive import Archive
from agentloop.tasks.reasoning_gym import ReasoningGym
from agentloop.workflows.assemble import assemble

N = 64
UNPRACTISED = {
    "basic_arithmetic": {
        "min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 1,
        "operators": ["+", "-"], "allow_negation": False, "allow_parentheses": False,
    }
}  # fmt: skip
HUMAN = (
    ("Find the Greatest Common Divisor (GCD) of these numbers: 84, 36.", "print(gcd(84, 36))",
     "12"),
    ("Find the Greatest Common Divisor (GCD) of these numbers: 1000, 75.", "print(gcd(1000, 75))",
     "25"),
    ("Find the Least Common Multiple (LCM) of these numbers: 12, 18", "print(lcm(12, 18))", "36"),
    ("Find the Least Common Multiple (LCM) of these numbers: 21, 14", "print(lcm(21, 14))", "42"),
    ("How many 1 bits are there in the binary representation of the number 77?",
     'print(bin(77).count("1"))', "4"),
    ("How many 1 bits are there in the binary representation of the number 1000?",
     'print(bin(1000).count("1"))', "6"),
    ("Solve the following multiplication: 123 * 45.", "print(123 * 45)", "5535"),
    ("Solve the following multiplication: 67 * 8901.", "print(67 * 8901)", "596367"),
    ("State the final answer to the following arithmetic problem: 12 + 34 - 5 =",
     "print(12 + 34 - 5)", "41"),
    ("State the final answer to the following arithmetic problem: 900 - 450 - 25 =",
     "print(900 - 450 - 25)", "425"),
)  # fmt: skip


async def measure(run: CheckRun) -> dict[str, float]:
    """The metrics that the checks name, rates in [0, 1]."""
    metrics = await measure_cycle(run)
    report = await run.report()
    with Archive(run.home) as archive:
        async with assemble(run.loaded, archive, run.options(report.cycle)) as kit:
            bench = kit.bench
            first = archive.alias_history(kit.alias)[0].bundle
            untouched = archive.get(first, Bundle)
            decided = split(bench.tasks, kit.cycle_id, n=kit.heldout_n, lanes=kit.lane_n)
            heldout = decided.final
            policy = report.lanes["policy"].candidate
            if policy is not None:
                alone = replace(untouched, policies={"agent": policy})
                metrics["policy.alone"] = await rate(bench, heldout, alone)
            text = f"{bench.instruction(untouched).text}\n\n{examples()}"
            shown = archive.put(Instruction(text=text, operator="edit"))
            metrics["human"] = await rate(bench, heldout, replace(untouched, instruction=shown))
            after = metrics.get("heldout.challenger", 0.0)
            metrics["after_minus_human"] = after - metrics["human"]
            other = ReasoningGym(families=UNPRACTISED).draw(N, split="heldout", seed=run.seed)
            before = await last_number(bench, other, untouched)
            after = await last_number(bench, other, archive.get(report.bundle, Bundle))
            metrics |= {"unpractised.before": before, "unpractised.after": after,
                        "unpractised.fall": before - after}  # fmt: skip
    return metrics


async def rate(bench: Bench, tasks: Sequence[Task], bundle: Bundle) -> float:
    """Share of `tasks` solved, greedily; infrastructure failures do not count."""
    order = Order(purpose="eval", subject="heldout")
    made: list[Episode] = await bench.attempt(tasks, bundle, order)
    scored = [one for one in made if one.score is not None]
    return sum(one.success for one in scored) / max(len(scored), 1)


async def last_number(bench: Bench, tasks: Sequence[Task], bundle: Bundle) -> float:
    """Share of `tasks` whose answer ends with the expected number. The untouched model answers
    `2 + 3 = 5`, which the strict grader refuses; judged by that, it could not get any worse."""
    made = await bench.attempt(tasks, bundle, Order(purpose="eval", subject="heldout"))
    last = [re.findall(r"-?\d+", one.answer or "")[-1:] for one in made]
    right = [[str(one.task.expected)] == found for one, found in zip(made, last, strict=True)]
    return sum(right) / max(len(right), 1)


def examples() -> str:
    """The person's examples in the form in which the log's are shown."""
    return "\n\n".join(
        f"Question: {question}\n\nAssistant:\n```python\n{code}\n```\n\nOutput:\n{output}\n\n"
        f"Assistant:\nAnswer: {output}"
        for question, code, output in HUMAN
    )
