"""The `python` tool: code goes in, what it printed comes out, whatever sandbox runs it.

Decision: an error of the code is output like any other (the model should read it); only a sandbox
that cannot run code is an exception. Long output keeps its head and its tail.
"""

from __future__ import annotations

from dataclasses import dataclass

from agentloop.errors import ToolError
from agentloop.ports import Sandbox
from agentloop.records import Json, ToolSpec

PRELUDE = """\
import math
from math import ceil, comb, cos, exp, factorial, floor, gcd, isqrt, lcm, log, pi, prod, sin, sqrt
"""
"""Run before each snippet, because small models forget the import more often than the function."""
OUTPUT_BYTES = 4096
"""Most bytes of output that a model is shown, about a thousand tokens."""

EXAMPLES = """\
Question: What is the factorial of 6?

Assistant:
```python
print(factorial(6))
```

Output:
720

Assistant:
Answer: 720

Question: Replace every "a" with "o" in the text: "banana"

Assistant:
```python
print("banana".replace("a", "o"))
```

Output:
bonono

Assistant:
Answer: bonono

Question: What is the larger of 12 and 31?

Assistant:
```python
print(max(12, 31))
```

Output:
31

Assistant:
Answer: 31
"""

_SPEC = ToolSpec(
    name="python",
    description="Run Python code; returns what it prints, or the value of its last expression. "
    "The functions of the math module are imported.",
    parameters={
        "type": "object",
        "properties": {"code": {"type": "string", "description": "The code to run."}},
        "required": ["code"],
        "additionalProperties": False,
    },
    examples=EXAMPLES,
)


@dataclass(frozen=True)
class PythonTool:
    """`python(code)` in `sandbox`. Nothing is kept from one call to the next."""

    sandbox: Sandbox

    @property
    def spec(self) -> ToolSpec:
        """One string argument, so the plain-text call format takes the code as it stands."""
        return _SPEC

    async def call(self, arguments: dict[str, Json]) -> str:
        """Output, then the code's last error line if it failed. Raises `ToolError` for arguments
        other than `code`, `SandboxError` when the code could not be run."""
        code = arguments.get("code")
        if not isinstance(code, str) or len(arguments) != 1:
            raise ToolError("wrong arguments for `python`: give `code`, a string, and nothing else")
        result = await self.sandbox.run(PRELUDE + code)
        return "\n".join(part for part in (clip(result.stdout).rstrip("\n"), result.error) if part)


def clip(text: str, limit: int = OUTPUT_BYTES) -> str:
    """`text` within `limit` UTF-8 bytes of its own: head and tail, and a line between them that
    says how many bytes were left out."""
    data = text.encode(errors="replace")
    if len(data) <= limit:
        return text
    half = limit // 2
    head, tail = (
        data[:half].decode(errors="ignore"),
        data[len(data) - half :].decode(errors="ignore"),
    )
    return f"{head}\n... {len(data) - 2 * half} bytes left out ...\n{tail}"
