"""No walls at all: code as a plain process with the rights of whoever starts it.

In: a profile that says `unsafe: true`. Out: a sandbox with an empty environment, a folder of its
own, limits on resources, and nothing between the code and this machine's files, network and
processes. For code that is trusted already and for machines that are walls themselves; it is never
chosen for you, and each start warns.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from agentloop.sandboxes.launched import Launched, Start
from agentloop.sandboxes.owned import folder
from agentloop.sandboxes.profile import Profile

_log = logging.getLogger("agentloop")


class ProcessSandbox(Launched):
    """A sandbox in name only."""

    def __init__(self, profile: Profile) -> None:
        super().__init__(profile, _NoWalls())
        _log.warning("the sandbox `process` has no walls: code runs with all your rights")


class _NoWalls:
    own_user = False

    @contextmanager
    def raised(self) -> Iterator[Start]:
        """A folder, and the interpreter as it is."""
        with folder("process") as place:
            yield Start((sys._base_executable,), place)  # type: ignore[attr-defined]
