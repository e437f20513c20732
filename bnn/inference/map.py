"""Maximum a posteriori: the mode, which is what penalised training finds."""

from __future__ import annotations

from dataclasses import dataclass

from bnn.capture import Backend
from bnn.inference.base import GradientMethod
from bnn.inference.objective import Objective
from bnn.inference.point import PointLoss
from bnn.model import BNN


@dataclass(frozen=True, kw_only=True)
class MAP(GradientMethod):
    """The weights of largest posterior density: ``argmin -log p(y | w) - log p(w)``.

    With a Gaussian prior this is training with L2 weight decay, with a Laplace prior with an L1 penalty
    (`bnn.priors`). Every latent is taken in its own coordinates: the mode of a noise scale, not of its logarithm.

    Raises (from `fit`):
        ValueError: A prior with a learned scale. The joint density of weights and scale has no useful mode: it grows
            without bound as all weights and the scale go to zero together (MacKay, Neural Computation 11, 1999).
    """

    def objective(self, model: BNN, n_data: int, backend: Backend = "auto") -> Objective:
        """The loss; see `GradientMethod.loss`."""
        groups = model.learned_prior_scales()
        if groups:
            raise ValueError(
                f"MAP cannot be used with a learned prior scale (in {', '.join(groups)}): the joint density of weights "
                "and scale grows without bound as both shrink to zero. Give the prior a fixed scale, or use mean_field"
            )
        return PointLoss(self, model, n_data, backend)
