"""agentloop makes an LLM agent better at its user's tasks, and shows why.

Importing this loads no heavy library. What a user's own files need is here: the records a grader
sees (`Task`, `Score`), `part` for own parts, `tool` for own tools, and `chat_model()`, which puts
an existing LangGraph or LangChain agent on the loop.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from agentloop.errors import AgentLoopError, UsageError
from agentloop.records import Episode, Score, Task

if TYPE_CHECKING:
    from agentloop.graphs.chat_model import chat_model
    from agentloop.ports import part
    from agentloop.tools.spec import tool

__version__ = "0.1.0"
__all__ = ["AgentLoopError", "Episode", "Score", "Task", "UsageError", "chat_model", "part", "tool"]

_LAZY = {
    "chat_model": "agentloop.graphs.chat_model",
    "part": "agentloop.ports",
    "tool": "agentloop.tools.spec",
}


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        import importlib

        return getattr(importlib.import_module(_LAZY[name]), name)
    raise AttributeError(f"module `agentloop` has no attribute `{name}`")
