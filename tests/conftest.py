"""What all tests share: a fresh random state, small data, and a way to break one real line of `bnn` on purpose."""

from __future__ import annotations

import functools
import inspect
import sys
import textwrap
from collections.abc import Callable

import pyro
import pytest
import torch
from torch import nn

import bnn


@pytest.fixture(autouse=True)
def fresh_state():
    torch.manual_seed(0)
    pyro.clear_param_store()
    yield
    pyro.clear_param_store()


@pytest.fixture
def patch_line(monkeypatch) -> Callable[[object, str, str, str], None]:
    """``patch_line(owner, name, old, new)`` replaces a piece of the source of a function or method while a test runs.

    For controls: a check that stays green on code that is wrong on purpose checks nothing. The piece has to occur
    exactly once, so that a control cannot outlive the line that it breaks.
    """

    def patch(owner: object, name: str, old: str, new: str) -> None:
        held = inspect.getattr_static(owner, name)
        fn = (
            held.fget
            if isinstance(held, property)
            else held.func
            if isinstance(held, functools.cached_property)
            else held
        )
        source = textwrap.dedent(inspect.getsource(inspect.unwrap(fn)))
        assert source.count(old) == 1, f"{old!r} stands {source.count(old)} times in {name}"
        found: dict[str, object] = {}
        code = compile("from __future__ import annotations\n" + source.replace(old, new), f"<{name} patched>", "exec")
        exec(code, vars(sys.modules[fn.__module__]), found)
        if isinstance(held, functools.cached_property):
            found[name].__set_name__(owner, name)
        monkeypatch.setattr(owner, name, found[name])

    return patch


@pytest.fixture
def regression() -> tuple[torch.Tensor, torch.Tensor]:
    """x ``(20, 3)``, y ``(20, 1)``."""
    x = torch.randn(20, 3)
    return x, x.sum(1, keepdim=True) + 0.1 * torch.randn(20, 1)


@pytest.fixture
def classification() -> tuple[torch.Tensor, torch.Tensor]:
    """x ``(20, 3)``, labels ``(20,)`` in 0..3."""
    return torch.randn(20, 3), torch.arange(20) % 4


@pytest.fixture
def model() -> bnn.BNN:
    """A net 3-4-1 under standard Gaussian priors, with a latent noise scale."""
    net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))
    return bnn.BNN(net, bnn.priors.Normal(1.0), bnn.likelihoods.Gaussian())


@pytest.fixture
def quick() -> Callable[..., bnn.Posterior]:
    """``quick(model, data, method)``: a fit of a few steps, through Pyro."""
    return functools.partial(bnn.fit, compile="eager", progress=False)
