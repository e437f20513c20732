"""How far inputs lie from the training set, where a layer of the network sees them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from bnn.inputs import as_inputs
from bnn.model import arguments
from bnn.posterior import Posterior


@dataclass(frozen=True)
class FeatureDistance:
    """Mahalanobis distances in the features of a layer; see `feature_distance`."""

    #: One a draw: the network, the centres ``(c, p)`` and the covariance's estimator of scikit-learn.
    _fits: list[tuple[nn.Module, Tensor, Any]]
    layer: str

    def __call__(self, x: Any) -> Tensor:
        """The squared distance of each row to its nearest centre, averaged over draws: ``(n,)``, float64."""
        total = []
        for net, centres, covariance in self._fits:
            found = _features(net, self.layer, x)
            by_centre = [covariance.mahalanobis((found - centre).numpy()) for centre in centres]
            total.append(np.min(by_centre, axis=0))
        return torch.as_tensor(np.mean(total, axis=0))


def feature_distance(
    posterior: Posterior, layer: str, x: Any, labels: Any = None, *, draws: int = 5, seed: int = 0
) -> FeatureDistance:
    """Mahalanobis distances to the training set: Lee et al. (2018), arXiv:1807.03888.

    The features are what comes out of a layer, flattened. Their covariance, one for all classes, is shrunk (Ledoit and
    Wolf 2004, by scikit-learn), so that features without spread do no harm.

    Args:
        posterior: Its networks see the inputs.
        layer: The name of a module of the network, as in ``net.named_modules()``.
        x: Training inputs, as the network takes them.
        labels: ``(n,)``: one centre a class; without, one for all rows.
        draws: How many networks are drawn, evenly spaced over the draws of a finite posterior.
        seed: Of the draws.

    Raises:
        ValueError: There is no such layer.
    """
    from sklearn.covariance import LedoitWolf

    names = [name for name, _ in posterior.model.net.named_modules() if name]
    if layer not in names:
        raise ValueError(f"the network has no layer {layer!r}: it has {', '.join(names)}")
    have = posterior.num_draws
    picked = range(draws) if have is None else sorted({i * have // draws for i in range(min(draws, have))})
    fits = []
    for i in picked:
        net = posterior.net(i, seed)
        found = _features(net, layer, x)
        classes = torch.zeros(len(found), dtype=torch.long) if labels is None else torch.as_tensor(labels).cpu().long()
        kinds, which = classes.unique(return_inverse=True)
        centres = torch.stack([found[which == j].mean(0) for j in range(len(kinds))])
        fits.append((net, centres, LedoitWolf(assume_centered=True).fit((found - centres[which]).numpy())))
    return FeatureDistance(fits, layer)


@torch.no_grad()
def _features(net: nn.Module, layer: str, x: Any) -> Tensor:
    """What comes out of a layer: ``(n, p)``, float64, on the CPU."""
    kept: list[Any] = []
    like = next(parameter for parameter in net.parameters() if parameter.is_floating_point()).detach()
    handle = net.get_submodule(layer).register_forward_hook(lambda _module, _inputs, output: kept.append(output))
    try:
        args, kwargs = arguments(as_inputs(x, like))
        net(*args, **kwargs)
    finally:
        handle.remove()
    if len(kept) != 1 or not isinstance(kept[0], Tensor):
        raise ValueError(f"the layer {layer!r} gives {len(kept)} results, or none that is a tensor: name another")
    return kept[0].flatten(1).double().cpu()
