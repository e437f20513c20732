"""`kill -9` at random moments, inside writes too: what goes on ends with the bytes of a fit that was left alone.

The chains have the same in test_checkpoint_chains.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from killing import Killer, fresh
from marks import some
from torch import nn

import bnn


def problem() -> tuple[bnn.BNN, tuple[torch.Tensor, torch.Tensor]]:
    """Made from a seed, so that every process makes the same."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(40, 3, generator=generator)
    y = x.sum(1, keepdim=True) + 0.1 * torch.randn(40, 1, generator=generator)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))
    return bnn.BNN(net, bnn.priors.Normal(1.0), bnn.likelihoods.Gaussian()), (x, y)


def fit(method: bnn.inference.Method, folder: Path) -> bnn.Posterior:
    model, data = problem()
    return bnn.fit(
        model, data, method, progress=False, compile="graph", checkpoint=bnn.Checkpoint(folder, seconds=3600, steps=2)
    )


def mean_field(folder: Path) -> bnn.Posterior:
    return fit(bnn.MeanField(epochs=6, batch_size=8), folder)


def ensemble(folder: Path) -> bnn.Posterior:
    return fit(bnn.Ensemble(members=3, of=bnn.MAP(epochs=6, batch_size=8)), folder)


@pytest.fixture(scope="module")
def killer() -> Iterator[Killer]:
    with Killer() as killer:
        yield killer


@pytest.mark.parametrize("name", some(["mean_field", "ensemble"], {"mean_field"}))
def test_a_few_kills(killer: Killer, name: str, tmp_path: Path) -> None:
    assert killer.torture(f"test_kill:{name}", tmp_path, kills=2, slow=0.005)["ended"]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mean_field", "ensemble"])
def test_20_kills(killer: Killer, name: str, tmp_path: Path) -> None:
    found = killer.torture(f"test_kill:{name}", tmp_path, kills=20, seed=1)
    print(name, found)
    assert found["inside"], "no kill came inside a write: the moments prove less than they should"


@pytest.mark.slow
def test_a_process_of_its_own(killer: Killer, tmp_path: Path) -> None:
    """What was killed here goes on in a process that has nothing in common with it."""
    name = "test_kill:mean_field"
    whole = killer.run(name, tmp_path / "whole", slow=0.005)
    killer.run(name, tmp_path / "run", after=0.7 * whole["seconds"], slow=0.005)
    ended = fresh(name, tmp_path / "run")
    assert ended is not None
    assert ended["digest"] == whole["digest"]


@pytest.mark.slow
def test_processes_of_their_own(tmp_path: Path) -> None:
    name = "test_kill:ensemble"
    for after in (6.0, 7.0, 8.0):
        fresh(name, tmp_path / "run", after=after)
    whole, ended = fresh(name, tmp_path / "whole"), fresh(name, tmp_path / "run")
    assert whole is not None
    assert ended is not None
    assert ended["digest"] == whole["digest"]
