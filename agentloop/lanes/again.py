"""A frozen dataset, once more: only where its rows are still what they were, and still allowed.

Goes in: a recipe and the id of a dataset. Comes out: the dataset, after its rows were made again
from the log. The decision worth knowing: what was a training task when the rows were frozen may be
held out today, so the guard of the hold-out looks at old rows as it does at new ones.
"""

from __future__ import annotations

from collections.abc import Sequence

from agentloop.datasets.decontaminate import Decontaminate
from agentloop.datasets.recipe import Recipe
from agentloop.datasets.select import guard_held_out
from agentloop.errors import StoreError, TrainingError, UsageError
from agentloop.lanes.bench import Bench
from agentloop.lanes.data_faults import caused_by_data
from agentloop.lanes.gated import held_out
from agentloop.records import Dataset, Episode, Task


def again(bench: Bench, recipe: Recipe, name: str) -> Dataset:
    """The dataset `name`, after its rows were made again from the log. Raises `UsageError` when it
    was made by another recipe or from another workflow's rollouts, `TrainingError` when the rows
    are not the same, or repeat a task that is held out now."""
    name = bench.archive.id(name, Dataset)
    dataset = bench.archive.get(name, Dataset)
    used: list[Episode] = []

    def load(one: str) -> Episode | None:
        entry = bench.archive.log.get("episode", one)
        if entry is not None and entry.scope != bench.workflow:
            raise UsageError(
                f"`{name}` was made from rollouts of the workflow `{entry.scope}`; "
                f"name a dataset of `{bench.workflow}`"
            )
        episode = bench.archive.episode(one)
        if episode is not None and one in dataset.episodes:
            used.append(episode)
        return episode

    with caused_by_data((StoreError,)):
        recipe.again(bench.home / "datasets" / name, load)
    _still_trainable(name, used, held_out(bench), recipe.select.decontaminate)
    return dataset


def _still_trainable(
    name: str, episodes: Sequence[Episode], tasks: Sequence[Task], rule: Decontaminate | None
) -> None:
    """A dataset outlives the hold-out that it was made beside. Raises `TrainingError`."""
    try:
        guard_held_out(episodes, tasks)
    except UsageError as error:
        raise TrainingError(f"`{name}` cannot be learned from any more: {error}") from error
    if rule is None:
        return
    found = rule.repeated([one.task.prompt for one in episodes], [task.prompt for task in tasks])
    for episode, at in zip(episodes, found, strict=True):
        if at is not None:
            raise TrainingError(
                f"`{name}` cannot be learned from any more: the task of episode `{episode.id}` "
                f"repeats the held-out task `{tasks[at].id}`; freeze another dataset"
            )
