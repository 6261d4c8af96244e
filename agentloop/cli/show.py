"""What a person sees: live progress, coloured traces, tables; on stderr in JSON mode.

Goes in: records. Comes out: Rich renderables. Model and tool text is untrusted: it is printed as
`Text`, never parsed as markup, with control characters removed.
"""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

from rich.console import Console
from rich.live import Live
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from agentloop.records import Episode, Json
from agentloop.trajectories.examples import EXAMPLE

if TYPE_CHECKING:
    from agentloop.workflows.report import Cost

# Escape sequences of terminals first (whole), then what else moves the cursor or the reading order.
_CONTROL = re.compile(
    r"\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)|\x1b\[[0-?]*[ -/]*[@-~]"
    r"|[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]"
)
_WIDE = 24
"""Characters from which a column may wrap; shorter ones stay on one line."""
_STYLES = {"system": "dim", "user": "cyan", "assistant": "green", "tool": "yellow"}


def console(*, as_json: bool = False) -> Console:
    """Where to print: stdout for people, stderr beside JSON."""
    return Console(stderr=as_json, highlight=False, soft_wrap=False)


def clean(text: str, limit: int = 2000) -> Text:
    """Untrusted text without control characters, cut in the middle when long."""
    text = _CONTROL.sub("", text.replace("\r\n", "\n"))
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
            self.out.print(clean(f"{stage}: {done}/{total} {note}".rstrip(), 200))

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
                clean(note, 80),
            )  # fmt: skip
        return table


def trace(episode: Episode, *, show_system: bool = True) -> Panel:
    """One trajectory as a coloured conversation; turns that were lent as examples are dim."""
    lines = Table.grid(padding=(0, 2, 0, 0))
    lines.add_column(justify="right")
    lines.add_column(overflow="fold")
    for trajectory in episode.trajectories:
        for node in trajectory.nodes:
            message, style = node.message, _STYLES[node.message.role]
            lent = message.name == EXAMPLE
            if not show_system and (lent or message.role == "system"):
                continue
            body = clean(message.content or "", 1200)
            body.stylize("dim" if lent else style)
            for call in message.tool_calls:
                body.append_text(clean(f"\n→ {call.name}({call.arguments})", 1200))
            if node.sampled and node.token_ids:
                body.append(f"  [{len(node.token_ids)} tokens]", style="dim")
            if node.fallback:
                body.append(f"  [by {clean(node.fallback, 200).plain}]", style="dim")
            who = ("example", "dim") if lent else (message.role, f"bold {style}")
            lines.add_row(Text(who[0], style=who[1]), body)
    return Panel(
        lines,
        title=headline(episode),
        title_align="left",
        border_style="green" if episode.success else "red",
    )


def headline(episode: Episode) -> Text:
    """Solved or not, in one line."""
    if episode.failure is not None:
        verdict = f"✗ {episode.failure.reason}: {episode.failure.detail}"
    elif episode.score is None:
        verdict = "not scored"
    else:
        mark = "✓" if episode.success else "✗"
        verdict = f"{mark} {episode.score.value:.2f} {episode.score.feedback}"
    return clean(f"{episode.task.id}  {verdict}", 160)


def pairs(rows: Iterable[tuple[str, str]]) -> Table:
    """Names and what is said about each, below each other."""
    drawn = Table.grid(padding=(0, 2, 0, 0))
    drawn.add_column(style="dim", no_wrap=True)
    drawn.add_column(overflow="fold")
    for name, text in rows:
        drawn.add_row(clean(name, 80), clean(text, 400))
    return drawn


def table(title: str, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> Table:
    """A table that stays readable at 80 columns: numbers to the right, short cells on one line,
    and what is left of the width for the long ones."""
    drawn = Table(
        title=clean(title, 200), title_justify="left", title_style="bold", header_style="dim",
        box=None, padding=(0, 2, 0, 0), pad_edge=False,
    )  # fmt: skip
    listed = [[clean(_cell(cell), 400) for cell in row] for row in rows]
    for at, column in enumerate(columns):
        cells = [row[at].plain for row in listed]
        long = any(len(cell) > _WIDE or "\n" in cell for cell in cells)
        drawn.add_column(
            column, justify="right" if cells and all(map(_numeric, cells)) else "left",
            no_wrap=not long, overflow="fold", min_width=_WIDE if long else None,
        )  # fmt: skip
    for row in listed:
        drawn.add_row(*row)
    return drawn


def short(name: str | None) -> str:
    """An id as tables show it: its first eight hex digits, which every command takes for it."""
    if name is None:
        return "–"
    digits = name.partition("-")[2] or name
    return digits[:15] if digits.startswith("failed-") else digits[:8]


def line(text: str, limit: int = 80) -> str:
    """The beginning of a text, on one line."""
    flat = " ".join(text.split())
    return flat if len(flat) <= limit else f"{flat[: limit - 1]}…"


def _cell(value: object) -> str:
    if value is None:
        return "–"
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _numeric(text: str) -> bool:
    return bool(re.fullmatch(r"[+\-×$]*[\d.,e%/–+\- ]+s?", text))


def percent(value: float | None) -> str:
    """A rate as a percentage."""
    return "–" if value is None else f"{100 * value:.0f} %"


def dollars(cost: Cost) -> str:
    """A cost: with calls for which no price is known, what is known of it; and what may come on the
    bill beside."""
    text = f"${cost.usd:.4f}"
    if cost.unpriced:
        least = f"at least {text}" if cost.usd else "cost unknown"
        text = f"{least} ({cost.unpriced} calls without a known price: add `prices`)"
    beside = cost.unconfirmed
    if beside.calls:
        text += (
            f" and perhaps ${beside.usd:.4f} for about {beside.tokens} tokens of {beside.calls} "
            "calls without an answer"
        )
    if beside.killed:
        text += f" (killed {beside.killed}×: the calls in flight then are not counted)"
    return text


def cost_json(cost: Cost) -> Json:
    """A cost for scripts: `usd` is null where it is only a lower bound."""
    body = asdict(cost)
    return {**body, "usd": None} if cost.unpriced else body


def points(value: float | None) -> str:
    """An effect in percentage points."""
    return "–" if value is None else f"{100 * value:+.0f}"


def tell(text: str, *, style: str = "", err: bool = False) -> None:
    """One plain line; names in it may be anybody's."""
    text = _CONTROL.sub("", text)
    Console(stderr=err, highlight=False, soft_wrap=True).print(Text(text, style=style))


def is_interactive() -> bool:
    """Whether a person can answer a question."""
    return sys.stdin.isatty() and sys.stdout.isatty()


def json_ready(value: object) -> Json:
    """A record as JSON types."""
    from dataclasses import asdict, is_dataclass

    return asdict(value) if is_dataclass(value) and not isinstance(value, type) else value  # type: ignore[return-value]
