"""Networks to start from: plain `torch.nn` modules with readable parameter names, that know nothing of `bnn`.

Any other module does as well: see docs/networks.md.
"""

from bnn.nets.image import LeNet, ResNet, lenet, resnet
from bnn.nets.mlp import MLP, mlp
from bnn.nets.recipe import rebuilt
from bnn.nets.sequence import LSTM, lstm
from bnn.nets.table import Tabular, tabular

__all__ = ["LSTM", "MLP", "LeNet", "ResNet", "Tabular", "lenet", "lstm", "mlp", "rebuilt", "resnet", "tabular"]
