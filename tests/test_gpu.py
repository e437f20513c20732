"""What only an accelerator shows. Run where there is one: ``pytest -m gpu``."""

import pytest
import torch
from networks import make

import bnn

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device"),
]


@pytest.mark.parametrize("backend", ["eager", "graph", "inductor"])
@pytest.mark.parametrize("name", ["mlp", "batch norm", "dropout"])
def test_a_fit_on_cuda_repeats_and_leaves_the_random_states_alone(name: str, backend: str) -> None:
    net, x, y = make(name, 40)
    model = bnn.BNN(net, bnn.priors.Normal(1.0), bnn.likelihoods.Gaussian())
    before = torch.cuda.get_rng_state(), torch.get_rng_state()
    method = bnn.MeanField(epochs=5, batch_size=16)
    one, two = (bnn.fit(model, (x, y), method, device="cuda", compile=backend, progress=False) for _ in range(2))
    assert one.history.backend == backend
    torch.testing.assert_close(one.history.loss, two.history.loss)
    prediction = one.predict(x)
    assert prediction.mean.device.type == "cuda"
    assert prediction.log_prob(y).isfinite().all()
    assert all(
        torch.equal(a, b) for a, b in zip(before, (torch.cuda.get_rng_state(), torch.get_rng_state()), strict=True)
    )
    assert next(net.parameters()).device.type == "cpu"
