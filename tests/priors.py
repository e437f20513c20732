"""Every prior, with the penalty that its documentation says it equals. A new one is one line here."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import pyro
import torch
from pyro import distributions as dist
from torch import Tensor, nn

from bnn.priors import (
    CorrelatedFilters,
    ElasticNet,
    FromPyro,
    Function,
    GroupLasso,
    Hierarchical,
    Horseshoe,
    Laplace,
    Normal,
    Pretrained,
    Prior,
    RegularisedHorseshoe,
    ScaleMixture,
    SpikeAndSlab,
    StudentT,
)

Values = Mapping[str, Tensor]


@dataclass(frozen=True)
class Enrolled:
    """One line of the table."""

    #: The prior of parameters with these names and shapes.
    make: Callable[[Values], Prior]
    #: Its penalty on one parameter ``w`` of shape ``(2, 3)`` (filters: ``(2, 1, 2)``), as documented.
    penalty: Callable[[Values], Tensor]
    conv: bool = False


def line(prior: Prior, penalty: Callable[[Values], Tensor], *, conv: bool = False) -> Enrolled:
    return Enrolled(lambda params: prior, penalty, conv)


def around(params: Values) -> dict[str, Tensor]:
    return {name: torch.full_like(param, 0.3) for name, param in params.items()}


def half_cauchy(s: Tensor, scale: float = 1.0) -> Tensor:
    """Its -log p, zero at 1."""
    return (torch.log1p((s / scale) ** 2) - torch.log1p(torch.tensor(scale**-2.0, dtype=s.dtype))).sum()


def mixture(squares: Tensor, size: int, wide: float, narrow: float, weight: float) -> Tensor:
    """-log of the two Gaussians' density at vectors of `size` numbers, less that at 0."""

    def density(r2: Tensor) -> Tensor:
        parts = ((weight, wide), (1 - weight, narrow))
        return sum(p * s**-size * (-0.5 * r2 / s**2).exp() for p, s in parts)  # type: ignore[return-value]

    return (density(torch.zeros_like(squares)).log() - density(squares).log()).sum()


def shrinking(v: Values, scale: float) -> Tensor:
    return v["w.z"].square().sum() / 2 + half_cauchy(v["prior.all.local.w"]) + half_cauchy(v["prior.all.scale"], scale)


def filters(v: Values) -> Tensor:
    rho = torch.tensor(-1 / 1.5, dtype=torch.float64).exp()
    precision = torch.linalg.inv(torch.stack([torch.stack([rho * 0 + 1, rho]), torch.stack([rho, rho * 0 + 1])]))
    return 0.5 * torch.einsum("oip,pq,oiq->", v["w"], precision.to(v["w"]), v["w"]) / 0.8**2


def lopsided(params: Values) -> dict[str, Tensor]:
    """A prior of one's own."""
    return {n: pyro.sample(n, dist.Gumbel(p.new_zeros(p.shape), 1.0).to_event(p.dim())) for n, p in params.items()}


def own_scale(params: Values) -> dict[str, Tensor]:
    """A prior of one's own, with a hyper-site."""
    like = next(iter(params.values()))
    scale = pyro.sample("prior.own", dist.HalfCauchy(like.new_ones(())))
    zs = {n: pyro.sample(f"{n}.z", dist.Normal(torch.zeros_like(p), 1.0).to_event(p.dim())) for n, p in params.items()}
    return {n: pyro.deterministic(n, scale * z, event_dim=z.dim()) for n, z in zs.items()}


GUMBEL = FromPyro(dist.TransformedDistribution(dist.Normal(0.0, 1.0), [dist.transforms.AffineTransform(0.0, 2.0)]))

TABLE: dict[str, Enrolled] = {
    "normal": line(Normal(0.7), lambda v: v["w"].square().sum() / (2 * 0.49)),
    "normal, fan-in": line(Normal("fan_in", gain=2.0), lambda v: v["w"].square().sum() / (2 * 4 / 3)),
    "normal, learned scale": line(
        Normal(dist.HalfCauchy(1.0), centred=False),
        lambda v: v["w.z"].square().sum() / 2 + half_cauchy(v["prior.all.scale"]),
    ),
    "laplace": line(Laplace(0.5), lambda v: v["w"].abs().sum() / 0.5),
    "student t": line(StudentT(0.6, df=3.0), lambda v: (2 * torch.log1p(v["w"] ** 2 / (3 * 0.36))).sum()),
    "student t, fan-in, non-centred": line(
        StudentT("fan_in", df=4.0, centred=False), lambda v: (2.5 * torch.log1p(v["w.z"] ** 2 / 4)).sum()
    ),
    "elastic net": line(ElasticNet(1.5, 0.8), lambda v: 1.5 * v["w"].abs().sum() + 0.8 * v["w"].square().sum() / 2),
    "elastic net, fan-in": line(
        ElasticNet(1.5, 0.8, scale="fan_in"),
        lambda v: 1.5 * 3**0.5 * v["w"].abs().sum() + 0.8 * 3 * v["w"].square().sum() / 2,
    ),
    "group lasso": line(GroupLasso(2.0), lambda v: 2 * v["w"].norm(dim=1).sum()),
    "group lasso, inputs": line(
        GroupLasso(2.0, "inputs", scale="fan_in"), lambda v: 2 * 3**0.5 * v["w"].norm(dim=0).sum()
    ),
    "group lasso, non-centred": line(GroupLasso(2.0, centred=False), lambda v: 2 * v["w.z"].norm(dim=1).sum()),
    "scale mixture": line(
        ScaleMixture(1.0, 0.1, 0.3), lambda v: mixture(v["w"].square(), 1, wide=1.0, narrow=0.1, weight=0.3)
    ),
    "scale mixture, fan-in": line(
        ScaleMixture(1.0, 0.1, 0.3, scale="fan_in"),
        lambda v: mixture(3 * v["w"].square(), 1, wide=1.0, narrow=0.1, weight=0.3),
    ),
    "spike and slab": line(
        SpikeAndSlab(0.3, 1.0, 0.2), lambda v: mixture(v["w"].square(), 1, wide=1.0, narrow=0.2, weight=0.3)
    ),
    "spike and slab, units": line(
        SpikeAndSlab(0.3, 1.0, 0.2, over="units"),
        lambda v: mixture(v["w"].square().sum(1), 3, wide=1.0, narrow=0.2, weight=0.3),
    ),
    "spike and slab, inputs, learned scale": line(
        SpikeAndSlab(0.3, 1.0, 0.2, over="inputs", scale=dist.HalfCauchy(1.0)),
        lambda v: (
            mixture(v["w"].square().sum(0) / v["prior.all.scale"] ** 2, 2, wide=1.0, narrow=0.2, weight=0.3)
            + 6 * v["prior.all.scale"].log()
            + half_cauchy(v["prior.all.scale"])
        ),
    ),
    "horseshoe": line(Horseshoe(scale=0.5), lambda v: shrinking(v, 0.5)),
    "horseshoe, inputs": line(Horseshoe("inputs", scaling="fan_in"), lambda v: shrinking(v, 1.0)),
    "regularised horseshoe": line(
        RegularisedHorseshoe("inputs", scale=0.5, slab_scale=2.0, slab_df=4.0),
        lambda v: shrinking(v, 0.5) + 3 * v["prior.all.slab"].log() + 8 / v["prior.all.slab"] - 8,
    ),
    "hierarchical": line(
        Hierarchical(scaling="fan_in"), lambda v: v["w.z"].square().sum() / 2 + half_cauchy(v["prior.all.scale.w"])
    ),
    "hierarchical, gamma, centred": line(
        Hierarchical(dist.Gamma(2.0, 3.0), per="layer", centred=True),
        lambda v: (
            v["w"].square().sum() / (2 * v["prior.all.scale.w"] ** 2)
            + 5 * v["prior.all.scale.w"].log()
            + 3 * (v["prior.all.scale.w"] - 1)
        ),
    ),
    "hierarchical, units": line(
        Hierarchical(per="unit"), lambda v: v["w.z"].square().sum() / 2 + half_cauchy(v["prior.all.scale.w"])
    ),
    "hierarchical, units, centred": line(
        Hierarchical(dist.HalfNormal(2.0), per="unit", centred=True),
        lambda v: (
            (v["w"] / v["prior.all.scale.w"][:, None]).square().sum() / 2
            + v["w"].shape[1] * v["prior.all.scale.w"].log().sum()
            + (v["prior.all.scale.w"].square() - 1).sum() / 8
        ),
    ),
    "hierarchical, learned": line(Hierarchical("learned"), lambda v: v["w.z"].square().sum() / 2),
    "hierarchical, learned, centred": line(
        Hierarchical("learned", centred=True, start=0.5),
        lambda v: v["w"].square().sum() / (2 * v["prior.all.scale.w"] ** 2) + 6 * v["prior.all.scale.w"].log(),
    ),
    "correlated filters": line(CorrelatedFilters(0.8, 1.5), filters, conv=True),
    "correlated filters, non-centred": line(
        CorrelatedFilters("fan_in", 1.5, centred=False),
        lambda v: filters({"w": 0.8 * v["w.z"]}),
        conv=True,
    ),
    "pretrained": Enrolled(
        lambda params: Pretrained(around(params), 0.4), lambda v: (v["w"] - 0.3).square().sum() / 0.32
    ),
    "pretrained, non-centred": Enrolled(
        lambda params: Pretrained(around(params), "fan_in", gain=dist.HalfNormal(1.0), centred=False),
        lambda v: v["w.z"].square().sum() / 2 + (v["prior.all.scale"] ** 2 - 1) / 2,
    ),
    "from Pyro": line(FromPyro(dist.Cauchy(0.0, 0.5)), lambda v: torch.log1p(v["w"].square() / 0.25).sum()),
    "from Pyro, scaled": line(FromPyro(GUMBEL.distribution, "fan_in"), lambda v: v["w"].square().sum() / (2 * 4 / 3)),
    "function": line(Function(lopsided), lambda v: (v["w"] + (-v["w"]).exp() - 1).sum()),
    "function, learned scale": line(
        Function(own_scale, "learned"), lambda v: v["w.z"].square().sum() / 2 + half_cauchy(v["prior.own"])
    ),
}


def tiny(enrolled: Enrolled) -> tuple[nn.Module, dict[str, Prior], Tensor, Tensor]:
    """A network of some ten weights under this prior, and data."""
    if enrolled.conv:
        net = nn.Sequential(nn.Conv1d(1, 2, 2), nn.Flatten(), nn.Tanh(), nn.Linear(4, 1))
        x = torch.randn(8, 1, 3)
        chosen = "0.weight"
    else:
        net = nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 1))
        x = torch.randn(8, 2)
        chosen = "*.weight"
    params = {
        n: p.detach() for n, p in net.named_parameters() if n.endswith("weight") and (n[0] == "0" or not enrolled.conv)
    }
    return net, {chosen: enrolled.make(params), "*": Normal(1.0)}, x, x.flatten(1).sum(1, keepdim=True)
