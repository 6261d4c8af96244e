"""What the summary of a run says about its rollouts beyond their scores.

Goes in: the episodes of a run. Comes out: counts. One decision: a group of samples that lost some
to the infrastructure is kept and counted, so that whoever normalises within groups can see it.
"""

from __future__ import annotations

from collections.abc import Iterable

from agentloop.records import AGENT_REASONS, Episode, record


@record
class Drift:
    """How many model calls continued a conversation in each way; defined in
    `trajectories.recorder`. Only calls whose endpoint gave token ids are counted."""

    clean: int = 0
    realigned: int = 0
    forked: int = 0

    def __str__(self) -> str:
        return f"{self.clean} clean, {self.realigned} realigned, {self.forked} forked"


@record
class Summary:
    """The counts of one run."""

    drift: Drift
    partial_groups: int
    """Groups of samples (same task, bundle and purpose) of which some ended and some were broken
    by the infrastructure."""


def summarise(episodes: Iterable[Episode]) -> Summary:
    """The counts over `episodes`; a sample that was broken and made again has ended."""
    clean = realigned = forked = 0
    groups: dict[tuple[str, str, str], dict[int, bool]] = {}
    for episode in episodes:
        for one in episode.trajectories:
            clean, realigned = clean + one.clean, realigned + one.realigned
            forked += one.drift
        ended = episode.failure is None or episode.failure.reason in AGENT_REASONS
        samples = groups.setdefault((episode.task.id, episode.bundle, episode.purpose), {})
        samples[episode.sample] = samples.get(episode.sample, False) or ended
    return Summary(
        drift=Drift(clean=clean, realigned=realigned, forked=forked),
        partial_groups=sum(len(set(ended.values())) > 1 for ended in groups.values()),
    )
