"""The loss module under DistributedDataParallel: two processes, gloo."""

import os
import socket
from pathlib import Path

import pytest
import torch
from networks import make
from torch import distributed, multiprocessing
from torch.nn.parallel import DistributedDataParallel

import bnn

ROWS = 32


def loss_module() -> tuple[bnn.inference.Objective, torch.Tensor, torch.Tensor]:
    net, x, y = make("mlp", ROWS)
    model = bnn.BNN(net, bnn.priors.Normal(1.0), bnn.likelihoods.Gaussian(0.5))
    return bnn.MAP().loss(model, ROWS), x, y


def rank_gradient(rank: int, port: int, folder: str) -> None:
    """The gradient that one of two processes ends up with, each having seen half of the rows."""
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", rank=rank, world_size=2)
    loss, x, y = loss_module()
    half = slice(rank * ROWS // 2, (rank + 1) * ROWS // 2)
    parallel = DistributedDataParallel(loss)  # held until backward is done: it owns the hooks
    parallel(x[half], y[half]).backward()
    torch.save(loss.theta.grad, Path(folder) / f"{rank}.pt")
    distributed.destroy_process_group()


@pytest.mark.skipif(not distributed.is_gloo_available(), reason="this torch has no gloo")
def test_two_ranks_hold_the_gradient_of_all_rows(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    multiprocessing.spawn(rank_gradient, (port, str(tmp_path)), nprocs=2)
    ranks = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2)]
    loss, x, y = loss_module()
    loss(x, y).backward()
    assert torch.equal(ranks[0], ranks[1])
    torch.testing.assert_close(ranks[0], loss.theta.grad)
