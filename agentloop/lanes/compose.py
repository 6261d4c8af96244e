"""What the model is told: instruction, retrieved skills, lent examples, in one system text.

Goes in: the texts. Comes out: one string. The order puts what all tasks share first, so that an
engine can keep the computed prefix.
"""

from __future__ import annotations

from collections.abc import Sequence


def compose(instruction: str, skills: Sequence[str] = (), examples: Sequence[str] = ()) -> str:
    """The system text; empty parts leave no trace."""
    parts = [instruction.strip(), *(text.strip() for text in skills)]
    parts += [text.strip() for text in examples]
    return "\n\n".join(text for text in parts if text)
