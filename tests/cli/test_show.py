"""What a person sees: nothing that a model wrote reaches the terminal as anything but text."""

import io

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from agentloop.cli import show
from agentloop.records import Episode, Failure, Message, Node, Score, Task, ToolCall, Trajectory

HOSTILE = (
    "\x1b[2J\x1b[31mred\x1b]0;title\x07\x1b]8;;http://x\x1b\\link\x9b5mblink\r\x08\x00"
    "\u202eright\u2066[bold]no markup[/bold] [link=http://x]y[/link] \ud800 end"
)


def drawn(thing: object, width: int = 80) -> str:
    out = io.StringIO()
    Console(file=out, width=width, highlight=False, force_terminal=False).print(thing)
    return out.getvalue()


def test_control_sequences_are_removed_and_markup_is_text() -> None:
    text = show.clean(HOSTILE).plain
    assert text == "redlink5mblinkright[bold]no markup[/bold] [link=http://x]y[/link]  end"


@given(st.text(alphabet=st.characters(codec=None)), st.integers(20, 200))
def test_clean_text_is_printable_and_bounded(text: str, limit: int) -> None:
    cleaned = show.clean(text, limit).plain
    cleaned.encode()
    assert len(cleaned) <= limit + 10
    assert all(c in "\n\t" or (ord(c) >= 32 and not 127 <= ord(c) < 160) for c in cleaned)
    assert not set(cleaned) & set("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


def episode(**given: object) -> Episode:
    message = Message(
        role="assistant", content=HOSTILE,
        tool_calls=(ToolCall(id="1", name="[red]run[/red]", arguments={"code": HOSTILE}),),
    )  # fmt: skip
    nodes = (
        Node(parent=None, message=Message(role="user", content="a question")),
        Node(parent=0, message=message, token_ids=(1, 2), sampled=True),
    )
    return Episode(
        id="ep-1", task=Task(id="t\x1b[31m", prompt="?"), bundle="b", purpose="serve", run="r",
        seed=0, trajectories=(Trajectory(nodes=nodes),), **given,  # type: ignore[arg-type]
    )  # fmt: skip


def test_a_trace_shows_calls_tokens_and_verdict_and_no_control_characters() -> None:
    right = Score(value=1.0, success=True, source="s", feedback=HOSTILE)
    text = drawn(show.trace(episode(score=right)))
    assert "✓ 1.00" in text and "[2 tokens]" in text and "→ [red]run[/red]" in text
    assert "\x1b" not in text and "\x9b" not in text and "\u202e" not in text
    assert all(len(line) <= 80 for line in text.splitlines())
    assert "✗ turn_limit" in drawn(
        show.trace(episode(failure=Failure(reason="turn_limit", detail="")))
    )
    assert "not scored" in drawn(show.trace(episode()))


def test_a_table_keeps_short_cells_whole_and_folds_long_ones() -> None:
    rows = [
        ("3f2a9c01", 12, 0.5, "words " * 40),
        ("77aa0b1c", 3, None, "[bold]x[/bold]\x1b[1m"),
    ]
    for width in (80, 120):
        text = drawn(show.table("[red]title[/red]", ["id", "n", "rate", "text"], rows), width)
        assert "[red]title[/red]" in text and "[bold]x[/bold]" in text
        assert "3f2a9c01" in text and "77aa0b1c" in text and "–" in text
        assert all(len(line) <= width for line in text.splitlines())


def test_ids_are_shortened_to_what_commands_accept() -> None:
    assert show.short("instruction-2cffe432afb4161a") == "2cffe432"
    assert show.short("ep-failed-2cffe432afb4161a-17.5") == "failed-2cffe432"
    assert show.short(None) == "–" and show.short("plain") == "plain"


def test_progress_without_a_terminal_is_a_line_at_either_end() -> None:
    out = io.StringIO()
    with show.LiveProgress(Console(file=out, width=80)) as progress:
        for done in range(4):
            progress("collect", done, 3, "[bold]\x1b[2Jnote")
    assert out.getvalue() == "collect: 0/3 [bold]note\ncollect: 3/3 [bold]note\n"


def test_progress_on_a_terminal_tells_how_long_is_left() -> None:
    clock = [0.0]
    progress = show.LiveProgress(Console(file=io.StringIO(), force_terminal=True, width=80))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("agentloop.cli.show.time.monotonic", lambda: clock[0])
        progress("collect", 0, 10)
        clock[0] = 4.0
        progress("collect", 2, 10)
    text = drawn(progress.draw())
    assert "2/10" in text and "16 s left" in text


def test_a_line_has_no_control_characters(capsys: pytest.CaptureFixture[str]) -> None:
    show.tell(HOSTILE.replace("\ud800", ""))
    out = capsys.readouterr().out
    assert "red" in out and "[bold]" in out and not set(out) & set("\x1b\x9b\x07\x08\x00\u202e")
