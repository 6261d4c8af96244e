"""Trajectories to training rows: exact sampled ids with a loss, everything else as context.

In: episodes, and the system text to train under (bare: without the lent examples). Out: one `Row`
per branch. The prompt is kept as messages and rendered again by the trainer, so what was collected
with examples is learned without them; every later token, tool output included, is the id that the
engine saw, never re-tokenised text. A trajectory that holds a secret is left out: the log took its
ids out, and what the log could not know then (a key that was set later) is looked for here again.
A sampled node that two branches share has its loss in the
first of them only, so no token counts twice.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Literal

from agentloop.records import Episode, Message, Node, Row, Trajectory
from agentloop.trajectories.branches import branches
from agentloop.trajectories.codec import to_json
from agentloop.trajectories.examples import EXAMPLE, split_turns
from agentloop.trajectories.redact import Redactor

Unusable = Literal["redacted", "not_trainable", "no_samples", "no_token_ids", "misaligned_logprobs"]


def sft_rows(
    episodes: Iterable[Episode], *, system: str, redact: Redactor | None = None
) -> list[Row]:
    """One row per branch of each usable trajectory, in order.

    `system` replaces the collected system text; empty for none. Unsampled messages that precede
    the first sample stay in the prompt, except system messages. Trajectories that cannot be
    trained on are left out; `unusable` says how many and why. `redact` (default: what the
    environment holds) tells what is secret.
    """
    rows = []
    redact = redact or Redactor.from_environment()
    for episode in episodes:
        for trajectory in episode.trajectories:
            if why_unusable(trajectory, redact) is None:
                rows.extend(_rows_of(episode, trajectory, system))
    return rows


def unusable(episodes: Iterable[Episode], *, redact: Redactor | None = None) -> dict[Unusable, int]:
    """How many trajectories `sft_rows` leaves out, by reason."""
    redact = redact or Redactor.from_environment()
    reasons = (why_unusable(each, redact) for episode in episodes for each in episode.trajectories)
    return dict(Counter(reason for reason in reasons if reason is not None))


def why_unusable(trajectory: Trajectory, redact: Redactor | None = None) -> Unusable | None:
    """Why no exact row can be made of `trajectory`; `None` when one can. With `redact` its text is
    searched for secrets, too, whose ids would be learned."""
    if trajectory.redacted:
        return "redacted"
    if not trajectory.trainable:
        return "not_trainable"
    sampled = [node for node in trajectory.nodes if node.sampled]
    if not sampled:
        return "no_samples"
    if not all(node.token_ids for node in sampled):
        return "no_token_ids"
    if any(_misaligned(node) for node in sampled):
        return "misaligned_logprobs"
    for branch in branches(trajectory):
        nodes = [trajectory.nodes[at] for at in _span(trajectory, branch.nodes)]
        pairs = pairwise(nodes)
        # The last unsampled message before a sample carries the ids of all between two samples.
        if any(after.sampled and not before.token_ids for before, after in pairs):
            return "no_token_ids"
    if redact is not None:
        texts = [to_json(node.message) for node in trajectory.nodes]
        if redact(texts) is not texts:
            return "redacted"
    return None


def _misaligned(node: Node) -> bool:
    return node.logprobs is not None and len(node.logprobs) != len(node.token_ids)


def _span(trajectory: Trajectory, path: Sequence[int]) -> Sequence[int]:
    """The part of `path` from its first sample to its last; empty when it has none."""
    samples = [place for place, at in enumerate(path) if trajectory.nodes[at].sampled]
    return path[samples[0] : samples[-1] + 1] if samples else ()


def _rows_of(episode: Episode, trajectory: Trajectory, system: str) -> list[Row]:
    rows = []
    trained: set[int] = set()
    for branch in branches(trajectory):
        path = branch.nodes
        span = _span(trajectory, path)
        fresh = {at for at in span if trajectory.nodes[at].sampled} - trained
        if not fresh:
            continue
        trained |= fresh
        rows.append(_row(episode, trajectory, path, fresh, system))
    return rows


def bare_row(episode: Episode, trajectory: Trajectory, system: str) -> Row | None:
    """One row for a usable trajectory: its last branch with a sample, all of whose samples are
    learned from. For what is judged as a whole; `None` without a sample."""
    for branch in reversed(branches(trajectory)):
        span = _span(trajectory, branch.nodes)
        if span:
            learned = {at for at in span if trajectory.nodes[at].sampled}
            return _row(episode, trajectory, branch.nodes, learned, system)
    return None


def _row(
    episode: Episode, trajectory: Trajectory, path: Sequence[int], learned: set[int], system: str
) -> Row:
    span = _span(trajectory, path)
    before = (trajectory.nodes[at].message for at in path[: path.index(span[0])])
    segments, sampled, logprobs = _segments(trajectory.nodes, span, learned)
    return Row(
        episode=episode.id,
        prompt=_prompt(before, system),
        segments=segments,
        sampled=sampled,
        logprobs=logprobs,
        group=episode.task.id,
        policy=trajectory.nodes[max(learned)].policy,
    )


def _prompt(messages: Iterable[Message], system: str) -> tuple[Message, ...]:
    """The bare prompt as it will be served: examples that belong to `system` are turns, those that
    were only lent are gone."""
    text, turns = split_turns(system)
    head = (Message(role="system", content=text),) if text else ()
    own = (one for one in messages if one.role != "system" and one.name != EXAMPLE)
    return (*head, *turns, *own)


def _segments(
    nodes: Sequence[Node], span: Sequence[int], fresh: set[int]
) -> tuple[tuple[tuple[int, ...], ...], tuple[bool, ...], tuple[tuple[float, ...], ...]]:
    """Segments, their flags and their log-probs; unsampled neighbours are joined into one."""
    segments: list[tuple[int, ...]] = []
    sampled: list[bool] = []
    logprobs: list[tuple[float, ...]] = []
    for at in span:
        node = nodes[at]
        if at in fresh:
            segments.append(node.token_ids)
            sampled.append(True)
            logprobs.append(node.logprobs or ())
        elif not node.token_ids:
            continue
        elif sampled and not sampled[-1]:
            segments[-1] += node.token_ids
        else:
            segments.append(node.token_ids)
            sampled.append(False)
            logprobs.append(())
    return tuple(segments), tuple(sampled), tuple(logprobs)
