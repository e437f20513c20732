"""Maximum a posteriori: the mode, which is what penalised training finds."""

from __future__ import annotations

from dataclasses import dataclass

from bnn.capture import Backend
from bnn.inference.base import GradientMethod
from bnn.inference.objective import Objective
from bnn.inference.point import PointLoss, check_fixed_scales
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
        check_fixed_scales(model, "MAP")
        return PointLoss(self, model, n_data, backend)
