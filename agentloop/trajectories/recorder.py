"""Record a rollout's model calls as a message graph with exact tokens.

Goes in: each (Request, Completion) pair of one rollout. Comes out: a `Trajectory` in which every
message stands once and carries only the tokens it added, so that the tokens along a branch are
exactly what the engine read and sampled. Decision: nothing is tokenised here. Where a prompt does
not continue the tokens recorded for its messages (rewritten history, a re-tokenised reply), the
branch is forked at the longest prefix that it does continue, and `drift` counts the fork.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace

from agentloop.records import Completion, Message, Node, Request, Trajectory

Tokens = tuple[int, ...]
_Key = tuple[str, str, str, str | None]


class Recorder:
    """Collects one trajectory; not thread-safe (a rollout's calls complete on one event loop)."""

    def __init__(self, role: str = "agent", *, trainable: bool = True) -> None:
        self._role, self._trainable = role, trainable
        self._nodes: list[Node] = []
        self._children: dict[tuple[int | None, _Key], list[int]] = {}
        self._sampled: dict[_Key, Tokens] = {}
        self._drift = 0

    def prepare(self, messages: Sequence[Message]) -> tuple[Message, ...]:
        """`messages` with the sampled ids filled in where an assistant message is known.

        The reply on the longest known path is preferred; a known reply elsewhere (history was
        trimmed before it) still keeps its ids. Messages that carry ids already keep them.
        """
        path = self._matches(messages)[-1:]
        on_path = self._path(path[0][-1]) if path else []
        prepared = list(messages)
        for at, message in enumerate(messages):
            if message.role != "assistant" or message.token_ids is not None:
                continue
            node = self._nodes[on_path[at]] if at < len(on_path) else None
            ids = node.token_ids if node and node.sampled else self._sampled.get(_key(message))
            if ids:
                prepared[at] = replace(message, token_ids=ids)
        return tuple(prepared)

    def add(self, request: Request, completion: Completion) -> None:
        """Take note of one finished call. Ids are kept only when the endpoint gave both the
        prompt's and the reply's; otherwise the new nodes carry none."""
        messages = request.messages
        prompt, reply = completion.prompt_ids, completion.completion_ids
        exact = prompt is not None and reply is not None
        parent, depth, delta = self._attach(messages, prompt if exact else None)
        for at in range(depth, len(messages)):
            last = at == len(messages) - 1
            message = replace(messages[at], token_ids=None)  # the node's ids are the only copy
            node = Node(parent=parent, message=message, token_ids=delta if last else ())
            parent = self._append(node)
        message = replace(completion.message, token_ids=None)
        ids = reply if exact and reply is not None else ()
        if ids:
            self._sampled[_key(message)] = ids
        self._append(
            Node(
                parent=parent,
                message=message,
                token_ids=ids,
                sampled=True,
                logprobs=completion.logprobs if exact else None,
                policy=completion.policy if completion.policy is not None else request.policy,
                sampling=request.sampling,
                finish_reason=completion.finish_reason,
            )
        )

    def trajectory(self) -> Trajectory:
        """What was recorded so far."""
        return Trajectory(
            role=self._role, trainable=self._trainable, nodes=tuple(self._nodes), drift=self._drift
        )

    def _attach(
        self, messages: Sequence[Message], prompt: Tokens | None
    ) -> tuple[int | None, int, Tokens]:
        """Where the prompt joins the graph: (node, messages already there, ids to add)."""
        matches = self._matches(messages)
        if prompt is None:
            return (matches[-1][-1], len(matches), ()) if matches else (None, 0, ())
        for depth in range(len(matches), 0, -1):
            for node in reversed(matches[depth - 1]):
                known = self._tokens(node)
                # With no message left to carry a rest, the tokens must be the same to the end.
                whole = depth == len(messages)
                if known == (prompt if whole else prompt[: len(known)]):
                    self._drift += depth < len(matches)
                    return node, depth, prompt[len(known) :]
        self._drift += bool(matches)
        return None, 0, prompt

    def _matches(self, messages: Sequence[Message]) -> list[list[int]]:
        """For each known prefix of `messages`, the nodes that end it, oldest first."""
        levels: list[list[int]] = []
        frontier: list[int | None] = [None]
        for message in messages:
            key = _key(message)
            found = [child for at in frontier for child in self._children.get((at, key), ())]
            if not found:
                break
            levels.append(sorted(found))
            frontier = list(found)
        return levels

    def _append(self, node: Node) -> int:
        index = len(self._nodes)
        self._nodes.append(node)
        self._children.setdefault((node.parent, _key(node.message)), []).append(index)
        return index

    def _path(self, node: int) -> list[int]:
        path: list[int] = []
        at: int | None = node
        while at is not None:
            path.append(at)
            at = self._nodes[at].parent
        return path[::-1]

    def _tokens(self, node: int) -> Tokens:
        return tuple(token for at in self._path(node) for token in self._nodes[at].token_ids)


def _key(message: Message) -> _Key:
    """Two messages are one when these are equal; ids and names do not tell them apart."""
    calls = [(call.id, call.name, call.arguments) for call in message.tool_calls]
    text = json.dumps(calls, sort_keys=True, default=str) if calls else ""
    return message.role, message.content, text, message.tool_call_id
