"""The Typer application: which commands there are. Each command's module says what it does."""

from __future__ import annotations

import typer

from agentloop.cli import agents, content, inspect_, keep, start

app = typer.Typer(
    name="agentloop",
    help="Make an LLM agent better at your tasks, and see why.",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)

app.command("init")(start.init)
app.command("setup")(start.setup)
app.command("doctor")(start.doctor)
app.command("run")(agents.run)
app.command("eval")(agents.evaluate)
app.command("cycle")(agents.cycle)
app.command("check")(agents.check)
app.command("schedule")(agents.schedule)
app.command("search")(keep.search)
app.command("rollback")(keep.rollback)
app.add_typer(keep.store, name="store")
app.add_typer(inspect_.inspect, name="inspect")
app.add_typer(content.skills, name="skills")
app.add_typer(content.instructions, name="instructions")


# Typer brings its own copy of click; its public face is `BadParameter`, a kind of `UsageError`, a
# kind of `ClickException`.
_ClickException = typer.BadParameter.__mro__[2]


def command(arguments: list[str]) -> int:
    """Parse and run; the exit code. Usage errors of the parser are 2, as everywhere."""
    try:
        result = typer.main.get_command(app).main(
            args=arguments, prog_name="agentloop", standalone_mode=False
        )
    except typer.Exit as error:
        return error.exit_code
    except typer.Abort:
        raise KeyboardInterrupt from None
    except _ClickException as error:
        error.show()  # type: ignore[attr-defined]
        return 2
    return result if isinstance(result, int) else 0
