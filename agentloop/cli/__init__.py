"""The command line: small commands, one sentence per error, exit codes a script can rely on.

Exit codes: 0 ok, 1 failed, 2 usage, 3 budget reached, 130 interrupted. With `--json` stdout
carries data only; progress and notes go to stderr. Nothing heavy is imported before a command
needs it.
"""

from __future__ import annotations

import errno
import io
import os
import sys

# Set before any library is imported: no telemetry, no look-ups, strict deserialisation.
_QUIET = {
    "HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1",
    "ANONYMIZED_TELEMETRY": "False", "LANGSMITH_TRACING": "false",
    "LANGGRAPH_STRICT_MSGPACK": "true", "LITELLM_LOCAL_MODEL_COST_MAP": "True",
    "LITELLM_MODE": "PRODUCTION",
    "TOKENIZERS_PARALLELISM": "false", "DO_NOT_TRACK": "1",
}  # fmt: skip


def main(arguments: list[str] | None = None) -> None:
    """Run one command and leave with its exit code."""
    for name, value in _QUIET.items():
        os.environ.setdefault(name, value)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal may know less than Unicode
    sys.exit(run(sys.argv[1:] if arguments is None else arguments))


def run(arguments: list[str]) -> int:
    """Run one command; its exit code. Errors become one sentence on stderr."""
    from agentloop.cli.app import command
    from agentloop.errors import AgentLoopError

    try:
        return command(arguments)
    except AgentLoopError as error:
        return _fail(str(error), error.exit_code)
    except KeyboardInterrupt:
        return _fail(f"interrupted; nothing acknowledged is lost{_continue(arguments)}", 130)
    except BrokenPipeError:  # the reader of our output went away, e.g. `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        what = "the disk is full; free space" if full else "mend that and run the command again"
        return _fail(f"{error}; nothing acknowledged is lost; {what}{_continue(arguments)}", 1)
    except Exception as error:
        if os.environ.get("AGENTLOOP_DEBUG"):
            raise
        return _fail(
            f"{type(error).__name__}: {error}; this is a fault in agentloop or in a part of the "
            "workflow; AGENTLOOP_DEBUG=1 shows where",
            1,
        )


def _continue(arguments: list[str]) -> str:
    if arguments[:1] == ["schedule"]:
        return "; an unfinished cycle goes on when the scheduler is started again"
    return "; continue with --resume" if arguments[:1] in (["cycle"], ["run"], ["eval"]) else ""


def _fail(text: str, code: int) -> int:
    from rich.console import Console
    from rich.text import Text

    from agentloop.cli.show import clean
    from agentloop.trajectories.redact import Redactor

    # Endpoints repeat a wrong key in their errors, and terminals are kept in logs.
    text = Redactor.from_environment().text(text)
    console = Console(stderr=True, soft_wrap=True, highlight=False)
    console.print(Text("error: ", style="bold red") + clean(text))
    return code
