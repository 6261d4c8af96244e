"""What belongs together, and what an episode consists of for a learner.

In: episodes. Out: the name of the group of each (samples of one task from one start), how much of a
group was right, the sampled messages in order with the attempt that each belongs to, the tools that
were called. One decision: a group is told by what was really the same (task, bundle, run, the
messages before the first sample, the policy version), not by what was ordered together. A sample
that held a secret is learned from by nobody, and still belongs to its group.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence

from agentloop.records import AGENT_REASONS, Episode, Message, Trajectory, content_id
from agentloop.trajectories.examples import EXAMPLE

_RESULT = re.compile(r"^Output(?: of \w+)?:[ \t]*\n")
"""How a tool's result begins that goes back as plain text."""
_FENCE = re.compile(r"^[ \t]*```[ \t]*([A-Za-z_][\w.-]*)[ \t\r]*$", re.MULTILINE)


def group_of(episode: Episode) -> str:
    """The name of its group: samples of one task from one start by one policy. Equal for equal
    task, bundle, run, purpose, messages before the first sample, and version that sampled."""
    start: list[tuple[str, str]] = []
    policy = None
    for trajectory in _sampled(episode):
        first = next(at for at, node in enumerate(trajectory.nodes) if node.sampled)
        policy = trajectory.nodes[first].policy
        at = trajectory.nodes[first].parent
        while at is not None:
            message = trajectory.nodes[at].message
            start.append((message.role, message.content))
            at = trajectory.nodes[at].parent
        break
    return content_id(
        "group", episode.run, episode.bundle, episode.task.id, episode.purpose, policy, start
    )


def groups(episodes: Iterable[Episode]) -> dict[str, list[Episode]]:
    """Episodes by group, both in the order given."""
    found: dict[str, list[Episode]] = defaultdict(list)
    for episode in episodes:
        found[group_of(episode)].append(episode)
    return dict(found)


def countable(episode: Episode) -> bool:
    """Scored, and not broken by the infrastructure: a sample that says something of its group."""
    ended = episode.failure is None or episode.failure.reason in AGENT_REASONS
    return ended and episode.score is not None


def trained(episode: Episode) -> list[Trajectory]:
    """Its trajectories that a learner may see: trainable, with a sample, never with a secret."""
    return [each for each in _sampled(episode) if not each.redacted]


def samples(episode: Episode) -> list[tuple[int, int]]:
    """(trajectory, node) of each sampled message that may be learned from, in order: the places
    that credit is given to, and the steps of the episode."""
    return [
        (number, at)
        for number, trajectory in enumerate(episode.trajectories)
        if trajectory.trainable and not trajectory.redacted
        for at, node in enumerate(trajectory.nodes)
        if node.sampled
    ]


def attempts(trajectory: Trajectory) -> list[int]:
    """The attempt that each node belongs to, from 1: a new one begins with what a *person* says
    after a sample (the instruction to try again), not with a tool's result."""
    found: list[int] = []
    replied: list[bool] = []
    for node in trajectory.nodes:
        before = 1 if node.parent is None else found[node.parent]
        spoken = node.parent is not None and replied[node.parent]
        fresh = spoken and _by_a_person(node.message)
        found.append(before + fresh)
        replied.append(node.sampled or (spoken and not fresh))
    return found


def policies(episode: Episode) -> list[str | None]:
    """The versions that sampled it, each once, in order; `None` is the base model."""
    nodes = (node for each in trained(episode) for node in each.nodes if node.sampled)
    return list(dict.fromkeys(node.policy for node in nodes))


def tools_called(episode: Episode) -> list[str]:
    """The tool of each call that was answered or made as such, in order."""
    return [name for trajectory in trained(episode) for name in _calls(trajectory)]


def sampled_text(episode: Episode) -> str:
    """What the model wrote, message by message."""
    nodes = (node for each in trained(episode) for node in each.nodes if node.sampled)
    return "\n\n".join(node.message.content for node in nodes)


def shares(episodes: Sequence[Episode]) -> dict[str, float]:
    """By the id of an episode, how much of its group was right; only of those that count."""
    found = {}
    for members in groups(filter(countable, episodes)).values():
        right = sum(one.success for one in members) / len(members)
        found.update({one.id: right for one in members})
    return found


def mixed(episodes: Sequence[Episode]) -> set[str]:
    """Ids of the episodes whose group has rewards that differ: the others teach nothing to a
    method that compares within the group."""
    found: set[str] = set()
    for members in groups(filter(countable, episodes)).values():
        values = {one.score.value for one in members if one.score is not None}
        if len(values) > 1:
            found.update(one.id for one in members)
    return found


def _sampled(episode: Episode) -> list[Trajectory]:
    return [
        each
        for each in episode.trajectories
        if each.trainable and any(node.sampled for node in each.nodes)
    ]


def _by_a_person(message: Message) -> bool:
    return (
        message.role == "user"
        and message.name != EXAMPLE
        and _RESULT.match(message.content) is None
    )


def _calls(trajectory: Trajectory) -> Iterator[str]:
    answered = {
        node.parent
        for node in trajectory.nodes
        if node.message.role == "user" and _RESULT.match(node.message.content)
    }
    for at, node in enumerate(trajectory.nodes):
        if not node.sampled:
            continue
        if node.message.tool_calls:
            yield from (call.name for call in node.message.tool_calls)
        elif at in answered:
            fence = _FENCE.search(node.message.content)
            if fence:
                yield fence[1]
