"""Transfer: weights known from elsewhere as the centre of the prior."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from pyro import distributions as dist
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor, nn

from bnn.distributions import expanded, in_words
from bnn.priors.scaled import Gain, Scale, Scaled


@dataclass(frozen=True, eq=False, repr=False)
class Pretrained(Scaled):
    """Independent Gaussian weights around given ones: ``w ~ Normal(given, scale)``, the penalty of L2-SP.

    -log p is ``|w - given|^2 / (2 scale^2)``. Li, Grandvalet and Davoine (2018), arXiv:1802.01483. A new head takes
    another prior, by a pattern: ``{"head.*": Normal("fan_in"), "*": Pretrained(backbone, 0.1)}``. The centre is the
    prior's, not where training starts: load the weights into the network as well, to start from them.

    Args:
        weights: A module, or ``{name: tensor}`` such as a state dict. Copied.
        scale: See `Scaled`: how far from the given weights the new ones may be.
        prefix: Added to the given names: ``"backbone."`` where the network holds the module under that name.
        gain: See `Scaled`.
        centred: See `Scaled`.

    Raises (when the model is built):
        ValueError: A parameter that is not among the weights, or of another shape.
    """

    weights: nn.Module | Mapping[str, Tensor]
    scale: Scale = 1.0
    prefix: str = ""
    gain: Gain = 1.0
    centred: bool = True

    def __post_init__(self) -> None:
        if not isinstance(self.weights, nn.Module | Mapping):
            raise TypeError(f"weights is a module or {{name: tensor}}, not {type(self.weights).__name__}")
        self.check_scale()
        # remove_duplicate=False: a shared tensor may be given under either name.
        given: Mapping[str, Any] = (
            dict(self.weights.named_parameters(remove_duplicate=False))
            if isinstance(self.weights, nn.Module)
            else self.weights
        )
        tensors = {name: value for name, value in given.items() if isinstance(value, Tensor)}
        floats = {name: value for name, value in tensors.items() if value.is_floating_point()}
        own = {self.prefix + name: value.detach().clone() for name, value in floats.items()}
        object.__setattr__(self, "weights", own)

    def __repr__(self) -> str:
        """With a fingerprint in the place of the weights."""
        assert isinstance(self.weights, Mapping)
        digest = hashlib.sha256()
        for name, value in self.weights.items():
            digest.update(name.encode() + value.double().cpu().numpy().tobytes())
        what = f"{len(self.weights)} tensors, sha256 {digest.hexdigest()[:16]}"
        others = [f"{name}={in_words(getattr(self, name))}" for name in ("scale", "gain", "centred")]
        return f"Pretrained({what}, {', '.join(others)})"

    def law(self, name: str, shape: torch.Size, loc: Tensor, scale: Tensor) -> TorchDistributionMixin:
        """See `Scaled`."""
        return expanded(dist.Normal, loc, scale, shape)

    def centres(self, params: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The given weights; see `Scaled`."""
        assert isinstance(self.weights, Mapping)
        missing = sorted(set(params) - set(self.weights))
        if missing:
            raise ValueError(
                f"no weights are given for {missing}: there are {sorted(self.weights)}; give these parameters another "
                "prior by a pattern, or say prefix="
            )
        for name, param in params.items():
            if self.weights[name].shape != param.shape:
                raise ValueError(
                    f"the weights given for {name!r} have shape {tuple(self.weights[name].shape)}, the parameter has "
                    f"{tuple(param.shape)}"
                )
        return {name: self.weights[name].to(param) for name, param in params.items()}
