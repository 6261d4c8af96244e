"""The policy lane: rejection-sampling fine-tuning of the local model on the log's successes.

Goes in: successes of this cycle's collection. Comes out: a bundle with a LoRA adapter trained on
what the model itself sampled, with examples and skills taken out of the prompt, so that the
adapter does bare what it was shown before.
"""

from __future__ import annotations

from dataclasses import replace

from pydantic import Field

from agentloop.datasets.manifest import freeze, rows_path
from agentloop.datasets.rows import sft_rows
from agentloop.datasets.select import Selection
from agentloop.lanes.bench import Bench
from agentloop.lanes.gated import held_out
from agentloop.ports import part
from agentloop.records import Bundle, Dataset, Episode, Json, Proposal, TrainingJob, content_id
from agentloop.skills.induce import cluster
from agentloop.store.query import Query


@part
class RejectionSampling:
    """Train on what was right; `settings` are the trainer's."""

    method: str = "agentloop.training.sft:train"
    settings: dict[str, Json] = Field(default_factory=dict)
    per_cluster: int = 24
    """At most so many episodes of one kind of task: easy kinds must not crowd out hard ones."""
    at_least: int = 4
    """With fewer successes than this there is nothing to learn from."""

    async def propose(self, bench: Bench) -> Proposal:
        """A bundle with a new adapter, or the reason why there is none."""
        if bench.base_model is None or bench.trainer is None:
            return _skip("the model is behind an API; only a local model's weights can be trained")
        episodes = bench.archive.episodes(Query(run=bench.run, purpose="collect", success=True))
        chosen = self.choose(bench, episodes)
        if len(chosen) < self.at_least:
            return _skip(f"{len(chosen)} usable successes; at least {self.at_least} are needed")
        champion = bench.bundle(bench.champion)
        rows = sft_rows(chosen, system=bench.instruction(champion).text)
        if not rows:
            return _skip("no success has exact token ids; the endpoint does not give them")
        policy = await self.train(bench, champion, rows=freeze(
            rows, {"run": bench.run, "per_cluster": self.per_cluster}, bench.home / "datasets"
        ))  # fmt: skip
        bundle = replace(champion, policies={**champion.policies, "agent": policy})
        return Proposal(
            lane="policy",
            state="proposed",
            bundle=bundle,
            candidate=policy,
            reason=f"trained on {len(rows)} of {len(episodes)} successes",
        )

    def choose(self, bench: Bench, episodes: list[Episode]) -> list[Episode]:
        """Distinct successes, spread over kinds of task; those that used a tool where any did."""
        groups = cluster(episodes, bench.embedder)
        kind = {one.id: number for number, group in enumerate(groups) for one in group}
        tooled = Selection(require_tool_call=True, cap_per_group=self.per_cluster)
        heldout = held_out(bench)
        found = tooled.choose(episodes, held_out=heldout, group=lambda one: kind.get(one.id))
        if found:
            return found
        loose = Selection(cap_per_group=self.per_cluster)
        return loose.choose(episodes, held_out=heldout, group=lambda one: kind.get(one.id))

    async def train(self, bench: Bench, champion: Bundle, *, rows: Dataset) -> str:
        """Freeze, train in a process of its own, admit; the policy's id."""
        assert bench.trainer is not None
        dataset = bench.archive.put(rows)
        parent = champion.policies.get("agent")
        job = TrainingJob(
            method=self.method, base=str(bench.base_model),
            dataset=str(rows_path(bench.home / "datasets", rows)),
            out=str(bench.home / "training" / content_id("job", dataset, self.settings)),
            adapter=str(bench.policies.path(parent)) if parent else None,
            settings=self.settings, seed=bench.seed,
        )  # fmt: skip
        result = await bench.trainer.train(job)
        policy = bench.policies.admit(
            result,
            base=str(bench.base_model),
            role="agent",
            dataset=dataset,
            parents=[parent] if parent else [],
        )
        return bench.archive.put(policy)


def _skip(reason: str) -> Proposal:
    return Proposal(lane="policy", state="skipped", reason=reason)
