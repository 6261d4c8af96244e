"""The Typer application: which commands there are. Each command's module says what it does.

Goes in: arguments. Comes out: an exit code. Imports nothing heavy, so that `--help` is quick.
"""

from __future__ import annotations

from typing import Any

import typer

from agentloop.cli import (
    agents,
    content,
    inspect_,
    keep,
    runs,
    sandboxes,
    schedule,
    serve,
    skills_life,
    start,
    store,
)
from agentloop.cli import options as opt

app = typer.Typer(
    name="agentloop",
    help="Make an LLM agent better at your tasks, and see why.",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)

app.command("init", short_help="Write a workspace of your own, ready to run.")(start.init)
app.command("setup", short_help="Install the local model.")(start.setup)
app.command("doctor", short_help="What is here, and what mends what is missing.")(start.doctor)
app.command("run")(agents.run)
app.command("eval")(agents.evaluate)
app.command("cycle", short_help="Collect, improve three lanes, judge, promote.")(agents.cycle)
app.command("check", short_help="Measure what a workflow claims.")(agents.check)
app.command("serve", short_help="Serve the champion in OpenAI's format.")(serve.serve)
app.command("canary", short_help="Give a bundle a share of conversations first.")(serve.canary)
app.command("search")(keep.search)
app.command("rollback")(keep.rollback)
app.add_typer(schedule.schedule, name="schedule")
app.add_typer(store.store, name="store")
app.add_typer(runs.runs, name="runs")
app.add_typer(inspect_.inspect, name="inspect")
app.add_typer(sandboxes.sandboxes, name="sandboxes")
app.add_typer(skills_life.skills, name="skills")
app.add_typer(content.instructions, name="instructions")
app.add_typer(content.policies, name="policies")


# Typer brings its own copy of click; its public face is `BadParameter`, a kind of `UsageError`, a
# kind of `ClickException`.
_ClickException: type[Exception] = typer.BadParameter.__mro__[2]  # type: ignore[assignment]


_INTERRUPTED = 130
_EVERYWHERE = ("--home", "--workspace", "--model")


def everywhere(command: Any) -> Any:
    """The command tree, in which every command takes the options that say where to work: a script
    can pass the same ones to all. Where one means nothing it is accepted and not shown."""
    for sub in getattr(command, "commands", {}).values():
        everywhere(sub)
    if not hasattr(command, "commands"):
        known = {name for parameter in command.params for name in parameter.opts}
        for parameter in _lent_options():
            if not known & set(parameter.opts):
                parameter.expose_value, parameter.hidden = False, True
                command.params.append(parameter)
    return command


def _lent_options() -> list[Any]:
    donor = typer.Typer(add_completion=False)

    @donor.command()
    def options(
        home: opt.Home = None, workspace: opt.Space = None, model: opt.ModelName = None
    ) -> None:
        """Only its parameters are of interest."""

    parameters = typer.main.get_command(donor).params
    return [one for one in parameters if set(one.opts) & set(_EVERYWHERE)]


def command(arguments: list[str]) -> int:
    """Parse and run; the exit code. Usage errors of the parser are 2, as everywhere."""
    try:
        result = everywhere(typer.main.get_command(app)).main(
            args=arguments, prog_name="agentloop", standalone_mode=False
        )
    except typer.Exit as error:
        return error.exit_code
    except typer.Abort:
        raise KeyboardInterrupt from None
    except _ClickException as error:
        error.show()  # type: ignore[attr-defined]
        return 2
    if result == _INTERRUPTED:  # what typer makes of Ctrl-C
        raise KeyboardInterrupt
    return result if isinstance(result, int) else 0
