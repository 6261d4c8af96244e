"""Record a rollout's model calls as a message graph with exact tokens.

Goes in: each (Request, Completion) pair of one rollout. Comes out: a `Trajectory` in which every
message stands once and carries only the tokens it added, so that the tokens along a branch are
exactly what the engine read and sampled. Decision: nothing is tokenised here. Where a prompt does
not continue the tokens recorded for its messages (rewritten history, a re-tokenised reply), the
branch is forked at the longest prefix that it does continue; a fork repeats tokens and loses none.

Every call whose messages hold an earlier reply is counted as one of three:

* clean: its prompt begins with the prompt and the reply of that earlier call, token by token;
* realigned: so it does, although a reply came back with other white space around it (templates
  and agents strip text): `prepare` sent the ids that were sampled in place of the text;
* forked: any other. Calls that hold no earlier reply begin a conversation and are not counted, nor
  are those of endpoints that give no ids.
"""

from __future__ import annotations

import json
from collections.abc import Hashable, Sequence
from itertools import chain

from agentloop.records import Completion, Message, Node, Request, ToolCall, Trajectory
from agentloop.trajectories.examples import EXAMPLE

Tokens = tuple[int, ...]
_Key = tuple[str, str, tuple[Hashable, ...], str | None]
_encode = json.JSONEncoder(sort_keys=True, default=str).encode


class Recorder:
    """Collects one trajectory; not thread-safe (a rollout's calls complete on one event loop)."""

    def __init__(self, role: str = "agent", *, trainable: bool = True) -> None:
        self._role, self._trainable = role, trainable
        self._nodes: list[Node] = []
        self._children: dict[tuple[int | None, _Key], list[int]] = {}
        self._replied: set[int | None] = set()  # nodes that a sampled one follows
        self._sampled: dict[_Key, dict[str, Tokens]] = {}  # by key, then by exact text
        self._prepared: dict[int, tuple[tuple[Message, ...], list[_Key]]] = {}
        self._clean = self._realigned = self._forked = 0
        self._redacted = False

    def prepare(self, messages: Sequence[Message]) -> tuple[Message, ...]:
        """`messages` with the sampled ids filled in where an assistant message is known, be it
        with other white space around it.

        The reply on the longest known path is preferred; a known reply elsewhere (history was
        trimmed before it) still keeps its ids. Messages that carry ids already keep them.
        """
        keys = [_key(message) for message in messages]
        levels = self._matches(keys)
        path = self._best(levels[-1], messages) if levels else []
        prepared = list(messages)
        for at, message in enumerate(messages):
            if message.role != "assistant" or message.token_ids is not None:
                continue
            node = self._nodes[path[at]] if at < len(path) else None
            ids = node.token_ids if node and node.sampled else self._known(keys[at], message)
            if ids:
                prepared[at] = _with_ids(message, ids)
        given = tuple(prepared)
        self._prepared[id(given)] = given, keys  # `add` will need them once more
        return given

    def add(self, request: Request, completion: Completion) -> None:
        """Take note of one finished call. Ids are kept only when the endpoint gave both the
        prompt's and the reply's; otherwise the new nodes carry none."""
        messages = request.messages
        known, keys = self._prepared.pop(id(messages), ((), []))
        if known is not messages:
            keys = [_key(message) for message in messages]
        self._redacted = self._redacted or completion.redacted
        prompt, reply = completion.prompt_ids, completion.completion_ids
        exact = prompt is not None and reply is not None
        parent, depth, delta = self._attach(messages, keys, prompt if exact else None)
        for at in range(depth, len(messages)):
            last = at == len(messages) - 1
            node = Node(parent=parent, message=_bare(messages[at]), token_ids=delta if last else ())
            parent = self._append(node, keys[at])
        message = _bare(completion.message)
        ids = reply if exact and reply is not None else ()
        key = _key(message)
        if ids:
            self._sampled.setdefault(key, {})[message.content] = ids
        self._replied.add(parent)
        told = completion.sampling is not None  # how it was sampled, and so by which policy
        policy = completion.policy if told or completion.policy is not None else request.policy
        self._append(
            Node(
                parent=parent,
                message=message,
                token_ids=ids,
                sampled=True,
                logprobs=completion.logprobs if exact else None,
                policy=policy,
                sampling=completion.sampling or request.sampling,
                finish_reason=completion.finish_reason,
                fallback=completion.fallback,
            ),
            key,
        )

    def trajectory(self) -> Trajectory:
        """What was recorded so far."""
        return Trajectory(
            role=self._role, trainable=self._trainable, nodes=tuple(self._nodes),
            drift=self._forked, clean=self._clean, realigned=self._realigned,
            redacted=self._redacted,
        )  # fmt: skip

    def _attach(
        self, messages: Sequence[Message], keys: list[_Key], prompt: Tokens | None
    ) -> tuple[int | None, int, Tokens]:
        """Where the prompt joins the graph: (node, messages already there, ids to add)."""
        levels = self._matches(keys)
        if prompt is None:
            return (
                (self._best(levels[-1], messages)[-1], len(levels), ()) if levels else (None, 0, ())
            )
        path: list[int] = []
        rest = prompt
        for depth in range(len(levels), 0, -1):
            found = self._continued(levels[depth - 1], prompt, whole=depth == len(messages))
            if found is not None:
                path, rest = found
                break
        self._count(messages, keys, len(levels), path, self._ends(levels))
        return (path[-1] if path else None), len(path), rest

    def _continued(
        self, nodes: list[int], prompt: Tokens, *, whole: bool
    ) -> tuple[list[int], Tokens] | None:
        """The path to the newest of `nodes` whose tokens the prompt begins with, and what is left
        of the prompt. With no message left to carry a rest (`whole`) there must be none."""
        for node in reversed(nodes):
            path = self._path(node)
            read = tuple(chain.from_iterable(self._nodes[at].token_ids for at in path))
            if read == (prompt if whole else prompt[: len(read)]):
                return path, prompt[len(read) :]
        return None

    def _count(
        self, messages: Sequence[Message], keys: list[_Key], known: int, path: list[int],
        ends: Sequence[int | None],
    ) -> None:  # fmt: skip
        """Note how the call continues earlier ones: the first `known` of its messages stand in the
        graph (at `ends`), and its prompt joined at the end of `path`."""
        # A trailing assistant message is the beginning of a reply that the agent dictates.
        rewritten = (
            known < len(messages) - 1
            and messages[known].role == "assistant"
            and any(end in self._replied for end in ends)
        )
        replies = [at for at, message in enumerate(messages) if self._is_reply(keys[at], message)]
        if not replies:
            self._forked += rewritten
            return
        last = replies[-1]
        if rewritten or last >= len(path) or not self._nodes[path[last]].sampled:
            self._forked += 1
        elif any(self._nodes[path[at]].message.content != messages[at].content for at in replies):
            self._realigned += 1
        else:
            self._clean += 1

    def _is_reply(self, key: _Key, message: Message) -> bool:
        return message.role == "assistant" and message.name != EXAMPLE and key in self._sampled

    def _known(self, key: _Key, message: Message) -> Tokens | None:
        """The ids of the reply that reads so, the newest one unless one is the same to the last
        character."""
        spelled = self._sampled.get(key)
        if spelled is None:
            return None
        return spelled.get(message.content) or next(reversed(spelled.values()))

    @staticmethod
    def _ends(levels: list[list[int]]) -> Sequence[int | None]:
        return levels[-1] if levels else (None,)

    def _matches(self, keys: Sequence[_Key]) -> list[list[int]]:
        """For each known prefix of the messages, the nodes that end it, oldest first."""
        levels: list[list[int]] = []
        frontier: Sequence[int | None] = (None,)
        for key in keys:
            found = [child for at in frontier for child in self._children.get((at, key), ())]
            if not found:
                break
            levels.append(sorted(found) if len(found) > 1 else found)
            frontier = levels[-1]
        return levels

    def _best(self, nodes: list[int], messages: Sequence[Message]) -> list[int]:
        """The path to the one of `nodes` that is spelled most like `messages`, the newest first."""
        if len(nodes) == 1:
            return self._path(nodes[0])

        def alike(path: list[int]) -> tuple[int, int]:
            pairs = zip(path, messages, strict=False)
            return sum(self._nodes[at].message.content == m.content for at, m in pairs), path[-1]

        return max((self._path(node) for node in nodes), key=alike)

    def _append(self, node: Node, key: _Key) -> int:
        index = len(self._nodes)
        self._nodes.append(node)
        self._children.setdefault((node.parent, key), []).append(index)
        return index

    def _path(self, node: int) -> list[int]:
        path: list[int] = []
        at: int | None = node
        while at is not None:
            path.append(at)
            at = self._nodes[at].parent
        return path[::-1]


def _bare(message: Message) -> Message:
    """Without ids: a node's are the only copy."""
    return message if message.token_ids is None else _with_ids(message, None)


def _with_ids(message: Message, ids: Tokens | None) -> Message:
    """`dataclasses.replace` in a third of its time: it is done for every reply at every turn."""
    return Message(
        role=message.role, content=message.content, tool_calls=message.tool_calls,
        tool_call_id=message.tool_call_id, name=message.name, artifact=message.artifact,
        token_ids=ids,
    )  # fmt: skip


def _key(message: Message) -> _Key:
    """Two messages are one when these are equal; ids and names do not tell them apart, nor does
    white space around a reply (inside it, it may be code)."""
    role, text, calls = message.role, message.content, message.tool_calls
    if role == "assistant":
        text = text.strip()
    return role, text, tuple(map(_call_key, calls)) if calls else (), message.tool_call_id


def _call_key(call: ToolCall) -> tuple[str, str, Hashable]:
    arguments = call.arguments
    if all(type(value) is str for value in arguments.values()):  # the usual ones, and fast
        return call.id, call.name, frozenset(arguments.items())
    return call.id, call.name, _encode(arguments)
