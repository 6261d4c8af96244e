"""What a person sees: live progress, coloured traces, tables. Everything goes to stderr in JSON mode.

Model and tool text is untrusted: it is printed as `Text`, never parsed as markup, with control
characters removed.
"""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Iterable, Sequence

from rich.console import Console, Group
from rich.live import Live
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from agentloop.records import Episode, Json

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
_STYLES = {"system": "dim", "user": "cyan", "assistant": "green", "tool": "yellow"}


def console(*, as_json: bool = False) -> Console:
    """Where to print: stdout for people, stderr beside JSON."""
    return Console(stderr=as_json, highlight=False, soft_wrap=False)


def clean(text: str, limit: int = 2000) -> Text:
    """Untrusted text without control characters, cut in the middle when long."""
    text = _CONTROL.sub("", text)
    if len(text) > limit:
        text = f"{text[: limit // 2]} […] {text[-limit // 2 :]}"
    return Text(text)


class LiveProgress:
    """A `ports.Progress` that draws one line per stage with counts, speed and time left."""

    def __init__(self, out: Console) -> None:
        self.out = out
        self.lines: dict[str, tuple[int, int, str]] = {}
        self.since: dict[str, float] = {}
        self.until: dict[str, float] = {}
        self.live = Live(console=out, refresh_per_second=4, transient=False)
        self.spoken: dict[str, int] = {}

    def __enter__(self) -> LiveProgress:
        if self.out.is_terminal:
            self.live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.out.is_terminal:
            self.live.update(self.draw(), refresh=True)
            self.live.stop()

    def __call__(self, stage: str, done: int, total: int, note: str = "") -> None:
        now = time.monotonic()
        if stage not in self.lines or done < self.lines[stage][0]:
            self.since[stage] = now
        self.lines[stage] = (done, total, note)
        self.until[stage] = now
        if self.out.is_terminal:
            self.live.update(self.draw())
        else:
            self._speak(stage, done, total, note)

    def _speak(self, stage: str, done: int, total: int, note: str) -> None:
        """Without a terminal: a line at the start and the end of each stage."""
        if done == 0 or (done == total and self.spoken.get(stage) != total):
            self.spoken[stage] = done
            self.out.print(Text(f"{stage}: {done}/{total} {note}".rstrip()))

    def draw(self) -> Table:
        """The table of stages."""
        table = Table.grid(padding=(0, 2))
        for stage, (done, total, note) in self.lines.items():
            spent = self.until[stage] - self.since[stage]
            finished = total > 0 and done >= total
            left = "" if finished or done == 0 else f"{spent / done * (total - done):4.0f} s left"
            width = 24
            full = round(width * done / total) if total else 0
            bar = Text("█" * full, style="green" if finished else "cyan")
            bar.append("░" * (width - full), style="dim")
            table.add_row(
                Text(stage), bar, Text(f"{done}/{total}"), Text(f"{spent:4.0f} s"), Text(left),
                Text(note, style="dim"),
            )  # fmt: skip
        return table


def trace(episode: Episode, *, show_system: bool = True) -> Panel:
    """One trajectory as a coloured conversation."""
    blocks: list[Text] = []
    for trajectory in episode.trajectories:
        for node in trajectory.nodes:
            message = node.message
            if message.role == "system" and not show_system:
                continue
            line = Text(f"{message.role:>9} ", style=f"bold {_STYLES[message.role]}")
            body = clean(message.content or "", 1200)
            body.stylize(_STYLES[message.role])
            for call in message.tool_calls:
                body.append(f"\n→ {call.name}({call.arguments})", style="magenta")
            if node.sampled and node.token_ids:
                body.append(f"  [{len(node.token_ids)} tokens]", style="dim")
            blocks.append(line + body)
    return Panel(
        Group(*blocks),
        title=headline(episode),
        title_align="left",
        border_style="green" if episode.success else "red",
    )


def headline(episode: Episode) -> Text:
    """Solved or not, in one line."""
    if episode.failure is not None:
        verdict = f"✗ {episode.failure.reason}"
    elif episode.score is None:
        verdict = "not scored"
    else:
        mark = "✓" if episode.success else "✗"
        verdict = f"{mark} {episode.score.value:.2f} {episode.score.feedback}"
    return clean(f"{episode.task.id}  {verdict}", 160)


def table(title: str, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> Table:
    """A table; numbers to the right."""
    drawn = Table(title=title, title_justify="left", header_style="bold", box=None, padding=(0, 2))
    listed = [[_cell(cell) for cell in row] for row in rows]
    for at, column in enumerate(columns):
        numeric = bool(listed) and all(_numeric(row[at]) for row in listed)
        drawn.add_column(column, justify="right" if numeric else "left", overflow="fold")
    for row in listed:
        drawn.add_row(*(clean(cell, 400) for cell in row))
    return drawn


def _cell(value: object) -> str:
    if value is None:
        return "–"
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _numeric(text: str) -> bool:
    return bool(re.fullmatch(r"[+\-]?[\d.,e%×/–+\- ]+s?", text))


def percent(value: float | None) -> str:
    """A rate as a percentage."""
    return "–" if value is None else f"{100 * value:.0f} %"


def points(value: float | None) -> str:
    """An effect in percentage points."""
    return "–" if value is None else f"{100 * value:+.0f}"


def tell(text: str, *, style: str = "", err: bool = False) -> None:
    """One plain line."""
    Console(stderr=err, highlight=False, soft_wrap=True).print(Text(text, style=style))


def is_interactive() -> bool:
    """Whether a person can answer a question."""
    return sys.stdin.isatty() and sys.stdout.isatty()


def json_ready(value: object) -> Json:
    """A record as JSON types."""
    from dataclasses import asdict, is_dataclass

    return asdict(value) if is_dataclass(value) and not isinstance(value, type) else value  # type: ignore[return-value]
