"""Six kinds of task, their episodes, and a real offline embedder, for the tests of the stages that
learn from successes."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path

from agentloop.records import Episode, Message, Node, Score, Task, Trajectory


class Llama:
    """`Embedder` over the weights that come with wordllama."""

    def __init__(self) -> None:
        import wordllama

        self.model = wordllama.WordLlama.load(
            cache_dir=Path(wordllama.__file__).parent, disable_download=True
        )

    def embed(self, texts: Sequence[str]) -> list[list[float]]:
        return self.model.embed(list(texts), norm=True).tolist()  # type: ignore[no-any-return]


WORDS = "the ship went over cold water and nobody saw letters names Fritz again under stone".split()  # noqa: SIM905


def question(kind: str, rng: random.Random) -> tuple[str, str, str]:
    """(prompt, code, output) of one task of `kind`."""
    a, b = rng.randint(20, 2000), rng.randint(20, 2000)
    if kind == "gcd":
        return (
            f"Find the Greatest Common Divisor (GCD) of these numbers: {a}, {b}. "
            "Give only the GCD as your final answer.",
            f"import math\nprint(math.gcd({a}, {b}))",
            str(__import__("math").gcd(a, b)),
        )
    if kind == "lcm":
        return (
            f"Find the Least Common Multiple (LCM) of these numbers: {a}, {b}",
            f"import math\nprint(math.lcm({a}, {b}))",
            str(__import__("math").lcm(a, b)),
        )
    if kind == "bits":
        return (
            f"How many 1 bits are there in the binary representation of the number {a * b}?",
            f"print(bin({a * b}).count('1'))",
            str(bin(a * b).count("1")),
        )
    if kind == "products":
        return (
            f"Solve the following multiplication: {a} * {b}. "
            "Give only the result as your final answer.",
            f"print({a} * {b})",
            str(a * b),
        )
    if kind == "letters":
        letter, text = rng.choice("aeinst"), " ".join(rng.sample(WORDS, rng.randint(4, 9)))
        return (
            f'How many times does the letter "{letter}" appear in the text: "{text}"?',
            f'print("{text}".count("{letter}"))',
            str(text.count(letter)),
        )
    terms = [str(rng.randint(10, 9999)) for _ in range(rng.randint(2, 6))]
    chain = terms[0] + "".join(rng.choice([" + ", " - "]) + term for term in terms[1:])
    return (
        f"State the final answer to the following arithmetic problem: {chain} =",
        f"print({chain})",
        str(eval(chain)),
    )


KINDS = ("gcd", "lcm", "bits", "products", "letters", "chain")


def solved(name: str, prompt: str, code: str, output: str, *, family: str = "default") -> Episode:
    """A success that ran `code` once."""
    messages = (
        Message(role="system", content="Be good."),
        Message(role="user", content=prompt),
        Message(role="assistant", content=f"```python\n{code}\n```"),
        Message(role="tool", content=output),
        Message(role="assistant", content=f"Answer: {output}"),
    )
    nodes = tuple(
        Node(parent=at - 1 if at else None, message=message) for at, message in enumerate(messages)
    )
    return Episode(
        id=f"ep-{name}",
        task=Task(id=name, prompt=prompt, family=family),
        bundle="b",
        purpose="collect",
        run="r",
        seed=0,
        trajectories=(Trajectory(nodes=nodes),),
        answer=output,
        score=Score(value=1.0, success=True, source="test"),
    )


def successes(kind: str, n: int, seed: int = 0) -> list[Episode]:
    rng = random.Random(f"{kind}{seed}")
    return [solved(f"{kind}-{seed}-{at}", *question(kind, rng), family="unread") for at in range(n)]
