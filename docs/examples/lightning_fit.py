"""A Bayesian network fitted by Lightning: the loss is a module, and the trainer is Lightning's own.

pip install lightning
python docs/examples/lightning_fit.py
"""

import lightning
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import bnn


class Fit(lightning.LightningModule):
    """One loss module, one optimiser: everything else is the trainer's."""

    def __init__(self, model: bnn.BNN, n_data: int) -> None:
        super().__init__()
        self.loss = bnn.MeanField().loss(model, n_data)  # a torch module, the variational parameters are its own

    def training_step(self, batch, _):
        x, y = batch
        loss = self.loss(x, y)  # per datum
        self.log("loss", loss)
        return loss

    def configure_optimizers(self):
        return torch.optim.Adam(self.loss.parameters(), lr=2e-2)


torch.manual_seed(0)
x = torch.rand(200, 1) * 2 - 1
y = torch.sin(3 * x) + 0.1 * torch.randn(200, 1)
net = nn.Sequential(nn.Linear(1, 20), nn.Tanh(), nn.Linear(20, 1))
model = bnn.BNN(net, bnn.priors.Normal(1.0), bnn.likelihoods.Gaussian())

fit = Fit(model, n_data=len(x))
trainer = lightning.Trainer(
    max_epochs=100,
    accelerator="cpu",
    logger=False,
    enable_checkpointing=False,
    enable_progress_bar=False,
    enable_model_summary=False,
)
trainer.fit(fit, DataLoader(TensorDataset(x, y), batch_size=50, shuffle=True))
posterior = fit.loss.posterior()

if __name__ == "__main__":
    print(posterior, posterior.predict(x[:5]).mean.flatten())
