"""Run a LangGraph graph on tasks: load it, lend it a model and tools, record what happens.

The two settings stand here because LangGraph reads them while it is imported: checkpoints may only
hold plain types (nothing stored is imported and called on load), and no trace leaves the machine
unless the user asked for it.
"""

import os

os.environ["LANGGRAPH_STRICT_MSGPACK"] = "true"
os.environ.setdefault("LANGSMITH_TRACING", "false")
