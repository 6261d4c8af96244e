"""Tasks from a JSONL file of the user's.

In: one JSON object a line, `prompt` (required), `expected`, `id`, `family`, `split`; any other key
goes to the grader in `data`. Out: `Task` records. The split of a row is a hash of its id unless the
row says otherwise, so a file may grow without leaking held-out rows into training.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, NoReturn

from agentloop.errors import UsageError
from agentloop.ports import Split, part
from agentloop.records import Episode, Task, content_id
from agentloop.tasks.split import HELDOUT, fraction, interleave, is_heldout

_OPTIONAL_TEXT = ("id", "family", "split")


@part
class Jsonl:
    """The tasks of the file at `path` (relative to the current directory unless absolute);
    `heldout` is the share of rows that are never trained on."""

    path: str
    heldout: float = HELDOUT

    def draw(self, n: int, *, split: Split, seed: int) -> list[Task]:
        """Up to `n` rows of `split`, shuffled by `seed`, families in turn; none comes twice.

        Raises `UsageError` when the file cannot be read, has a bad row, or has no row of `split`.
        """
        rows = self._rows()
        families: dict[str, list[Task]] = {}
        for task, where in rows:
            if where == split:
                families.setdefault(task.family, []).append(task)
        if not families:
            raise UsageError(
                f"`{self.path}` has no {split} task among its {len(rows)}; "
                f'add rows, or mark some with "split": "{split}"'
            )
        groups = [sorted(families[name], key=_shuffled(seed)) for name in sorted(families)]
        return list(islice(interleave(groups), n))

    def learn(self, episodes: Sequence[Episode]) -> None:
        """A file is fixed."""

    def _rows(self) -> list[tuple[Task, Split]]:
        if not 0 <= self.heldout <= 1:
            raise UsageError(f"`heldout` is {self.heldout}; give a share from 0 to 1")
        try:
            text = Path(self.path).expanduser().read_text("utf-8-sig")
        except FileNotFoundError:
            raise UsageError(
                f"the task file `{self.path}` does not exist; give the path of a JSONL file"
            ) from None
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(f"the task file `{self.path}` cannot be read: {error}") from error
        rows: list[tuple[Task, Split]] = []
        seen: dict[str, int] = {}
        for number, line in enumerate(text.split("\n"), start=1):
            if not line.strip():
                continue
            task, split = self._row(line, number)
            if task.id in seen:
                self._bad(number, f"has the id `{task.id}` of line {seen[task.id]} again")
            seen[task.id] = number
            rows.append((task, split))
        return rows

    def _row(self, line: str, number: int) -> tuple[Task, Split]:
        row = self._parse(line, number)
        prompt = row.pop("prompt", None)
        if not isinstance(prompt, str) or not prompt.strip():
            self._bad(number, 'has no "prompt" (a text)')
        for key in _OPTIONAL_TEXT:
            if not isinstance(row.get(key, "-"), str):
                self._bad(number, f'has a "{key}" that is not a text')
        name = row.pop("id", None) or content_id("task", prompt)
        # By the text, not by the id: one question under two ids must not be on both sides.
        fallback = "heldout" if is_heldout(prompt, self.heldout) else "train"
        split = row.pop("split", None) or fallback
        where: Split
        if split == "heldout":
            where = "heldout"
        elif split == "train":
            where = "train"
        else:
            self._bad(number, f'has the split "{split}"; it is "train" or "heldout"')
        task = Task(
            id=name,
            prompt=prompt,
            expected=row.pop("expected", None),
            family=row.pop("family", None) or "default",
            data=row,
        )
        return task, where

    def _parse(self, line: str, number: int) -> dict[str, Any]:
        try:
            row = json.loads(line, parse_constant=_refuse)
            json.dumps(row, ensure_ascii=False).encode()  # a lone \ud800 cannot be stored
        except (ValueError, RecursionError) as error:
            self._bad(number, f"is not valid JSON ({error})")
        if not isinstance(row, dict):
            self._bad(number, 'is not a JSON object such as {"prompt": "2+2?", "expected": 4}')
        return row

    def _bad(self, number: int, what: str) -> NoReturn:
        raise UsageError(f"line {number} of `{self.path}` {what}")


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not a JSON number")


def _shuffled(seed: int) -> Callable[[Task], float]:
    return lambda task: fraction(seed, task.id)
