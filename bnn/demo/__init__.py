"""The demonstration: two real data sets, MAP beside mean-field VI, scored on rows that no fit has seen.

Run it with ``python -m bnn demo``; it needs no network.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch

from bnn.analysis import to_arviz
from bnn.demo.figures import draw
from bnn.demo.folder import claim, record
from bnn.demo.problems import Problem, breast_cancer, diabetes
from bnn.demo.scores import Fit, closing_sentence, how_to_read, score, table
from bnn.inference import MAP, MeanField, Method, fit

__all__ = ["run"]

Echo = Callable[[str], object]

#: The one measurement over which the band is drawn.
_BAND_COLUMN = "bmi"


def run(out: Path, seed: int = 0, epochs: int = 200, echo: Echo = print) -> None:
    """Fit, print the table, and write figures (PNG), ArviZ trees (netCDF) and the scores (JSON) into a folder.

    Args:
        out: The folder; made if it is not there.
        seed: Of the parting into training and test rows, of the initial weights and of the fits.
        epochs: The most passes over the data that a fit takes.
        echo: What prints a line.

    Raises:
        FileExistsError: There is something at `out` that this demonstration did not write.
    """
    claim(out)
    with _one_thread():
        _run(out, seed, epochs, echo)


def _run(out: Path, seed: int, epochs: int, echo: Echo) -> None:
    fits = [made for problem in (diabetes(seed), breast_cancer(seed)) for made in _fits(problem, seed, epochs, echo)]
    echo(f"fitting diabetes from {_BAND_COLUMN} alone, for a picture ...")
    alone = diabetes(seed, column=_BAND_COLUMN)
    band = _fit(replace(alone, validation=None), "mean-field VI", _methods(epochs)["mean-field VI"], seed)
    scores = [score(made) for made in fits]
    written = [record(out, seed, scores)]
    written += draw(fits, band, out)
    written += [_tree(made, out) for made in fits if isinstance(made.method, MeanField)]
    echo("")
    for line in [*table(scores), "", *how_to_read(), "", *closing_sentence(fits)]:
        echo(line)
    echo(f"\nWritten to {out}/:")
    for path in written:
        echo(f"  {path.name}")


@contextmanager
def _one_thread() -> Iterator[None]:
    """A second thread gains such small networks nothing, and on a busy machine they wait for it: four times as long."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _methods(epochs: int) -> dict[str, Method]:
    """Both methods on the same model and the same rows; neither is tuned.

    MAP goes back to the epoch that predicts the validation rows best. The loss of mean-field VI contains the price of
    complexity already: it runs to its end, and averages over the noise of its last steps.
    """
    return {
        "MAP": MAP(epochs=epochs, lr=1e-2, batch_size=64, patience=50),
        "mean-field VI": MeanField(epochs=epochs, lr=1e-2, batch_size=64, average=0.5),
    }


def _fits(problem: Problem, seed: int, epochs: int, echo: Echo) -> Iterator[Fit]:
    for label, method in _methods(epochs).items():
        echo(f"fitting {problem.name}: {label} ...")
        yield _fit(problem, label, method, seed)


def _fit(problem: Problem, label: str, method: Method, seed: int) -> Fit:
    posterior = fit(problem.model, problem.train, method, seed=seed, validation=problem.validation, progress=False)
    return Fit(problem, label, method, posterior, posterior.predict(problem.test[0]))


def _tree(made: Fit, out: Path) -> Path:
    """The training rows with their log-likelihoods, and predictions of the test rows."""
    path = out / f"{made.problem.slug}.nc"
    tree = to_arviz(made.posterior, *made.problem.train, predict_x=made.problem.test[0])
    tree.to_netcdf(path, engine="h5netcdf")
    return path
