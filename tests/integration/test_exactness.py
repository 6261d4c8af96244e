"""Over 10,000 stored tokens of each engine: the trainer computes the log-probs that were stored.

Real rollouts of three turns on a real server, through a real log, to training rows.
"""

from __future__ import annotations

import asyncio
from statistics import mean

import pytest
from local_server import (
    SYSTEM,
    Recomputed,
    attempts,
    differences,
    make_adapter,
    roll_out,
    smollm2,
    vllm_python,
)

from agentloop.datasets.rows import sft_rows
from agentloop.records import Sampling
from agentloop.serving.launch import EmbeddedServer
from agentloop.serving.vllm import VllmServer
from agentloop.store.archive import Archive

pytestmark = [pytest.mark.integration, pytest.mark.timeout(1200)]

TOKENS, ADAPTER = 10_000, "policy-of-the-test"
MEAN, MOST = 1e-3, 0.05
STOPS = ("\n\n", " said")
SAMPLINGS = (
    Sampling(temperature=1.0, max_tokens=96, seed=1),
    Sampling(temperature=0.7, max_tokens=96, seed=2, stop=STOPS),
)


@pytest.fixture(scope="module")
def adapter(tmp_path_factory):
    return make_adapter(smollm2(), tmp_path_factory.mktemp("adapter") / "a", seed=3)


@pytest.fixture(scope="module")
def trainer(adapter):
    return Recomputed(smollm2(), {ADAPTER: adapter})


@pytest.mark.parametrize("engine", ["embedded", "vllm"])
def test_the_trainer_computes_what_was_stored(engine, adapter, trainer, tmp_path):
    server = (
        EmbeddedServer(smollm2(), tmp_path)
        if engine == "embedded"
        else VllmServer(smollm2(), tmp_path, python=vllm_python())
    )
    asyncio.run(fill_the_log(server, adapter, tmp_path))
    with Archive(tmp_path) as archive:
        episodes = archive.episodes()
    assert not [episode.failure for episode in episodes if episode.failure]
    trajectories = [each for episode in episodes for each in episode.trajectories]
    nodes = [node for trajectory in trajectories for node in trajectory.nodes if node.sampled]
    assert sum(trajectory.drift for trajectory in trajectories) == 0
    assert sum(len(node.token_ids) for node in nodes) >= TOKENS
    assert {node.policy for node in nodes} == {None, ADAPTER}

    stopped = [text_is_what_the_ids_say(trainer.tokenizer, node) for node in nodes]
    assert sum(stopped) > 10

    of = {episode.id: episode for episode in episodes}
    for policy in (None, ADAPTER):
        rows = [row for row in sft_rows(episodes, system=SYSTEM) if row.policy == policy]
        for row in rows:  # the trainer reads exactly the tokens that the engine read
            saw = [t for node in of[row.episode].trajectories[0].nodes for t in node.token_ids]
            read = list(trainer.example(row).input_ids)
            assert read == saw[: len(read)] and len(read) > 50
        temperatures = [temperature_of(of[row.episode]) for row in rows]
        off = differences(trainer, rows, policy, temperatures)
        other = ADAPTER if policy is None else None
        wrong = differences(trainer, rows[:4], other, temperatures[:4])
        print(
            f"{engine} {policy or 'base'}: {len(off)} tokens, mean {mean(off):.2e}, "
            f"most {max(off):.2e}; under the other policy mean {mean(wrong):.2e}"
        )
        assert len(off) >= TOKENS // 2
        assert mean(off) <= MEAN and max(off) <= MOST
        assert mean(wrong) > 10 * MEAN  # else the comparison would prove nothing


async def fill_the_log(server, adapter, home):
    """Roll out with both policies until each has its share of tokens."""
    endpoint = await server.start()
    try:
        await server.load_policy(ADAPTER, adapter)
        with Archive(home) as archive:
            counts, turn = {None: 0, ADAPTER: 0}, 0
            while min(counts.values()) < TOKENS // 2:
                orders = [
                    order
                    for policy, count in counts.items()
                    if count < TOKENS // 2
                    for kind, sampling in enumerate(SAMPLINGS)
                    for order in attempts(16, policy, sampling, f"{policy}-{kind}-{turn}")
                ]
                episodes = await roll_out(endpoint, orders)
                assert not [episode.failure for episode in episodes if episode.failure]
                await archive.add_episodes(episodes)
                for order, episode in zip(orders, episodes, strict=True):
                    counts[order.policy] += episode.usage.completion_tokens
                turn += 1
    finally:
        await server.stop()


def text_is_what_the_ids_say(tokenizer, node):
    """Check one sampled message; whether a stop string ended it."""
    said = tokenizer.decode(node.token_ids, skip_special_tokens=True)
    text = node.message.content
    ended = [stop for stop in node.sampling.stop if said.startswith(text + stop)]
    if ended and said != text:
        assert node.finish_reason == "stop"
        return True
    # a last character whose bytes are not all there may be left out
    assert said == text or said.rstrip("\ufffd") == text.rstrip("\ufffd")
    return False


def temperature_of(episode):
    nodes = episode.trajectories[0].nodes
    return next(node.sampling.temperature for node in nodes if node.sampled)
