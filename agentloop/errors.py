"""Every error a caller can meet, in one flat family named after the boundary it crossed.

    AgentLoopError               exit 1
    ├── UsageError               exit 2   what was given, what is allowed, the next step
    │   ├── MissingDependency    exit 2   an extra, a package or a model is not installed
    │   └── UnknownName          exit 2   with the nearest valid name
    ├── BudgetReached            exit 3   money, tokens, seconds or rollouts are spent
    ├── LimitReached             exit 1   a limit of one rollout; carries `reason`
    ├── StoreError               exit 1   the log, the index, the disk
    ├── ModelError               exit 1   an endpoint; carries `reason` and `retryable`
    ├── ToolError                exit 1   a tool refused its arguments or failed
    ├── SandboxError             exit 1   the sandbox itself, never the code inside it
    ├── SessionEnded             exit 1   code in a sandbox that gave no answer; its own doing
    ├── GraderError              exit 1   a grader raised or gave no valid score; never a silent 0
    ├── TrainingError            exit 1   a trainer process ended without a result
    └── ServerError              exit 1   a model server did not start or died
        └── PolicyError          exit 1   a policy that no server can serve

The command line turns each into one sentence and an exit code; nothing here prints.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class AgentLoopError(Exception):
    """Base of all errors of this package; `str(error)` is one sentence for a person."""

    exit_code = 1


class UsageError(AgentLoopError, ValueError):
    """The caller gave something that cannot work; the text says what to do next."""

    exit_code = 2


class MissingDependency(UsageError):
    """Something must be installed first: `what` is missing, `fix` is the command to run."""

    def __init__(self, what: str, fix: str) -> None:
        super().__init__(f"{what} is not installed; run: {fix}")
        self.what, self.fix = what, fix

    def __reduce__(self) -> tuple[type, tuple[str, str]]:
        return type(self), (self.what, self.fix)


class UnknownName(UsageError):
    """`given` is not among `known`; the message offers the nearest one."""

    def __init__(self, kind: str, given: str, known: Iterable[str]) -> None:
        names = sorted(known)
        near = difflib.get_close_matches(given, names, n=1, cutoff=0.5)
        some = ", ".join(names[:12]) + (f" and {len(names) - 12} more" if len(names) > 12 else "")
        hint = f"did you mean `{near[0]}`?" if near else f"known: {some or 'none'}"
        super().__init__(f"unknown {kind} `{given}`; {hint}")
        self.kind, self.given, self.known = kind, given, tuple(names)

    def __reduce__(self) -> tuple[type, tuple[str, str, tuple[str, ...]]]:
        return type(self), (self.kind, self.given, self.known)


class BudgetReached(AgentLoopError):
    """A limit set by the user was reached before the next call was made."""

    exit_code = 3


class LimitReached(AgentLoopError):
    """A limit of one rollout was reached before its next call; its runner turns this into a
    `records.Failure` with `reason`, a `records.Reason`."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason

    def __reduce__(self) -> tuple[type, tuple[str, str]]:
        return type(self), (self.reason, str(self))


class StoreError(AgentLoopError):
    """The log or the index could not be read or written; nothing acknowledged is lost."""


UNTOLD = (0, 0)
"""The `bill` of a `ModelError` whose answer, if there was one, gave no token counts."""


class ModelError(AgentLoopError):
    """An endpoint failed. `reason` is a `records.Reason`; `retryable` says whether again may help,
    `retry_after` in how many seconds (when the endpoint said so); `calls` is how many were made.
    `bill` is for an attempt that may have to be paid for though no reply came of it: the prompt and
    completion tokens that its answer told, `UNTOLD` when it did not; `None` costs nothing."""

    def __init__(
        self,
        message: str,
        *,
        reason: str = "model_error",
        retryable: bool = False,
        retry_after: float | None = None,
        calls: int = 1,
        bill: tuple[int, int] | None = None,
    ) -> None:
        super().__init__(message)
        self.reason, self.retryable, self.retry_after = reason, retryable, retry_after
        self.calls, self.bill = calls, bill


class ToolError(AgentLoopError):
    """A tool refused its arguments or failed; the text goes back to the model."""


class SandboxError(AgentLoopError):
    """The sandbox could not run the code at all (not: the code failed)."""


class SessionEnded(AgentLoopError):
    """The program of a sandbox's session gave no answer: it ended early, took too long, said too
    much or out of turn. The code's own doing, unlike `SandboxError`."""


class GraderError(AgentLoopError):
    """A grader raised, hung or gave something that is no score: the episode named by `episode`
    has no score (reason `grader_error`), which is never the same as 0."""

    def __init__(self, message: str, *, episode: str = "") -> None:
        super().__init__(message)
        self.episode = episode


class TrainingError(AgentLoopError):
    """A trainer process ended without a result; the dataset and the champion are untouched."""


class ServerError(AgentLoopError):
    """A model server did not start in time, or died."""


class PolicyError(ServerError):
    """A policy that cannot serve: its weights are no numbers, or the server refused it. It is the
    policy's fault, so a challenger that has it is refused and the champion stays."""
