"""What the log's data makes impossible ends a lane and not its cycle.

Goes in: the errors of choosing, cutting and learning rows. Comes out: the same sentence as a
`TrainingError`, which a cycle notes as a failed lane before it goes on with the others. Settings
are checked when a workflow is read, so what is wrong afterwards are rows: of two temperatures,
without a part of their score, damaged. A cycle that ended there would end there again whenever it
is resumed.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager

from agentloop.errors import (
    AgentLoopError,
    MissingDependency,
    StoreError,
    TrainingError,
    UsageError,
)

_MISSING = " is not installed; run: "
"""How a `MissingDependency` reads; a trainer's process can only tell it as text."""


@contextmanager
def caused_by_data(
    kinds: tuple[type[AgentLoopError], ...] = (UsageError, StoreError),
) -> Iterator[None]:
    """Errors of `kinds` become a `TrainingError`. What can be mended outside before the cycle is
    resumed stays as it is: something that is not installed, a disk or a log that refuses."""
    try:
        yield
    except kinds as error:
        if _mendable(error):
            raise
        raise TrainingError(str(error)) from error


def _mendable(error: AgentLoopError) -> bool:
    cause = error.__cause__
    refused = isinstance(cause, OSError | sqlite3.Error)
    gone = isinstance(cause, FileNotFoundError)
    missing = isinstance(error, MissingDependency) or _MISSING in str(error)
    return missing or (refused and not gone)
