"""The first parts of a report: the data, the model, its training, and whether the inference can be trusted."""

from __future__ import annotations

import hashlib
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bnn import plots
from bnn.analysis import Verdict
from bnn.analysis.convergence import has_chains
from bnn.inputs import named_leaves, row_shapes
from bnn.reporting.blocks import Listing, Section, Table, Text, cell, picture
from bnn.reporting.subject import Rows, Subject, as_table

#: Columns, layers and lines that are shown.
_COLUMNS, _LAYERS, _LINES = 60, 24, 60


def data(subject: Subject) -> Section:
    """Rows, columns and targets."""
    sets = [("training", subject.train)]
    sets += [] if subject.held_out is None else [("held-out", subject.held_out)]
    rows = [
        [cell(name), cell(len(part)), cell(_shapes(part)), cell(_targets(subject, part)), cell(_fingerprint(part))]
        for name, part in sets
    ]
    head = ["rows of", "number", "inputs of a row", f"target: {subject.target}", "fingerprint (SHA-256)"]
    section = Section("data", "Data", [Table("What the model was fitted to, and judged by", head, rows)])
    table = as_table(subject.train.x)
    if table is not None and subject.columns:
        section.blocks.append(_columns(subject.shown(table), subject.columns))
    return section


def _columns(table: Tensor, names: tuple[str, ...]) -> Table:
    rows = []
    for name, column in islice(zip(names, table.double().cpu().T, strict=True), _COLUMNS):
        values = column[column.isfinite()]
        numbers = [values.mean(), values.std(correction=0), values.min(), values.max()] if len(values) else [np.nan] * 4
        rows.append([cell(name), *(cell(float(number)) for number in numbers), cell(len(column) - len(values))])
    more = f" (the first {_COLUMNS} of {len(names)})" if len(names) > _COLUMNS else ""
    return Table(f"Columns of the training rows{more}", ["column", "mean", "std", "min", "max", "missing"], rows)


def _shapes(part: Rows) -> str:
    shapes = [" × ".join(map(str, shape)) or "one number" for shape in row_shapes(part.x)]
    names = [name for name, _ in named_leaves(part.x)]
    return shapes[0] if len(shapes) == 1 else ", ".join(f"{n}: {s}" for n, s in zip(names, shapes, strict=True))


def _targets(subject: Subject, part: Rows) -> str:
    likelihood = subject.posterior.model.likelihood
    known = part.y[~likelihood.absent(part.y)]
    missing = part.y.numel() - known.numel()
    said = f", {missing} missing" if missing else ""
    if "probs" in likelihood.fields:
        values, counts = known.long().cpu().unique(return_counts=True)
        pairs = [f"{subject.class_name(int(v))}: {int(c)}" for v, c in zip(values[:12], counts[:12], strict=True)]
        return ", ".join(pairs) + (", ..." if len(values) > 12 else "") + said
    finite = subject.told(known.double()[known.double().isfinite()])
    if not len(finite):
        return "none known" + said
    return f"{finite.min():.4g} to {finite.max():.4g}, mean {finite.mean():.4g}{said}".replace("-", "−")


def _fingerprint(part: Rows) -> str:
    """Of the numbers as the model sees them: the same data, the same letters."""
    digest = hashlib.sha256()
    for _, leaf in [*named_leaves(part.x), ("y", part.y)]:
        array = leaf.detach().cpu().contiguous()
        digest.update(f"{array.dtype}{tuple(array.shape)}".encode())
        digest.update(array.view(torch.uint8).numpy().tobytes() if array.numel() else b"")
    return digest.hexdigest()[:16]


def model(subject: Subject) -> Section:
    """Network, prior, likelihood, method, and the unknowns that are no weights."""
    posterior = subject.posterior
    net, settings = posterior.model.net, posterior.settings
    shape = posterior.approximation.shape
    draws = "any number (a continuous distribution)" if shape is None else f"{shape[0]} × {shape[1]}"
    learned = [p.numel() for p in net.parameters() if p.requires_grad]
    rows = {
        "network": type(net).__name__,
        "weights": f"{sum(learned):,} in {len(learned)} tensors",
        "prior": repr(posterior.model.prior),
        "likelihood": repr(posterior.model.likelihood),
        "method": str(settings.get("method", posterior.approximation.kind)),
        "draws (chains × draws)": draws,
    }
    if posterior.model.readings is not None:
        rows["inputs"] = repr(posterior.model.readings)
    table = Table("The model", ["part", "what it is"], [[cell(name), cell(text)] for name, text in rows.items()])
    section = Section("model", "Model", [table])
    unknowns = list(_unknowns(subject))
    if unknowns:
        head = ["unknown", "mean", "standard deviation"]
        section.blocks.append(Table("What was learned besides the weights", head, unknowns[:_LAYERS]))
    lines = repr(net).splitlines()
    section.blocks.append(Listing("\n".join(lines[:_LINES] + ["..."] * (len(lines) > _LINES)), "The network"))
    return section


def _unknowns(subject: Subject) -> Any:
    posterior = subject.posterior
    own = {name for name, _ in posterior.model.net.named_parameters()} | set(posterior.model.state())
    have = posterior.num_draws
    for name, values in posterior.draws(200 if have is None else None, subject.seed).items():
        if name not in own and values[0].numel() <= 8 and not name.endswith(".z"):
            flat = values.reshape(len(values), -1).double().cpu()
            spread = flat.std(0) if len(flat) > 1 else torch.zeros(flat.shape[1])
            for i, (mean, std) in enumerate(zip(flat.mean(0), spread, strict=True)):
                yield [cell(name if flat.shape[1] == 1 else f"{name}[{i}]"), cell(float(mean)), cell(float(std))]
    for name, value in posterior.points.items():
        if name not in own and value.numel() == 1:
            yield [cell(name), cell(float(value)), cell("learned as a point")]


def training(subject: Subject) -> Section:
    """The course of the fit, and what it has done to the layers."""
    history = subject.posterior.history
    last = float(history.loss[-1]) if len(history.loss) else None
    parts = [f"The fit took {history.seconds:.1f} s"]
    if len(history.loss):
        parts[0] += f": {len(history.loss):,} steps in {history.epochs:,} epochs"
        parts.append(f"the last loss was {last:.4g} nats a row")
    section = Section("training", "Training", [Text("; ".join(parts) + ".")])
    section.blocks += [Text("The fit was stopped before its end (Ctrl-C).", "bad")] if history.interrupted else []
    section.blocks += [Text(note, "small") for note in history.notes]
    if len(history.loss) > 1:
        said = f"Loss by epoch, from {float(history.loss[0]):.4g} to {last:.4g} nats a row; its two parts beside it."
        section.blocks.append(picture(plots.training_curves(history), said, "The course of the fit"))
    evidence = subject.posterior.evidence
    if evidence is not None:
        kind = {"elbo": "a lower bound", "laplace": "Laplace's approximation"}[evidence.kind]
        error = f" ± {evidence.se:.2g}" if evidence.se else ""
        section.blocks.append(Text(f"Evidence log p(y): {evidence.value:.1f}{error} nats ({kind}).".replace("-", "−")))
    return section


def trust(subject: Subject, verdict: Verdict) -> Section:
    """The verdict on the inference, in words, and the figures behind it."""
    section = Section("trust", "Can the inference be trusted?")
    if verdict.good:
        said = "No objection. That nothing was found is no proof: a mode that nothing has visited is seen by nobody."
        section.blocks.append(Text(said, "good"))
    for flag in verdict.flags:
        # k-hat objects to nearly every network: no cause for alarm by itself.
        tone = "plain" if flag.name == "poor_approximation" else "bad"
        section.blocks.append(Text(f"{flag.name.replace('_', ' ')}: {flag.found}", tone))
        section.blocks.append(Text(flag.meaning))
    asked = {
        "chains": verdict.convergence,
        "k-hat": verdict.importance,
        "width": verdict.width,
        "held-out rows": verdict.surprise,
        "batches": verdict.history,
    }
    rows = [[cell(name), cell(str(part).splitlines()[0])] for name, part in asked.items() if part is not None]
    rows += [[cell(name), cell(f"not asked: {why}")] for name, why in verdict.skipped.items()]
    if rows:
        section.blocks.append(Table("What was asked", ["question", "answer"], rows))
    section.blocks += _figures(subject, verdict)
    return section


def _figures(subject: Subject, verdict: Verdict) -> list[Any]:
    blocks = []
    if verdict.convergence is not None:
        found = verdict.convergence
        said = f"R-hat and effective draws by part; of functions: {found.functions}."
        blocks.append(picture(plots.mixing_by_part(found), said, "Do the chains agree?"))
    if has_chains(subject.posterior) and subject.posterior.model.readings is None:
        axes = plots.function_mixing(subject.posterior, subject.known.x)
        blocks.append(picture(axes, "R-hat and effective draws of the output, row by row.", "The function, row by row"))
    if verdict.importance is not None:
        said = f"Share of the weight over draws: {verdict.importance}."
        blocks.append(picture(plots.k_hat(verdict.importance), said, "How near is the approximation?"))
    if verdict.layers:
        layers = dict(islice(verdict.layers.items(), _LAYERS))
        said = "Divergence from the prior by layer: "
        said += "; ".join(f"{name} {layer.information:.2g} nats a weight" for name, layer in layers.items())
        blocks.append(picture(plots.information_by_layer(layers), said, "What the data have said about each layer"))
    return blocks
