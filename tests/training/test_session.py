"""The optimizer's state between rounds: read back it goes on as if nothing had been between."""

from __future__ import annotations

from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("trl")

from agentloop.errors import StoreError, TrainingError  # noqa: E402
from agentloop.training.session import STATE, keep, restore  # noqa: E402


def model(width: int = 4) -> torch.nn.Module:
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(3, width), torch.nn.Linear(width, 1))


def step(net: torch.nn.Module, optimizer: torch.optim.Optimizer, times: int) -> None:
    data = torch.arange(12.0).reshape(4, 3) / 7
    for _ in range(times):
        optimizer.zero_grad()
        (net(data) - 1).square().mean().backward()
        optimizer.step()


@pytest.mark.parametrize("fused", [False, True])
def test_it_goes_on_where_it_was(tmp_path: Path, fused: bool) -> None:
    whole, first = model(), model()
    adam = torch.optim.AdamW(whole.parameters(), lr=0.1, fused=fused)
    step(whole, adam, 5)
    half = torch.optim.AdamW(first.parameters(), lr=0.1, fused=fused)
    step(first, half, 3)
    keep(first, half, tmp_path / "state")
    keep(first, half, tmp_path / "state")  # what a killed run left is replaced
    second = model()
    second.load_state_dict(first.state_dict())
    fresh = torch.optim.AdamW(second.parameters(), lr=0.1, fused=fused)
    restore(second, fresh, tmp_path / "state")
    step(second, fresh, 2)
    for one, other in zip(whole.parameters(), second.parameters(), strict=True):
        assert torch.equal(one, other)


def test_a_state_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    net = model()
    adam = torch.optim.AdamW(net.parameters())
    step(net, adam, 1)
    keep(net, adam, tmp_path / "state")
    wide = model(5)
    with pytest.raises(TrainingError, match="of other weights"):
        restore(wide, torch.optim.AdamW(wide.parameters()), tmp_path / "state")
    with (tmp_path / "state" / STATE).open("ab") as file:
        file.write(b"x")
    with pytest.raises(StoreError, match="was changed"):
        restore(net, adam, tmp_path / "state")
